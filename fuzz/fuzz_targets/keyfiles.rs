//! Key files, and public areas inside them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = keybond_tpm::fuzzing::key_file(bytes);
});
