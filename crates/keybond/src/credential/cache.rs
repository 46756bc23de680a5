//! The binding in use. Reading it takes no lock; making the next one happens once at a time.
//!
//! 1. A usable binding is returned at once, whatever else goes on.
//! 2. What is started when says the machine (`lifecycle::certificate`), which is asked only when its last answer
//!    may have changed.
//! 3. Versions only grow.
//! 4. A retired binding is not returned, and no token of it is handed out.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use keybond_keys::KeyId;

use super::Binding;
use crate::{
    error::Error,
    imds::metadata::Metadata,
    lifecycle::{
        Age, Output,
        certificate::{Certificate, Event, InUse},
    },
    single_flight::SingleFlight,
    time::{Pause, Window},
    token::cache::Asked,
};

/// How long platform metadata is believed.
const METADATA_LIFE: Duration = Duration::from_secs(60 * 60);

/// The binding of one client, and what is kept to make the next.
pub(crate) struct BindingCache {
    current: ArcSwapOption<Binding>,
    machine: Mutex<Certificate<KeyId, Error>>,
    window: Window,
    metadata: ArcSwapOption<(Arc<Metadata>, SystemTime)>,
    version: AtomicU64,
    /// Tokens of older bindings are not to be used any more.
    retired_below: AtomicU64,
    pub(crate) flight: SingleFlight<Arc<Binding>>,
    /// Between two questions whether the identity is still the same.
    pub(crate) identity_asked: Pause,
}

impl BindingCache {
    pub(crate) fn new() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            machine: Mutex::default(),
            window: Window::default(),
            metadata: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            retired_below: AtomicU64::new(0),
            flight: SingleFlight::new(),
            identity_asked: Pause::new(),
        }
    }

    /// The binding in use, if it may be used now.
    pub(crate) fn usable(&self, now: SystemTime) -> Option<Arc<Binding>> {
        let current = self.current.load_full()?;
        let usable = current.life().age(now) != Age::Over && !self.is_retired(current.version());
        usable.then_some(current)
    }

    /// What to do for somebody who needs the binding. `key` is the one that the provider has now.
    pub(crate) fn ask(&self, now: SystemTime, key: Option<KeyId>) -> Asked<Arc<Binding>> {
        let Some(binding) = self.usable(now) else {
            return match self.machine().step(now, Event::Asked { key }) {
                Output::Fail(cause) => Asked::Fail(cause),
                _ => Asked::Start,
            };
        };
        let same_key = key.is_none_or(|key| key == binding.key().id());
        if same_key && self.window.holds(now) {
            return Asked::Use(binding);
        }
        match self.machine().step(now, Event::Asked { key }) {
            Output::Use { until } => {
                self.window.open(now, until);
                Asked::Use(binding)
            }
            Output::UseAndStart { until } => {
                self.window.open(now, until);
                Asked::UseAndStart(binding)
            }
            Output::Start | Output::Fail(_) | Output::Wait => Asked::Use(binding),
        }
    }

    /// The version of the binding in use; 0 if there is none.
    pub(crate) fn current_version(&self) -> u64 {
        self.machine().in_use().map_or(0, |used| used.version)
    }

    /// The key that the certificate in use certifies.
    pub(crate) fn key_in_use(&self) -> Option<KeyId> {
        self.machine().in_use().map(|used| used.key)
    }

    /// Puts a new binding to use, unless a newer one is in use already.
    pub(crate) fn put(&self, now: SystemTime, binding: &Arc<Binding>) {
        let mut machine = self.machine();
        let got = Event::Got {
            in_use: InUse {
                version: binding.version(),
                key: binding.key().id(),
            },
            life: *binding.life(),
        };
        machine.step(now, got);
        if machine.in_use().map(|used| used.version) == Some(binding.version()) {
            self.current.store(Some(Arc::clone(binding)));
        }
        self.window.close();
    }

    /// Takes note of a run that failed.
    pub(crate) fn failed(&self, now: SystemTime, cause: &Error, jitter: f64) {
        let failed = Event::Failed {
            cause: cause.clone(),
            hold: cause.retry_after(),
            jitter,
        };
        self.machine().step(now, failed);
        self.window.close();
    }

    /// The key is dead: gives up its certificate and every token of it. `false` if it was not in use.
    pub(crate) fn key_died(&self, now: SystemTime, key: KeyId) -> bool {
        let mut machine = self.machine();
        machine.step(now, Event::KeyDied(key));
        match machine.in_use() {
            Some(used) if used.key == key => {
                self.current.store(None);
                self.retire_below(used.version + 1);
                true
            }
            _ => false,
        }
    }

    /// The token service refused the certificate: no token is asked for with it any more. Those that there are
    /// stay what they are.
    pub(crate) fn refused(&self, now: SystemTime, binding: &Binding) {
        let mut machine = self.machine();
        let version = binding.version();
        machine.step(now, Event::Refused { version });
        if machine.in_use().map(|used| used.version) == Some(version) {
            self.current.store(None);
        }
    }

    /// Gives up every token of a binding older than `version`.
    pub(crate) fn retire_below(&self, version: u64) {
        self.retired_below.fetch_max(version, Ordering::AcqRel);
    }

    /// Whether tokens of the binding with this version may not be used any more.
    pub(crate) fn is_retired(&self, version: u64) -> bool {
        version < self.retired_below.load(Ordering::Acquire)
    }

    pub(crate) fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn metadata(&self, now: SystemTime) -> Option<Arc<Metadata>> {
        let kept = self.metadata.load();
        let (metadata, since) = &**kept.as_ref()?;
        let age = now.duration_since(*since).ok()?;
        (age < METADATA_LIFE).then(|| Arc::clone(metadata))
    }

    pub(crate) fn keep_metadata(&self, metadata: Arc<Metadata>, now: SystemTime) {
        self.metadata.store(Some(Arc::new((metadata, now))));
    }

    pub(crate) fn forget_metadata(&self) {
        self.metadata.store(None);
    }

    fn machine(&self) -> MutexGuard<'_, Certificate<KeyId, Error>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
