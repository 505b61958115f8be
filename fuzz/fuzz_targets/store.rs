#![no_main]

use ringkeep_fuzz::{SLOTS, decoders, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(decoders::store, SLOTS, data));
