//! The single flight and the cached key under a model checker.
//!
//! The three files are compiled here once more, against shuttle's primitives instead of `src/sync.rs`: shuttle
//! runs one task at a time and chooses at each of its primitives who goes on. Tokio's own mutex, `watch` and
//! `oneshot` are taken as single steps. `KEYBOND_MODEL_RUNS` sets the schedules tried for each property.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]
#![forbid(unsafe_code)]

#[path = "../src/current.rs"]
mod current;
#[path = "../src/keeper.rs"]
mod keeper;
#[path = "../src/single_flight.rs"]
mod single_flight;

mod strength {
    pub(crate) use keybond_keys::Strength;
}

mod sync {
    use std::cell::Cell as LocalCell;
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64},
    };

    thread_local! {
        /// How many of the next spawns die before they begin; shuttle runs every task on this thread.
        pub(crate) static DEATHS: LocalCell<usize> = const { LocalCell::new(0) };
        static STAMPS: LocalCell<u64> = const { LocalCell::new(0) };
    }

    pub(crate) struct Slot<T>(Mutex<Option<std::sync::Arc<T>>>);

    impl<T> Slot<T> {
        pub(crate) fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub(crate) fn peek(&self) -> Box<Option<std::sync::Arc<T>>> {
            Box::new(self.0.lock().unwrap().clone())
        }

        pub(crate) fn store(&self, value: Option<std::sync::Arc<T>>) {
            *self.0.lock().unwrap() = value;
        }

        pub(crate) fn replace(
            &self,
            seen: &std::sync::Arc<T>,
            value: Option<std::sync::Arc<T>>,
        ) -> bool {
            let mut now = self.0.lock().unwrap();
            let same = now
                .as_ref()
                .is_some_and(|now| std::sync::Arc::ptr_eq(now, seen));
            if same {
                *now = value;
            }
            same
        }
    }

    pub(crate) fn stamp() -> u64 {
        STAMPS.with(|stamps| {
            stamps.set(stamps.get() + 1);
            stamps.get()
        })
    }

    pub(crate) fn thread_number() -> usize {
        shuttle::current::me().into()
    }

    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) {
        let dies = DEATHS.with(|deaths| {
            let left = deaths.get();
            deaths.set(left.saturating_sub(1));
            left > 0
        });
        if !dies {
            shuttle::thread::spawn(|| shuttle::future::block_on(work));
        }
    }
}

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use current::{Current, Recent};
use keeper::{Hierarchy, Keeper};
use keybond_keys::Strength::{self, Hardware, Software};
use shuttle::{future::block_on, thread};

#[derive(Debug)]
struct Key {
    id: usize,
    strength: Strength,
    provisional: bool,
}

/// A machine with a stronger store that is busy at first. Plain atomics: they are the judge, not the accused.
#[derive(Default)]
struct Machine {
    walks: AtomicUsize,
    walking: AtomicBool,
    /// Walks that fail before the first succeeds.
    failures: AtomicUsize,
    strong_is_busy: AtomicBool,
}

#[derive(Clone, Debug, PartialEq)]
enum Trouble {
    Busy,
    Below,
    Died,
}

impl Hierarchy for Machine {
    type Key = Key;
    type Error = Trouble;

    async fn walk(&self, floor: Strength, above: Option<&Arc<Key>>) -> Result<Arc<Key>, Trouble> {
        assert!(
            !self.walking.swap(true, Ordering::SeqCst),
            "two creations at once"
        );
        let id = self.walks.fetch_add(1, Ordering::SeqCst);
        shuttle::future::yield_now().await;
        let busy = self.strong_is_busy.load(Ordering::SeqCst);
        let failures = self.failures.load(Ordering::SeqCst);
        self.failures
            .store(failures.saturating_sub(1), Ordering::SeqCst);
        self.walking.store(false, Ordering::SeqCst);
        if failures > 0 || (busy && (above.is_some() || floor > Software)) {
            return Err(Trouble::Busy);
        }
        let strength = if busy { Software } else { Hardware };
        Ok(Arc::new(Key {
            id,
            strength,
            provisional: busy,
        }))
    }

    fn handle(key: &Key) -> Key {
        Key {
            id: key.id,
            strength: key.strength,
            provisional: key.provisional,
        }
    }

    fn recent<R>(read: impl FnOnce(&Recent<Key>) -> R) -> Option<R> {
        shuttle::thread_local! {
            static RECENT: Recent<Key> = Recent::nothing();
        }
        RECENT.try_with(read).ok()
    }

    fn strength(key: &Key) -> Strength {
        key.strength
    }

    fn is_provisional(key: &Key) -> bool {
        key.provisional
    }

    fn may_pass(error: &Trouble) -> bool {
        *error == Trouble::Busy
    }

    fn below(_: &Key, _: Strength) -> Trouble {
        Trouble::Below
    }

    fn died() -> Trouble {
        Trouble::Died
    }

    fn kept(&self, before: Option<&Arc<Key>>, key: &Arc<Key>) {
        assert!(before.is_none_or(|before| before.strength < key.strength));
    }

    fn settled(&self, _: &Arc<Key>) {}
}

fn explore(property: impl Fn() + Send + Sync + 'static) {
    let runs = std::env::var("KEYBOND_MODEL_RUNS").map_or(2_000, |runs| runs.parse().unwrap());
    let property = Arc::new(move || {
        sync::DEATHS.with(|deaths| deaths.set(0));
        property();
    });
    let again = Arc::clone(&property);
    shuttle::check_random(move || property(), runs);
    // Few preemptions in the worst places find what even chances miss.
    shuttle::check_pct(move || again(), runs, 3);
}

fn keeper() -> Keeper<Machine> {
    Keeper::new(Machine::default(), Duration::ZERO)
}

fn provisional() -> Keeper<Machine> {
    let keeper = keeper();
    keeper
        .hierarchy()
        .strong_is_busy
        .store(true, Ordering::SeqCst);
    keeper
}

fn walks(keeper: &Keeper<Machine>) -> usize {
    keeper.hierarchy().walks.load(Ordering::SeqCst)
}

fn caller(keeper: &Keeper<Machine>) -> thread::JoinHandle<Result<Arc<Key>, Trouble>> {
    let keeper = keeper.clone();
    thread::spawn(move || block_on(keeper.get(Software)))
}

#[test]
fn callers_share_one_creation() {
    explore(|| {
        let keeper = keeper();
        let callers = [(); 4].map(|()| caller(&keeper));
        let keys = callers.map(|caller| caller.join().unwrap().unwrap().id);
        assert_eq!((walks(&keeper), keys), (1, [0; 4]));
    });
}

#[test]
fn a_cancelled_creator_hands_over() {
    explore(|| {
        let keeper = keeper();
        let leaver = {
            let keeper = keeper.clone();
            thread::spawn(move || {
                block_on(async {
                    let mut call = pin!(keeper.get(Software));
                    std::future::poll_fn(|cx| {
                        let _ = call.as_mut().poll(cx);
                        Poll::Ready(())
                    })
                    .await;
                });
            })
        };
        let stayers = [(); 2].map(|()| caller(&keeper));
        leaver.join().unwrap();
        for stayer in stayers {
            assert_eq!(stayer.join().unwrap().unwrap().id, 0);
        }
        assert_eq!(walks(&keeper), 1);
    });
}

#[test]
fn a_failure_wakes_every_waiter_and_is_not_remembered() {
    explore(|| {
        let keeper = keeper();
        keeper.hierarchy().failures.store(1, Ordering::SeqCst);
        let callers = [(); 3].map(|()| caller(&keeper));
        for caller in callers {
            let answer = caller.join().unwrap();
            assert!(matches!(answer, Ok(_) | Err(Trouble::Busy)), "{answer:?}");
        }
        block_on(keeper.get(Software)).unwrap();
        assert_eq!(walks(&keeper), 2);
    });
}

#[test]
fn work_that_dies_is_taken_over() {
    explore(|| {
        let keeper = keeper();
        sync::DEATHS.with(|deaths| deaths.set(2));
        let callers = [(); 3].map(|()| caller(&keeper));
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
        assert_eq!(walks(&keeper), 1);
    });
}

#[test]
fn a_key_that_was_taken_out_does_not_come_back() {
    explore(|| {
        let keeper = provisional();
        let reporter = {
            let keeper = keeper.clone();
            thread::spawn(move || {
                // Provisional and due: these reads start reconsiderations.
                let dead = block_on(keeper.get(Software)).unwrap();
                keeper.cached();
                let Some(held) = keeper.current().filter(|held| held.key.id == dead.id) else {
                    return;
                };
                if keeper.discard(&held) {
                    let next = block_on(keeper.get(Software)).unwrap();
                    assert_ne!(next.id, dead.id, "the dead key was handed out again");
                    let cached = keeper.cached().map(|key| key.id);
                    assert_ne!(cached, Some(dead.id), "the dead key is in the cache");
                }
            })
        };
        let others = [(); 2].map(|()| caller(&keeper));
        reporter.join().unwrap();
        for other in others {
            other.join().unwrap().unwrap();
        }
    });
}

#[test]
fn an_upgrade_is_seen_by_all_and_never_undone() {
    explore(|| {
        let keeper = provisional();
        block_on(keeper.get(Software)).unwrap();
        keeper
            .hierarchy()
            .strong_is_busy
            .store(false, Ordering::SeqCst);
        let readers = [(); 3].map(|()| {
            let keeper = keeper.clone();
            thread::spawn(move || {
                let mut best = Software;
                for _ in 0..4 {
                    let key = keeper.cached().expect("a reader found no key");
                    assert!(key.strength >= best, "an upgrade was undone");
                    best = key.strength;
                    thread::yield_now();
                }
            })
        });
        for reader in readers {
            reader.join().unwrap();
        }
        let strong = block_on(keeper.get(Hardware)).unwrap();
        assert_eq!((strong.strength, walks(&keeper)), (Hardware, 2));
    });
}

#[test]
fn no_thread_reads_the_old_value_after_another_read_the_new() {
    fn read(current: &Current<Arc<usize>>, recent: &Recent<usize>) -> usize {
        if let Some(value) = current.recall(recent) {
            return *value;
        }
        let (stamp, value) = current.read();
        let held = value.as_ref().expect("there always is a value");
        let handle: &Arc<usize> = held;
        recent.remember(stamp, handle);
        **handle
    }
    explore(|| {
        let current = Arc::new(Current::empty());
        // Somebody still uses it after it was replaced.
        let old = Arc::new(1);
        current.store(Some(Arc::new(Arc::clone(&old))));
        let newest = Arc::new(AtomicUsize::new(1));
        let readers = [(); 2].map(|()| {
            let (current, newest) = (Arc::clone(&current), Arc::clone(&newest));
            thread::spawn(move || {
                let recent = Recent::nothing();
                for _ in 0..3 {
                    let before = newest.load(Ordering::SeqCst);
                    let value = read(&current, &recent);
                    assert!(value >= before, "the old value is read again");
                    newest.fetch_max(value, Ordering::SeqCst);
                }
            })
        });
        current.store(Some(Arc::new(Arc::new(2))));
        let recent = Recent::nothing();
        assert_eq!(read(&current, &recent), 2);
        let recalled = current.recall(&recent);
        assert_eq!(recalled.as_deref(), Some(&2), "it is looked up each time");
        for reader in readers {
            reader.join().unwrap();
        }
        drop(old);
    });
}

#[test]
fn a_reconsideration_that_dies_is_begun_again() {
    explore(|| {
        let keeper = provisional();
        block_on(keeper.get(Software)).unwrap();
        keeper
            .hierarchy()
            .strong_is_busy
            .store(false, Ordering::SeqCst);
        sync::DEATHS.with(|deaths| deaths.set(2));
        let mut reads = 0;
        while keeper.cached().unwrap().strength < Hardware {
            reads += 1;
            assert!(reads < 10_000, "nobody reconsiders any more");
            thread::yield_now();
        }
    });
}

#[test]
fn floors_do_not_share_failures() {
    explore(|| {
        let keeper = provisional();
        let strict = {
            let keeper = keeper.clone();
            thread::spawn(move || block_on(keeper.get(Hardware)))
        };
        let lenient = caller(&keeper);
        assert_eq!(lenient.join().unwrap().unwrap().strength, Software);
        assert_eq!(strict.join().unwrap().unwrap_err(), Trouble::Busy);
    });
}

#[test]
fn a_deletion_meets_no_creation_half_way() {
    explore(|| {
        let keeper = keeper();
        let callers = [(); 2].map(|()| caller(&keeper));
        let before = block_on(keeper.without_key({
            let keeper = keeper.clone();
            async move {
                assert!(!keeper.hierarchy().walking.load(Ordering::SeqCst));
                shuttle::future::yield_now().await;
                assert!(!keeper.hierarchy().walking.load(Ordering::SeqCst));
                assert!(keeper.current().is_none(), "a key appeared meanwhile");
                walks(&keeper)
            }
        }))
        .unwrap();
        // What is there now was made after the deletion.
        if let Some(key) = keeper.cached() {
            assert!(key.id >= before, "a deleted key is in the cache");
        }
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
    });
}
