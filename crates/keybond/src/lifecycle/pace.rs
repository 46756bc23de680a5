//! How fast a service is asked: so many at once, so many in a second, never more (the generic cell rate
//! algorithm of ITU-T I.371, with the time passed in).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::Error;

/// The rate that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// How many in a second, in the long run.
    pub(crate) per_second: f64,
    /// How many at once.
    pub(crate) burst: u32,
}

impl Rate {
    /// # Errors
    /// [`Error::Configuration`] for a number that is no rate, or no number.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        let refuse = |problem| Err(Error::configuration("imds_rate", problem));
        // NaN is in no range.
        if !(0.001..=1e6).contains(&self.per_second) {
            let found = self.per_second;
            return refuse(format!(
                "{found} a second: expected a number from 0.001 to 1000000"
            ));
        }
        if self.burst == 0 {
            return refuse("0 at once: expected 1 or more".into());
        }
        Ok(self)
    }
}

/// Tells everybody when it is their turn.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    interval: Duration,
    tolerance: Duration,
    /// When the next one would be due if all came evenly.
    next: Duration,
}

impl Pace {
    /// `rate` was checked.
    pub(crate) fn new(rate: Rate) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate.per_second);
        Self {
            interval,
            tolerance: interval * rate.burst.saturating_sub(1),
            next: Duration::ZERO,
        }
    }

    /// Takes a place in the row; the answer is how long to wait for it. `now` is counted from any fixed instant.
    /// Who would have to wait for `patience` or longer takes none, and leaves the row as it is.
    pub(crate) fn turn(&mut self, now: Duration, patience: Duration) -> Option<Duration> {
        let due = self.next.max(now);
        let wait = due.saturating_sub(self.tolerance).saturating_sub(now);
        if wait >= patience {
            return None;
        }
        self.next = due + self.interval;
        Some(wait)
    }
}

/// A pace that is kept by waiting, on the runtime's clock.
pub(crate) struct Turnstile {
    pace: Mutex<Pace>,
    since: std::sync::OnceLock<Instant>,
}

impl Turnstile {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            pace: Mutex::new(Pace::new(rate)),
            since: std::sync::OnceLock::new(),
        }
    }

    /// When this caller's turn is; `None` if not before `latest`, and then the turn is another's. Who does not come
    /// leaves a gap.
    pub(crate) fn turn(&self, latest: Instant) -> Option<Instant> {
        let now = Instant::now();
        let since = *self.since.get_or_init(|| now);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = latest.saturating_duration_since(now);
        let wait = pace.turn(now.saturating_duration_since(since), patience)?;
        Some(now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_burst_and_the_rate_allow() {
        let mut pace = Pace::new(Rate {
            per_second: 5.0,
            burst: 3,
        });
        // Everybody comes at once, then somebody comes after a long silence.
        let waits: Vec<u128> = (0..6)
            .map(|_| pace.turn(Duration::from_secs(9), Duration::MAX).unwrap())
            .map(|wait| wait.as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 200, 400, 600]);
        let late = pace.turn(Duration::from_secs(100), Duration::MAX);
        assert_eq!(late, Some(Duration::ZERO));
    }

    /// However many ask, the row is never longer than they would wait: as many are served as the rate allows.
    #[test]
    fn a_rush_makes_no_row_that_nobody_waits_out() {
        let mut pace = Pace::new(Rate {
            per_second: 5.0,
            burst: 5,
        });
        let patience = Duration::from_secs(2);
        let mut served = 0;
        for second in 0..60 {
            let now = Duration::from_secs(second);
            for _ in 0..1000 {
                let Some(wait) = pace.turn(now, patience) else {
                    continue;
                };
                assert!(wait < patience);
                served += 1;
            }
        }
        // The burst, and five for every second that passed and for the two that the last ones wait.
        assert_eq!(served, 4 + 59 * 5 + 2 * 5);
    }

    proptest::proptest! {
        /// In any stretch of time as many pass as its length allows, and the burst.
        #[test]
        fn every_window_holds(gaps in proptest::collection::vec(0_u64..400, 1..200), burst in 1_u32..6) {
            let mut pace = Pace::new(Rate { per_second: 10.0, burst });
            let mut now = Duration::ZERO;
            let mut passed = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                passed.push(now + pace.turn(now, Duration::MAX).unwrap());
            }
            for (index, from) in passed.iter().enumerate() {
                for (more, until) in passed[index..].iter().enumerate() {
                    let allowed = (*until - *from).as_secs_f64() * 10.0 + f64::from(burst);
                    proptest::prop_assert!((more + 1) as f64 <= allowed + 1e-6);
                }
            }
        }
    }
}
