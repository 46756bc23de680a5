//! Where certificates are kept beyond the client that got them: the seam, and what every store must promise.
//!
//! 1. A store is a convenience: what it gives is checked like something that came over the network, and a store
//!    that cannot be used costs a request to the metadata service, nothing else.
//! 2. A slot holds one certificate. Attested and not attested, one key and another, one metadata service and
//!    another are different slots; one identity has the same slot however it was named.
//! 3. What cannot be understood is set aside, not deleted and not overwritten.

mod disk;
mod memory;
#[cfg(any(windows, test))]
#[cfg_attr(not(windows), allow(unreachable_pub))]
mod msal;
#[cfg(test)]
mod msal_tests;
#[cfg(windows)]
mod my;
mod record;
pub(crate) mod seal;

pub use disk::DiskCertificates;
pub(crate) use disk::{is_left_behind, set_aside};
pub use memory::MemoryCertificates;
#[cfg(windows)]
pub use msal::MsalCertificates;

use std::{any::Any, fmt::Write as _, path::PathBuf, time::SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use keybond_keys::{HeldKey, KeyId, StoreId};

use crate::identity::Identity;

/// Keeps certificates. The methods block, and are called on threads that may.
pub trait CertificateStore: Send + Sync + 'static {
    /// What it is and where, in words for people.
    fn describe(&self) -> String;

    /// Whether a certificate of this key is worth keeping here. A key in process memory dies with the process.
    fn takes(&self, key: &HeldKey) -> bool {
        key.store() != StoreId::Memory
    }

    /// Whether what it keeps is there after the process: then `MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE` turns
    /// it off.
    fn outlives_process(&self) -> bool {
        true
    }

    /// What is in a slot.
    fn find(&self, slot: &CertificateSlot) -> StoreAnswer;

    /// Puts a certificate into a slot, in the place of the one that is there. The store may drop certificates
    /// that ended before `now`.
    ///
    /// # Errors
    /// [`CertificateStoreError`]; the slot then holds what it held before.
    fn keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), CertificateStoreError>;

    /// The file with the slot's certificate for people and other programs, if there is such a thing.
    fn file(&self, _slot: &CertificateSlot) -> Option<PathBuf> {
        None
    }

    /// Empties a slot, if the certificate in it has this `x5t#S256` (any, if `None`); `false` if nothing was
    /// removed.
    ///
    /// # Errors
    /// [`CertificateStoreError`].
    fn discard(
        &self,
        slot: &CertificateSlot,
        x5t_s256: Option<&str>,
    ) -> Result<bool, CertificateStoreError>;

    /// The client id of an identity that was named in another way, if it has been learnt from this metadata
    /// service.
    ///
    /// # Errors
    /// [`CertificateStoreError`] if there is an answer that cannot be read.
    fn client_id_of(
        &self,
        source: &str,
        identity: &Identity,
    ) -> Result<Option<String>, CertificateStoreError>;

    /// Remembers whose client id it is that an identity was named for.
    ///
    /// # Errors
    /// [`CertificateStoreError`].
    fn learn(
        &self,
        source: &str,
        identity: &Identity,
        client_id: &str,
    ) -> Result<(), CertificateStoreError>;

    /// Tries to become the only one on this machine who asks for a certificate under this name (hexadecimal
    /// digits); `None` if somebody else is. A holder that dies holds nothing.
    ///
    /// # Errors
    /// [`CertificateStoreError`] if no lock can be had; the caller then goes on without one.
    fn try_lock(&self, name: &str) -> Result<Option<MintLock>, CertificateStoreError>;
}

/// The right to ask for a certificate, given back when it is dropped or its holder dies.
pub struct MintLock(#[expect(dead_code, reason = "held, not used")] Box<dyn Any + Send>);

impl MintLock {
    /// Wraps whatever is to be dropped.
    pub fn new(guard: impl Any + Send) -> Self {
        Self(Box::new(guard))
    }
}

impl std::fmt::Debug for MintLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MintLock")
    }
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateSlot {
    /// The metadata service that issues it: its URL.
    pub source: String,
    /// The identity's client id, in lower case.
    pub client_id: String,
    /// Whether the key was attested for it.
    pub attested: bool,
    /// The key that it certifies.
    pub key: KeyId,
}

impl CertificateSlot {
    /// A name for the slot, for files and locks: 32 hexadecimal digits.
    pub fn name(&self) -> String {
        let attested = if self.attested { "attested" } else { "plain" };
        hash(&[
            "slot",
            &self.source,
            &self.client_id,
            attested,
            &self.key.to_string(),
        ])
    }
}

/// The name of the lock under which a certificate is asked for: the identity as it was named.
pub(crate) fn lock_name(source: &str, named: &Identity, attested: bool, key: KeyId) -> String {
    let attested = if attested { "attested" } else { "plain" };
    hash(&[
        "lock",
        &identity_name(source, named),
        attested,
        &key.to_string(),
    ])
}

/// A name for an identity as it was named, for files: 32 hexadecimal digits.
pub fn identity_name(source: &str, identity: &Identity) -> String {
    let (how, id) = identity.selector().unwrap_or(("system_assigned", ""));
    // Azure compares resource ids without regard to case.
    hash(&["identity", source, how, &id.to_ascii_lowercase()])
}

/// The first half of the SHA-256 of the parts, each followed by a zero byte, which none contains.
pub(crate) fn hash(parts: &[&str]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    context.finish().as_ref()[..16]
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A certificate with everything that is needed to use it without asking the metadata service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCertificate {
    /// The certificate and those that were issued with it (DER), the client's own first.
    pub chain: Vec<Vec<u8>>,
    /// The identity's client id.
    pub client_id: String,
    /// The identity's tenant.
    pub tenant_id: String,
    /// Where tokens are asked for over mutual TLS with it: an https URL.
    pub token_endpoint: String,
    /// Whether the key was attested for it.
    pub attested: bool,
    /// SHA-256 of the client's certificate (DER) in base64url.
    pub x5t_s256: String,
    /// When its time begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What a file says of the certificate in it, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptCertificate {
    /// The metadata service that issued it: its URL.
    pub source: String,
    /// The identity's client id.
    pub client_id: String,
    /// The identity's tenant.
    pub tenant_id: String,
    /// Whether the key was attested for it.
    pub attested: bool,
    /// The key that it certifies: SHA-256 of its SubjectPublicKeyInfo in lower-case hexadecimal digits.
    pub key_id: String,
    /// SHA-256 of the certificate (DER) in base64url.
    pub x5t_s256: String,
    /// When its time begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What a store says about a slot. All but the first are reasons to ask the metadata service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreAnswer {
    /// This is in it.
    Certificate(Box<StoredCertificate>),
    /// Nothing is in it.
    Absent,
    /// Something may be in it that cannot be read now. It stays as it is.
    Unreadable {
        /// Why.
        detail: String,
    },
    /// What is in it makes no sense.
    Corrupt {
        /// What is wrong with it.
        detail: String,
        /// Where it is now.
        set_aside: Option<PathBuf>,
    },
    /// It makes sense, and is not for this slot.
    Foreign {
        /// What it is for.
        detail: String,
        /// Where it is now.
        set_aside: Option<PathBuf>,
    },
}

/// A store that cannot be used now.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct CertificateStoreError {
    /// What was tried.
    pub what: String,
    /// The store's or the operating system's answer.
    pub cause: String,
}

impl CertificateStoreError {
    /// An error from what was tried and what was answered.
    pub fn new(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}
