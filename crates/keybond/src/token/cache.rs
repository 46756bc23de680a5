//! The tokens in use, one per resource.
//!
//! 1. A read is a few atomic loads, a look into a map that is never changed in place, and a reference count.
//!    It takes no lock and waits for nobody, whatever is being fetched for whichever resource.
//! 2. At most one fetch per resource is under way; a fetch for one never delays another.
//! 3. Past its refresh time a token is still handed out while the next is fetched in the background; a
//!    failure is not tried again before a pause.
//! 4. No token of a retired binding is handed out.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::AccessToken;
use crate::{
    credential::cache::BindingCache, error::Error, single_flight::SingleFlight, time::Pause,
};

/// Everything kept for one resource.
pub(crate) struct Slot {
    current: ArcSwapOption<AccessToken>,
    pub(crate) flight: SingleFlight<Result<Arc<AccessToken>, Error>>,
    pub(crate) refresh: Pause,
}

impl Slot {
    /// The token, if it may be handed out now.
    pub(crate) fn usable(
        &self,
        now: SystemTime,
        bindings: &BindingCache,
    ) -> Option<Arc<AccessToken>> {
        let current = self.current.load();
        let current = current.as_ref()?;
        let good = current.is_usable(now) && !bindings.is_retired(current.bound_to());
        good.then(|| Arc::clone(current))
    }

    pub(crate) fn put(&self, token: &Arc<AccessToken>) {
        self.current.store(Some(Arc::clone(token)));
    }
}

/// The slots by resource.
pub(crate) struct TokenCache {
    slots: ArcSwap<HashMap<Box<str>, Arc<Slot>>>,
}

impl TokenCache {
    pub(crate) fn new() -> Self {
        Self {
            slots: ArcSwap::from_pointee(HashMap::new()),
        }
    }

    /// The token for a resource, if one may be handed out now, and its slot if there is one.
    pub(crate) fn usable(
        &self,
        resource: &str,
        now: SystemTime,
        bindings: &BindingCache,
    ) -> Option<Arc<AccessToken>> {
        self.slots.load().get(resource)?.usable(now, bindings)
    }

    /// The slot of a resource, made if need be.
    pub(crate) fn slot(&self, resource: &str) -> Arc<Slot> {
        if let Some(slot) = self.slots.load().get(resource) {
            return Arc::clone(slot);
        }
        let fresh = Arc::new(Slot {
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
