//! One waker for both halves of a connection.
//!
//! A TLS read may have to write (a renegotiation) and a write may have to wait for a read. A socket remembers
//! only the last task that waited for each direction, so halves that poll it with their own wakers would make
//! each other sleep for ever. Here:
//!
//! 1. each half leaves its task's waker before it touches the socket;
//! 2. the socket and the signing key only ever see the one waker that wakes both;
//! 3. so whatever happens next, nobody sleeps who could go on. A needless wake costs one poll.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

/// The tasks that read and write.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    reader: Mutex<Option<Waker>>,
    writer: Mutex<Option<Waker>>,
}

impl Wakers {
    /// The task that reads.
    pub(super) fn reader(&self, waker: &Waker) {
        remember(&self.reader, waker);
    }

    /// The task that writes.
    pub(super) fn writer(&self, waker: &Waker) {
        remember(&self.writer, waker);
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        for half in [&self.reader, &self.writer] {
            // Taken out first: a waker may run its task at once.
            let waker = half.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

fn remember(half: &Mutex<Option<Waker>>, waker: &Waker) {
    let mut half = half.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *half {
        Some(known) => known.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}
