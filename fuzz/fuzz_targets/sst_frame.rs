#![no_main]

use ringkeep_fuzz::{FRAME, decoders, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(decoders::sst_frame, FRAME, data));
