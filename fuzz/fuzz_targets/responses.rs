//! What a TPM answers, read by every command.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = keybond_tpm::fuzzing::response(bytes);
});
