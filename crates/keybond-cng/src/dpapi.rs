//! The data protection interface: bytes that only this user on this machine (or roaming profile) gets back.

use std::{
    ptr::{null, null_mut},
    slice,
};

use windows_sys::Win32::{
    Foundation::LocalFree,
    Security::Cryptography::{
        CRYPT_INTEGER_BLOB, CRYPTPROTECT_UI_FORBIDDEN, CryptProtectData, CryptUnprotectData,
    },
};

use crate::{codes::Hresult, error::CngError, mutex::last_error};

/// Encrypts `data` so that only this user gets it back. `purpose` must be the same when it is opened: what was
/// protected for one purpose does not open for another.
///
/// # Errors
/// [`CngError`] of `CryptProtectData`, for example if the user has no profile.
pub fn protect(data: &[u8], purpose: &[u8]) -> Result<Vec<u8>, CngError> {
    let (data, purpose, mut out) = (blob(data)?, blob(purpose)?, empty());
    // SAFETY: both inputs describe live memory that the call only reads; without UI, prompt and description are
    // not used; the output is written before the call returns success.
    let done = unsafe {
        CryptProtectData(
            &data,
            null(),
            &purpose,
            null(),
            null(),
            CRYPTPROTECT_UI_FORBIDDEN,
            &mut out,
        )
    };
    taken(done != 0, "CryptProtectData", &out)
}

/// Decrypts what [`protect`] made for the same user and purpose.
///
/// # Errors
/// [`CngError`] of `CryptUnprotectData`: `ERROR_INVALID_DATA` if it was changed, or made by another user or for
/// another purpose.
pub fn unprotect(data: &[u8], purpose: &[u8]) -> Result<Vec<u8>, CngError> {
    let (data, purpose, mut out) = (blob(data)?, blob(purpose)?, empty());
    // SAFETY: as in `protect`.
    let done = unsafe {
        CryptUnprotectData(
            &data,
            null_mut(),
            &purpose,
            null(),
            null(),
            CRYPTPROTECT_UI_FORBIDDEN,
            &mut out,
        )
    };
    taken(done != 0, "CryptUnprotectData", &out)
}

/// Both calls declare their inputs mutable and only read them.
fn blob(bytes: &[u8]) -> Result<CRYPT_INTEGER_BLOB, CngError> {
    Ok(CRYPT_INTEGER_BLOB {
        cbData: u32::try_from(bytes.len())
            .map_err(|_| CngError::new("protecting 4 GiB", Hresult::from_win32(87)))?,
        pbData: bytes.as_ptr().cast_mut(),
    })
}

fn empty() -> CRYPT_INTEGER_BLOB {
    CRYPT_INTEGER_BLOB {
        cbData: 0,
        pbData: null_mut(),
    }
}

fn taken(done: bool, call: &'static str, out: &CRYPT_INTEGER_BLOB) -> Result<Vec<u8>, CngError> {
    if !done || out.pbData.is_null() {
        return Err(last_error(call));
    }
    // SAFETY: on success the system allocated this many bytes for us, and nobody else frees them.
    unsafe {
        let bytes = slice::from_raw_parts(out.pbData, out.cbData as usize).to_vec();
        LocalFree(out.pbData.cast());
        Ok(bytes)
    }
}
