//! Keys: made, used, deleted, never taken out.

use std::{cell::Cell, ffi::c_void, marker::PhantomData, mem, ptr::null, sync::Arc};

use windows_sys::{
    Win32::Security::Cryptography::{
        BCRYPT_PAD_PKCS1, BCRYPT_PAD_PSS, BCRYPT_PKCS1_PADDING_INFO, BCRYPT_PSS_PADDING_INFO,
        BCRYPT_RSAFULLPRIVATE_BLOB, BCRYPT_RSAPRIVATE_BLOB, BCRYPT_RSAPUBLIC_BLOB,
        BCRYPT_SHA256_ALGORITHM, BCRYPT_SHA384_ALGORITHM, BCRYPT_SHA512_ALGORITHM, NCRYPT_FLAGS,
        NCRYPT_KEY_HANDLE, NCRYPT_PERSIST_FLAG, NCRYPT_PKCS8_PRIVATE_KEY_BLOB, NCRYPT_SILENT_FLAG,
        NCryptDeleteKey, NCryptExportKey, NCryptFinalizeKey, NCryptFreeObject, NCryptSetProperty,
        NCryptSignHash,
    },
    core::PCWSTR,
};
use zeroize::Zeroize as _;

use crate::{
    blob::RsaPublic,
    codes::Hresult,
    error::CngError,
    names,
    property::{check, get_u32},
    provider::ProviderHandle,
    wide::Wide,
};

/// No RSA signature, public key or private key that CNG makes is larger (RSA-16384).
const LARGEST: usize = 16 * 1024;

/// A key that is being made. Dropped without [`NewKey::finalize`], it never existed.
pub struct NewKey(KeyHandle);

/// A key that can be used. It may move between threads; two threads cannot use it at once.
pub struct Key(KeyHandle);

/// One CNG key handle, freed when dropped.
pub(crate) struct KeyHandle {
    raw: NCRYPT_KEY_HANDLE,
    /// A key needs its provider to stay open.
    _provider: Arc<ProviderHandle>,
    /// Nothing documents that two threads may use one handle.
    _not_sync: PhantomData<Cell<()>>,
}

/// The hash a signature is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// The padding of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// RSASSA-PKCS1-v1_5.
    Pkcs1,
    /// RSASSA-PSS with a salt as long as the hash.
    Pss,
}

/// The outcome of really trying to export a private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportOutcome {
    /// Every form was refused: the form and the code.
    Refused(Vec<(&'static str, Hresult)>),
    /// It came out in this form, and was wiped.
    Exported(&'static str),
}

impl NewKey {
    pub(crate) fn adopt(raw: NCRYPT_KEY_HANDLE, provider: Arc<ProviderHandle>) -> Self {
        Self(KeyHandle::new(raw, provider))
    }

    /// Sets the size in bits.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptSetProperty`.
    pub fn set_length(&self, bits: u32) -> Result<(), CngError> {
        self.0.set_u32(names::LENGTH, bits, 0)
    }

    /// Sets the export policy; 0 forbids every export.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptSetProperty`.
    pub fn set_export_policy(&self, policy: u32) -> Result<(), CngError> {
        self.0
            .set_u32(names::EXPORT_POLICY, policy, NCRYPT_PERSIST_FLAG)
    }

    /// Sets what the key may be used for (`names::USAGE_*`).
    ///
    /// # Errors
    /// [`CngError`] of `NCryptSetProperty`.
    pub fn set_usage(&self, usage: u32) -> Result<(), CngError> {
        self.0.set_u32(names::KEY_USAGE, usage, NCRYPT_PERSIST_FLAG)
    }

    /// Makes the key and, if it has a name, keeps it under that name.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptFinalizeKey`; the key does not exist then.
    pub fn finalize(self) -> Result<Key, CngError> {
        // SAFETY: the handle is live and not finalised: only this method does it, and it takes `self`.
        let status = unsafe { NCryptFinalizeKey(self.0.raw, NCRYPT_SILENT_FLAG) };
        check("NCryptFinalizeKey", status)?;
        Ok(Key(self.0))
    }
}

impl Key {
    pub(crate) fn adopt(raw: NCRYPT_KEY_HANDLE, provider: Arc<ProviderHandle>) -> Self {
        Self(KeyHandle::new(raw, provider))
    }

    pub(crate) fn raw(&self) -> NCRYPT_KEY_HANDLE {
        self.0.raw
    }

    /// Reads a DWORD property (see [`names`]).
    ///
    /// # Errors
    /// [`CngError`] if the key has no such property or it is no DWORD.
    pub fn property(&self, name: &str) -> Result<u32, CngError> {
        get_u32(self.0.raw, name)
    }

    /// Signs a digest. The signature is as long as the modulus, big endian.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptSignHash`, also when `digest` does not have the hash's length.
    pub fn sign(&self, padding: Padding, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, CngError> {
        const CALL: &str = "NCryptSignHash";
        if digest.len() != hash.len() {
            // NTE_BAD_LEN, as Windows says it; other systems sign digests of any length.
            return Err(CngError::new(CALL, Hresult::from_bits(0x8009_0004)));
        }
        let pkcs1 = BCRYPT_PKCS1_PADDING_INFO {
            pszAlgId: hash.algorithm(),
        };
        let pss = BCRYPT_PSS_PADDING_INFO {
            pszAlgId: hash.algorithm(),
            cbSalt: hash.len() as u32,
        };
        let (info, flag): (*const c_void, NCRYPT_FLAGS) = match padding {
            Padding::Pkcs1 => ((&raw const pkcs1).cast(), BCRYPT_PAD_PKCS1),
            Padding::Pss => ((&raw const pss).cast(), BCRYPT_PAD_PSS),
        };
        let mut signature = vec![0; LARGEST];
        let mut len = 0;
        // SAFETY: the handle is live; `info` is the structure that `flag` announces and outlives the call, with
        // a static algorithm name; both buffers have the sizes that are passed.
        let status = unsafe {
            NCryptSignHash(
                self.0.raw,
                info,
                digest.as_ptr(),
                digest.len() as u32,
                signature.as_mut_ptr(),
                LARGEST as u32,
                &mut len,
                flag | NCRYPT_SILENT_FLAG,
            )
        };
        check(CALL, status)?;
        signature.truncate(len as usize);
        Ok(signature)
    }

    /// The public key.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptExportKey`, or `NTE_BAD_DATA` if the blob is not laid out as documented.
    pub fn public_key(&self) -> Result<RsaPublic, CngError> {
        let blob = self.export(BCRYPT_RSAPUBLIC_BLOB)?;
        RsaPublic::from_blob(&blob)
            .map_err(|_| CngError::new("NCryptExportKey", Hresult::from_bits(0x8009_0005)))
    }

    /// Really tries to export the private key in every plain form CNG has, and wipes what comes out.
    pub fn attempt_private_export(&self) -> ExportOutcome {
        let forms = [
            ("RSAFULLPRIVATEBLOB", BCRYPT_RSAFULLPRIVATE_BLOB),
            ("RSAPRIVATEBLOB", BCRYPT_RSAPRIVATE_BLOB),
            ("PKCS8_PRIVATEKEY", NCRYPT_PKCS8_PRIVATE_KEY_BLOB),
        ];
        let mut refusals = Vec::new();
        for (name, form) in forms {
            match self.export(form) {
                Ok(mut private) => {
                    private.zeroize();
                    return ExportOutcome::Exported(name);
                }
                Err(error) => refusals.push((name, error.code())),
            }
        }
        ExportOutcome::Refused(refusals)
    }

    /// Deletes the key from its provider. Windows deletes by name: through a handle whose key was replaced
    /// meanwhile this would delete the new key, so open it anew and compare before.
    ///
    /// # Errors
    /// [`CngError`] of `NCryptDeleteKey`; the key is still there then.
    pub fn delete(self) -> Result<(), CngError> {
        // SAFETY: the handle is live; on success the call has freed it, and we forget it just below.
        let status = unsafe { NCryptDeleteKey(self.0.raw, NCRYPT_SILENT_FLAG) };
        check("NCryptDeleteKey", status)?;
        let Self(handle) = self;
        handle.forget();
        Ok(())
    }

    /// The blob of `form` in a buffer of its own size. The large one is wiped, since `form` may be private.
    fn export(&self, form: PCWSTR) -> Result<Vec<u8>, CngError> {
        let mut buffer = vec![0; LARGEST];
        let mut len = 0;
        // SAFETY: the handle is live, `form` is a static string that ends with NUL, and the buffer has the size
        // that is passed.
        let status = unsafe {
            NCryptExportKey(
                self.0.raw,
                0,
                form,
                null(),
                buffer.as_mut_ptr(),
                LARGEST as u32,
                &mut len,
                NCRYPT_SILENT_FLAG,
            )
        };
        let blob =
            check("NCryptExportKey", status).map(|()| buffer[..LARGEST.min(len as usize)].to_vec());
        buffer.zeroize();
        blob
    }
}

impl KeyHandle {
    fn new(raw: NCRYPT_KEY_HANDLE, provider: Arc<ProviderHandle>) -> Self {
        Self {
            raw,
            _provider: provider,
            _not_sync: PhantomData,
        }
    }

    fn set_u32(&self, name: &str, value: u32, flags: NCRYPT_FLAGS) -> Result<(), CngError> {
        let name = Wide::new(name)?;
        let value = value.to_le_bytes();
        // SAFETY: the handle is live, `name` ends with NUL, and the value has the size that is passed.
        let status =
            unsafe { NCryptSetProperty(self.raw, name.as_ptr(), value.as_ptr(), 4, flags) };
        check("NCryptSetProperty", status)
    }

    /// Lets go of a handle that Windows has freed already.
    fn forget(mut self) {
        self.raw = 0;
    }
}

impl Drop for KeyHandle {
    fn drop(&mut self) {
        let raw = mem::take(&mut self.raw);
        if raw != 0 {
            // SAFETY: the handle is ours and was not freed: `forget` clears it.
            unsafe { NCryptFreeObject(raw) };
        }
    }
}

impl Hash {
    const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    const fn algorithm(self) -> PCWSTR {
        match self {
            Self::Sha256 => BCRYPT_SHA256_ALGORITHM,
            Self::Sha384 => BCRYPT_SHA384_ALGORITHM,
            Self::Sha512 => BCRYPT_SHA512_ALGORITHM,
        }
    }
}
