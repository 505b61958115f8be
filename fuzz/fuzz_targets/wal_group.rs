#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringkeep_fuzz::run(ringkeep_fuzz::decoders::wal_group, data));
