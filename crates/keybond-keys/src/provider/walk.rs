//! The walk through the hierarchy: ask, prove, fall to the next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Entry, Stores};
use crate::{
    current::Recent,
    decision::{Considered, Decision, Outcome},
    error::KeyError,
    event::{self, KeyEvent},
    evidence::{self, Evidence},
    keeper::Hierarchy,
    key::HeldKey,
    offload::Steps,
    public_key::{KeyId, PublicKey, RSA_BITS},
    refusal::{Reason, Unavailable},
    state::{StateDir, StateError, StateLock},
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
pub(super) struct Replaced {
    pub(super) from: Option<KeyId>,
    pub(super) cause: String,
}

/// What a store has under the key's name.
enum Opened {
    Key(Box<Proven>),
    /// Nothing, or something to replace.
    Vacant(Option<Replaced>),
}

impl Hierarchy for Stores {
    type Key = HeldKey;
    type Error = KeyError;

    async fn walk(
        &self,
        floor: Strength,
        above: Option<&Arc<HeldKey>>,
    ) -> Result<Arc<HeldKey>, KeyError> {
        self.walk_for(&self.name()?, floor, above).await
    }

    fn handle(key: &HeldKey) -> HeldKey {
        key.handle()
    }

    #[inline]
    fn recent<R>(read: impl FnOnce(&Recent<HeldKey>) -> R) -> Option<R> {
        thread_local! {
            static RECENT: Recent<HeldKey> = const { Recent::nothing() };
        }
        RECENT.try_with(read).ok()
    }

    fn strength(key: &HeldKey) -> Strength {
        key.strength()
    }

    fn is_provisional(key: &HeldKey) -> bool {
        key.decision().provisional
    }

    fn may_pass(error: &KeyError) -> bool {
        error.retryable()
    }

    fn below(key: &HeldKey, floor: Strength) -> KeyError {
        KeyError::MinStrengthNotMet {
            have: Some(key.strength()),
            need: floor,
            decision: Arc::clone(key.decision()),
        }
    }

    fn died() -> KeyError {
        super::died()
    }

    fn kept(&self, before: Option<&Arc<HeldKey>>, key: &Arc<HeldKey>) {
        let (store, to) = (key.store(), key.id());
        event::measure_key(key.strength(), key.decision().provisional);
        if let Some(before) = before {
            let from = before.id();
            self.events.announce(KeyEvent::Upgraded { from, to, store });
        }
        if key.decision().provisional {
            self.events
                .announce(KeyEvent::Provisional { store, key: to });
        }
    }

    fn settled(&self, key: &Arc<HeldKey>) {
        event::measure_key(key.strength(), false);
        tracing::info!(
            target: "keybond::keys", store = %key.store(), key = %key.id(),
            "the key is no longer provisional: the stronger stores refused for good"
        );
    }
}

impl Stores {
    /// The walk, for the key of this name.
    pub(super) async fn walk_for(
        &self,
        name: &KeyName,
        floor: Strength,
        above: Option<&Arc<HeldKey>>,
    ) -> Result<Arc<HeldKey>, KeyError> {
        let began = Instant::now();
        let mut considered = Vec::with_capacity(self.entries.len());
        let mut chosen = None;
        let mut budget = self.settings.retry_budget;
        for entry in &self.entries {
            let id = entry.store.id();
            let started = Instant::now();
            let (outcome, attempts) = if chosen.is_some() {
                (Outcome::NotAsked, 0)
            } else if let Some(refusal) = self.excluded(id, floor) {
                (Outcome::Skipped(refusal), 0)
            } else if above.is_some_and(|key| id.tier() <= key.store().tier()) {
                (Outcome::NotAsked, 0)
            } else {
                let (answer, attempts) = self.ask(entry, name, &mut budget).await;
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
            considered.push(Considered {
                store: id,
                tier: id.tier(),
                outcome,
                details: Vec::new(),
                attempts,
                elapsed: started.elapsed(),
            });
        }
        let store = chosen.as_ref().map(|(_, entry)| entry.store.id());
        event::measure_decision(store, began.elapsed());
        let tier = store.map(StoreId::tier);
        let decision = Arc::new(Decision {
            at: (self.settings.now)(),
            // Only a stronger tier is worth another key.
            provisional: considered
                .iter()
                .any(|entry| entry.may_pass() && Some(entry.tier) > tier),
            considered,
        });
        let Some((proven, entry)) = chosen else {
            return Err(self.nothing(floor, above, decision).await);
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
    fn excluded(&self, store: StoreId, floor: Strength) -> Option<Unavailable> {
        self.settings.policy.refusal(store).or_else(|| {
            let offers = store.tier().required_strength();
            let below = format!("its keys have strength {offers}, the floor is {floor}");
            (offers < floor).then(|| Unavailable::new(store, Reason::DisabledByPolicy, below))
        })
    }

    /// The error when no store gave a key: the floor's, if there is one.
    async fn nothing(
        &self,
        need: Strength,
        above: Option<&Arc<HeldKey>>,
        decision: Arc<Decision>,
    ) -> KeyError {
        if need == Strength::Software {
            return KeyError::NoStore { decision };
        }
        let mut have = above.map(|key| key.strength());
        for entry in &self.entries {
            let offers = entry.store.id().tier().required_strength();
            if offers < need
                && have < Some(offers)
                && matches!(self.probe(entry).await.outcome, Outcome::Available)
            {
                have = Some(offers);
            }
        }
        KeyError::MinStrengthNotMet {
            have,
            need,
            decision,
        }
    }

    /// Asks one store, again while its refusals may pass and the budget lasts. The budget runs from the first
    /// refusal on and counts the time of the answers, too.
    async fn ask(
        &self,
        entry: &Entry,
        name: &KeyName,
        budget: &mut Duration,
    ) -> (Result<Proven, Unavailable>, u32) {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        let mut refused_since = None;
        loop {
            attempts += 1;
            let answer = self.open_or_create(entry, name).await;
            let retry = match &answer {
                // A deadline has been waited for already; the store has had its chance for now.
                Err(refusal) => refusal.retryable && refusal.reason != Reason::TimedOut,
                Ok(_) => false,
            };
            let spent = refused_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
            let left = budget.saturating_sub(spent);
            if !retry || left < pause {
                *budget = left;
                return (answer, attempts);
            }
            refused_since.get_or_insert_with(Instant::now);
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn open_or_create(&self, entry: &Entry, name: &KeyName) -> Result<Proven, Unavailable> {
        if let Opened::Key(proven) = self.open(entry, name).await? {
            return Ok(*proven);
        }
        let (store, name) = (Arc::clone(&entry.store), name.clone());
        let open_or_create = move |steps: &Steps| {
            // With the lock in hand: another process may have made the key while this one waited.
            let replaces = match open(&*store, &name, steps)? {
                Opened::Key(proven) => return Ok(*proven),
                Opened::Vacant(replaces) => replaces,
            };
            let mut proven = create(&*store, &name, steps)?;
            proven.replaced = replaces;
            Ok(proven)
        };
        self.change(entry, self.settings.create_deadline, open_or_create)
            .await
    }

    /// Does something to what a store keeps, alone on the machine. If a step takes longer than the deadline, the
    /// lock stays with the job until the device answers after all.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        entry: &Entry,
        deadline: Duration,
        job: impl FnOnce(&Steps) -> Result<T, Unavailable> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let id = entry.store.id();
        let Ok(alone) = Arc::clone(&entry.changing).try_lock_owned() else {
            let detail = "an earlier creation or deletion has not come back";
            return Err(Unavailable::new(id, Reason::TimedOut, detail));
        };
        let lock = match &self.settings.state {
            Some(state) if entry.store.outlives_process() => Some(self.lock(id, state).await?),
            _ => None,
        };
        let changed = entry
            .offload
            .run_steps(deadline, move |steps| {
                let _until_the_end = (alone, lock);
                job(steps)
            })
            .await;
        flatten(id, changed)
    }

    async fn open(&self, entry: &Entry, name: &KeyName) -> Result<Opened, Unavailable> {
        let (store, name) = (Arc::clone(&entry.store), name.clone());
        let opened = entry
            .offload
            .run_steps(self.settings.open_deadline, move |steps| {
                open(&*store, &name, steps)
            })
            .await;
        flatten(entry.store.id(), opened)
    }

    async fn lock(&self, id: StoreId, state: &StateDir) -> Result<StateLock, Unavailable> {
        let failed = |error: StateError| match &error {
            StateError::Io { source, .. } => {
                let denied = source.kind() == std::io::ErrorKind::PermissionDenied;
                let reason = if denied {
                    Reason::PermissionDenied
                } else {
                    Reason::Failed
                };
                let refusal = Unavailable::new(id, reason, error.to_string());
                // A full disk or a lack of handles may pass.
                refusal.with_retryable(!denied)
            }
            _ => Unavailable::new(id, Reason::PermissionDenied, error.to_string())
                .with_remedy("Make the state directory private to the user that runs keybond."),
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
        let lost = self.take_lost().filter(|lost| lost.from != Some(key));
        let replaced = if proven.created {
            lost.as_ref().or(proven.replaced.as_ref())
        } else {
            lost.as_ref()
        };
        self.events.announce(match replaced {
            Some(Replaced { from, cause }) => KeyEvent::Replaced {
                store,
                from: *from,
                to: key,
                cause: cause.clone(),
            },
            None if proven.created => KeyEvent::Created { store, key },
            None => KeyEvent::Opened { store, key },
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
        // Nobody knows whether a store that died stays dead: it is asked again.
        Err(Unavailable::new(store, reason, error.to_string()).with_retryable(true))
    })
}

/// Opens and proves what is there. Runs on a thread that may block.
fn open(store: &dyn KeyStore, name: &KeyName, steps: &Steps) -> Result<Opened, Unavailable> {
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
    steps.done();
    match prove(store.id(), Arc::clone(&stored), false, steps) {
        Ok(proven) => Ok(Opened::Key(Box::new(proven))),
        Err(refusal) => {
            let spki = stored.public_key().ok();
            let key = spki.and_then(|spki| PublicKey::from_spki_der(&spki).ok());
            // A key of another size is never "resized": it is made anew.
            let of_another_size = key.as_ref().is_some_and(|key| key.bits() != RSA_BITS);
            if gives_up_the_key(&refusal) || of_another_size {
                return Ok(vacant(key.map(|key| key.id()), refusal));
            }
            Err(refusal)
        }
    }
}

/// Makes and proves a key. Runs on a thread that may block.
fn create(store: &dyn KeyStore, name: &KeyName, steps: &Steps) -> Result<Proven, Unavailable> {
    let stored = store.create(name)?;
    steps.done();
    prove(store.id(), stored.into(), true, steps).inspect_err(|refusal| {
        // A key that is not what its tier promises, or does not sign, must not lie about for others to find.
        if matches!(refusal.reason, Reason::TooWeak | Reason::Dead)
            && let Err(error) = store.delete(name)
        {
            tracing::warn!(target: "keybond::keys", %error, "the rejected key could not be deleted");
        }
    })
}

fn prove(
    store: StoreId,
    stored: Arc<dyn StoredKey>,
    created: bool,
    steps: &Steps,
) -> Result<Proven, Unavailable> {
    let (public, evidence) = evidence::gather(store, &*stored, &|| steps.done())?;
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
pub(super) fn gives_up_the_key(refusal: &Unavailable) -> bool {
    matches!(
        refusal.reason,
        Reason::Dead | Reason::Corrupt | Reason::Foreign
    ) && !refusal.retryable
}
