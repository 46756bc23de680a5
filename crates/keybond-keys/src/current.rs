//! The value in use: replaced as a whole, read by each thread through a handle of its own.
//!
//! 1. Every value put in gets a stamp that no other value, here or elsewhere, ever had.
//! 2. A thread remembers the handle it read last, and its stamp. While that is the stamp of the value in use,
//!    the next read is one atomic load and one reference count, and writes to no memory that other threads use.
//! 3. There is no stamp while a value is being replaced; then nobody trusts what he remembers. So no thread
//!    reads the old value once any thread has read the new one.
//! 4. Threads remember weakly: a value that was taken out is released by its last user, whoever remembers it.
//! 5. Writers take turns. Readers never wait for them, nor they for readers.

use std::{
    cell::RefCell,
    ops::Deref,
    sync::{Arc, Weak, atomic::Ordering},
};

use crate::sync::{self, AtomicU64, Mutex, PoisonError, Slot};

/// The stamp while a value is being replaced, and before there is one.
const NONE: u64 = 0;

/// Holds the value in use.
pub(crate) struct Current<T> {
    stamp: AtomicU64,
    slot: Slot<T>,
    writing: Mutex<()>,
}

/// What a thread read last.
pub(crate) struct Recent<K>(RefCell<(u64, Weak<K>)>);

impl<T> Current<T> {
    pub(crate) fn empty() -> Self {
        Self {
            stamp: AtomicU64::new(NONE),
            slot: Slot::empty(),
            writing: Mutex::new(()),
        }
    }

    /// What this thread read last, if that still is the value in use.
    #[inline]
    pub(crate) fn recall<K>(&self, recent: &Recent<K>) -> Option<Arc<K>> {
        let remembered = recent.0.borrow();
        let (stamp, handle) = &*remembered;
        // Whoever saw a newer value sees this writer's earlier store of NONE, too, or what came after it.
        if self.stamp.load(Ordering::Acquire) == *stamp {
            handle.upgrade()
        } else {
            None
        }
    }

    /// The value in use, and the stamp to remember it by.
    pub(crate) fn read(&self) -> (u64, impl Deref<Target = Option<Arc<T>>> + use<T>) {
        // In this order: a value newer than its stamp is looked up once more, an older one would be believed.
        let stamp = self.stamp.load(Ordering::Acquire);
        (stamp, self.slot.peek())
    }

    pub(crate) fn load(&self) -> Option<Arc<T>> {
        (*self.slot.peek()).clone()
    }

    pub(crate) fn store(&self, value: Option<Arc<T>>) {
        self.write(|slot| slot.store(value));
    }

    /// Puts `value` in the place of `seen`; `false` if something else is there by now.
    pub(crate) fn replace(&self, seen: &Arc<T>, value: Option<Arc<T>>) -> bool {
        self.write(|slot| slot.replace(seen, value))
    }

    fn write<R>(&self, change: impl FnOnce(&Slot<T>) -> R) -> R {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.stamp.store(NONE, Ordering::Release);
        let done = change(&self.slot);
        self.stamp.store(sync::stamp(), Ordering::Release);
        done
    }
}

impl<K> Recent<K> {
    pub(crate) const fn nothing() -> Self {
        Self(RefCell::new((NONE, Weak::new())))
    }

    /// Remembers a handle of the value that was read with this stamp.
    pub(crate) fn remember(&self, stamp: u64, handle: &Arc<K>) {
        if stamp != NONE {
            *self.0.borrow_mut() = (stamp, Arc::downgrade(handle));
        }
    }
}
