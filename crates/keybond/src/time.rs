//! The clock, injected, and how times are printed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the time of day, by which certificates and tokens are judged.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A moment in UTC to the second, as RFC 3339 writes it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    ::der::DateTime::from_unix_duration(Duration::from_secs(seconds)).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |time| time.to_string(),
    )
}

/// Lets one caller through, then nobody for a while. Takes no lock.
pub(crate) struct Pause {
    /// Seconds since 1970 by the injected clock.
    until: AtomicU64,
}

impl Pause {
    pub(crate) const fn new() -> Self {
        Self {
            until: AtomicU64::new(0),
        }
    }

    /// Whether the caller may go; nobody else may for `length` from `now` on.
    pub(crate) fn pass(&self, now: SystemTime, length: Duration) -> bool {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let until = self.until.load(Ordering::Relaxed);
        // A clock that was set back must not keep everybody out.
        let open = now >= until || until - now > length.as_secs();
        open && self
            .until
            .compare_exchange(
                until,
                now + length.as_secs(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lets_one_through_and_survives_a_clock_set_back() {
        let pause = Pause::new();
        let length = Duration::from_secs(30);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(pause.pass(at(1000), length));
        assert!(!pause.pass(at(1029), length));
        assert!(pause.pass(at(1030), length));
        assert!(pause.pass(at(10), length), "the clock was set back");
    }

    #[test]
    fn times_are_printed_in_utc() {
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(rfc3339(time), "2023-11-14T22:13:20Z");
    }
}
