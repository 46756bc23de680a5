//! The emulator's time: an injected clock, moved by whole scenarios.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::error::EmulatorError;

/// A source of time.
pub type ClockSource = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A source of time and how far it has been moved.
#[derive(Clone)]
pub(crate) struct Clock {
    source: ClockSource,
    /// Negative: behind.
    ahead_seconds: Arc<AtomicI64>,
}

impl Clock {
    pub(crate) fn new(source: ClockSource) -> Self {
        Self {
            source,
            ahead_seconds: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> SystemTime {
        let ahead = self.ahead_seconds.load(Ordering::Relaxed);
        let (now, by) = ((self.source)(), Duration::from_secs(ahead.unsigned_abs()));
        if ahead < 0 {
            now.checked_sub(by).unwrap_or(UNIX_EPOCH)
        } else {
            now + by
        }
    }

    /// Whole seconds since 1970.
    pub(crate) fn epoch(&self) -> u64 {
        epoch(self.now())
    }

    /// Moves forward by whole seconds; by a century in all at most, so that times stay such as
    /// certificates can hold.
    pub(crate) fn advance(&self, by: Duration) -> Result<(), EmulatorError> {
        self.shift(i64::try_from(by.as_secs()).unwrap_or(i64::MAX))
    }

    /// Moves by whole seconds, forward or back; by a century in all at most.
    pub(crate) fn shift(&self, seconds: i64) -> Result<(), EmulatorError> {
        const CENTURY: i64 = 100 * 365 * 86_400;
        self.ahead_seconds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ahead| {
                ahead
                    .checked_add(seconds)
                    .filter(|ahead| (-CENTURY..=CENTURY).contains(ahead))
            })
            .map(drop)
            .map_err(|ahead| {
                EmulatorError::invalid(
                    "advance_seconds",
                    format!("at most {} more", CENTURY - ahead),
                    seconds.to_string(),
                )
            })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("ahead_seconds", &self.ahead_seconds)
            .finish_non_exhaustive()
    }
}

/// Whole seconds since 1970; 0 before.
pub(crate) fn epoch(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// Year, month and day of a number of seconds since 1970, in UTC and the Gregorian calendar.
pub(crate) fn civil_date(seconds: u64) -> (u64, u64, u64) {
    // Days are counted from 1 March of year 0, so that a leap day is the last of its year; an era
    // is 400 years.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// `2026-01-31 12:00:00Z`, as the token service writes times into its errors.
pub(crate) fn timestamp(seconds: u64) -> String {
    let (year, month, day) = civil_date(seconds);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(timestamp(4_107_542_399), "2100-02-28 23:59:59Z");
        assert_eq!(timestamp(4_107_542_400), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn moving_the_clock_moves_every_copy_of_it() {
        let clock = Clock::new(Arc::new(|| UNIX_EPOCH + Duration::from_secs(10)));
        let copy = clock.clone();
        clock.advance(Duration::from_secs(5)).unwrap();
        assert_eq!(copy.epoch(), 15);
        for far in [Duration::from_secs(100 * 365 * 86_400), Duration::MAX] {
            let refusal = copy.advance(far).unwrap_err();
            assert!(
                refusal
                    .to_string()
                    .starts_with("advance_seconds: expected at most")
            );
        }
        assert_eq!(clock.epoch(), 15);
    }
}
