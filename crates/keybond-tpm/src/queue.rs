//! A bounded queue in which nobody waits beyond a deadline.
//!
//! 1. At most `capacity` items wait.
//! 2. Each change of how many wait is told in the order in which the changes happen: under the lock.
//! 3. After [`Queue::close`] nothing enters; what is inside is still handed out.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    /// An item came in, or the queue was closed.
    filled: Condvar,
    /// An item went out, or the queue was closed.
    drained: Condvar,
    capacity: usize,
    tell: fn(usize),
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// Why an item did not enter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// What came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    Item(T),
    Idle,
    Closed,
}

impl<T> Queue<T> {
    /// `tell` hears how many items wait, each time that changes.
    pub(crate) fn new(capacity: usize, tell: fn(usize)) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                closed: false,
            }),
            filled: Condvar::new(),
            drained: Condvar::new(),
            capacity: capacity.max(1),
            tell,
        }
    }

    /// Puts an item in; while the queue is full, waits until the deadline.
    pub(crate) fn push(&self, item: T, deadline: Instant) -> Result<(), Refused> {
        let mut state = self.lock();
        while state.items.len() >= self.capacity && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refused::Full);
            }
            state = self
                .drained
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if state.closed {
            return Err(Refused::Closed);
        }
        state.items.push_back(item);
        (self.tell)(state.items.len());
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the next item; waits as long as `idle`, or without limit.
    pub(crate) fn pop(&self, idle: Option<Duration>) -> Next<T> {
        let until = idle.map(|idle| Instant::now() + idle);
        let mut state = self.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                (self.tell)(state.items.len());
                self.drained.notify_one();
                return Next::Item(item);
            }
            if state.closed {
                return Next::Closed;
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Next::Idle,
                Some(left) => {
                    self.filled
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic in `tell` leaves the items as they should be.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_at_the_deadline_and_a_closed_one_at_once() {
        let queue = Queue::new(2, |_| {});
        let soon = || Instant::now() + Duration::from_millis(20);
        assert_eq!(queue.push(1, soon()), Ok(()));
        assert_eq!(queue.push(2, soon()), Ok(()));
        let began = Instant::now();
        assert_eq!(queue.push(3, soon()), Err(Refused::Full));
        assert!(began.elapsed() >= Duration::from_millis(19));
        assert_eq!(queue.len(), 2);
        queue.close();
        assert_eq!(
            queue.push(4, Instant::now() + Duration::from_secs(60)),
            Err(Refused::Closed)
        );
        assert_eq!(queue.pop(None), Next::Item(1));
        assert_eq!(queue.pop(None), Next::Item(2));
        assert_eq!(queue.pop(None), Next::Closed);
    }

    #[test]
    fn a_waiting_producer_enters_when_there_is_room() {
        let queue = Queue::new(1, |_| {});
        let far = Instant::now() + Duration::from_secs(60);
        queue.push(1, far).unwrap();
        std::thread::scope(|scope| {
            let producer = scope.spawn(|| queue.push(2, far));
            assert_eq!(queue.pop(None), Next::Item(1));
            assert_eq!(queue.pop(None), Next::Item(2));
            producer.join().unwrap().unwrap();
        });
        assert_eq!(queue.pop(Some(Duration::from_millis(1))), Next::Idle);
    }
}
