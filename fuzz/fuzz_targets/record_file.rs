#![no_main]

use ringkeep_fuzz::{FILE, decoders, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(decoders::record_file, FILE, data));
