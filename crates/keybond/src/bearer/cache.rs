//! The bearer tokens in use, one per resource. A read takes no lock; at most one fetch per resource is under
//! way, and a fetch for one never delays another.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::BearerToken;
use crate::{single_flight::SingleFlight, time::Pause};

/// Everything kept for one resource.
pub(crate) struct BearerSlot {
    current: ArcSwapOption<BearerToken>,
    pub(super) flight: SingleFlight<Arc<BearerToken>>,
    pub(super) refresh: Pause,
}

impl BearerSlot {
    pub(super) fn usable(&self, now: SystemTime) -> Option<Arc<BearerToken>> {
        let current = self.current.load();
        let current = current.as_ref()?;
        current.is_usable(now).then(|| Arc::clone(current))
    }

    pub(super) fn put(&self, token: &Arc<BearerToken>) {
        self.current.store(Some(Arc::clone(token)));
    }
}

/// The slots by resource.
#[derive(Default)]
pub(crate) struct BearerCache {
    slots: ArcSwap<HashMap<Box<str>, Arc<BearerSlot>>>,
}

impl BearerCache {
    /// The slot of a resource, made if need be.
    pub(super) fn slot(&self, resource: &str) -> Arc<BearerSlot> {
        if let Some(slot) = self.slots.load().get(resource) {
            return Arc::clone(slot);
        }
        let fresh = Arc::new(BearerSlot {
            current: ArcSwapOption::empty(),
            flight: SingleFlight::new(),
            refresh: Pause::new(),
        });
        // Another caller may have made it meanwhile; whichever is in the map is the one.
        self.slots.rcu(|slots| {
            let mut slots = HashMap::clone(slots);
            slots
                .entry(resource.into())
                .or_insert_with(|| Arc::clone(&fresh));
            slots
        });
        self.slots.load().get(resource).map_or(fresh, Arc::clone)
    }
}
