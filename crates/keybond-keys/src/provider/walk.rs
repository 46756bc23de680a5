//! The walk through the hierarchy: ask, prove, fall to the next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Cached, Entry, Shared};
use crate::{
    decision::{Considered, Decision, Outcome},
    error::KeyError,
    event::KeyEvent,
    evidence::{self, Evidence},
    key::HeldKey,
    public_key::{KeyId, PublicKey},
    refusal::{Reason, Unavailable},
    state::StateLock,
    store::{KeyName, KeyStore, StoredKey},
    strength::{StoreId, Strength},
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often a waiter looks whether the holder of the lock has gone.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A key with its proof.
struct Proven {
    stored: Arc<dyn StoredKey>,
    public: PublicKey,
    evidence: Evidence,
    created: bool,
    replaced: Option<Replaced>,
}

/// The key that a created one took the place of.
struct Replaced {
    from: Option<KeyId>,
    cause: String,
}

/// What a store has under the key's name.
enum Opened {
    Key(Box<Proven>),
    /// Nothing, or something to replace.
    Vacant(Option<Replaced>),
}

impl Shared {
    /// Finds or makes the key and caches it. Runs as a single flight.
    pub(super) async fn decide(self: Arc<Self>) -> Result<Arc<HeldKey>, KeyError> {
        // Somebody may have been faster between the caller's look and this flight.
        if let Some(cached) = self.cached.load_full() {
            return Ok(Arc::clone(&cached.key));
        }
        let key = self.walk(&self.entries).await?;
        self.cache(&key);
        Ok(key)
    }

    /// Asks the stores above the provisional key again. Runs as a single flight.
    pub(super) async fn upgrade(self: Arc<Self>) -> Result<Arc<HeldKey>, KeyError> {
        let Some(cached) = self.cached.load_full() else {
            return self.decide().await;
        };
        let current = Arc::clone(&cached.key);
        if cached.reconsider_at.is_none_or(|at| Instant::now() < at) {
            return Ok(current);
        }
        let above = self
            .entries
            .iter()
            .position(|entry| entry.store.id() == current.store())
            .unwrap_or(0);
        match self.walk(&self.entries[..above]).await {
            Ok(key) => {
                self.cache(&key);
                let (from, to) = (current.id(), key.id());
                self.events.announce(KeyEvent::Upgraded {
                    from,
                    to,
                    store: key.store(),
                });
                Ok(key)
            }
            Err(refused) => {
                let again = refused
                    .retryable()
                    .then(|| Instant::now() + self.settings.reconsider_after);
                let next = Arc::new(Cached {
                    key: Arc::clone(&current),
                    reconsider_at: again,
                });
                // Unless the key was given up meanwhile.
                self.cached.compare_and_swap(&Some(cached), Some(next));
                Ok(current)
            }
        }
    }

    async fn walk(&self, entries: &[Entry]) -> Result<Arc<HeldKey>, KeyError> {
        let mut considered = Vec::with_capacity(entries.len());
        let mut chosen = None;
        let mut budget = self.settings.retry_budget;
        for entry in entries {
            let id = entry.store.id();
            let started = Instant::now();
            let (outcome, attempts) = if chosen.is_some() {
                (Outcome::NotAsked, 0)
            } else if let Some(refusal) = self.excluded(id) {
                (Outcome::Skipped(refusal), 0)
            } else {
                let (answer, attempts) = self.ask(entry, &mut budget).await;
                let outcome = match answer {
                    Ok(proven) => {
                        let strength = proven.evidence.strength();
                        let created = proven.created;
                        chosen = Some((proven, entry));
                        Outcome::Chosen { created, strength }
                    }
                    Err(refusal) => {
                        self.events.announce(KeyEvent::Refused(refusal.clone()));
                        Outcome::Skipped(refusal)
                    }
                };
                (outcome, attempts)
            };
            let elapsed = started.elapsed();
            considered.push(Considered {
                store: id,
                tier: id.tier(),
                outcome,
                attempts,
                elapsed,
            });
        }
        let provisional = considered.iter().any(Considered::may_pass);
        let decision = Arc::new(Decision {
            at: (self.settings.now)(),
            considered,
            provisional,
        });
        let Some((proven, entry)) = chosen else {
            return Err(self.nothing(entries, decision).await);
        };
        self.announce(&proven);
        Ok(Arc::new(HeldKey::new(
            proven.stored,
            proven.public,
            proven.evidence,
            decision,
            entry.offload.clone(),
            self.settings.sign_deadline,
        )))
    }

    /// Why `store` is not asked at all.
    fn excluded(&self, store: StoreId) -> Option<Unavailable> {
        self.settings.policy.refusal(store).or_else(|| {
            let (offers, floor) = (store.tier().required_strength(), self.settings.floor);
            let below = format!("its keys have strength {offers}, the floor is {floor}");
            (offers < floor).then(|| Unavailable::new(store, Reason::DisabledByPolicy, below))
        })
    }

    /// The error when no store gave a key: the floor's, if something weaker could have been had.
    async fn nothing(&self, entries: &[Entry], decision: Arc<Decision>) -> KeyError {
        let need = self.settings.floor;
        if need == Strength::Software {
            return KeyError::NoStore { decision };
        }
        let mut have = None;
        for entry in entries {
            let id = entry.store.id();
            let offers = id.tier().required_strength();
            if offers < need
                && self.settings.policy.refusal(id).is_none()
                && matches!(self.probe(entry).await.outcome, Outcome::Available)
            {
                have = have.max(Some(offers));
            }
        }
        KeyError::MinStrengthNotMet {
            have,
            need,
            decision,
        }
    }

    /// Asks one store, again while its refusals may pass and the budget lasts.
    async fn ask(
        &self,
        entry: &Entry,
        budget: &mut Duration,
    ) -> (Result<Proven, Unavailable>, u32) {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let answer = self.open_or_create(entry).await;
            let retry = match &answer {
                // A deadline has been waited for already; the store has had its chance for now.
                Err(refusal) => {
                    refusal.retryable && refusal.reason != Reason::TimedOut && *budget >= pause
                }
                Ok(_) => false,
            };
            if !retry {
                return (answer, attempts);
            }
            tokio::time::sleep(pause).await;
            *budget -= pause;
            pause *= 2;
        }
    }

    async fn open_or_create(&self, entry: &Entry) -> Result<Proven, Unavailable> {
        if let Opened::Key(proven) = self.open(entry).await? {
            return Ok(*proven);
        }
        let _lock = match &self.settings.state {
            Some(_) if entry.store.outlives_process() => Some(self.lock(entry).await?),
            _ => None,
        };
        // With the lock in hand: another process may have made the key while this one waited.
        let replaces = match self.open(entry).await? {
            Opened::Key(proven) => return Ok(*proven),
            Opened::Vacant(replaces) => replaces,
        };
        let (store, name) = (Arc::clone(&entry.store), self.settings.name.clone());
        let made = entry
            .offload
            .run(self.settings.create_deadline, move || {
                create(&*store, &name)
            })
            .await;
        let mut proven = flatten(entry.store.id(), made)?;
        proven.replaced = replaces;
        Ok(proven)
    }

    async fn open(&self, entry: &Entry) -> Result<Opened, Unavailable> {
        let (store, name) = (Arc::clone(&entry.store), self.settings.name.clone());
        let opened = entry
            .offload
            .run(self.settings.open_deadline, move || open(&*store, &name))
            .await;
        flatten(entry.store.id(), opened)
    }

    async fn lock(&self, entry: &Entry) -> Result<StateLock, Unavailable> {
        let id = entry.store.id();
        let failed = |error: crate::state::StateError| {
            Unavailable::new(id, Reason::Failed, error.to_string())
        };
        let Some(state) = &self.settings.state else {
            return Err(Unavailable::new(
                id,
                Reason::Failed,
                "no state directory for the lock",
            ));
        };
        let keys = state.subdirectory("keys").map_err(failed)?;
        let file = format!("{}.lock", self.settings.name);
        let give_up = Instant::now() + self.settings.create_deadline;
        loop {
            if let Some(lock) = keys.try_lock(&file).map_err(failed)? {
                return Ok(lock);
            }
            if Instant::now() >= give_up {
                let detail = "another process has held the lock of this key for too long";
                return Err(Unavailable::new(id, Reason::TimedOut, detail));
            }
            // The operating system offers no portable wait with a deadline.
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    fn announce(&self, proven: &Proven) {
        let (store, key) = (proven.evidence.store, proven.evidence.key_id);
        self.events
            .announce(match (&proven.replaced, proven.created) {
                (Some(Replaced { from, cause }), true) => KeyEvent::Replaced {
                    store,
                    from: *from,
                    to: key,
                    cause: cause.clone(),
                },
                (_, true) => KeyEvent::Created { store, key },
                (_, false) => KeyEvent::Opened { store, key },
            });
    }
}

/// The answer of a store's thread, with a hung or broken thread as a refusal like any other.
pub(super) fn flatten<T>(
    store: StoreId,
    answer: Result<Result<T, Unavailable>, KeyError>,
) -> Result<T, Unavailable> {
    answer.unwrap_or_else(|error| {
        let reason = match &error {
            KeyError::DeadlineExceeded { .. } => Reason::TimedOut,
            _ => Reason::Failed,
        };
        Err(Unavailable::new(store, reason, error.to_string()))
    })
}

/// Opens and proves what is there. Runs on a thread that may block.
fn open(store: &dyn KeyStore, name: &KeyName) -> Result<Opened, Unavailable> {
    let vacant = |from, refusal: Unavailable| {
        let cause = format!("{}: {}", refusal.reason, refusal.detail);
        Opened::Vacant(Some(Replaced { from, cause }))
    };
    let stored: Arc<dyn StoredKey> = match store.open(name) {
        Ok(None) => return Ok(Opened::Vacant(None)),
        Ok(Some(stored)) => stored.into(),
        Err(refusal) if gives_up_the_key(&refusal) => return Ok(vacant(None, refusal)),
        Err(refusal) => return Err(refusal),
    };
    match prove(store.id(), Arc::clone(&stored), false) {
        Ok(proven) => Ok(Opened::Key(Box::new(proven))),
        Err(refusal) if gives_up_the_key(&refusal) => {
            let spki = stored.public_key().ok();
            let from = spki.and_then(|spki| PublicKey::from_spki_der(&spki).ok());
            Ok(vacant(from.map(|key| key.id()), refusal))
        }
        Err(refusal) => Err(refusal),
    }
}

/// Makes and proves a key. Runs on a thread that may block.
fn create(store: &dyn KeyStore, name: &KeyName) -> Result<Proven, Unavailable> {
    let stored = store.create(name)?;
    prove(store.id(), stored.into(), true).inspect_err(|refusal| {
        // A key that is not what its tier promises must not lie about for others to find.
        if refusal.reason == Reason::TooWeak
            && let Err(error) = store.delete(name)
        {
            tracing::warn!(target: "keybond::keys", %error, "the rejected key could not be deleted");
        }
    })
}

fn prove(store: StoreId, stored: Arc<dyn StoredKey>, created: bool) -> Result<Proven, Unavailable> {
    let (public, evidence) = evidence::gather(store, &*stored)?;
    let (have, need) = (evidence.strength(), store.tier().required_strength());
    if have < need {
        let detail = format!(
            "the evidence shows strength {have}, the tier demands {need} ({:?}, {:?}, exportable {:?}, export {:?})",
            evidence.properties.isolation,
            evidence.properties.origin,
            evidence.properties.exportable,
            evidence.export,
        );
        return Err(Unavailable::new(store, Reason::TooWeak, detail));
    }
    Ok(Proven {
        stored,
        public,
        evidence,
        created,
        replaced: None,
    })
}

/// Whether a refusal means that the key in the store is lost for good, so that a new one may take its place
/// (the store sets aside what is there).
fn gives_up_the_key(refusal: &Unavailable) -> bool {
    matches!(
        refusal.reason,
        Reason::Dead | Reason::Corrupt | Reason::Foreign
    ) && !refusal.retryable
}
