//! The tokens in use.
//!
//! A client has one identity, one floor, attests or does not, and this cache holds bound tokens without claims
//! only: what is left of a token's key is its resource, and the version of the binding that it carries.
//!
//! 1. A read is a few atomic loads, a look into a map that is never changed in place, and a reference count.
//!    It takes no lock and waits for nobody, whatever is being fetched for whichever resource.
//! 2. Threads read handles of their own, each with its own reference count on a cache line of its own: readers on
//!    different cores do not take the line from each other.
//! 3. At most one fetch per resource is under way; a fetch for one never delays another.
//! 4. Past its refresh time a token is still handed out while the next is fetched; what is started when says the
//!    machine (`lifecycle`), which is asked only when its last answer may have changed.
//! 5. No token of a retired binding is handed out.
//! 6. A new resource costs little, and many that nobody needs any more cost nothing ([`slots`]).

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;

use super::AccessToken;
use crate::{
    credential::cache::BindingCache,
    error::Error,
    lifecycle::{Input, Machine, Output},
    single_flight::SingleFlight,
    slots::{self, Slots},
    time::Window,
};

/// At most this many handles to a token.
const MOST_HANDLES: usize = 8;

/// What somebody who asked is to do.
pub(crate) enum Asked<T> {
    /// Use this.
    Use(T),
    /// Use this and start the run that gets the next.
    UseAndStart(T),
    /// Start a run and wait for it.
    Start,
    /// Nothing can be had now.
    Fail(Error),
}

/// Everything kept for one resource.
pub(crate) struct Slot {
    resource: Arc<str>,
    /// Only the first few of them are used, by the number of cores.
    handles: [ArcSwapOption<AccessToken>; MOST_HANDLES],
    mask: usize,
    machine: Mutex<Machine<Error>>,
    window: Window,
    pub(crate) flight: SingleFlight<Arc<AccessToken>>,
}

impl Slot {
    fn new(resource: Arc<str>, handles: usize) -> Self {
        Self {
            resource,
            handles: [const { ArcSwapOption::const_empty() }; MOST_HANDLES],
            // Their number is a power of two.
            mask: handles - 1,
            machine: Mutex::default(),
            window: Window::default(),
            flight: SingleFlight::new(),
        }
    }

    /// The resource.
    pub(crate) fn resource(&self) -> &Arc<str> {
        &self.resource
    }

    /// This thread's handle.
    fn handle(&self) -> &ArcSwapOption<AccessToken> {
        &self.handles[this_thread() & self.mask & (MOST_HANDLES - 1)]
    }

    /// The token, if it may be handed out and nothing else is to be done.
    fn fresh(&self, now: SystemTime, bindings: &BindingCache) -> Option<Arc<AccessToken>> {
        let handle = self.handle().load();
        let token = handle.as_ref()?;
        let fresh = token.is_fresh(now) && !bindings.is_retired(token.version);
        fresh.then(|| Arc::clone(token))
    }

    /// The token, if it may be handed out.
    pub(crate) fn usable(
        &self,
        now: SystemTime,
        bindings: &BindingCache,
    ) -> Option<Arc<AccessToken>> {
        let token = self.handle().load_full()?;
        (token.is_usable(now) && !bindings.is_retired(token.version)).then_some(token)
    }

    /// What to do for somebody who wants the token.
    pub(crate) fn ask(&self, now: SystemTime, bindings: &BindingCache) -> Asked<Arc<AccessToken>> {
        if let Some(token) = self.usable(now, bindings)
            && self.window.holds(now)
        {
            return Asked::Use(token);
        }
        self.decide(now, bindings)
    }

    /// What the machine says of the token that is there while it is locked: one may have come since anybody looked.
    fn decide(&self, now: SystemTime, bindings: &BindingCache) -> Asked<Arc<AccessToken>> {
        let mut machine = self.machine();
        let token = self.handle().load_full();
        let retired = token
            .as_ref()
            .is_some_and(|token| bindings.is_retired(token.version));
        if retired {
            // The machine does not know; that a token's time is over it does, and a clock may be set back.
            machine.step(now, Input::Revoked);
            self.window.close();
        }
        let usable = token.filter(|token| !retired && token.is_usable(now));
        match (machine.step(now, Input::Asked), usable) {
            (Output::Use { until }, Some(token)) => {
                self.window.open(now, until);
                Asked::Use(token)
            }
            (Output::UseAndStart { until }, Some(token)) => {
                self.window.open(now, until);
                Asked::UseAndStart(token)
            }
            (Output::Start, Some(token)) => Asked::UseAndStart(token),
            (Output::Fail(_) | Output::Wait, Some(token)) => Asked::Use(token),
            (Output::Fail(cause), None) => Asked::Fail(cause),
            (_, None) => Asked::Start,
        }
    }

    /// Puts a token to use.
    pub(crate) fn put(&self, now: SystemTime, token: &Arc<AccessToken>) {
        let mut machine = self.machine();
        machine.step(now, Input::Got(token.facts.life));
        self.window.close();
        let mine = this_thread() & self.mask;
        for (index, handle) in self.handles[..=self.mask].iter().enumerate() {
            handle.store(Some(if index == mine {
                Arc::clone(token)
            } else {
                Arc::new(token.another())
            }));
        }
    }

    /// The refusal that stands because the service asked to wait, whether there is a usable token or not.
    pub(crate) fn held(&self, now: SystemTime) -> Option<Error> {
        self.machine().held(now).map(|(_, cause)| cause)
    }

    /// Takes note of a fetch that failed; `hold` is what the service asked to wait.
    pub(crate) fn failed(
        &self,
        now: SystemTime,
        cause: &Error,
        hold: Option<Duration>,
        jitter: f64,
    ) {
        let cause = cause.clone();
        self.machine().step(
            now,
            Input::Failed {
                cause,
                hold,
                jitter,
            },
        );
        self.window.close();
    }

    fn machine(&self) -> MutexGuard<'_, Machine<Error>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl slots::Slot for Slot {
    fn name(&self) -> &str {
        &self.resource
    }

    /// No token is left, and nobody is to be told to wait.
    fn is_idle(&self, now: SystemTime) -> bool {
        let token = self.handle().load();
        let over = token.as_ref().is_none_or(|token| !token.is_usable(now));
        over && self.held(now).is_none()
    }
}

/// The slots by resource.
pub(crate) struct TokenCache {
    slots: Slots<Slot>,
    handles: usize,
}

impl TokenCache {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            slots: Slots::new(),
            handles: cores.next_power_of_two().min(MOST_HANDLES),
        }
    }

    /// The token for a resource, if it may be handed out and nothing else is to be done.
    pub(crate) fn fresh(
        &self,
        resource: &str,
        now: SystemTime,
        bindings: &BindingCache,
    ) -> Option<Arc<AccessToken>> {
        self.slots.read(resource, |slot| slot.fresh(now, bindings))
    }

    /// The token for a resource, if it may be handed out.
    pub(crate) fn usable(
        &self,
        resource: &str,
        now: SystemTime,
        bindings: &BindingCache,
    ) -> Option<Arc<AccessToken>> {
        self.slots.read(resource, |slot| slot.usable(now, bindings))
    }

    /// The slot of a resource, made if need be.
    pub(crate) fn slot(&self, resource: &str, now: SystemTime) -> Arc<Slot> {
        let make = || Slot::new(resource.into(), self.handles);
        self.slots.get_or_make(resource, now, make)
    }
}

/// A small number for this thread; threads that follow each other get different ones.
fn this_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static THIS: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    THIS.with(|this| {
        if this.get() == usize::MAX {
            this.set(THREADS.fetch_add(1, Ordering::Relaxed));
        }
        this.get()
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{credential::Binding, lifecycle::Life};

    #[tokio::test]
    async fn a_token_that_came_since_anybody_looked_is_kept_and_refreshed() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        let life = Life {
            obtained: at(0),
            refresh_on: at(100),
            usable_until: at(200),
        };
        let bindings = BindingCache::new();
        let slot = Slot::new("r".into(), 1);
        let put = async |version| {
            let binding = Binding::of_version(version, life).await;
            let token = AccessToken::new("t".into(), at(300), life, "r".into(), true, binding);
            slot.put(at(0), &Arc::new(token));
        };
        put(1).await;
        bindings.retire_below(2);
        // Whoever looks now finds a token of a retired binding; before the machine hears of it the next one comes.
        assert!(slot.usable(at(1), &bindings).is_none());
        put(2).await;
        assert!(matches!(slot.decide(at(1), &bindings), Asked::Use(_)));
        assert!(matches!(slot.ask(at(2), &bindings), Asked::Use(_)));
        let due = slot.ask(at(101), &bindings);
        assert!(matches!(due, Asked::UseAndStart(_)));

        bindings.retire_below(3);
        assert!(matches!(slot.ask(at(102), &bindings), Asked::Start));
    }

    #[tokio::test]
    async fn of_names_that_are_invented_only_what_is_of_use_is_kept() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        let life = Life {
            obtained: at(0),
            refresh_on: at(100),
            usable_until: at(200),
        };
        let cache = TokenCache::new();
        let invent = |round: &str, seconds| {
            for index in 0..30_000 {
                cache.slot(&format!("https://{round}-{index}"), at(seconds));
            }
        };
        let slot = |name| cache.slot(name, at(0));
        let binding = Binding::of_version(1, life).await;
        let token = AccessToken::new("t".into(), at(300), life, "r".into(), true, binding);
        slot("https://usable").put(at(0), &Arc::new(token));
        // The service asked to wait with this one.
        let wait = Some(Duration::from_secs(150));
        slot("https://held").failed(at(0), &Error::Died, wait, 0.0);
        slot("https://failed").failed(at(0), &Error::Died, None, 0.0);
        let gate = Arc::new(tokio::sync::Notify::new());
        slot("https://coming").flight.launch(|| {
            let (gate, slot) = (Arc::clone(&gate), slot("https://coming"));
            async move {
                gate.notified().await;
                drop(slot);
                Err(Error::Died)
            }
        });
        let names = ["usable", "held", "failed", "coming"].map(|name| format!("https://{name}"));
        let there: Vec<_> = names
            .iter()
            .map(|name| Arc::downgrade(&slot(name)))
            .collect();
        let left = || -> Vec<bool> { there.iter().map(|slot| slot.strong_count() > 0).collect() };

        invent("a", 1);
        assert_eq!(left(), [true, true, false, true]);
        assert!(cache.slots.len() <= 256 * 16 + 3, "{}", cache.slots.len());
        invent("b", 151);
        assert_eq!(left(), [true, false, false, true]);
        gate.notify_one();
        tokio::task::yield_now().await;
        invent("c", 200);
        assert_eq!(left(), [false; 4]);
        assert!(cache.slots.len() <= 256 * 16, "{}", cache.slots.len());
    }
}
