//! Certificates in the user's certificate store of Windows (`CurrentUser\My`), where MSAL.NET and MSAL Go keep
//! and find theirs: one certificate serves all programs of the user that share the KeyGuard key.
//!
//! The friendly name says whose a certificate is and where it is used (`MSAL|alias=<id>#att=<0|1>|ep=<url>`),
//! the certificate itself says the client id, and its public key says which key it is of. Of an identity's
//! certificates only those of the key in hand are used, compared or removed: others may still need theirs. The
//! exception are orphans: they name the shared key's container, which holds another key by now. No program can
//! use them again.
//!
//! Changes are made under the mutex that MSAL takes, and given up when it cannot be had within 300 ms.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use ::der::{Decode as _, Encode as _};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use keybond_cng::msal::{self, FriendlyName};
use keybond_keys::{HeldKey, KeyId, PublicKey, StoreId};
use x509_cert::Certificate;

use super::{
    CertificateSlot, CertificateStore, CertificateStoreError, DiskCertificates, MintLock,
    StoreAnswer, StoredCertificate,
};
use crate::{credential::certificate::client_id_in, identity::Identity};

/// What follows the endpoint of a friendly name in the URL for tokens.
const TOKEN_PATH: &str = "/oauth2/v2.0/token";

/// MSAL's name for the identity of the machine itself.
const SYSTEM_ASSIGNED: &str = "system_assigned_managed_identity";

/// Keeps the certificates of one identity where MSAL.NET and MSAL Go find them.
///
/// An identity is known by the id that it was named by, letter for letter, as MSAL does it: to share
/// certificates, programs must name it alike. The metadata service is not part of the name.
pub struct MsalCertificates {
    identity: String,
    shelf: Box<dyn Shelf>,
    turns: Option<DiskCertificates>,
}

/// The certificate store, as far as it is needed here.
pub(super) trait Shelf: Send + Sync + 'static {
    /// Every certificate that has a friendly name.
    fn all(&self) -> Result<Vec<Entry>, String>;

    /// Adds a certificate of the shared key.
    fn add(&self, der: &[u8], friendly_name: &str) -> Result<(), String>;

    /// The key that the shared name stands for now, if that can be told.
    fn shared_key(&self) -> Option<KeyId>;

    /// Removes exactly this one.
    fn remove(&self, der: &[u8]) -> Result<bool, String>;

    /// Runs `job` with the mutex in hand; `false` if it could not be had within `wait`.
    fn exclusively(
        &self,
        mutex: &str,
        wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, String>;
}

/// A certificate on the shelf.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) friendly_name: String,
    pub(super) der: Vec<u8>,
    /// It says that its key is the shared one.
    pub(super) of_shared_key: bool,
}

/// An entry that is a managed identity's.
struct Kept {
    alias: String,
    endpoint: String,
    key: KeyId,
    client_id: String,
    not_before: SystemTime,
    not_after: SystemTime,
    der: Vec<u8>,
    of_shared_key: bool,
}

impl MsalCertificates {
    /// The certificates of `identity` in the current user's store. With a state directory, keybond's own
    /// processes take turns in asking for one, as they do with [`DiskCertificates`]; MSAL knows no such lock.
    #[cfg(windows)]
    pub fn new(identity: &Identity, state: Option<&Path>) -> Self {
        Self::over(Box::new(super::my::UserStore), identity, state)
    }

    pub(super) fn over(shelf: Box<dyn Shelf>, identity: &Identity, state: Option<&Path>) -> Self {
        let (_, id) = identity.selector().unwrap_or(("", SYSTEM_ASSIGNED));
        Self {
            identity: id.to_owned(),
            shelf,
            turns: state.map(DiskCertificates::new),
        }
    }

    fn alias(&self, attested: bool) -> String {
        format!("{}#att={}", self.identity, u8::from(attested))
    }

    fn kept(&self) -> Result<Vec<Kept>, String> {
        let entries = self.shelf.all()?;
        Ok(entries.into_iter().filter_map(Kept::read).collect())
    }

    /// Changes the shelf alone.
    fn change<T>(
        &self,
        alias: &str,
        what: &'static str,
        mut job: impl FnMut() -> Result<T, String>,
    ) -> Result<T, CertificateStoreError> {
        let failed = |cause: String| CertificateStoreError::new(what, cause);
        let mutex = msal::certificates_mutex(alias);
        let mut done = None;
        let ran = self
            .shelf
            .exclusively(&mutex, msal::CERTIFICATES_WAIT, &mut || done = Some(job()))
            .map_err(failed)?;
        match done {
            Some(done) if ran => done.map_err(failed),
            _ => Err(failed(format!("another program holds the mutex {mutex}"))),
        }
    }

    fn try_keep(
        &self,
        alias: &str,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), String> {
        let endpoint = certificate
            .token_endpoint
            .strip_suffix(TOKEN_PATH)
            .ok_or("the URL for tokens is not one that a friendly name can hold")?;
        let name = FriendlyName::new(&self.identity, slot.attested, endpoint)
            .map_err(|error| error.to_string())?;
        let leaf = certificate.chain.first().ok_or("there is no certificate")?;
        let of_identity: Vec<Kept> = self
            .kept()?
            .into_iter()
            .filter(|kept| kept.alias == alias)
            .collect();
        let newer = of_identity.iter().any(|kept| {
            kept.key == slot.key && kept.not_after >= certificate.not_after && now < kept.not_after
        });
        if !newer {
            self.shelf.add(leaf, &name.to_string())?;
        }
        let shared = self.shelf.shared_key();
        for kept in &of_identity {
            let orphaned = kept.of_shared_key && shared.is_some_and(|key| key != kept.key);
            if orphaned || kept.not_after <= now {
                self.shelf.remove(&kept.der)?;
            }
        }
        Ok(())
    }
}

impl CertificateStore for MsalCertificates {
    fn describe(&self) -> String {
        "the user's certificate store (CurrentUser\\My)".into()
    }

    /// The shared key lives in KeyGuard; nobody else could use a certificate of another.
    fn takes(&self, key: &HeldKey) -> bool {
        key.store() == StoreId::KeyGuard
    }

    fn find(&self, slot: &CertificateSlot) -> StoreAnswer {
        let kept = match self.kept() {
            Ok(kept) => kept,
            Err(detail) => return StoreAnswer::Unreadable { detail },
        };
        let alias = self.alias(slot.attested);
        let newest = kept
            .into_iter()
            .filter(|kept| {
                kept.alias == alias && kept.key == slot.key && kept.client_id == slot.client_id
            })
            .max_by_key(|kept| kept.not_after);
        newest.map_or(StoreAnswer::Absent, |kept| {
            StoreAnswer::Certificate(Box::new(kept.certificate(slot.attested)))
        })
    }

    fn keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), CertificateStoreError> {
        let alias = self.alias(slot.attested);
        self.change(&alias, "a certificate cannot be kept", || {
            self.try_keep(&alias, slot, certificate, now)
        })
    }

    fn discard(
        &self,
        slot: &CertificateSlot,
        x5t_s256: Option<&str>,
    ) -> Result<bool, CertificateStoreError> {
        let alias = self.alias(slot.attested);
        self.change(&alias, "a certificate cannot be removed", || {
            let mut removed = false;
            for kept in self.kept()? {
                let meant = kept.alias == alias
                    && kept.key == slot.key
                    && x5t_s256.is_none_or(|expected| x5t(&kept.der) == expected);
                if meant {
                    removed |= self.shelf.remove(&kept.der)?;
                }
            }
            Ok(removed)
        })
    }

    /// The newest certificate of the identity says it.
    fn client_id_of(
        &self,
        _source: &str,
        _identity: &Identity,
    ) -> Result<Option<String>, CertificateStoreError> {
        let kept = self
            .kept()
            .map_err(|cause| CertificateStoreError::new("a client id cannot be read", cause))?;
        let of_identity = kept.into_iter().filter(|kept| {
            [false, true]
                .map(|att| self.alias(att))
                .contains(&kept.alias)
        });
        Ok(of_identity
            .max_by_key(|kept| kept.not_after)
            .map(|kept| kept.client_id))
    }

    fn learn(
        &self,
        _source: &str,
        _identity: &Identity,
        _client_id: &str,
    ) -> Result<(), CertificateStoreError> {
        Ok(())
    }

    fn try_lock(&self, name: &str) -> Result<Option<MintLock>, CertificateStoreError> {
        match &self.turns {
            Some(turns) => turns.try_lock(name),
            None => Ok(Some(MintLock::new(()))),
        }
    }
}

impl Kept {
    /// `None` for what is not MSAL's, or cannot be read: it is somebody else's.
    fn read(entry: Entry) -> Option<Self> {
        let name: FriendlyName = entry.friendly_name.parse().ok()?;
        let certificate = Certificate::from_der(&entry.der).ok()?;
        let certificate = certificate.tbs_certificate();
        let spki = certificate.subject_public_key_info().to_der().ok()?;
        let validity = certificate.validity();
        Some(Self {
            alias: name.alias(),
            endpoint: name.endpoint().to_owned(),
            key: PublicKey::from_spki_der(&spki).ok()?.id(),
            client_id: client_id_in(certificate)?,
            not_before: validity.not_before.to_system_time(),
            not_after: validity.not_after.to_system_time(),
            der: entry.der,
            of_shared_key: entry.of_shared_key,
        })
    }

    fn certificate(self, attested: bool) -> StoredCertificate {
        let tenant_id = self.endpoint.rsplit('/').next().unwrap_or_default();
        StoredCertificate {
            client_id: self.client_id,
            tenant_id: tenant_id.to_owned(),
            token_endpoint: format!("{}{TOKEN_PATH}", self.endpoint),
            attested,
            x5t_s256: x5t(&self.der),
            not_before: self.not_before,
            not_after: self.not_after,
            chain: vec![self.der],
        }
    }
}

pub(super) fn x5t(der: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, der))
}
