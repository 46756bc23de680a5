//! The seam below: a [`KeyStore`] finds or makes keys, a [`StoredKey`] signs with one.
//!
//! Stores are simple, blocking and know nothing of tiers, caches or locks: the
//! [`KeyProvider`](crate::KeyProvider) above them decides which to ask, proves what they answer and keeps
//! everything that must not block an async runtime on threads of its own.

mod absent;
#[cfg(any(windows, test))]
mod cng;
#[cfg(test)]
mod cng_tests;
#[cfg(windows)]
mod cng_windows;
#[cfg(any(windows, test))]
#[cfg_attr(not(windows), allow(unreachable_pub))]
mod keyguard;
mod memory;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(any(windows, test))]
#[cfg_attr(not(windows), allow(unreachable_pub))]
mod platform;
#[cfg(unix)]
pub(crate) mod record;
#[cfg(unix)]
mod tpm2;

use std::{fmt, path::PathBuf};

pub use absent::AbsentStore;
#[cfg(windows)]
pub use keyguard::{KeyGuardSharing, KeyGuardStore};
pub use memory::MemoryStore;
#[cfg(feature = "pkcs11")]
pub use pkcs11::{InvalidPkcs11Uri, Pin, PinSource, Pkcs11Store, Pkcs11Uri};
#[cfg(windows)]
pub use platform::PlatformStore;
use serde::Serialize;
#[cfg(unix)]
pub use tpm2::Tpm2Store;

use crate::{refusal::Unavailable, scheme::SignatureScheme, strength::StoreId};

/// A place that keeps private keys and never gives them away.
///
/// Methods may block for as long as the device needs. They are called from threads that are allowed to
/// wait, one creation at a time for a given name. Dropping a store releases its device.
pub trait KeyStore: Send + Sync + 'static {
    /// Which store this is; decides its tier.
    fn id(&self) -> StoreId;

    /// Whether the store could hold a key now, without making one. A definite "no" takes milliseconds.
    fn probe(&self) -> Result<(), Unavailable>;

    /// What there is to know about the device, and about the key called `name` if there is one, without making
    /// one: for people, in the order to print it. An error means that the store cannot hold a usable key.
    fn describe(&self, name: &KeyName) -> Result<Vec<(String, String)>, Unavailable> {
        let _ = name;
        Ok(Vec::new())
    }

    /// Opens the key called `name`. `Ok(None)` means that there certainly is none; anything uncertain
    /// (no permission, busy, damaged, made by another device) is an [`Unavailable`].
    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable>;

    /// Makes a new RSA-2048 key called `name`. Called only after [`KeyStore::open`] answered `None`, or after
    /// what is there was shown to be lost ([`Reason::Dead`](crate::Reason::Dead), `Corrupt`, `Foreign`, a key
    /// that is not RSA-2048): then files are set aside, not deleted.
    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable>;

    /// Deletes the key called `name`; `Ok(false)` if there was none.
    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable>;

    /// Whether keys live on when the process ends, so that other processes find them and creation must be
    /// locked on the machine.
    fn outlives_process(&self) -> bool {
        true
    }
}

/// One key inside a store. There is no method that yields the private part.
pub trait StoredKey: Send + Sync + 'static {
    /// The public key as SubjectPublicKeyInfo (DER), read from the device each time: evidence compares the
    /// answers.
    fn public_key(&self) -> Result<Vec<u8>, Unavailable>;

    /// The schemes this key claims to support. Each is tried before it is offered to anybody.
    fn schemes(&self) -> Vec<SignatureScheme>;

    /// Signs a digest of exactly `scheme.hash().digest_len()` bytes. PSS uses a salt of the same length.
    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable>;

    /// What the device says about this key, read back from it.
    fn properties(&self) -> Result<KeyProperties, Unavailable>;

    /// Really tries to get the private key out, by every call the store has for that, and forgets at once
    /// whatever came back. An attempt that could not be made proves nothing and is an error.
    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable>;

    /// Whether a signature takes about as long as one in memory, so that it may run where it is asked for.
    /// Believed only of keys in process memory.
    fn is_quick(&self) -> bool {
        false
    }
}

/// What a device says about a key, read back after it was made or opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyProperties {
    /// What keeps the private key from other software on the machine.
    pub isolation: Isolation,
    /// Where the private key was made.
    pub origin: Origin,
    /// Whether the device says that the key can leave it (`None`: it has no such property).
    pub exportable: Option<bool>,
    /// Where the key is kept, if in a file.
    pub file: Option<PathBuf>,
    /// Further facts for humans, in the order to print them: manufacturer, firmware, attributes.
    pub details: Vec<(String, String)>,
}

/// What keeps a private key from other software on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing but the operating system's process boundary.
    #[default]
    Process,
    /// A hardware device.
    Device,
    /// Virtualization-based security. The key dies with the boot if `per_boot`.
    Vbs {
        /// Whether the key is bound to this boot of the machine.
        per_boot: bool,
    },
}

/// Where a private key was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The device does not say.
    #[default]
    Unknown,
    /// In this process.
    Process,
    /// Inside the device or enclave that holds it.
    Device,
    /// Outside; somebody else may have a copy.
    Imported,
}

/// The outcome of really trying to export a private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportAttempt {
    /// The store has no call that could export a private key.
    NoSuchCall,
    /// The device refused; the text is its answer, with the native code.
    Refused(String),
    /// Private material came out.
    Exported,
}

/// The name of a key: 1 to 64 characters `a`–`z`, `A`–`Z`, `0`–`9`, `-`, `_`, not starting with `-`,
/// so that it can be a file name and a container name everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct KeyName(String);

impl KeyName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InvalidKeyName`] says which rule the name breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidKeyName> {
        let name = name.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || name.starts_with('-') || !name.chars().all(allowed)
        {
            return Err(InvalidKeyName(name));
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for KeyName {
    /// `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A key name that cannot be used as a file and container name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid key name {0:?}: expected 1 to 64 of a-z, A-Z, 0-9, `-`, `_`, not starting with `-`"
)]
pub struct InvalidKeyName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_names_are_safe_as_file_names() {
        for good in ["default", "a", "A_b-9", &"x".repeat(64)] {
            assert_eq!(KeyName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a/b", "..", "a b", "ü", &"x".repeat(65)] {
            assert!(KeyName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
