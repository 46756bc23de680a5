//! Key storage providers.

use std::{ptr::null, sync::Arc};

use windows_sys::Win32::Security::Cryptography::{
    BCRYPT_RSA_ALGORITHM, NCRYPT_PROV_HANDLE, NCRYPT_SILENT_FLAG, NCryptCreatePersistedKey,
    NCryptFreeObject, NCryptOpenKey, NCryptOpenStorageProvider,
};

use crate::{
    error::CngError,
    key::{Key, NewKey},
    names,
    property::{check, get_u32},
    wide::Wide,
};

/// An open key storage provider. Clones share it.
#[derive(Clone)]
pub struct Provider {
    handle: Arc<ProviderHandle>,
}

/// Freed when the last provider and key that uses it is gone.
pub(crate) struct ProviderHandle(NCRYPT_PROV_HANDLE);

impl Provider {
    /// Opens the provider called `name` (see [`names`]).
    ///
    /// That it opens proves nothing about what is behind it; ask [`Provider::implementation`].
    ///
    /// # Errors
    /// [`CngError`] with the code of `NCryptOpenStorageProvider`.
    pub fn open(name: &str) -> Result<Self, CngError> {
        let name = Wide::new(name)?;
        let mut handle = 0;
        // SAFETY: `name` ends with NUL and the handle is written before the call returns success.
        let status = unsafe { NCryptOpenStorageProvider(&mut handle, name.as_ptr(), 0) };
        check("NCryptOpenStorageProvider", status)?;
        Ok(Self {
            handle: Arc::new(ProviderHandle(handle)),
        })
    }

    /// What implements the provider, as `names::IMPL_*` bits.
    ///
    /// # Errors
    /// [`CngError`] if the provider does not say.
    pub fn implementation(&self) -> Result<u32, CngError> {
        get_u32(self.handle.0, names::IMPLEMENTATION)
    }

    /// Begins a new RSA key in the user's scope. Nothing is kept before [`NewKey::finalize`]. Without a name
    /// the key lives as long as its handle.
    ///
    /// # Errors
    /// [`CngError`]: `NTE_EXISTS` if there is a key of this name and `flags` lacks
    /// [`names::OVERWRITE`], or what the provider says to the other flags.
    pub fn begin_key(&self, name: Option<&str>, flags: u32) -> Result<NewKey, CngError> {
        let name = name.map(Wide::new).transpose()?;
        let name = name.as_ref().map_or(null(), Wide::as_ptr);
        let mut handle = 0;
        // SAFETY: the provider is open, both strings end with NUL (no name is a null pointer, as documented),
        // and the handle is written before the call returns success.
        let status = unsafe {
            NCryptCreatePersistedKey(
                self.handle.0,
                &mut handle,
                BCRYPT_RSA_ALGORITHM,
                name,
                0,
                flags,
            )
        };
        check("NCryptCreatePersistedKey", status)?;
        Ok(NewKey::adopt(handle, Arc::clone(&self.handle)))
    }

    /// Opens the key called `name` in the user's scope.
    ///
    /// # Errors
    /// [`CngError`]; only [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) says that there is none.
    pub fn open_key(&self, name: &str) -> Result<Key, CngError> {
        let name = Wide::new(name)?;
        let mut handle = 0;
        // SAFETY: the provider is open, `name` ends with NUL, and the handle is written before the call
        // returns success.
        let status = unsafe {
            NCryptOpenKey(
                self.handle.0,
                &mut handle,
                name.as_ptr(),
                0,
                NCRYPT_SILENT_FLAG,
            )
        };
        check("NCryptOpenKey", status)?;
        Ok(Key::adopt(handle, Arc::clone(&self.handle)))
    }
}

impl Drop for ProviderHandle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and this is the only place that frees it.
        unsafe { NCryptFreeObject(self.0) };
    }
}
