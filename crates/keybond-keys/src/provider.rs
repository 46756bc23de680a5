//! The key provider: one call, `get_or_create_key`, and every promise behind it.

mod walk;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwapOption;

use crate::{
    decision::{Considered, Decision, Outcome},
    error::KeyError,
    event::{Announcer, KeyEvent, KeyEvents},
    key::HeldKey,
    offload::Offload,
    policy::StorePolicy,
    single_flight::SingleFlight,
    state::StateDir,
    store::{KeyName, KeyStore, MemoryStore},
    strength::Strength,
};

/// Threads that one store may keep busy; more callers than this wait for each other.
const THREADS_PER_STORE: usize = 16;

/// Finds or makes the strongest key this machine offers, once, and hands it to everybody.
///
/// Invariants:
///
/// 1. A cached key is returned at once: one atomic load and a reference count, whatever else goes on.
/// 2. At most one creation is under way in the process, and for stores that outlive the process at most
///    one for this user and key name on the machine.
/// 3. A caller that is cancelled changes nothing for the others; a creation that dies is taken over.
/// 4. Stores are asked in the order of their tier, then of their registration. A weaker one is used only
///    after every stronger one refused, and the [`Decision`] says why each did.
/// 5. What a key is follows from its evidence. A key below its store's tier is not used as one of that tier,
///    and no key below the floor is returned, cached or not.
/// 6. A refusal that may pass is retried within a budget; if it stays, the weaker key is provisional and the
///    stronger store is asked again later. No transient failure is remembered for the life of the process.
///
/// Clones share one key. The methods must be called on a tokio runtime with its timer enabled.
#[derive(Clone)]
pub struct KeyProvider {
    shared: Arc<Shared>,
}

struct Shared {
    cached: ArcSwapOption<Cached>,
    flight: SingleFlight<Result<Arc<HeldKey>, KeyError>>,
    entries: Vec<Entry>,
    settings: Settings,
    events: Announcer,
}

struct Cached {
    key: Arc<HeldKey>,
    /// When to ask the stronger stores again; `None` if the key is not provisional.
    reconsider_at: Option<Instant>,
}

struct Entry {
    store: Arc<dyn KeyStore>,
    offload: Offload,
}

struct Settings {
    name: KeyName,
    floor: Strength,
    policy: StorePolicy,
    state: Option<StateDir>,
    retry_budget: Duration,
    reconsider_after: Duration,
    open_deadline: Duration,
    create_deadline: Duration,
    sign_deadline: Duration,
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl KeyProvider {
    /// Starts the configuration of a provider without any store.
    pub fn builder() -> KeyProviderBuilder {
        KeyProviderBuilder::default()
    }

    /// A provider with the one store that works everywhere: process memory.
    pub fn in_memory() -> Self {
        Self::builder().store(MemoryStore).build()
    }

    /// Returns the key, finding or making it if need be.
    ///
    /// # Errors
    /// [`KeyError::MinStrengthNotMet`] when nothing reaches the floor, [`KeyError::NoStore`] when no store
    /// has a key to offer; both carry the decision.
    pub async fn get_or_create_key(&self) -> Result<Arc<HeldKey>, KeyError> {
        if let Some(key) = self.cached() {
            return Ok(key);
        }
        let shared = &self.shared;
        shared.flight.join(|| Arc::clone(shared).decide()).await
    }

    /// [`KeyProvider::get_or_create_key`] with a floor for this call alone, if it is above the provider's.
    ///
    /// # Errors
    /// As [`KeyProvider::get_or_create_key`].
    pub async fn get_key_of_strength(&self, need: Strength) -> Result<Arc<HeldKey>, KeyError> {
        let key = self.get_or_create_key().await?;
        if key.strength() >= need {
            return Ok(key);
        }
        Err(KeyError::MinStrengthNotMet {
            have: Some(key.strength()),
            need,
            decision: Arc::clone(key.decision()),
        })
    }

    /// The key in use, if there is one already.
    pub fn cached(&self) -> Option<Arc<HeldKey>> {
        let cached = self.shared.cached.load();
        let cached = cached.as_ref()?;
        if let Some(at) = cached.reconsider_at
            && Instant::now() >= at
        {
            self.reconsider();
        }
        Some(Arc::clone(&cached.key))
    }

    /// Tells the provider that `key` stopped working: a signature was refused, a handshake was rejected.
    /// The key is replaced only if it fails to sign here and now.
    ///
    /// # Errors
    /// As [`KeyProvider::get_or_create_key`], when the key is dead and no other can be had.
    pub async fn report_failure(&self, key: &HeldKey, cause: &str) -> Result<Verdict, KeyError> {
        let current = self.shared.cached.load_full();
        match current {
            Some(current) if current.key.id() == key.id() => {}
            _ => return Ok(Verdict::Replaced(self.get_or_create_key().await?)),
        }
        match key.prove_alive().await {
            Ok(()) => return Ok(Verdict::Alive),
            Err(error) if error.retryable() => return Ok(Verdict::Unproven(error)),
            Err(error) => {
                tracing::warn!(target: "keybond::keys", key = %key.id(), cause, %error, "the key is dead");
            }
        }
        // Only the key that was shown to be dead: another caller may have replaced it meanwhile.
        self.shared.cached.rcu(|now| match now {
            Some(now) if now.key.id() == key.id() => None,
            other => other.clone(),
        });
        Ok(Verdict::Replaced(self.get_or_create_key().await?))
    }

    /// Asks every store whether it could hold a key, without making one, in milliseconds where the answers
    /// are definite.
    pub async fn probe(&self) -> Decision {
        let mut considered = Vec::new();
        for entry in &self.shared.entries {
            considered.push(self.shared.probe(entry).await);
        }
        Decision {
            at: (self.shared.settings.now)(),
            considered,
            provisional: false,
        }
    }

    /// Deletes the key from every store that has one, and forgets it. What was signed stays valid; every
    /// certificate of the key is worthless from now on.
    ///
    /// # Errors
    /// [`KeyError::Refused`] with the first refusal of a store that has a key.
    pub async fn delete_key(&self) -> Result<bool, KeyError> {
        self.shared.cached.store(None);
        let mut deleted = false;
        for entry in &self.shared.entries {
            let (store, name) = (Arc::clone(&entry.store), self.shared.settings.name.clone());
            let deadline = self.shared.settings.open_deadline;
            let usable = Arc::clone(&entry.store);
            if entry
                .offload
                .run(deadline, move || usable.probe())
                .await?
                .is_err()
            {
                continue;
            }
            deleted |= entry
                .offload
                .run(deadline, move || store.delete(&name))
                .await??;
        }
        Ok(deleted)
    }

    /// What happens to the key from now on.
    pub fn events(&self) -> KeyEvents {
        self.shared.events.subscribe()
    }

    /// The floor below which no key is returned.
    pub fn minimum_strength(&self) -> Strength {
        self.shared.settings.floor
    }

    fn reconsider(&self) {
        let shared = &self.shared;
        shared.flight.launch(|| Arc::clone(shared).upgrade());
    }
}

/// What became of a key that was reported to fail.
#[derive(Debug)]
pub enum Verdict {
    /// It signed correctly: the cause lies elsewhere.
    Alive,
    /// It is dead or gone; this is the one to use now.
    Replaced(Arc<HeldKey>),
    /// Its device gives no definite answer; the key stays in use.
    Unproven(KeyError),
}

/// Configures a [`KeyProvider`].
#[must_use]
pub struct KeyProviderBuilder {
    stores: Vec<Arc<dyn KeyStore>>,
    settings: Settings,
}

impl Default for KeyProviderBuilder {
    fn default() -> Self {
        Self {
            stores: Vec::new(),
            settings: Settings {
                name: KeyName::default(),
                floor: Strength::Software,
                policy: StorePolicy::any(),
                state: None,
                retry_budget: Duration::from_secs(2),
                reconsider_after: Duration::from_secs(60),
                open_deadline: Duration::from_secs(10),
                create_deadline: Duration::from_secs(120),
                sign_deadline: Duration::from_secs(30),
                now: Arc::new(SystemTime::now),
            },
        }
    }
}

impl KeyProviderBuilder {
    /// Adds a store. Stores are asked in the order of their tier, then in the order they were added.
    pub fn store(self, store: impl KeyStore) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// Adds a store that others use, too.
    pub fn shared_store(mut self, store: Arc<dyn KeyStore>) -> Self {
        self.stores.push(store);
        self
    }

    /// The key's name; `default` if not set.
    pub fn key_name(mut self, name: KeyName) -> Self {
        self.settings.name = name;
        self
    }

    /// The floor: no key that was shown to be weaker is ever returned. `software` if not set.
    pub fn minimum_strength(mut self, floor: Strength) -> Self {
        self.settings.floor = floor;
        self
    }

    /// Which stores may be used; all that were added if not set.
    pub fn policy(mut self, policy: StorePolicy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Where the lock files lie that keep two processes from making the same key at once.
    pub fn state_dir(mut self, state: StateDir) -> Self {
        self.settings.state = Some(state);
        self
    }

    /// How long refusals that may pass are retried before a weaker store is asked; 2 s if not set.
    pub fn retry_budget(mut self, budget: Duration) -> Self {
        self.settings.retry_budget = budget;
        self
    }

    /// After how long a provisional key is reconsidered; 60 s if not set.
    pub fn reconsider_after(mut self, after: Duration) -> Self {
        self.settings.reconsider_after = after;
        self
    }

    /// How long a store may take to open a key and prove it; 10 s if not set.
    pub fn open_deadline(mut self, deadline: Duration) -> Self {
        self.settings.open_deadline = deadline;
        self
    }

    /// How long a store may take to make a key and prove it; 120 s if not set (some TPMs need a minute for
    /// RSA-2048).
    pub fn create_deadline(mut self, deadline: Duration) -> Self {
        self.settings.create_deadline = deadline;
        self
    }

    /// How long a caller waits for a signature; 30 s if not set.
    pub fn sign_deadline(mut self, deadline: Duration) -> Self {
        self.settings.sign_deadline = deadline;
        self
    }

    /// The clock that dates decisions; the system's if not set.
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.now = Arc::new(now);
        self
    }

    /// Finishes the configuration. No store is asked before the first key is needed.
    pub fn build(mut self) -> KeyProvider {
        self.stores
            .sort_by_key(|store| std::cmp::Reverse(store.id().tier()));
        let entries = self
            .stores
            .into_iter()
            .map(|store| Entry {
                store,
                offload: Offload::new(THREADS_PER_STORE),
            })
            .collect();
        KeyProvider {
            shared: Arc::new(Shared {
                cached: ArcSwapOption::empty(),
                flight: SingleFlight::new(),
                entries,
                settings: self.settings,
                events: Announcer::new(),
            }),
        }
    }
}

impl Shared {
    async fn probe(&self, entry: &Entry) -> Considered {
        let id = entry.store.id();
        let started = Instant::now();
        let (outcome, attempts) = match self.settings.policy.refusal(id) {
            Some(refusal) => (Outcome::Skipped(refusal), 0),
            None => {
                let store = Arc::clone(&entry.store);
                let answer = entry
                    .offload
                    .run(self.settings.open_deadline, move || store.probe())
                    .await;
                match walk::flatten(id, answer) {
                    Ok(()) => (Outcome::Available, 1),
                    Err(refusal) => (Outcome::Skipped(refusal), 1),
                }
            }
        };
        Considered {
            store: id,
            tier: id.tier(),
            outcome,
            attempts,
            elapsed: started.elapsed(),
        }
    }

    fn cache(&self, key: &Arc<HeldKey>) {
        let reconsider_at = key
            .decision()
            .provisional
            .then(|| Instant::now() + self.settings.reconsider_after);
        self.cached.store(Some(Arc::new(Cached {
            key: Arc::clone(key),
            reconsider_at,
        })));
        if reconsider_at.is_some() {
            self.events.announce(KeyEvent::Provisional {
                store: key.store(),
                key: key.id(),
            });
        }
    }
}
