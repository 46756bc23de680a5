//! A stand-in for `ncrypt.dll` under Wine, at the binary interface: the programs under test are the ones that
//! would run on Windows.
//!
//! RSA is done by `bcrypt.dll`. What is faked is what Wine lacks: named keys that other processes find, the
//! VBS enclave, a TPM, and their failures. The directory in `KEYBOND_FAKE_NCRYPT` holds the keys and a file
//! `config`, read at every call, so that a test can change the machine under a running program:
//!
//! ```text
//! vbs=on                       the machine has virtualization-based security
//! tpm=on                       it has a TPM, reached through the Platform Crypto Provider
//! boot=2                       per-boot keys of other boots no longer work …
//! stale=open | sign            … and fail when they are opened (0x8009003A), or only when they sign
//! tpm-seed=2                   the TPM was cleared: keys of other seeds open and do not sign
//! salt=1                       the TPM's PSS salt: 1 = maximal, 2 = as long as the hash
//! salt-told=off                … and the key does not say so
//! virtual-iso=0                lies: the property that a VBS key reads back
//! fail.<call>=80070020[*N]     this call fails with this code, N times or always
//! ```
//!
//! Every code returned here is an assumption about Windows. The table in `docs/windows.md` says where each
//! comes from.
#![cfg(windows)]
#![allow(non_snake_case)]

mod config;
pub mod exports;
mod object;
mod rsa;
