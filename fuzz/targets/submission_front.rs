#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| tests::fuzzed::play("submission_front", octets));
