#![no_main]

use ringkeep_fuzz::{HANDSHAKE, decoders, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(decoders::tls, HANDSHAKE, data));
