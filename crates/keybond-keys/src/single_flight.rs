//! One run of an operation at a time, shared by everybody who asks meanwhile.
//!
//! 1. At most one run exists at any moment.
//! 2. A caller that goes away leaves the run alone; the others get its result.
//! 3. If the run itself dies (it panics, there is no thread), one of the waiters starts the next, a few times.
//! 4. A result is handed to those who waited for it and to nobody later: caching is the caller's business.

use tokio::sync::watch;

use crate::sync::{self, Mutex, PoisonError};

/// How many runs a caller sees die before it gives up.
const LIVES: usize = 3;

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

    /// Joins the run that is under way, or starts one, and waits for its result; `None` if runs keep dying.
    pub(crate) async fn join<F>(&self, start: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        for _ in 0..LIVES {
            let mut run = self.board(&start);
            // Err: the run died without a result.
            if let Ok(done) = run.wait_for(Option::is_some).await {
                return done.clone();
            }
        }
        None
    }

    fn board<F>(&self, start: &impl Fn() -> F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = current.as_ref()
            && run.borrow().is_none()
            && run.has_changed().is_ok()
        {
            return run.clone();
        }
        let (result, run) = watch::channel(None);
        *current = Some(run.clone());
        let work = start();
        sync::spawn(async move {
            let value = work.await;
            result.send_replace(Some(value));
        });
        run
    }
}
