//! How far a long transfer is, for people at a terminal: one line, which goes away before anything else is said.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use keybond::Response;

/// Transfers shorter than this show nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a line is written.
const PACE: Duration = Duration::from_millis(200);
/// Back to the beginning of the line, which is erased.
const ERASE: &str = "\r\x1b[K";

/// The line, if there is to be one. Dropping this takes it away for good.
pub(super) struct Progress {
    line: Option<Arc<Line>>,
    answer_is_shown: bool,
}

impl Progress {
    /// `wanted`, and standard error is a terminal. `to_stdout`: the answer goes to standard output; if that is a
    /// terminal, too, a line in the midst of the answer would only spoil it.
    pub(super) fn new(wanted: bool, to_stdout: bool) -> Self {
        let shown = wanted && std::io::stderr().is_terminal();
        Self {
            line: shown.then(Arc::default),
            answer_is_shown: to_stdout && std::io::stdout().is_terminal(),
        }
    }

    pub(super) fn sending(&self) -> Counter {
        Counter::new(self.line.clone(), "sent")
    }

    pub(super) fn receiving(&self, response: &Response) -> Counter {
        let length = response.headers().get("content-length");
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let line = self.line.clone().filter(|_| !self.answer_is_shown);
        Counter::new(line, "received").of(length)
    }

    /// Takes the line away, until there is news.
    pub(super) fn clear(&self) {
        if let Some(line) = &self.line {
            line.state().erase();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            let mut state = line.state();
            state.erase();
            // An upload may still be under way.
            state.over = true;
        }
    }
}

/// The one line that both directions write.
#[derive(Default)]
struct Line(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    visible: bool,
    over: bool,
}

impl Line {
    fn state(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn show(&mut self, text: &str) {
        if !self.over {
            self.visible = true;
            // Nothing depends on whether this line is seen.
            let _ = write!(std::io::stderr(), "{ERASE}{text}");
        }
    }

    fn erase(&mut self) {
        if std::mem::take(&mut self.visible) {
            let _ = write!(std::io::stderr(), "{ERASE}");
        }
    }
}

/// Counts one direction.
pub(super) struct Counter {
    what: &'static str,
    total: Option<u64>,
    line: Option<Arc<Line>>,
    bytes: u64,
    started: Instant,
    due: Instant,
}

impl Counter {
    fn new(line: Option<Arc<Line>>, what: &'static str) -> Self {
        let started = Instant::now();
        Self {
            what,
            total: None,
            line,
            bytes: 0,
            started,
            due: started + PATIENCE,
        }
    }

    /// The same with the number of bytes that will come, if it is known.
    pub(super) fn of(mut self, total: Option<u64>) -> Self {
        self.total = total;
        self
    }

    pub(super) fn count(&mut self, bytes: usize) {
        let Some(line) = &self.line else { return };
        self.bytes += bytes as u64;
        let now = Instant::now();
        if now >= self.due {
            self.due = now + PACE;
            let text = text(self.what, self.bytes, self.total, now - self.started);
            line.state().show(&text);
        }
    }
}

fn text(what: &str, bytes: u64, total: Option<u64>, elapsed: Duration) -> String {
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
            text("received", 3 << 20, Some(6 << 20), two),
            "received 3.0 of 6.0 MiB (50 %), 1.5 MiB/s"
        );
        assert_eq!(text("sent", 1 << 20, None, two), "sent 1.0 MiB, 0.5 MiB/s");
        assert_eq!(
            text("sent", 0, Some(0), Duration::ZERO),
            "sent 0.0 MiB, 0.0 MiB/s"
        );
    }
}
