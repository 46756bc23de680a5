//! `NCryptCreateClaim`: the provider's own statement about a key. Looked up at run time, since systems
//! without the call must start, too.

use std::{mem, ptr::null};

use windows_sys::{
    Win32::{
        Security::Cryptography::{
            NCRYPT_CLAIM_SUBJECT_ONLY, NCRYPT_CLAIM_VSM_KEY_ATTESTATION_STATEMENT,
            NCRYPT_KEY_HANDLE,
        },
        System::LibraryLoader::{GetModuleHandleW, GetProcAddress},
    },
    core::{s, w},
};

use crate::{codes::Hresult, error::CngError, key::Key, property::check};

/// Which statement to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// About a key of the Platform Crypto Provider (`NCRYPT_CLAIM_SUBJECT_ONLY`).
    Subject,
    /// About a key in the VBS enclave (`NCRYPT_CLAIM_VSM_KEY_ATTESTATION_STATEMENT`).
    Vbs,
}

type CreateClaim = unsafe extern "system" fn(
    NCRYPT_KEY_HANDLE,
    NCRYPT_KEY_HANDLE,
    u32,
    *const core::ffi::c_void,
    *mut u8,
    u32,
    *mut u32,
    u32,
) -> i32;

/// Whether this system's `ncrypt.dll` exports `NCryptCreateClaim`. That says nothing about what a call does:
/// Wine exports a stub that ends the process.
pub fn claims_exported() -> bool {
    create_claim().is_some()
}

impl Key {
    /// Asks the provider for its statement about this key.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptCreateClaim`; `ERROR_CALL_NOT_IMPLEMENTED` if the system has no such call.
    pub fn create_claim(&self, kind: ClaimKind) -> Result<Vec<u8>, CngError> {
        const CALL: &str = "NCryptCreateClaim";
        const LARGEST: u32 = 64 * 1024;
        let create = create_claim().ok_or(CngError::new(CALL, Hresult::from_win32(120)))?;
        let kind = match kind {
            ClaimKind::Subject => NCRYPT_CLAIM_SUBJECT_ONLY,
            ClaimKind::Vbs => NCRYPT_CLAIM_VSM_KEY_ATTESTATION_STATEMENT,
        };
        let mut claim = vec![0; LARGEST as usize];
        let mut len = 0;
        // SAFETY: the function has the documented type, the handle is live, there is no authority key and no
        // parameter, and the buffer has the size that is passed.
        let status = unsafe {
            create(
                self.raw(),
                0,
                kind,
                null(),
                claim.as_mut_ptr(),
                LARGEST,
                &mut len,
                0,
            )
        };
        check(CALL, status)?;
        claim.truncate(len as usize);
        Ok(claim)
    }
}

fn create_claim() -> Option<CreateClaim> {
    // SAFETY: the name ends with NUL; the module is loaded for the life of the process, since we import it.
    let module = unsafe { GetModuleHandleW(w!("ncrypt.dll")) };
    if module.is_null() {
        return None;
    }
    // SAFETY: the module is loaded and the name ends with NUL.
    let found = unsafe { GetProcAddress(module, s!("NCryptCreateClaim")) }?;
    // SAFETY: ncrypt.h declares the function with exactly this type.
    Some(unsafe { mem::transmute::<unsafe extern "system" fn() -> isize, CreateClaim>(found) })
}
