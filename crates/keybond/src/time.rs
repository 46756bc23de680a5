//! The clock, injected, and how times are printed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Longer than any process runs. It stands for limits that no clock can count to, like [`Duration::MAX`].
pub(crate) const DECADES: Duration = Duration::from_secs(30 * 365 * 86_400);

/// So long after `from`, or decades if that is too far for the clock.
pub(crate) fn after(from: Instant, wait: Duration) -> Instant {
    from + wait.min(DECADES)
}

/// Tells the time of day, by which certificates and tokens are judged.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// The system's clock; on Linux its coarse one, which is right to a few milliseconds and takes a quarter of the
/// time to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[cfg(target_os = "linux")]
    fn now(&self) -> SystemTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        match (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec)) {
            (Ok(seconds), Ok(nanos)) => UNIX_EPOCH + Duration::new(seconds, nanos),
            _ => SystemTime::now(),
        }
    }

    #[cfg(not(target_os = "linux"))]
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

/// A moment as HTTP headers write it (the preferred form of RFC 9110 §5.6.7); `None` if it is written otherwise.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut parts = text.split_once(", ")?.1.split([' ', ':']);
    let day = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let year = parts.next()?.parse().ok()?;
    let mut clock = || parts.next()?.parse().ok();
    let (hour, minute, second) = (clock()?, clock()?, clock()?);
    if parts.next() != Some("GMT") || parts.next().is_some() {
        return None;
    }
    let month = u8::try_from(month).ok()?;
    let date = ::der::DateTime::new(year, month, day, hour, minute, second).ok()?;
    Some(UNIX_EPOCH + date.unix_duration())
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

/// The span of time in which an answer stays what it is, so that nobody needs to ask again. Takes no lock.
///
/// Its ends are set one after the other; whoever reads between them asks once too often or once too late, which
/// changes nothing: the answer is to use what is there.
#[derive(Default)]
pub(crate) struct Window {
    /// Milliseconds since 1970 by the injected clock.
    from: AtomicU64,
    until: AtomicU64,
}

impl Window {
    pub(crate) fn holds(&self, now: SystemTime) -> bool {
        let now = millis(now);
        self.from.load(Ordering::Relaxed) <= now && now < self.until.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self, from: SystemTime, until: SystemTime) {
        self.from.store(millis(from), Ordering::Relaxed);
        self.until.store(millis(until), Ordering::Relaxed);
    }

    pub(crate) fn close(&self) {
        self.until.store(0, Ordering::Relaxed);
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
    fn dates_of_http_are_read() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), at(784_111_777));
        for other in [
            "",
            "06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49:37 GMT+1 x",
            "Sun, 06 Nov 1994 08:49",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nom 1994 08:49:37 GMT",
        ] {
            assert_eq!(http_date(other), None, "{other}");
        }
    }

    #[test]
    fn times_are_printed_in_utc() {
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(rfc3339(time), "2023-11-14T22:13:20Z");
    }
}
