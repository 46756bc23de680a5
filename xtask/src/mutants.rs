//! Mutation testing: which changes to the key provider's code would no test notice?

use std::fs;

use crate::{
    run::{Failure, answers, root, run, run_with},
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
        files: &["*.rs", "provider/*.rs", "store/*.rs"],
        // The others of these are compiled elsewhere: on Windows, or for fuzzers.
        but: &[
            "store/tpm2.rs",
            "store/pkcs11.rs",
            "store/cng.rs",
            "store/memory.rs",
            "store/cng_windows.rs",
            "store/keyguard.rs",
            "store/platform.rs",
            "fuzzing.rs",
        ],
        tests: &["provider", "rotation", "metrics", "model"],
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
        total.add(&score);
    }
    println!("\nmutants: {total}");
    if total.percent() < FLOOR {
        return Err(format!("fewer than {FLOOR} % of the mutants are caught"));
    }
    Ok(())
}

fn examine(group: &Group, shard: Option<&str>) -> Result<Score, Failure> {
    let out = root().join("target/mutants").join(group.name);
    let out = out.to_string_lossy().into_owned();
    fs::create_dir_all(&out).map_err(|error| format!("{out}: {error}"))?;
    let mut arguments: Vec<String> = [
        "mutants",
        "--package",
        "keybond-keys",
        "--features",
        "pkcs11",
        // What a mutant that loops may take; the tests themselves need a fraction.
        "--timeout",
        "240",
        "--no-shuffle",
        "--colors",
        "never",
        "--output",
        &out,
    ]
    .map(String::from)
    .into();
    let named = |option: &str, files: &[&str]| -> Vec<String> {
        let path = |file| [option.to_owned(), format!("{PACKAGE}/{file}")];
        files.iter().flat_map(path).collect()
    };
    arguments.extend(named("--file", group.files));
    arguments.extend(named("--exclude", group.but));
    if let Some(shard) = shard {
        // Every N-th mutant, not the N-th part of the files.
        arguments.extend(["--shard", shard, "--sharding", "round-robin"].map(String::from));
    }
    arguments.extend(["--", "--lib"].map(String::from));
    for test in group.tests {
        arguments.extend(["--test".to_owned(), (*test).to_owned()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let target = root().join("target/mutants/build");
    let environment = [
        ("CARGO_TARGET_DIR", &*target.to_string_lossy()),
        ("KEYBOND_MODEL_RUNS", "100"),
        ("KEYBOND_COLD_STARTS", "1"),
    ];
    // It fails when a mutant is missed, too; what it found is in its files.
    let ran = run_with("cargo", &arguments, &environment);
    let count = |file: &str| {
        fs::read_to_string(format!("{out}/mutants.out/{file}.txt")).map(|text| text.lines().count())
    };
    let counted = || {
        Ok(Score {
            caught: count("caught")?,
            timed_out: count("timeout")?,
            missed: count("missed")?,
            unviable: count("unviable")?,
        })
    };
    let score = counted().map_err(|error: std::io::Error| format!("{out}: {error}"))?;
    if score.caught + score.missed == 0 {
        ran?;
    }
    Ok(score)
}

/// What became of the mutants.
#[derive(Default)]
struct Score {
    caught: usize,
    /// The tests never ended, which is noticed, too.
    timed_out: usize,
    missed: usize,
    /// They do not compile.
    unviable: usize,
}

impl Score {
    fn add(&mut self, other: &Self) {
        self.caught += other.caught;
        self.timed_out += other.timed_out;
        self.missed += other.missed;
        self.unviable += other.unviable;
    }

    fn percent(&self) -> usize {
        let noticed = self.caught + self.timed_out;
        (noticed * 100)
            .checked_div(noticed + self.missed)
            .unwrap_or(0)
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} caught, {} timed out, {} missed, {} do not compile: {} %",
            self.caught,
            self.timed_out,
            self.missed,
            self.unviable,
            self.percent()
        )
    }
}
