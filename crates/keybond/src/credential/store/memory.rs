//! Certificates in process memory, for several clients of one process.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use keybond_keys::HeldKey;

use super::{
    CertificateSlot, CertificateStore, CertificateStoreError, MintLock, StoreAnswer,
    StoredCertificate, identity_name,
};
use crate::identity::Identity;

/// Lets clients of one process share certificates, those of keys in memory, too: give every builder a clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryCertificates(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    slots: HashMap<CertificateSlot, StoredCertificate>,
    client_ids: HashMap<String, String>,
    locks: HashSet<String>,
}

impl MemoryCertificates {
    /// A store with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CertificateStore for MemoryCertificates {
    fn describe(&self) -> String {
        "process memory".into()
    }

    fn takes(&self, _key: &HeldKey) -> bool {
        true
    }

    fn outlives_process(&self) -> bool {
        false
    }

    fn find(&self, slot: &CertificateSlot) -> StoreAnswer {
        match self.state().slots.get(slot) {
            Some(certificate) => StoreAnswer::Certificate(Box::new(certificate.clone())),
            None => StoreAnswer::Absent,
        }
    }

    fn keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), CertificateStoreError> {
        let mut state = self.state();
        state.slots.retain(|_, kept| now < kept.not_after);
        state.slots.insert(slot.clone(), certificate.clone());
        Ok(())
    }

    fn discard(
        &self,
        slot: &CertificateSlot,
        x5t_s256: Option<&str>,
    ) -> Result<bool, CertificateStoreError> {
        let mut state = self.state();
        let hit = state
            .slots
            .get(slot)
            .is_some_and(|kept| x5t_s256.is_none_or(|x5t| kept.x5t_s256 == x5t));
        if hit {
            state.slots.remove(slot);
        }
        Ok(hit)
    }

    fn client_id_of(
        &self,
        source: &str,
        identity: &Identity,
    ) -> Result<Option<String>, CertificateStoreError> {
        let name = identity_name(source, identity);
        Ok(self.state().client_ids.get(&name).cloned())
    }

    fn learn(
        &self,
        source: &str,
        identity: &Identity,
        client_id: &str,
    ) -> Result<(), CertificateStoreError> {
        let name = identity_name(source, identity);
        self.state().client_ids.insert(name, client_id.to_owned());
        Ok(())
    }

    fn try_lock(&self, name: &str) -> Result<Option<MintLock>, CertificateStoreError> {
        if !self.state().locks.insert(name.to_owned()) {
            return Ok(None);
        }
        Ok(Some(MintLock::new(Held {
            store: self.clone(),
            name: name.to_owned(),
        })))
    }
}

struct Held {
    store: MemoryCertificates,
    name: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.state().locks.remove(&self.name);
    }
}
