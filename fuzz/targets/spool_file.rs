#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| tests::fuzzed::play("spool_file", octets));
