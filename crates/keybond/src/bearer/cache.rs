//! The bearer tokens in use, one per resource. A read takes no lock; at most one fetch per resource is under
//! way, and a fetch for one never delays another. Many resources that nobody needs any more cost nothing
//! ([`slots`]).

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;

use super::BearerToken;
use crate::{
    single_flight::SingleFlight,
    slots::{self, Slots},
    time::Pause,
};

/// Everything kept for one resource.
pub(crate) struct BearerSlot {
    resource: Box<str>,
    current: ArcSwapOption<BearerToken>,
    pub(super) flight: SingleFlight<Arc<BearerToken>>,
    pub(super) refresh: Pause,
}

impl BearerSlot {
    fn new(resource: &str) -> Self {
        Self {
            resource: resource.into(),
            current: ArcSwapOption::empty(),
            flight: SingleFlight::new(),
            refresh: Pause::new(),
        }
    }

    pub(super) fn resource(&self) -> &str {
        &self.resource
    }

    pub(super) fn usable(&self, now: SystemTime) -> Option<Arc<BearerToken>> {
        let current = self.current.load();
        let current = current.as_ref()?;
        current.is_usable(now).then(|| Arc::clone(current))
    }

    pub(super) fn put(&self, token: &Arc<BearerToken>) {
        self.current.store(Some(Arc::clone(token)));
    }
}

impl slots::Slot for BearerSlot {
    fn name(&self) -> &str {
        &self.resource
    }

    fn is_idle(&self, now: SystemTime) -> bool {
        self.usable(now).is_none()
    }
}

/// The slots by resource.
pub(crate) struct BearerCache(Slots<BearerSlot>);

impl BearerCache {
    pub(crate) fn new() -> Self {
        Self(Slots::new())
    }

    /// The slot of a resource, made if need be.
    pub(super) fn slot(&self, resource: &str, now: SystemTime) -> Arc<BearerSlot> {
        self.0
            .get_or_make(resource, now, || BearerSlot::new(resource))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::source::Source;

    #[test]
    fn of_names_that_are_invented_only_what_is_of_use_is_kept() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let cache = BearerCache::new();
        let invent = |round: &str, seconds| {
            for index in 0..30_000 {
                cache.slot(&format!("https://{round}-{index}"), at(seconds));
            }
        };
        let hour = Duration::from_secs(3600);
        let token = BearerToken::new("t", "https://x", Source::ImdsV1, at(0), hour, None);
        let slot = cache.slot("https://x", at(0));
        slot.put(&Arc::new(token));
        let there = Arc::downgrade(&slot);
        drop(slot);

        invent("a", 1);
        assert!(there.upgrade().is_some());
        assert!(cache.0.len() <= 256 * 16 + 1, "{}", cache.0.len());
        invent("b", 3600);
        assert!(there.upgrade().is_none());
    }
}
