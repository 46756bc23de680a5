//! How far a long transfer is, for people at a terminal.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use keybond::Response;

/// Transfers shorter than this show nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a line is written.
const PACE: Duration = Duration::from_millis(200);

/// Whether progress is shown at all.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    /// `wanted`, and standard error is a terminal.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            shown: wanted && std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn sending(&self) -> Counter {
        Counter::new(self.shown, "sent")
    }

    pub(super) fn receiving(&self, response: &Response) -> Counter {
        let length = response.headers().get("content-length");
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Counter::new(self.shown, "received").of(length)
    }
}

/// Counts one direction.
#[derive(Clone)]
pub(super) struct Counter {
    what: &'static str,
    total: Option<u64>,
    state: Option<Arc<Mutex<State>>>,
}

struct State {
    bytes: u64,
    started: Instant,
    last: Option<Instant>,
}

impl Counter {
    fn new(shown: bool, what: &'static str) -> Self {
        let state = State {
            bytes: 0,
            started: Instant::now(),
            last: None,
        };
        Self {
            what,
            total: None,
            state: shown.then(|| Arc::new(Mutex::new(state))),
        }
    }

    /// The same with the number of bytes that will come, if it is known.
    pub(super) fn of(mut self, total: Option<u64>) -> Self {
        self.total = total;
        self
    }

    pub(super) fn count(&self, bytes: usize) {
        let Some(state) = &self.state else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes as u64;
        let now = Instant::now();
        let due = state
            .last
            .map_or(state.started + PATIENCE, |last| last + PACE);
        if now >= due {
            state.last = Some(now);
            let elapsed = now - state.started;
            // Nothing depends on whether this line is seen.
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[K{}",
                line(self.what, state.bytes, self.total, elapsed)
            );
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        let Some(state) = &self.state else { return };
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, bytes: u64, total: Option<u64>, elapsed: Duration) -> String {
    const MEBIBYTE: f64 = 1048576.0;
    let mebibytes = bytes as f64 / MEBIBYTE;
    let rate = mebibytes / elapsed.as_secs_f64().max(1e-3);
    match total {
        Some(total) if total > 0 => format!(
            "{what} {mebibytes:.1} of {:.1} MiB ({:.0} %), {rate:.1} MiB/s",
            total as f64 / MEBIBYTE,
            100.0 * bytes as f64 / total as f64
        ),
        _ => format!("{what} {mebibytes:.1} MiB, {rate:.1} MiB/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_of_what_and_how_fast() {
        let two = Duration::from_secs(2);
        assert_eq!(
            line("received", 3 << 20, Some(6 << 20), two),
            "received 3.0 of 6.0 MiB (50 %), 1.5 MiB/s"
        );
        assert_eq!(line("sent", 1 << 20, None, two), "sent 1.0 MiB, 0.5 MiB/s");
        assert_eq!(
            line("sent", 0, Some(0), Duration::ZERO),
            "sent 0.0 MiB, 0.0 MiB/s"
        );
    }
}
