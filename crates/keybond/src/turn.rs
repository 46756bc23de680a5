//! Whose turn it is among the processes of a machine: one asks a service, the others find what it kept. Files are
//! asked on threads that may block, and a disk that does not answer costs a moment and nothing else.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How often somebody who waits looks whether the answer or the turn is there.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const RAREST_LOOK: Duration = Duration::from_millis(250);

/// How long an answer of a store is waited for. Files take milliseconds; a file server that went away never
/// answers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Whose turn it is to ask.
pub(crate) enum Turn<T, L> {
    /// Nobody's: this one serves the purpose.
    Served(T),
    /// Ours, for as long as this is held. Without a lock nobody else is kept from asking, too.
    Mine(Option<L>),
}

/// What became of the try to take a lock.
pub(crate) enum Attempt<L> {
    /// It is ours.
    Taken(L),
    /// Somebody else has it.
    Elsewhere,
    /// There is none to be had.
    Unavailable,
}

/// Looks until what is looked for is there, the lock is ours, or somebody else's turn has taken too long.
pub(crate) async fn take<T, L, Look, Lock>(
    until: Instant,
    look: impl Fn() -> Look,
    lock: impl Fn() -> Lock,
) -> Turn<T, L>
where
    Look: Future<Output = Option<T>>,
    Lock: Future<Output = Attempt<L>>,
{
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(found) = look().await {
            return Turn::Served(found);
        }
        match lock().await {
            // Between the look and the lock somebody may have finished.
            Attempt::Taken(lock) => {
                return match look().await {
                    Some(found) => Turn::Served(found),
                    None => Turn::Mine(Some(lock)),
                };
            }
            Attempt::Unavailable => return Turn::Mine(None),
            Attempt::Elsewhere => {}
        }
        let left = until.duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!(target: "keybond", "whoever asks for the same takes too long");
            return Turn::Mine(None);
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(RAREST_LOOK);
    }
}

/// Until when somebody else's turn is waited for: half of the time that is left, for a holder that was stopped
/// never gives it back.
pub(crate) fn half_way(end: Instant) -> Instant {
    let now = Instant::now();
    now + end.duration_since(now) / 2
}

/// Asks a store on threads that may block. Once it did not answer in time it is not asked again: each question
/// would cost as long, and a thread.
pub(crate) struct Questions {
    until: Instant,
    silent: AtomicBool,
}

impl Questions {
    /// Questions whose answers are of no use after `deadline`.
    pub(crate) const fn until(deadline: Instant) -> Self {
        Self {
            until: deadline,
            silent: AtomicBool::new(false),
        }
    }

    /// Whether the store did not answer.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// The answer; `None` if there is none in time. `silence` is called if it was waited for as long as files may
    /// take.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> T + Send + 'static,
        silence: impl FnOnce(),
    ) -> Option<T> {
        if self.is_silent() {
            return None;
        }
        let answer = tokio::task::spawn_blocking(question);
        let patient_until = Instant::now() + PATIENCE;
        let until = self.until.min(patient_until);
        if let Ok(Ok(answer)) = tokio::time::timeout_at(until, answer).await {
            return Some(answer);
        }
        self.silent.store(true, Ordering::Relaxed);
        if until == patient_until {
            silence();
        }
        None
    }
}
