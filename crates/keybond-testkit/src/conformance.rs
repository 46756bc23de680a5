//! What every key store must do, written once and run over each of them.
//!
//! ```
//! use keybond_keys::MemoryStore;
//! use keybond_testkit::conformance::{Subject, examine};
//!
//! let report = examine(&Subject::new("memory", || Box::new(MemoryStore)));
//! assert!(report.is_green(), "{report}");
//! println!("{report}");
//! ```

mod checks;
mod verify;

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    time::{Duration, Instant},
};

use keybond_keys::KeyStore;

/// A store under examination, with the ways to hurt it from outside.
pub struct Subject<'a> {
    name: String,
    connect: Box<dyn Fn() -> Box<dyn KeyStore> + Sync + 'a>,
    hurt: Vec<(Hurt, Box<dyn Fn() + Sync + 'a>)>,
}

/// Something that happens to a store from outside, after a key was made in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurt {
    /// What the store keeps beside the key is damaged.
    CorruptRecord,
    /// The key now comes from another device, or the device was cleared.
    ForeignDevice,
    /// A process that creates the key is killed.
    KilledCreation,
    /// The key no longer signs. For stores that other programs share, which hand out a key that lives rather
    /// than replace it.
    DeadKey,
}

impl<'a> Subject<'a> {
    /// A store as `connect` makes it. Every call must reach the same device or files, as a new process would.
    pub fn new(
        name: impl Into<String>,
        connect: impl Fn() -> Box<dyn KeyStore> + Sync + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            connect: Box::new(connect),
            hurt: Vec::new(),
        }
    }

    /// Adds a way to hurt the key called `default` from outside. Without it the check does not apply.
    #[must_use]
    pub fn with(mut self, hurt: Hurt, way: impl Fn() + Sync + 'a) -> Self {
        self.hurt.push((hurt, Box::new(way)));
        self
    }

    fn connect(&self) -> Box<dyn KeyStore> {
        (self.connect)()
    }

    fn hurt(&self, hurt: Hurt) -> bool {
        let way = self.hurt.iter().find(|(known, _)| *known == hurt);
        way.inspect(|(_, way)| way()).is_some()
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store does it.
    Passed,
    /// The store cannot be asked to; says why.
    NotApplicable(&'static str),
    /// The store does not; says what happened.
    Failed(String),
}

/// One line of a report.
#[derive(Clone, Debug)]
pub struct Row {
    /// What the store must do.
    pub check: &'static str,
    /// Whether it does.
    pub outcome: Outcome,
    /// How long the check took.
    pub elapsed: Duration,
}

/// The results for one store.
#[derive(Clone, Debug)]
pub struct Report {
    /// The store's name.
    pub store: String,
    /// One line a check.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether nothing failed.
    pub fn is_green(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> {
        self.rows
            .iter()
            .filter(|row| matches!(row.outcome, Outcome::Failed(_)))
            .map(|row| row.check)
    }
}

/// A Markdown table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {:<58} | {:<9} | ms     |", "check", self.store)?;
        writeln!(f, "|{:-<60}|{:-<11}|-------:|", "", "")?;
        for row in &self.rows {
            let (word, why) = match &row.outcome {
                Outcome::Passed => ("yes", ""),
                Outcome::NotApplicable(why) => ("n/a", *why),
                Outcome::Failed(why) => ("NO", why.as_str()),
            };
            let ms = row.elapsed.as_secs_f64() * 1e3;
            write!(f, "| {:<58} | {word:<9} | {ms:>6.1} |", row.check)?;
            writeln!(f, "{}{why}", if why.is_empty() { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Puts a store through every check. The store's keys called `default` and `conformance-*` are deleted.
pub fn examine(subject: &Subject<'_>) -> Report {
    let rows = checks::ALL
        .iter()
        .map(|(check, run)| {
            let started = Instant::now();
            // A check that panics is a store that panicked: a failure like any other.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| run(subject)));
            Row {
                check,
                outcome: outcome
                    .unwrap_or_else(|_| Err("it panicked".into()))
                    .unwrap_or_else(Outcome::Failed),
                elapsed: started.elapsed(),
            }
        })
        .collect();
    Report {
        store: subject.name.clone(),
        rows,
    }
}
