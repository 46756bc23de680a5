//! One run of an operation at a time, shared by everybody who asks meanwhile.
//!
//! 1. At most one run exists at any moment.
//! 2. A caller that goes away leaves the run alone; the others get its result.
//! 3. If the run itself dies (it panics), one of the waiters starts the next. Who has seen two runs die is told so:
//!    a third would hardly end otherwise.
//! 4. A result is handed to those who waited for it and to nobody later: caching is the caller's business.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{Instrument as _, instrument::WithSubscriber as _};

use crate::error::Error;

/// Shares one run of an operation among concurrent callers.
pub(crate) struct SingleFlight<T> {
    current: Mutex<Option<watch::Receiver<Option<Ended<T>>>>>,
}

/// How a run ends, if it does not die.
type Ended<T> = Result<T, Error>;

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    pub(crate) fn new() -> Self {
        Self {
            current: Mutex::new(None),
        }
    }

    /// Joins the run that is under way, or starts one on the current runtime, and waits for its result.
    ///
    /// # Errors
    /// The run's own, or [`Error::Died`] after two runs that died.
    pub(crate) async fn join<F>(&self, start: impl Fn() -> F) -> Ended<T>
    where
        F: Future<Output = Ended<T>> + Send + 'static,
    {
        for _ in 0..2 {
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
        Err(Error::Died)
    }

    /// Starts a run unless one is under way, and does not wait for it.
    pub(crate) fn launch<F>(&self, start: impl Fn() -> F)
    where
        F: Future<Output = Ended<T>> + Send + 'static,
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

    fn board<F>(&self, start: &impl Fn() -> F) -> watch::Receiver<Option<Ended<T>>>
    where
        F: Future<Output = Ended<T>> + Send + 'static,
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

    fn lock(&self) -> MutexGuard<'_, Option<watch::Receiver<Option<Ended<T>>>>> {
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
                Ok(run)
            }
        };
        assert_eq!(flight.join(operation).await.unwrap(), 1);
        assert_eq!(flight.join(operation).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_operation_that_always_dies_is_not_started_for_ever() {
        let flight = SingleFlight::<()>::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let operation = || {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run > 9, "run {run} dies");
                Ok(())
            }
        };
        let ended = flight.join(operation).await;
        assert!(matches!(ended, Err(Error::Died)), "{ended:?}");
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        // Whoever comes later has two tries of its own.
        flight.join(operation).await.unwrap_err();
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }
}
