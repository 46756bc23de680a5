//! Fuzzing of what comes from outside: a TPM's answers, key files, records.
//!
//! The fuzzers are built as cargo-fuzz does without a sanitizer (there is no unsafe code to watch): coverage is a pass
//! that the stable compiler has as well, so that neither cargo-fuzz nor a nightly compiler is needed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    run::{Failure, root, run_with, target_dir},
    setup,
};

const TARGETS: [&str; 3] = ["responses", "keyfiles", "records"];
/// Enough for continuous integration.
const SECONDS: u32 = 30;
/// Without a target, flags for the compiler would reach build scripts, too.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cdebug-assertions",
    "-Clink-dead-code",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// `cargo xtask fuzz [--seconds N] [target]`: runs each target, or only the one named, for that long.
pub(crate) fn fuzz(options: &[String]) -> Result<(), Failure> {
    let (mut seconds, mut targets) = (SECONDS, TARGETS.to_vec());
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let known = TARGETS.iter().find(|target| *target == option);
        match (option.as_str(), known) {
            ("--seconds", _) => {
                let given = options.next().and_then(|text| text.parse().ok());
                seconds = given.ok_or("--seconds: expected a number")?;
            }
            (_, Some(target)) => targets = vec![*target],
            (other, None) => {
                return Err(format!(
                    "{other}: expected --seconds N or one of {}",
                    TARGETS.join(", ")
                ));
            }
        }
    }
    setup::packages()?;
    let programs = build()?;

    // Side by side. With more targets than cores, so much longer that each has its time on a core.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let rounds = (targets.len() as f64 / cores as f64).max(1.0);
    let limit = Duration::from_secs_f64(f64::from(seconds) * rounds);
    println!(
        "\nfuzzing {} for {} s on {cores} cores",
        targets.join(", "),
        limit.as_secs()
    );
    let running = targets
        .iter()
        .map(|target| Fuzzer::start(&programs, target, limit))
        .collect::<Result<Vec<_>, _>>()?;
    let outcomes: Vec<_> = running.into_iter().map(Fuzzer::finish).collect();
    outcomes.into_iter().collect()
}

/// Builds the fuzzers; says where they are.
fn build() -> Result<PathBuf, Failure> {
    // Their flags are not those of the workspace: a directory of their own keeps both from being built anew.
    let directory = target_dir().join("fuzz");
    run_with(
        "cargo",
        &[
            "build",
            "--quiet",
            "--release",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target",
            PLATFORM,
            "--target-dir",
            &directory.to_string_lossy(),
        ],
        &[("RUSTFLAGS", &FLAGS.join(" "))],
    )?;
    Ok(directory.join(PLATFORM).join("release"))
}

/// One target at work.
struct Fuzzer {
    target: &'static str,
    child: Child,
    log: PathBuf,
}

impl Fuzzer {
    fn start(programs: &Path, target: &'static str, limit: Duration) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| format!("{target}: {error}");
        // What libFuzzer finds goes to the first directory; the seeds stay as they are.
        let fuzz = root().join("fuzz");
        let (corpus, crashes) = (
            fuzz.join("corpus").join(target),
            fuzz.join("artifacts").join(target),
        );
        for directory in [&corpus, &crashes] {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let log = programs.join(format!("{target}.log"));
        let child = Command::new(programs.join(target))
            .arg(corpus)
            .arg(fuzz.join("seeds").join(target))
            .arg(format!("-max_total_time={}", limit.as_secs()))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            // 4 KiB is a TPM's largest answer.
            .args(["-max_len=4200", "-timeout=5", "-rss_limit_mb=1024"])
            .args(["-verbosity=0", "-print_final_stats=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        Ok(Self { target, child, log })
    }

    /// Waits for the end; a crash, a time-out, or no input tried at all is a failure.
    fn finish(mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.target);
        let status = self.child.wait().map_err(failed)?;
        let said = fs::read(&self.log).map_err(failed)?;
        let said = String::from_utf8_lossy(&said);
        let figure = |name: &str| {
            let after = said.rsplit_once(name)?.1;
            after.split_whitespace().next()?.parse::<u64>().ok()
        };
        let tried = figure("stat::number_of_executed_units:").unwrap_or(0);
        if !status.success() || tried == 0 {
            let (target, log) = (self.target, self.log.display());
            return Err(format!(
                "{target}: {status}, {tried} inputs tried ({log})\n{said}"
            ));
        }
        println!(
            "  {:<10} {tried} inputs tried, {} kept as new",
            self.target,
            figure("stat::new_units_added:").unwrap_or(0),
        );
        Ok(())
    }
}
