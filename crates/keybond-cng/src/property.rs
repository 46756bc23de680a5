//! Properties of providers and keys, and the check every NCrypt call goes through.

use std::ptr::null_mut;

use windows_sys::Win32::Security::Cryptography::{
    NCRYPT_HANDLE, NCRYPT_SILENT_FLAG, NCryptGetProperty,
};

use crate::{codes::Hresult, error::CngError, wide::Wide};

/// Turns the status of `call` into a result.
pub(crate) fn check(call: &'static str, status: i32) -> Result<(), CngError> {
    match status {
        0 => Ok(()),
        code => Err(CngError::new(
            call,
            Hresult::from_bits(code.cast_unsigned()),
        )),
    }
}

/// Reads a property of the provider or key behind `handle`.
pub(crate) fn get(handle: NCRYPT_HANDLE, name: &str) -> Result<Vec<u8>, CngError> {
    const CALL: &str = "NCryptGetProperty";
    let name = Wide::new(name)?;
    let mut len = 0;
    // SAFETY: the handle is live in our caller, `name` ends with NUL, and without a buffer only the size is
    // written.
    let status = unsafe {
        NCryptGetProperty(
            handle,
            name.as_ptr(),
            null_mut(),
            0,
            &mut len,
            NCRYPT_SILENT_FLAG,
        )
    };
    check(CALL, status)?;
    let mut value = vec![0; len as usize];
    // SAFETY: as above, and the buffer has the size that is passed.
    let status = unsafe {
        NCryptGetProperty(
            handle,
            name.as_ptr(),
            value.as_mut_ptr(),
            len,
            &mut len,
            NCRYPT_SILENT_FLAG,
        )
    };
    check(CALL, status)?;
    value.truncate(len as usize);
    Ok(value)
}

/// Reads a DWORD property.
pub(crate) fn get_u32(handle: NCRYPT_HANDLE, name: &str) -> Result<u32, CngError> {
    let value = get(handle, name)?;
    match value.first_chunk() {
        Some(bytes) if value.len() == 4 => Ok(u32::from_le_bytes(*bytes)),
        // NTE_BAD_LEN: not a DWORD.
        _ => Err(CngError::new(
            "NCryptGetProperty",
            Hresult::from_bits(0x8009_0004),
        )),
    }
}
