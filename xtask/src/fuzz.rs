//! Fuzzing of what comes from outside: a TPM's answers, key files, records.

use crate::run::{Failure, answers, root, run};

const TARGETS: [&str; 3] = ["responses", "keyfiles", "records"];
const CARGO_FUZZ: &str = "0.13.2";
/// Enough for continuous integration.
const SECONDS: u32 = 30;

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
    if !answers("cargo", &["+nightly", "--version"]) {
        return Err("fuzzers need the nightly compiler: `rustup toolchain install nightly`".into());
    }
    if !answers("cargo", &["fuzz", "--version"]) {
        let version = ["--version", CARGO_FUZZ];
        run(
            "cargo",
            &[&["install", "--locked"][..], &version, &["cargo-fuzz"]].concat(),
        )?;
    }
    let limit = format!("-max_total_time={seconds}");
    for target in targets {
        // What libFuzzer finds goes to the first directory; the seeds stay as they are.
        let (corpus, seeds) = (
            format!("fuzz/corpus/{target}"),
            format!("fuzz/seeds/{target}"),
        );
        std::fs::create_dir_all(root().join(&corpus))
            .map_err(|error| format!("{corpus}: {error}"))?;
        // No sanitizer: there is no unsafe code to watch. 4 KiB is a TPM's largest answer.
        let mut arguments = vec!["+nightly", "fuzz", "run", "--sanitizer", "none", target];
        arguments.extend([
            corpus.as_str(),
            seeds.as_str(),
            "--",
            &limit,
            "-max_len=4200",
        ]);
        arguments.extend([
            "-timeout=5",
            "-rss_limit_mb=1024",
            "-verbosity=0",
            "-print_final_stats=1",
        ]);
        run("cargo", &arguments)?;
    }
    Ok(())
}
