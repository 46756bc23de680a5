//! RSA by `bcrypt.dll`, which Wine has in full.

use std::ptr::null_mut;

use windows_sys::{
    Win32::{
        Foundation::{NTE_BUFFER_TOO_SMALL, NTE_FAIL, NTE_INVALID_PARAMETER, NTE_NOT_SUPPORTED},
        Security::Cryptography::{
            BCRYPT_KEY_HANDLE, BCRYPT_RSA_ALG_HANDLE, BCRYPT_RSAFULLPRIVATE_BLOB, BCryptDestroyKey,
            BCryptExportKey, BCryptFinalizeKeyPair, BCryptGenerateKeyPair, BCryptImportKeyPair,
        },
    },
    core::PCWSTR,
};

/// A key pair; freed when dropped.
pub(crate) struct KeyPair(pub(crate) BCRYPT_KEY_HANDLE);

impl KeyPair {
    pub(crate) fn generate(bits: u32) -> Result<Self, i32> {
        let mut handle = null_mut();
        // SAFETY: the handle is written before success.
        status(unsafe { BCryptGenerateKeyPair(BCRYPT_RSA_ALG_HANDLE, &mut handle, bits, 0) })?;
        let pair = Self(handle);
        // SAFETY: the handle is live and not finalised.
        status(unsafe { BCryptFinalizeKeyPair(pair.0, 0) })?;
        Ok(pair)
    }

    pub(crate) fn export_full(&self) -> Option<Vec<u8>> {
        let mut blob = vec![0; 16 * 1024];
        let len = self.export(BCRYPT_RSAFULLPRIVATE_BLOB, &mut blob).ok()?;
        blob.truncate(len as usize);
        Some(blob)
    }

    pub(crate) fn copy(&self) -> Option<Self> {
        Self::import_full(&self.export_full()?)
    }

    pub(crate) fn export(&self, form: PCWSTR, into: &mut [u8]) -> Result<u32, i32> {
        let mut len = 0;
        // SAFETY: the handle is live, the form ends with NUL, the buffer has the size that is passed.
        status(unsafe {
            BCryptExportKey(
                self.0,
                null_mut(),
                form,
                if into.is_empty() {
                    null_mut()
                } else {
                    into.as_mut_ptr()
                },
                into.len() as u32,
                &mut len,
                0,
            )
        })?;
        Ok(len)
    }

    pub(crate) fn import_full(blob: &[u8]) -> Option<Self> {
        let mut handle = null_mut();
        // SAFETY: the blob has the size that is passed; the handle is written before success.
        let imported = unsafe {
            BCryptImportKeyPair(
                BCRYPT_RSA_ALG_HANDLE,
                null_mut(),
                BCRYPT_RSAFULLPRIVATE_BLOB,
                &mut handle,
                blob.as_ptr(),
                blob.len() as u32,
                0,
            )
        };
        status(imported).ok()?;
        Some(Self(handle))
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        // SAFETY: the handle is ours.
        unsafe { BCryptDestroyKey(self.0) };
    }
}

/// An `NTSTATUS` as the code that NCrypt gives for it.
pub(crate) fn status(status: i32) -> Result<(), i32> {
    const BUFFER_TOO_SMALL: i32 = 0xc000_0023_u32.cast_signed();
    const INVALID_PARAMETER: i32 = 0xc000_000d_u32.cast_signed();
    const NOT_SUPPORTED: i32 = 0xc000_00bb_u32.cast_signed();
    match status {
        0 => Ok(()),
        BUFFER_TOO_SMALL => Err(NTE_BUFFER_TOO_SMALL),
        INVALID_PARAMETER => Err(NTE_INVALID_PARAMETER),
        NOT_SUPPORTED => Err(NTE_NOT_SUPPORTED),
        _ => Err(NTE_FAIL),
    }
}
