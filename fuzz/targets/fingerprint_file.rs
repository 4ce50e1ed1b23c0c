#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| tests::fuzzed::play("fingerprint_file", octets));
