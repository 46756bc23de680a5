//! Mutation testing: which changes to the key provider's code would no test notice?

use std::{fmt, fs, process::Command};

use crate::{
    run::{Failure, answers, root, run},
    setup,
};

const VERSION: &str = "27.1.0";
const PACKAGE: &str = "crates/keybond-keys/src";
/// The share of mutants that the tests must catch, in percent.
const FLOOR: usize = 85;

/// Files, and the tests that are there for them: to run every test for every mutant would take days.
struct Group {
    name: &'static str,
    files: &'static [&'static str],
    but: &'static [&'static str],
    tests: &'static [&'static str],
}

const GROUPS: [Group; 5] = [
    Group {
        name: "provider",
        files: &["*.rs", "provider/*.rs", "state/*.rs", "store/*.rs"],
        // The others of these are compiled elsewhere: on Windows, or for fuzzers.
        but: &[
            "store/tpm2.rs",
            "store/pkcs11.rs",
            "store/cng.rs",
            "store/memory.rs",
            "store/cng_windows.rs",
            "store/keyguard.rs",
            "store/platform.rs",
            "state/windows.rs",
            "fuzzing.rs",
        ],
        tests: &["provider", "rotation", "metrics", "model", "conformance"],
    },
    Group {
        name: "memory",
        files: &["store/memory.rs"],
        but: &[],
        tests: &["conformance"],
    },
    Group {
        name: "tpm2",
        files: &["store/tpm2.rs", "store/tpm2/*.rs"],
        but: &[],
        tests: &["tpm2", "tpm2_losses", "tpm2_conformance"],
    },
    Group {
        name: "pkcs11",
        files: &["store/pkcs11.rs", "store/pkcs11/*.rs"],
        but: &[],
        tests: &["pkcs11"],
    },
    Group {
        name: "cng",
        files: &["store/cng.rs"],
        but: &[],
        tests: &[],
    },
];

/// `cargo xtask mutants [GROUP] [K/N]`: changes `keybond-keys` in every way that the tool knows, or in every
/// N-th of them, and sees which changes its tests notice.
pub(crate) fn mutants(options: &[String]) -> Result<(), Failure> {
    let (mut groups, mut shard): (Vec<&Group>, _) = (GROUPS.iter().collect(), None);
    for option in options {
        if let Some(group) = GROUPS.iter().find(|group| group.name == option) {
            groups = vec![group];
        } else if option.contains('/') {
            shard = Some(option.as_str());
        } else {
            let names = GROUPS.map(|group| group.name).join(", ");
            return Err(format!("{option}: expected {names}, or K/N"));
        }
    }
    setup::packages()?;
    if !answers("cargo", &["mutants", "--version"]) {
        run(
            "cargo",
            &["install", "--locked", "--version", VERSION, "cargo-mutants"],
        )?;
    }
    let mut total = Score::default();
    for group in groups {
        let score = examine(group, shard)?;
        println!("{}: {score}", group.name);
        total.add(score);
    }
    println!("\nmutants: {total}");
    if total.percent() < FLOOR {
        return Err(format!("fewer than {FLOOR} % of the mutants are caught"));
    }
    Ok(())
}

/// The tests inside the crate are quick; the others are only for what those do not notice.
fn examine(group: &Group, shard: Option<&str>) -> Result<Score, Failure> {
    let every_nth = shard.map_or(vec![], |shard| {
        // Not the N-th part of the files.
        vec!["--shard", shard, "--sharding", "round-robin"]
    });
    let first = pass(group, "first", &every_nth, &[])?;
    let left: Vec<String> = first
        .missed
        .iter()
        .chain(&first.timed_out)
        .map(|mutant| name(mutant))
        .collect();
    if group.tests.is_empty() || left.is_empty() {
        return Ok(first);
    }
    let left = left
        .iter()
        .flat_map(|name| ["--re", name])
        .collect::<Vec<_>>();
    let mut score = pass(group, "second", &left, group.tests)?;
    score.caught.extend(first.caught);
    score.unviable.extend(first.unviable);
    Ok(score)
}

/// A pattern that only this mutant's name fits.
fn name(mutant: &str) -> String {
    let mut pattern = String::from("^");
    for character in mutant.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern + "$"
}

fn pass(group: &Group, pass: &str, which: &[&str], tests: &[&str]) -> Result<Score, Failure> {
    let out = root().join("target/mutants").join(group.name).join(pass);
    let shown = out.to_string_lossy();
    if out.exists() {
        fs::remove_dir_all(&out).map_err(|error| format!("{shown}: {error}"))?;
    }
    fs::create_dir_all(&out).map_err(|error| format!("{shown}: {error}"))?;
    let path = |file: &&str| format!("{PACKAGE}/{file}");
    let files: Vec<String> = group.files.iter().map(path).collect();
    let but: Vec<String> = group.but.iter().map(path).collect();
    // What a mutant that loops may take; the tests themselves need a fraction.
    let mut arguments = vec!["mutants", "--package", "keybond-keys", "--timeout", "120"];
    arguments.extend(["--features", "pkcs11", "--no-shuffle", "--colors", "never"]);
    arguments.extend(["--output", &shown]);
    arguments.extend(files.iter().flat_map(|file| ["--file", file]));
    arguments.extend(but.iter().flat_map(|file| ["--exclude", file]));
    arguments.extend(which);
    arguments.extend(["--", "--lib"]);
    arguments.extend(tests.iter().flat_map(|test| ["--test", test]));
    println!("\n$ cargo {}", arguments.join(" "));
    let status = Command::new("cargo")
        .args(arguments)
        .env("CARGO_TARGET_DIR", root().join("target/mutants/build"))
        // Half of the time would go into linking what nobody debugs.
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .env("KEYBOND_MODEL_RUNS", "100")
        .env("KEYBOND_COLD_STARTS", "1")
        .current_dir(root())
        .status()
        .map_err(|error| format!("cargo mutants: {error}"))?;
    // 2: some are missed, 3: some never ended. Anything else says nothing about mutants.
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        return Err(format!("cargo mutants failed ({status})"));
    }
    let lines = |file: &str| -> Result<Vec<String>, Failure> {
        let file = out.join(format!("mutants.out/{file}.txt"));
        let text = fs::read_to_string(&file);
        let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    Ok(Score {
        caught: lines("caught")?,
        timed_out: lines("timeout")?,
        missed: lines("missed")?,
        unviable: lines("unviable")?,
    })
}

/// What became of the mutants.
#[derive(Default)]
struct Score {
    caught: Vec<String>,
    /// The tests never ended, which is noticed, too.
    timed_out: Vec<String>,
    missed: Vec<String>,
    /// They do not compile.
    unviable: Vec<String>,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.caught.extend(other.caught);
        self.timed_out.extend(other.timed_out);
        self.missed.extend(other.missed);
        self.unviable.extend(other.unviable);
    }

    fn percent(&self) -> usize {
        let noticed = self.caught.len() + self.timed_out.len();
        (noticed * 100)
            .checked_div(noticed + self.missed.len())
            .unwrap_or(0)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} caught, {} timed out, {} missed, {} do not compile: {} %",
            self.caught.len(),
            self.timed_out.len(),
            self.missed.len(),
            self.unviable.len(),
            self.percent()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(caught: usize, timed_out: usize, missed: usize) -> Score {
        let some = |count| vec![String::new(); count];
        Score {
            caught: some(caught),
            timed_out: some(timed_out),
            missed: some(missed),
            unviable: some(9),
        }
    }

    #[test]
    fn what_does_not_compile_counts_for_nothing() {
        assert_eq!(score(16, 1, 3).percent(), 85);
        assert_eq!(score(0, 0, 3).percent(), 0);
        assert_eq!(score(0, 0, 0).percent(), 0);
        let mut total = score(1, 0, 1);
        total.add(score(1, 1, 0));
        assert_eq!(total.percent(), 75);
    }

    #[test]
    fn a_name_is_no_pattern() {
        let mutant = "src/a.rs:7:2: replace * with + in A<T>::b";
        assert_eq!(
            name(mutant),
            r"^src/a\.rs:7:2: replace \* with \+ in A<T>::b$"
        );
    }
}
