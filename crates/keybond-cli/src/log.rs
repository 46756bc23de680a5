//! The log: to standard error as the user filters it, and, for a support bundle, the newest of it in memory.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::failure::Failure;

/// Bytes that are kept: the whole way with its retries needs a tenth.
const KEPT_BYTES: usize = 256 * 1024;

static KEPT: Mutex<Kept> = Mutex::new(Kept::new(KEPT_BYTES));

/// Starts the log. What is kept is that of keybond itself at the level debug, whatever the filter says.
pub(crate) fn start(filter: &str, keep: bool) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log `{filter}` is no log filter: {error}")))?;
    let shown = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(filter);
    let kept = keep.then(|| {
        fmt::layer()
            .with_writer(|| Line(Vec::new()))
            .with_ansi(false)
            .with_filter(Targets::new().with_target("keybond", LevelFilter::DEBUG))
    });
    tracing_subscriber::registry().with(kept).with(shown).init();
    Ok(())
}

/// The kept lines, oldest first, and how many older ones there was no room for.
pub(crate) fn kept() -> (Vec<String>, usize) {
    let kept = lock();
    (kept.lines.iter().cloned().collect(), kept.dropped)
}

fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest lines that fit.
struct Kept {
    limit: usize,
    lines: VecDeque<String>,
    bytes: usize,
    dropped: usize,
}

impl Kept {
    const fn new(limit: usize) -> Self {
        Self {
            limit,
            lines: VecDeque::new(),
            bytes: 0,
            dropped: 0,
        }
    }

    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > self.limit
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }
}

/// One event, written in pieces and kept when it is whole.
struct Line(Vec<u8>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = String::from_utf8_lossy(&self.0).trim_end().to_owned();
        if !line.is_empty() {
            lock().push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_stay_and_the_others_are_counted() {
        let mut kept = Kept::new(10);
        for line in ["one", "two", "three", "four"] {
            kept.push(line.into());
        }
        assert_eq!(kept.lines, ["three", "four"]);
        assert_eq!((kept.bytes, kept.dropped), (9, 2));
        kept.push("longer than everything".into());
        assert_eq!((kept.lines.len(), kept.bytes, kept.dropped), (0, 0, 5));
    }
}
