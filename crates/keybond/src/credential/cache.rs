//! The binding in use. Reading it takes no lock; making the next one happens once at a time.
//!
//! 1. A usable binding is returned at once, whatever else goes on.
//! 2. From its renewal time on, the next one is made in the background while it stays in use; a failure is
//!    not tried again before a pause.
//! 3. Versions only grow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;

use super::Binding;
use crate::{error::Error, imds::metadata::Metadata, single_flight::SingleFlight, time::Pause};

/// How long platform metadata is believed.
const METADATA_LIFE: Duration = Duration::from_secs(60 * 60);

/// The binding of one client, and what is kept to make the next.
pub(crate) struct BindingCache {
    current: ArcSwapOption<Binding>,
    metadata: ArcSwapOption<(Arc<Metadata>, SystemTime)>,
    version: AtomicU64,
    /// Tokens of older bindings are not to be used any more.
    retired_below: AtomicU64,
    pub(crate) flight: SingleFlight<Result<Arc<Binding>, Error>>,
    pub(crate) renewal: Pause,
}

impl BindingCache {
    pub(crate) fn new() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            metadata: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            retired_below: AtomicU64::new(0),
            flight: SingleFlight::new(),
            renewal: Pause::new(),
        }
    }

    /// The binding in use, if its certificate is valid now.
    pub(crate) fn usable(&self, now: SystemTime) -> Option<Arc<Binding>> {
        let current = self.current.load();
        let current = current.as_ref()?;
        (now < current.not_after()).then(|| Arc::clone(current))
    }

    /// The version of the binding in use; 0 if there is none.
    pub(crate) fn current_version(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |now| now.version())
    }

    /// Puts a new binding to use, unless a newer one is in use already.
    pub(crate) fn put(&self, binding: &Arc<Binding>) {
        self.current.rcu(|now| match now {
            Some(now) if now.version() > binding.version() => Some(Arc::clone(now)),
            _ => Some(Arc::clone(binding)),
        });
    }

    /// Gives up every token of a binding older than `version`.
    pub(crate) fn retire_below(&self, version: u64) {
        self.retired_below.fetch_max(version, Ordering::AcqRel);
    }

    /// Whether tokens of this binding may still be used.
    pub(crate) fn is_retired(&self, binding: &Binding) -> bool {
        binding.version() < self.retired_below.load(Ordering::Acquire)
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
}
