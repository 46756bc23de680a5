//! One run of an operation at a time, shared by everybody who asks meanwhile.
//!
//! 1. At most one run exists at any moment.
//! 2. A caller that goes away leaves the run alone; the others get its result.
//! 3. If the run itself dies (it panics), one of the waiters starts the next.
//! 4. A result is handed to those who waited for it and to nobody later: caching is the caller's business.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{Instrument as _, instrument::WithSubscriber as _};

/// Shares one run of an operation among concurrent callers.
pub(crate) struct SingleFlight<T> {
    current: Mutex<Option<watch::Receiver<Option<T>>>>,
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    pub(crate) fn new() -> Self {
        Self {
            current: Mutex::new(None),
        }
    }

    /// Joins the run that is under way, or starts one on the current runtime, and waits for its result.
    pub(crate) async fn join<F>(&self, start: impl Fn() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        loop {
            let mut run = self.board(&start);
            // Err: the run died without a result; the next round starts another.
            let value = match run.wait_for(Option::is_some).await {
                Ok(done) => done.clone(),
                Err(_) => None,
            };
            if let Some(value) = value {
                self.tidy();
                return value;
            }
        }
    }

    /// Starts a run unless one is under way, and does not wait for it.
    pub(crate) fn launch<F>(&self, start: impl Fn() -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        drop(self.board(&start));
    }

    /// A run that ended is of no use to anybody who comes later.
    fn tidy(&self) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|run| run.borrow().is_some()) {
            *current = None;
        }
    }

    fn board<F>(&self, start: &impl Fn() -> F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut current = self.lock();
        if let Some(run) = current.as_ref()
            && run.borrow().is_none()
            && run.has_changed().is_ok()
        {
            return run.clone();
        }
        let (result, run) = watch::channel(None);
        *current = Some(run.clone());
        let work = start();
        // The log shows the run where its first caller is.
        let running = async move {
            let value = work.await;
            result.send_replace(Some(value));
        };
        tokio::spawn(running.in_current_span().with_current_subscriber());
        run
    }

    fn lock(&self) -> MutexGuard<'_, Option<watch::Receiver<Option<T>>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_run_that_dies_is_replaced_and_no_result_is_handed_out_later() {
        let flight = SingleFlight::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let operation = || {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run > 0, "the first run dies");
                run
            }
        };
        assert_eq!(flight.join(operation).await, 1);
        assert_eq!(flight.join(operation).await, 2);
    }
}
