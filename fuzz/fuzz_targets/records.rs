//! What is kept beside a key file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = keybond_keys::fuzzing::record(bytes);
});
