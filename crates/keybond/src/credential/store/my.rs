//! The shelf on Windows: `CurrentUser\My`. Opened anew for each question, so that what others did is seen.

use std::time::Duration;

use keybond_cng::{CertStore, CngError, KeyLink, NamedMutex, Provider, msal, names};
use keybond_keys::{KeyId, PublicKey};

use super::msal::{Entry, Shelf};

/// The certificates of the current user.
pub(super) struct UserStore;

impl Shelf for UserStore {
    fn all(&self) -> Result<Vec<Entry>, String> {
        let certificates = CertStore::open_my().map_err(text)?.certificates();
        Ok(certificates
            .iter()
            .filter_map(|certificate| {
                // One that does not say its name is not looked for.
                let friendly_name = certificate.friendly_name().ok()??;
                let key = certificate.key().ok().flatten();
                Some(Entry {
                    friendly_name,
                    der: certificate.der().to_vec(),
                    of_shared_key: key.is_some_and(|key| key == shared()),
                })
            })
            .collect())
    }

    fn add(&self, der: &[u8], friendly_name: &str) -> Result<(), String> {
        let store = CertStore::open_my().map_err(text)?;
        store
            .add(der, Some(friendly_name), Some(&shared()))
            .map(drop)
            .map_err(text)
    }

    fn shared_key(&self) -> Option<KeyId> {
        let link = shared();
        let key = Provider::open(&link.provider).and_then(|provider| provider.open_key(&link.key));
        let public = key.and_then(|key| key.public_key()).ok()?;
        let public = PublicKey::from_rsa_components(&public.modulus, &public.exponent).ok()?;
        Some(public.id())
    }

    fn remove(&self, der: &[u8]) -> Result<bool, String> {
        CertStore::open_my()
            .and_then(|store| store.delete(der))
            .map_err(text)
    }

    fn exclusively(
        &self,
        mutex: &str,
        wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, String> {
        let mutex = NamedMutex::open_widest(mutex).map_err(text)?;
        // One that a dead process left is held like any other.
        let Some(_held) = mutex.acquire(wait).map_err(text)? else {
            return Ok(false);
        };
        job();
        Ok(true)
    }
}

fn shared() -> KeyLink {
    KeyLink {
        key: msal::KEYGUARD_KEY.into(),
        provider: names::SOFTWARE_PROVIDER.into(),
    }
}

fn text(error: CngError) -> String {
    error.to_string()
}
