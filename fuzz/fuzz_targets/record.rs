#![no_main]

use ringkeep_fuzz::{SMALL, decoders, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(decoders::record, SMALL, data));
