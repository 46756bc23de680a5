//! The certificate store `My` of the current user.
//!
//! Two rules that Windows' documentation leaves to the reader: deleting while enumerating may never end, so
//! certificates are collected first; and a store may write its changes only when told, so every change is
//! committed.

use std::{
    ffi::c_void,
    ptr::{null, null_mut},
    slice,
};

use windows_sys::{
    Win32::Security::Cryptography::{
        CERT_CONTEXT, CERT_FRIENDLY_NAME_PROP_ID, CERT_KEY_PROV_INFO_PROP_ID,
        CERT_STORE_ADD_REPLACE_EXISTING, CERT_STORE_CTRL_COMMIT, CERT_STORE_PROV_SYSTEM_W,
        CERT_SYSTEM_STORE_CURRENT_USER, CRYPT_INTEGER_BLOB, CRYPT_KEY_PROV_INFO,
        CertAddEncodedCertificateToStore, CertCloseStore, CertControlStore,
        CertDeleteCertificateFromStore, CertDuplicateCertificateContext,
        CertEnumCertificatesInStore, CertFreeCertificateContext, CertGetCertificateContextProperty,
        CertOpenStore, CertSetCertificateContextProperty, HCERTSTORE, X509_ASN_ENCODING,
    },
    core::w,
};

use crate::{
    codes::Hresult,
    der::subject_public_key_info,
    error::{CngError, ErrorKind},
    mutex::last_error,
    wide::{Wide, c_text, text},
};

/// The open store.
pub struct CertStore(HCERTSTORE);

/// One certificate of a store.
pub struct Certificate(*const CERT_CONTEXT);

/// Which key belongs to a certificate: a name inside a provider, in the user's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLink {
    /// The key's name.
    pub key: String,
    /// The key storage provider's name.
    pub provider: String,
}

impl CertStore {
    /// Opens `CurrentUser\My`.
    ///
    /// # Errors
    /// [`CngError`] of `CertOpenStore`.
    pub fn open_my() -> Result<Self, CngError> {
        // SAFETY: this provider takes the name of a system store as UTF-16 ending with NUL.
        let store = unsafe {
            CertOpenStore(
                CERT_STORE_PROV_SYSTEM_W,
                0,
                0,
                CERT_SYSTEM_STORE_CURRENT_USER,
                w!("MY").cast(),
            )
        };
        if store.is_null() {
            return Err(last_error("CertOpenStore"));
        }
        Ok(Self(store))
    }

    /// Every certificate of the store, now.
    pub fn certificates(&self) -> Vec<Certificate> {
        let mut all = Vec::new();
        let mut context = null_mut();
        loop {
            // SAFETY: the store is open and `context` comes from this call, which frees it.
            context = unsafe { CertEnumCertificatesInStore(self.0, context) };
            if context.is_null() {
                return all;
            }
            // SAFETY: `context` is live until the next call; the duplicate is ours.
            all.push(Certificate(unsafe {
                CertDuplicateCertificateContext(context)
            }));
        }
    }

    /// Adds a certificate (DER), in place of an equal one, with its name and its key, and commits.
    ///
    /// # Errors
    /// [`CngError`] of the call that failed, for example if `der` is no certificate.
    pub fn add(
        &self,
        der: &[u8],
        friendly_name: Option<&str>,
        key: Option<&KeyLink>,
    ) -> Result<Certificate, CngError> {
        let len = u32::try_from(der.len())
            .map_err(|_| CngError::new("a certificate of 4 GiB", Hresult::from_win32(87)))?;
        // Not every system drops the old properties when a certificate is replaced.
        self.delete(der)?;
        let mut context = null_mut();
        // SAFETY: the store is open, `der` has the size that is passed, and the context is ours on success.
        let added = unsafe {
            CertAddEncodedCertificateToStore(
                self.0,
                X509_ASN_ENCODING,
                der.as_ptr(),
                len,
                CERT_STORE_ADD_REPLACE_EXISTING,
                &mut context,
            )
        };
        if added == 0 {
            return Err(last_error("CertAddEncodedCertificateToStore"));
        }
        let certificate = Certificate(context);
        let described = friendly_name
            .map_or(Ok(()), |name| certificate.set_friendly_name(name))
            .and_then(|()| key.map_or(Ok(()), |key| certificate.set_key(key)));
        if let Err(error) = described {
            // Without its name nobody would find it again.
            delete_context(certificate)?;
            return Err(error);
        }
        self.commit()?;
        Ok(certificate)
    }

    /// Deletes the certificate with this DER, and commits. `Ok(false)` if the store, as it was when it was
    /// opened, has none.
    ///
    /// # Errors
    /// [`CngError`] of the call that failed.
    pub fn delete(&self, der: &[u8]) -> Result<bool, CngError> {
        let deleted = self.delete_where(|certificate| certificate.der() == der)?;
        Ok(deleted > 0)
    }

    /// Deletes the certificates for which `which` says so, and commits. Returns how many there were. To drop
    /// those of a dead key, and nobody else's, compare [`Certificate::public_key`].
    ///
    /// # Errors
    /// [`CngError`] of the first deletion that failed; what was deleted before stays deleted.
    pub fn delete_where(&self, which: impl Fn(&Certificate) -> bool) -> Result<usize, CngError> {
        let mut deleted = 0;
        for certificate in self.certificates() {
            if which(&certificate) {
                deleted += usize::from(delete_context(certificate)?);
            }
        }
        if deleted > 0 {
            self.commit()?;
        }
        Ok(deleted)
    }

    fn commit(&self) -> Result<(), CngError> {
        // SAFETY: the store is open; this control takes no parameter.
        if unsafe { CertControlStore(self.0, 0, CERT_STORE_CTRL_COMMIT, null()) } == 0 {
            return Err(last_error("CertControlStore"));
        }
        Ok(())
    }
}

impl Drop for CertStore {
    fn drop(&mut self) {
        // SAFETY: the store is ours; certificates that outlive it keep what they need.
        unsafe { CertCloseStore(self.0, 0) };
    }
}

impl Certificate {
    /// The certificate, DER.
    pub fn der(&self) -> &[u8] {
        // SAFETY: the context is live as long as `self`, and never changed.
        unsafe { slice::from_raw_parts((*self.0).pbCertEncoded, (*self.0).cbCertEncoded as usize) }
    }

    /// The public key as SubjectPublicKeyInfo (DER); `None` if the certificate is not laid out as RFC 5280
    /// says.
    pub fn public_key(&self) -> Option<&[u8]> {
        subject_public_key_info(self.der())
    }

    /// The friendly name, if it has one.
    ///
    /// # Errors
    /// [`CngError`] of `CertGetCertificateContextProperty`.
    pub fn friendly_name(&self) -> Result<Option<String>, CngError> {
        let Some((bytes, len)) = self.property(CERT_FRIENDLY_NAME_PROP_ID)? else {
            return Ok(None);
        };
        let units: Vec<u16> = bytes
            .iter()
            .flat_map(|word| halves(*word))
            .take(len / 2)
            .collect();
        Ok(Some(text(&units)))
    }

    /// The key that belongs to it, if it says so.
    ///
    /// # Errors
    /// [`CngError`] of `CertGetCertificateContextProperty`.
    pub fn key(&self) -> Result<Option<KeyLink>, CngError> {
        let Some((words, len)) = self.property(CERT_KEY_PROV_INFO_PROP_ID)? else {
            return Ok(None);
        };
        if len < size_of::<CRYPT_KEY_PROV_INFO>() {
            return Ok(None);
        }
        // SAFETY: the property is this structure, in a buffer that is large enough and aligned for it.
        let info = unsafe { &*words.as_ptr().cast::<CRYPT_KEY_PROV_INFO>() };
        // SAFETY: its strings lie in the same buffer and end with NUL.
        let (key, provider) =
            unsafe { (c_text(info.pwszContainerName), c_text(info.pwszProvName)) };
        Ok(Some(KeyLink { key, provider }))
    }

    fn set_friendly_name(&self, name: &str) -> Result<(), CngError> {
        let mut name = Wide::new(name)?;
        let blob = CRYPT_INTEGER_BLOB {
            cbData: name.len_bytes(),
            pbData: name.as_mut_ptr().cast(),
        };
        self.set_property(CERT_FRIENDLY_NAME_PROP_ID, (&raw const blob).cast())
    }

    fn set_key(&self, key: &KeyLink) -> Result<(), CngError> {
        let mut name = Wide::new(&key.key)?;
        let mut provider = Wide::new(&key.provider)?;
        // Provider type 0 and key spec 0 mean a CNG key.
        let info = CRYPT_KEY_PROV_INFO {
            pwszContainerName: name.as_mut_ptr(),
            pwszProvName: provider.as_mut_ptr(),
            dwProvType: 0,
            dwFlags: 0,
            cProvParam: 0,
            rgProvParam: null_mut(),
            dwKeySpec: 0,
        };
        self.set_property(CERT_KEY_PROV_INFO_PROP_ID, (&raw const info).cast())
    }

    fn set_property(&self, id: u32, value: *const c_void) -> Result<(), CngError> {
        // SAFETY: both callers pass the structure that `id` announces, live for the call, which copies it.
        if unsafe { CertSetCertificateContextProperty(self.0, id, 0, value) } == 0 {
            return Err(last_error("CertSetCertificateContextProperty"));
        }
        Ok(())
    }

    /// A property in a buffer aligned for any structure, and its length in bytes.
    fn property(&self, id: u32) -> Result<Option<(Vec<u64>, usize)>, CngError> {
        const CALL: &str = "CertGetCertificateContextProperty";
        let mut len = 0;
        // SAFETY: the context is live; without a buffer only the size is written.
        if unsafe { CertGetCertificateContextProperty(self.0, id, null_mut(), &mut len) } == 0 {
            let error = last_error(CALL);
            return if error.kind() == ErrorKind::NotFound {
                Ok(None)
            } else {
                Err(error)
            };
        }
        let mut value = vec![0_u64; (len as usize).div_ceil(8)];
        // SAFETY: the buffer has at least the size that is passed.
        let got = unsafe {
            CertGetCertificateContextProperty(self.0, id, value.as_mut_ptr().cast(), &mut len)
        };
        if got == 0 {
            return Err(last_error(CALL));
        }
        Ok(Some((value, len as usize)))
    }

    fn release(self) -> *const CERT_CONTEXT {
        let context = self.0;
        std::mem::forget(self);
        context
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // SAFETY: the context is ours: `release` is the only way out, and it forgets `self`.
        unsafe { CertFreeCertificateContext(self.0) };
    }
}

/// `Ok(false)` if it was gone already.
fn delete_context(certificate: Certificate) -> Result<bool, CngError> {
    let context = certificate.release();
    // SAFETY: the context is live, and the call frees it even when it fails.
    if unsafe { CertDeleteCertificateFromStore(context) } != 0 {
        return Ok(true);
    }
    let error = last_error("CertDeleteCertificateFromStore");
    if error.kind() == ErrorKind::NotFound {
        Ok(false)
    } else {
        Err(error)
    }
}

fn halves(word: u64) -> [u16; 4] {
    let bytes = word.to_le_bytes();
    [0, 2, 4, 6].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}
