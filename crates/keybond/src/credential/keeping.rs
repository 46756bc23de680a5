//! Certificates that were kept: looked for, checked again, and waited for while somebody else asks.

use std::{path::PathBuf, sync::Arc};

use keybond_keys::HeldKey;
use tokio::time::Instant;

use super::{
    Binding,
    certificate::{self, Owner},
    mint::{Mint, client_identity},
    store::{self, CertificateSlot, CertificateStore, MintLock, StoreAnswer, StoredCertificate},
};
use crate::{
    acquisition::Acquisition,
    client::Shared,
    environment::{self, DISABLE_CERTIFICATE_CACHE},
    error::{At, Error},
    identity::Identity,
    leg::{Done, Leg},
    lifecycle::{self, Age},
    random, telemetry,
    turn::{self, Attempt, PATIENCE, Questions},
};

/// One run's view of the store.
pub(super) struct Keeping<'a> {
    shared: &'a Shared,
    way: &'a Acquisition,
    why: &'a Mint,
    key: &'a Arc<HeldKey>,
    store: Arc<dyn CertificateStore>,
    source: &'a str,
    questions: Questions,
    /// Until when somebody else's turn is waited for.
    wait_until: Instant,
}

/// Whose turn it is to ask for a certificate.
pub(super) type Turn = turn::Turn<Arc<Binding>, MintLock>;

impl<'a> Keeping<'a> {
    /// The store, if certificates of this key are kept at all.
    pub(super) fn of(
        shared: &'a Shared,
        way: &'a Acquisition,
        why: &'a Mint,
        key: &'a Arc<HeldKey>,
    ) -> Option<Self> {
        let store = Arc::clone(shared.certificates.as_ref()?);
        let off = store.outlives_process()
            && environment::is_on(&*shared.environment, DISABLE_CERTIFICATE_CACHE);
        if off || !store.takes(key) {
            return None;
        }
        Some(Self {
            shared,
            way,
            why,
            key,
            store,
            source: shared.imds.endpoint.as_str(),
            questions: Questions::until(way.deadline.at),
            wait_until: turn::half_way(way.deadline.at),
        })
    }

    /// What was kept for the identity as it was named, or the turn to ask.
    pub(super) async fn turn(&self) -> Turn {
        self.wait(&self.shared.imds.identity).await
    }

    /// The same for the client id that the metadata service named.
    pub(super) async fn turn_of(&self, client_id: &str) -> Turn {
        let identity = &self.shared.imds.identity;
        let canonical = Identity::ClientId(client_id.to_ascii_lowercase());
        if *identity == canonical {
            return Turn::Mine(None);
        }
        let (source, named) = (self.source.to_owned(), identity.clone());
        let id = client_id.to_ascii_lowercase();
        let learnt = self
            .ask(move |store| store.learn(&source, &named, &id))
            .await;
        if let Some(Err(error)) = learnt {
            tracing::warn!(target: "keybond", %error, "whose client id it is was not kept");
        }
        self.wait(&canonical).await
    }

    async fn wait(&self, named: &Identity) -> Turn {
        let attested = self.shared.attestation.is_some();
        let lock = store::lock_name(self.source, named, attested, self.key.id());
        let try_lock = || async {
            let name = lock.clone();
            match self.ask(move |store| store.try_lock(&name)).await {
                Some(Ok(Some(lock))) => Attempt::Taken(lock),
                Some(Ok(None)) => Attempt::Elsewhere,
                Some(Err(error)) => {
                    tracing::warn!(target: "keybond", %error, "no lock: others may ask for the same certificate");
                    Attempt::Unavailable
                }
                None => Attempt::Unavailable,
            }
        };
        turn::take(self.wait_until, || self.look(named), try_lock).await
    }

    /// The identity's client id, if it is known by now.
    async fn client_id_of(&self, named: &Identity) -> Option<String> {
        if let Identity::ClientId(id) = named {
            return Some(id.clone());
        }
        let (source, named) = (self.source.to_owned(), named.clone());
        match self
            .ask(move |store| store.client_id_of(&source, &named))
            .await?
        {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(target: "keybond", %error, "the metadata service is asked whose it is");
                None
            }
        }
    }

    /// The certificate that was kept for this client, if it passes every check and serves the purpose.
    async fn look(&self, named: &Identity) -> Option<Arc<Binding>> {
        if matches!(self.why, Mint::Demanded) {
            return None;
        }
        let slot = self.slot(&self.client_id_of(named).await?);
        let asked = slot.clone();
        let place = self.store.describe();
        let stored = match self.ask(move |store| store.find(&asked)).await? {
            StoreAnswer::Certificate(stored) => stored,
            StoreAnswer::Absent => return None,
            StoreAnswer::Unreadable { detail } => {
                tracing::warn!(target: "keybond", %place, %detail, "a kept certificate cannot be read");
                return None;
            }
            StoreAnswer::Corrupt { detail, set_aside } => {
                tracing::warn!(target: "keybond", %place, %detail, ?set_aside, "a kept certificate makes no sense");
                return None;
            }
            StoreAnswer::Foreign { detail, set_aside } => {
                tracing::warn!(target: "keybond", %place, %detail, ?set_aside, "a kept certificate is for something else");
                return None;
            }
        };
        let until = crate::time::rfc3339(stored.not_after);
        let adopted = match self.adopt(*stored, &slot) {
            // In its last seconds it passes every check, and is not shown to anybody any more.
            Ok(binding) if binding.life().age(self.shared.clock.now()) == Age::Over => return None,
            Ok(binding) if self.why.is_served_by(&binding) => binding,
            Ok(_) => return None,
            Err(error) => {
                tracing::info!(target: "keybond", %place, %error, "a kept certificate is not used");
                return None;
            }
        };
        let outcome = format!("a certificate that was kept in {place}, valid until {until}");
        telemetry::certified(self.shared, &adopted);
        let done = async { Ok(Done::new(Arc::new(adopted), outcome)) };
        self.way.leg(Leg::Issue, done).await.ok()
    }

    /// What was kept is believed no more than what comes over the network.
    fn adopt(&self, stored: StoredCertificate, slot: &CertificateSlot) -> Result<Binding, Error> {
        let shared = self.shared;
        let at = At::new(Leg::Issue, &self.way.id);
        let now = shared.clock.now();
        if !stored.client_id.eq_ignore_ascii_case(&slot.client_id) {
            return Err(at.mismatch("client_id", &slot.client_id, stored.client_id));
        }
        let leaf = stored.chain.first().map_or(&[][..], Vec::as_slice);
        let owner = Owner {
            key: self.key,
            client_id: &stored.client_id,
            tenant_id: &stored.tenant_id,
        };
        let facts = certificate::check(leaf, owner, now, &at)?;
        let url = shared.sts_hosts.check(
            &at,
            "mtls_authentication_endpoint",
            &stored.token_endpoint,
            &*shared.environment,
        )?;
        let jitter = random::jitter(&*shared.random);
        let life = lifecycle::certificate::life(now, facts.not_before, facts.not_after, jitter);
        Ok(Binding {
            version: shared.bindings.next_version(),
            facts,
            client_id: stored.client_id,
            tenant_id: stored.tenant_id,
            token_endpoint: url,
            attested: slot.attested,
            life,
            identity: client_identity(stored.chain, Arc::clone(self.key), &at)?,
        })
    }

    /// Keeps a certificate that was issued. If that fails, the next process asks for its own.
    pub(super) async fn keep(&self, binding: &Arc<Binding>) {
        let slot = self.slot(binding.client_id());
        let stored = StoredCertificate {
            chain: binding.certificate_chain().to_vec(),
            client_id: binding.client_id().to_owned(),
            tenant_id: binding.tenant_id().to_owned(),
            token_endpoint: binding.token_endpoint().to_owned(),
            attested: binding.is_attested(),
            x5t_s256: binding.x5t_s256().to_owned(),
            not_before: binding.not_before(),
            not_after: binding.not_after(),
        };
        let now = self.shared.clock.now();
        let kept = self.ask(move |store| store.keep(&slot, &stored, now)).await;
        if let Some(Err(error)) = kept {
            tracing::warn!(target: "keybond", %error, "the certificate was not kept");
        }
    }

    fn slot(&self, client_id: &str) -> CertificateSlot {
        CertificateSlot {
            source: self.source.to_owned(),
            client_id: client_id.to_ascii_lowercase(),
            attested: self.shared.attestation.is_some(),
            key: self.key.id(),
        }
    }

    /// Asks the store on a thread that may block; `None` if there is no answer in time.
    async fn ask<T, F>(&self, question: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&dyn CertificateStore) -> T + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        let silence = || {
            tracing::warn!(target: "keybond", place = %self.store.describe(), "the certificate store does not answer");
        };
        self.questions.ask(move || question(&*store), silence).await
    }
}

/// Whether certificates of this key are kept where they are there after the process.
pub(crate) fn is_kept_beyond_process(shared: &Shared, key: &HeldKey) -> bool {
    shared.certificates.as_ref().is_some_and(|store| {
        store.outlives_process()
            && store.takes(key)
            && !environment::is_on(&*shared.environment, DISABLE_CERTIFICATE_CACHE)
    })
}

/// The file in which this binding's certificate is kept, if it is kept in one.
pub(crate) fn file_of(shared: &Shared, binding: &Binding) -> Option<PathBuf> {
    let store = shared.certificates.as_ref()?;
    let off = store.outlives_process()
        && environment::is_on(&*shared.environment, DISABLE_CERTIFICATE_CACHE);
    if off || !store.takes(binding.key()) {
        return None;
    }
    store.file(&CertificateSlot {
        source: shared.imds.endpoint.as_str().to_owned(),
        client_id: binding.client_id().to_ascii_lowercase(),
        attested: binding.is_attested(),
        key: binding.key().id(),
    })
}

/// Remembers that an identity has another client id now, and drops what certifies the old one.
pub(crate) async fn change_client_id(shared: &Arc<Shared>, old: &Binding, client_id: &str) {
    let Some(store) = shared.certificates.clone() else {
        return;
    };
    let off = store.outlives_process()
        && environment::is_on(&*shared.environment, DISABLE_CERTIFICATE_CACHE);
    if off || !store.takes(old.key()) {
        return;
    }
    let identity = shared.imds.identity.clone();
    let client_id = client_id.to_ascii_lowercase();
    let slot = CertificateSlot {
        source: shared.imds.endpoint.as_str().to_owned(),
        client_id: old.client_id().to_ascii_lowercase(),
        attested: old.is_attested(),
        key: old.key().id(),
    };
    let changed = tokio::task::spawn_blocking(move || {
        store.learn(&slot.source, &identity, &client_id)?;
        store.discard(&slot, None)
    });
    let problem = match tokio::time::timeout(PATIENCE, changed).await {
        Ok(Ok(Ok(_))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) | Err(_) => "the certificate store does not answer".to_owned(),
    };
    tracing::warn!(target: "keybond", %problem, "the certificate of an identity that is gone was not removed");
}

/// Drops what certifies a key that is dead, for this client's identity; other keys' certificates stay.
pub(crate) async fn drop_certificates_of(shared: &Arc<Shared>, key: keybond_keys::KeyId) {
    let Some(store) = shared.certificates.clone() else {
        return;
    };
    let source = shared.imds.endpoint.as_str().to_owned();
    let identity = shared.imds.identity.clone();
    let dropped = tokio::task::spawn_blocking(move || {
        let client_id = match identity {
            Identity::ClientId(id) => Some(id),
            other => store.client_id_of(&source, &other)?,
        };
        let Some(client_id) = client_id else {
            return Ok(());
        };
        for attested in [false, true] {
            let slot = CertificateSlot {
                source: source.clone(),
                client_id: client_id.clone(),
                attested,
                key,
            };
            store.discard(&slot, None)?;
        }
        Ok::<_, store::CertificateStoreError>(())
    });
    let problem = match tokio::time::timeout(PATIENCE, dropped).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) | Err(_) => "the certificate store does not answer".to_owned(),
    };
    tracing::warn!(target: "keybond", %problem, "the certificate of a dead key was not removed");
}
