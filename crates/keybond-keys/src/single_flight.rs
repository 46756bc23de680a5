//! One run of an operation at a time, shared by everybody who asks meanwhile.
//!
//! 1. At most one run exists at any moment.
//! 2. A caller that goes away leaves the run alone; the others get its result.
//! 3. If the run itself dies (its runtime is shut down, it panics), one of the waiters starts the next.
//! 4. A result is handed to those who waited for it and to nobody later: caching is the caller's business.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

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
            if let Ok(done) = run.wait_for(Option::is_some).await
                && let Some(value) = done.clone()
            {
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
        tokio::spawn(async move {
            let value = work.await;
            result.send_replace(Some(value));
        });
        run
    }

    fn lock(&self) -> MutexGuard<'_, Option<watch::Receiver<Option<T>>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Poll,
    };

    use tokio::sync::Semaphore;

    use super::*;

    async fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
        let mut future = future;
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn callers_share_one_run_even_if_its_starter_leaves() {
        let flight = SingleFlight::new();
        let runs = AtomicUsize::new(0);
        let gate = Arc::new(Semaphore::new(0));
        let operation = || {
            let (run, gate) = (runs.fetch_add(1, Ordering::SeqCst), Arc::clone(&gate));
            async move {
                let _opened = gate.acquire().await;
                run
            }
        };
        let mut starter = Box::pin(flight.join(operation));
        assert!(is_pending(starter.as_mut()).await);
        drop(starter);

        let mut waiting: Vec<_> = (0..8).map(|_| Box::pin(flight.join(operation))).collect();
        for caller in &mut waiting {
            assert!(is_pending(caller.as_mut()).await);
        }
        gate.add_permits(1);
        for caller in waiting {
            assert_eq!(caller.await, 0, "a second run was started");
        }
        assert_eq!(
            flight.join(operation).await,
            1,
            "a result was handed out later"
        );
    }

    #[tokio::test]
    async fn a_run_that_dies_is_replaced() {
        let flight = SingleFlight::new();
        let runs = AtomicUsize::new(0);
        let value = flight
            .join(|| {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                async move {
                    assert!(run > 0, "the first run dies");
                    run
                }
            })
            .await;
        assert_eq!(value, 1);
    }
}
