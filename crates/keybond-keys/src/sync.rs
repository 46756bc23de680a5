//! What [`current`](crate::current), [`keeper`](crate::keeper) and [`single_flight`](crate::single_flight) are
//! made of. `tests/model.rs` compiles those three files against a model checker's primitives of the same names.

pub(crate) use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use arc_swap::{ArcSwapOption, Guard};
use tracing::Instrument as _;

/// A value that is read without waiting and replaced as a whole.
pub(crate) struct Slot<T>(ArcSwapOption<T>);

impl<T> Slot<T> {
    pub(crate) fn empty() -> Self {
        Self(ArcSwapOption::empty())
    }

    pub(crate) fn peek(&self) -> Guard<Option<Arc<T>>> {
        self.0.load()
    }

    pub(crate) fn store(&self, value: Option<Arc<T>>) {
        self.0.store(value);
    }

    /// Puts `value` in the place of `seen`; `false` if something else is there by now.
    pub(crate) fn replace(&self, seen: &Arc<T>, value: Option<Arc<T>>) -> bool {
        let before = self.0.compare_and_swap(seen, value);
        before.as_ref().is_some_and(|now| Arc::ptr_eq(now, seen))
    }
}

/// A number that no other call gets, neither 0 nor one given before.
pub(crate) fn stamp() -> u64 {
    static STAMPS: AtomicU64 = AtomicU64::new(1);
    STAMPS.fetch_add(1, Ordering::Relaxed)
}

/// This thread's number, the same at every call: threads that start one after the other differ.
pub(crate) fn thread_number() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is ending shares the first one's number.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}

/// Runs `work` to its end on a thread and a runtime of its own: whoever asked for it may leave, and a caller's
/// runtime that stands still or ends takes nobody with it. The log's subscriber and span go along.
///
/// `work` is dropped unrun if there is no thread to be had.
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    let log = tracing::dispatcher::get_default(Clone::clone);
    let work = work.instrument(tracing::Span::current());
    let started = thread::Builder::new()
        .name("keybond-keys".into())
        .spawn(move || {
            tracing::dispatcher::with_default(&log, || {
                match tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                {
                    Ok(runtime) => runtime.block_on(work),
                    Err(error) => tracing::error!(target: "keybond::keys", %error, "no runtime"),
                }
            });
        });
    if let Err(error) = started {
        tracing::error!(target: "keybond::keys", %error, "no thread for the key's work");
    }
}
