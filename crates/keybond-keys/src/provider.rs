//! The key provider: one call, `get_or_create_key`, and every promise behind it.

mod rotation;
mod walk;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rotation::Slot;
use walk::Replaced;

use crate::{
    decision::{Considered, Decision, Outcome},
    error::KeyError,
    event::{Announcer, KeyEvents},
    keeper::Keeper,
    key::HeldKey,
    offload::Offload,
    policy::StorePolicy,
    refusal::{Reason, Unavailable},
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
/// 1. A cached key is returned at once: one atomic load and a reference count, whatever else goes on. Each
///    thread counts on a handle of its own, so that readers do not slow each other down.
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
/// Clones share one key. The key is sought on a thread of its own, so that no caller's runtime matters to the
/// others; futures must be polled on a tokio runtime with its timer enabled.
#[derive(Clone)]
pub struct KeyProvider {
    keeper: Keeper<Stores>,
}

/// The stores, in the order in which they are asked.
struct Stores {
    entries: Vec<Entry>,
    settings: Settings,
    events: Announcer,
    /// The key that was reported and found dead, until its successor is there.
    lost: Mutex<Option<Replaced>>,
    /// The slot in use, where no file says it.
    slot: Mutex<Slot>,
}

struct Entry {
    store: Arc<dyn KeyStore>,
    offload: Offload,
    /// Held by the job that creates or deletes, to its very end: a device call cannot be taken back, and a
    /// second one must not run beside it.
    changing: Arc<tokio::sync::Mutex<()>>,
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
    #[inline]
    pub async fn get_or_create_key(&self) -> Result<Arc<HeldKey>, KeyError> {
        let floor = self.minimum_strength();
        // What is never needed again after the first call is not carried along by all the others.
        match self.keeper.cached_of(floor) {
            Some(key) => Ok(key),
            None => Box::pin(self.keeper.get(floor)).await,
        }
    }

    /// [`KeyProvider::get_or_create_key`] with a floor for this call alone, if it is above the provider's.
    /// No store below it is asked. A key in use that is weaker stays in use for others, unless it is
    /// provisional and a stronger store gives a key now.
    ///
    /// # Errors
    /// As [`KeyProvider::get_or_create_key`].
    pub async fn get_key_of_strength(&self, need: Strength) -> Result<Arc<HeldKey>, KeyError> {
        self.keeper.get(need.max(self.minimum_strength())).await
    }

    /// The key in use, if there is one already.
    #[inline]
    pub fn cached(&self) -> Option<Arc<HeldKey>> {
        self.keeper.cached()
    }

    /// Tells the provider that `key` stopped working: a signature was refused, a handshake was rejected.
    /// The key is replaced only if a signature here and now shows that it is lost. A device that is busy,
    /// removed or locked shows no such thing: nobody forces a weaker key by pulling a plug.
    ///
    /// # Errors
    /// As [`KeyProvider::get_or_create_key`], when the key is dead and no other can be had.
    pub async fn report_failure(&self, key: &HeldKey, cause: &str) -> Result<Verdict, KeyError> {
        let held = match self.keeper.current() {
            Some(held) if held.key.id() == key.id() => held,
            _ => return Ok(Verdict::Replaced(self.get_or_create_key().await?)),
        };
        let death = match held.key.prove_alive().await {
            Ok(()) => return Ok(Verdict::Alive),
            Err(KeyError::Refused(refusal)) if walk::gives_up_the_key(&refusal) => refusal,
            Err(error) => return Ok(Verdict::Unproven(error)),
        };
        tracing::warn!(target: "keybond::keys", key = %key.id(), cause, %death, "the key is dead");
        let lost = Replaced {
            from: Some(key.id()),
            cause: format!("{cause}; {}: {}", death.reason, death.detail),
        };
        self.stores().remember_lost(lost);
        // Only this one: another caller may have replaced it meanwhile.
        self.keeper.discard(&held);
        Ok(Verdict::Replaced(self.get_or_create_key().await?))
    }

    /// Asks every store whether it could hold a key, without making one, in milliseconds where the answers
    /// are definite.
    pub async fn probe(&self) -> Decision {
        let stores = self.stores();
        let mut considered = Vec::new();
        for entry in &stores.entries {
            considered.push(stores.probe(entry).await);
        }
        Decision {
            at: (stores.settings.now)(),
            considered,
            provisional: false,
        }
    }

    /// Deletes the key from every store that has one and is not turned off, and forgets it; `false` if none
    /// had one. What was signed stays valid; every certificate of the key is worthless from now on. Goes on to
    /// its end if the caller leaves.
    ///
    /// # Errors
    /// [`KeyError::Refused`] with the first refusal, after every store was asked: where there is certainly no
    /// device there is no key, but a store that cannot be asked may have one.
    pub async fn delete_key(&self) -> Result<bool, KeyError> {
        let keeper = self.keeper.clone();
        self.keeper
            .without_key(async move { keeper.hierarchy().delete().await })
            .await
            .unwrap_or_else(|| Err(died()))
    }

    /// Puts a new key in the place of the one in use, which stays where it is until the next rotation, so that
    /// what was signed and connected with it can come to its end. The new key is proven first, and is never
    /// weaker: if anything fails, everything stays as it was. Goes on to its end if the caller leaves.
    ///
    /// A key name has two slots, `<name>` and `<name>-b`; `keys/<name>.slot` in the state directory says which
    /// one is in use. Other processes use the new key when they next look for theirs.
    ///
    /// # Errors
    /// As [`KeyProvider::get_or_create_key`]; [`KeyError::Local`] if another process is rotating the key, or
    /// there is no state directory to remember the slot of a key that outlives the process.
    pub async fn rotate_key(&self) -> Result<Arc<HeldKey>, KeyError> {
        let current = self.get_or_create_key().await?;
        let keeper = self.keeper.clone();
        let rotating = async move { keeper.hierarchy().rotate(&current).await };
        self.keeper.exchange(rotating).await
    }

    /// What happens to the key from now on. The log (`tracing`, target `keybond::keys`) and the metrics
    /// (`metrics`: `keybond_key_events_total`, `keybond_key_refusals_total`, `keybond_key_decision_seconds`,
    /// `keybond_key_strength`, `keybond_key_provisional`) tell the same story.
    pub fn events(&self) -> KeyEvents {
        self.stores().events.subscribe()
    }

    /// The floor below which no key is returned.
    pub fn minimum_strength(&self) -> Strength {
        self.stores().settings.floor
    }

    fn stores(&self) -> &Stores {
        self.keeper.hierarchy()
    }
}

/// What became of a key that was reported to fail.
#[derive(Debug)]
pub enum Verdict {
    /// It signed correctly: the cause lies elsewhere.
    Alive,
    /// It is dead or gone; this is the one to use now.
    Replaced(Arc<HeldKey>),
    /// Its device does not say; the key stays in use.
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

    /// How long a store may be silent while it opens a key and proves it; 10 s if not set. It begins anew with
    /// each answer, of which the proof takes some ten: a slow device is not a hung one.
    pub fn open_deadline(mut self, deadline: Duration) -> Self {
        self.settings.open_deadline = deadline;
        self
    }

    /// How long a store may be silent while it makes a key and proves it; 120 s if not set (some TPMs need a
    /// minute for RSA-2048). It begins anew with each answer.
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
                changing: Arc::default(),
            })
            .collect();
        let reconsider_after = self.settings.reconsider_after;
        let stores = Stores {
            entries,
            settings: self.settings,
            events: Announcer::new(),
            lost: Mutex::new(None),
            slot: Mutex::default(),
        };
        KeyProvider {
            keeper: Keeper::new(stores, reconsider_after),
        }
    }
}

impl Stores {
    async fn probe(&self, entry: &Entry) -> Considered {
        let id = entry.store.id();
        let started = Instant::now();
        let mut details = Vec::new();
        let (outcome, attempts) = match self.settings.policy.refusal(id) {
            Some(refusal) => (Outcome::Skipped(refusal), 0),
            None => match self.described(entry).await {
                Ok(facts) => {
                    details = facts;
                    (Outcome::Available, 1)
                }
                Err(refusal) => (Outcome::Skipped(refusal), 1),
            },
        };
        Considered {
            store: id,
            tier: id.tier(),
            outcome,
            details,
            attempts,
            elapsed: started.elapsed(),
        }
    }

    /// What a reachable store says about its device and the key in it.
    async fn described(&self, entry: &Entry) -> Result<Vec<(String, String)>, Unavailable> {
        self.reachable(entry).await?;
        // Without a name for the slot in use there is still a device to describe.
        let name = self.name().unwrap_or_else(|_| self.settings.name.clone());
        let store = Arc::clone(&entry.store);
        let deadline = self.settings.open_deadline;
        let facts = entry.offload.run(deadline, move || store.describe(&name));
        walk::flatten(entry.store.id(), facts.await)
    }

    async fn reachable(&self, entry: &Entry) -> Result<(), Unavailable> {
        let store = Arc::clone(&entry.store);
        let deadline = self.settings.open_deadline;
        let answer = entry.offload.run(deadline, move || store.probe()).await;
        walk::flatten(entry.store.id(), answer)
    }

    async fn delete(&self) -> Result<bool, KeyError> {
        let mut deleted = false;
        let mut first_refusal = None;
        for name in self.slots()? {
            for entry in &self.entries {
                if self.settings.policy.refusal(entry.store.id()).is_some() {
                    continue;
                }
                match self.delete_from(entry, name.clone()).await {
                    Ok(was_there) => deleted |= was_there,
                    Err(refusal) => {
                        first_refusal.get_or_insert(refusal);
                    }
                }
            }
        }
        match first_refusal {
            Some(refusal) => Err(refusal.into()),
            None => Ok(deleted),
        }
    }

    async fn delete_from(&self, entry: &Entry, name: KeyName) -> Result<bool, Unavailable> {
        match self.reachable(entry).await {
            Ok(()) => {}
            Err(refusal)
                if matches!(
                    refusal.reason,
                    Reason::NotPresent | Reason::NotSupported | Reason::DisabledByPolicy
                ) =>
            {
                return Ok(false);
            }
            Err(refusal) => return Err(refusal),
        }
        let store = Arc::clone(&entry.store);
        self.change(entry, self.settings.open_deadline, move |_| {
            store.delete(&name)
        })
        .await
    }

    fn remember_lost(&self, lost: Replaced) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(lost);
    }

    fn take_lost(&self) -> Option<Replaced> {
        self.lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

fn died() -> KeyError {
    KeyError::Local {
        what: "the search for a key".into(),
        cause: "it died, or there is no thread for it".into(),
    }
}
