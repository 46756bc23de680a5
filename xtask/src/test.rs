//! The test command and the demo.

use std::{ops::AddAssign, path::Path, process::Command, time::Instant};

use keybond_testkit::Swtpm;

use crate::{
    check::check,
    fuzz,
    run::{Failure, follow, root, run, run_with},
    setup,
    windows::windows,
};

/// `cargo xtask demo`: builds the command line and runs its demo; with `--tpm swtpm` the key is in a software
/// TPM that is started for it, and openssl signs with the same key file afterwards.
pub(crate) fn demo(options: &[String]) -> Result<(), Failure> {
    let wants_swtpm = |pair: &[String]| pair == ["--tpm", "swtpm"];
    let Some(at) = options.windows(2).position(wants_swtpm) else {
        return run_demo(options);
    };
    setup::packages()?;
    let tpm = Swtpm::start().map_err(|error| error.to_string())?;
    let mut options = options.to_vec();
    options[at + 1] = tpm.address();
    let kept = tpm.dir().join("demo");
    options.extend(["--keep".into(), kept.display().to_string()]);
    run_demo(&options)?;
    if options.iter().any(|option| option == "--json") {
        return Ok(());
    }
    openssl_signs(&tpm, &kept.join("keys/demo-honest.pem"))
}

/// The key file of the demo in other hands: OpenSSL's provider for TPMs signs with it, OpenSSL's own code verifies.
fn openssl_signs(tpm: &Swtpm, key: &Path) -> Result<(), Failure> {
    let file = |name: &str| tpm.dir().join(name).display().to_string();
    let (key, public) = (key.display().to_string(), file("public.pem"));
    let (message, signature) = (file("message"), file("signature"));
    std::fs::write(&message, "signed by openssl").map_err(|error| error.to_string())?;
    let provider = "-provider tpm2 -provider default -propquery ?provider=tpm2";
    let openssl = |line: &str, files: &[&str]| {
        let mut arguments: Vec<&str> = line.split(' ').collect();
        arguments.extend(files);
        run_with("openssl", &arguments, &[("TPM2OPENSSL_TCTI", &tpm.tcti())])
    };
    openssl(
        &format!("pkey {provider} -pubout"),
        &["-in", &key, "-out", &public],
    )?;
    openssl(
        &format!("pkeyutl {provider} -sign -rawin -digest sha256 -pkeyopt rsa_padding_mode:pss"),
        &["-inkey", &key, "-in", &message, "-out", &signature],
    )?;
    openssl(
        "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32",
        &["-verify", &public, "-signature", &signature, &message],
    )?;
    println!("\nopenssl signed with the very key file of the demo, in the TPM");
    Ok(())
}

/// `cargo xtask test`: everything that must be true before a change lands.
pub(crate) fn test() -> Result<(), Failure> {
    let started = Instant::now();
    setup::everything()?;
    check()?;

    let mut totals = Totals::default();
    let passed = follow(
        "cargo",
        &["test", "--workspace", "--no-fail-fast"],
        |line| totals.read(line),
    )?;
    let fuzzed = fuzz::fuzz(&[]);
    let windows = windows(&mut totals);
    let readme = readme_commands();
    let ended = started.elapsed().as_secs();
    println!("\nall stages: {} min {} s", ended / 60, ended % 60);
    println!(
        "{} passed, {} failed, {} skipped",
        totals.passed, totals.failed, totals.ignored
    );
    fuzzed?;
    windows?;
    readme?;
    if !passed || totals.failed > 0 {
        return Err("tests failed".into());
    }
    if totals.passed == 0 {
        return Err("no test was run".into());
    }
    Ok(())
}

/// The sums of what the test runner says at the end of each suite.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, others: Self) {
        self.passed += others.passed;
        self.failed += others.failed;
        self.ignored += others.ignored;
    }
}

impl Totals {
    pub(crate) fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (
                words.next().and_then(|word| word.parse::<u64>().ok()),
                words.next(),
            ) else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs every command of the README's first screen, but the one that is running already.
fn readme_commands() -> Result<(), Failure> {
    let readme = std::fs::read_to_string(root().join("README.md"))
        .map_err(|error| format!("README.md: {error}"))?;
    let screen = readme.split("\n## ").next().unwrap_or(&readme);
    let mut seen = 0;
    for line in screen.lines() {
        let Some(command) = line.strip_prefix("$ ") else {
            continue;
        };
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "xtask", "test"] => {}
            ["cargo", arguments @ ..] => run("cargo", arguments)?,
            _ => return Err(format!("README.md: no test runs `{command}`")),
        }
        seen += 1;
    }
    if seen == 0 {
        Err("README.md: no command on the first screen".into())
    } else {
        Ok(())
    }
}

fn run_demo(options: &[String]) -> Result<(), Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    // With the whole workspace selected, libraries in C are built once for everything.
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--workspace", "--bin", "keybond"])
        .current_dir(root())
        .status()
        .map_err(|error| failed("cargo", &error))?;
    if !built.success() {
        return Err(format!("the command line does not build ({built})"));
    }
    // It lies beside this very program.
    let here = std::env::current_exe().map_err(|error| failed("xtask", &error))?;
    let status = Command::new(here.with_file_name("keybond"))
        .arg("demo")
        .args(options)
        .status()
        .map_err(|error| failed("keybond", &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the demo failed ({status})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_over_suites() {
        let mut totals = Totals::default();
        totals.read("running 3 tests");
        totals.read("test result: ok. 11 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.18s");
        totals
            .read("test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!((totals.passed, totals.failed, totals.ignored), (12, 3, 2));
        let mut all = Totals::default();
        all += totals;
        assert_eq!((all.passed, all.failed, all.ignored), (12, 3, 2));
    }
}
