//! The machine as the test wants it, and the directory its keys are in.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

/// The state of the machine, read from the file `config`.
pub(crate) struct Config(Vec<(String, String)>);

impl Config {
    pub(crate) fn read() -> Self {
        let text = fs::read_to_string(directory().join("config")).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(
            pairs
                .map(|(key, value)| (key.trim().into(), value.trim().into()))
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_on(&self, key: &str) -> bool {
        self.get(key) == Some("on")
    }

    pub(crate) fn is_off(&self, key: &str) -> bool {
        self.get(key) == Some("off")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        self.get(key)?.parse().ok()
    }

    pub(crate) fn fails_at_open(&self) -> bool {
        self.get("stale") == Some("open")
    }

    /// The code with which `call` must fail now, if it must. A count goes down across processes.
    pub(crate) fn failure(&self, call: &str) -> Option<i32> {
        let rule = self.get(&format!("fail.{call}"))?;
        let (code, times) = match rule.split_once('*') {
            Some((code, times)) => (code, times.parse::<u32>().ok()),
            None => (rule, None),
        };
        let code = u32::from_str_radix(code, 16).ok()?.cast_signed();
        let Some(times) = times else {
            return Some(code);
        };
        (0..times)
            .any(|n| {
                let spent = directory().join(format!("spent.{call}.{n}"));
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(spent)
                    .is_ok()
            })
            .then_some(code)
    }
}

/// The directory of this machine.
pub(crate) fn directory() -> PathBuf {
    let directory =
        std::env::var_os("KEYBOND_FAKE_NCRYPT").unwrap_or_else(|| r"C:\fake-ncrypt".into());
    let directory = PathBuf::from(directory);
    // A failure shows when the first key cannot be written.
    let _ = fs::create_dir_all(&directory);
    directory
}

/// Adds a line to `log`, for tests that count: what was done to keys (`calls`), what was signed (`signatures`).
pub(crate) fn record(log: &str, line: &str) {
    let log = directory().join(log);
    if let Ok(mut log) = OpenOptions::new().append(true).create(true).open(log) {
        // Nobody to tell; a test that counts will see that the line is missing.
        let _ = writeln!(log, "{line}");
    }
}
