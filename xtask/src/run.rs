//! Running other programs, loudly.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// What went wrong, in a sentence.
pub(crate) type Failure = String;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Runs a program in the root of the repository, showing what it prints.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    run_with(program, arguments, &[])
}

/// [`run`] with extra environment variables.
pub(crate) fn run_with(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<(), Failure> {
    let line = format!("{program} {}", arguments.join(" "));
    println!("\n$ {line}");
    let started = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| format!("`{line}` cannot be started: {error}"))?;
    if !status.success() {
        return Err(format!("`{line}` failed ({status})"));
    }
    println!("  ok after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program, shows its standard output and hands every line of it to `each`. The result says whether
/// the program succeeded.
pub(crate) fn follow(
    program: &str,
    arguments: &[&str],
    each: impl FnMut(&str),
) -> Result<bool, Failure> {
    follow_with(program, arguments, &[], each)
}

/// [`follow`] with extra environment variables.
pub(crate) fn follow_with(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    mut each: impl FnMut(&str),
) -> Result<bool, Failure> {
    let line = format!("{program} {}", arguments.join(" "));
    println!("\n$ {line}");
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("`{line}` cannot be started: {error}"))?;
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).lines() {
            let text = text.map_err(|error| format!("`{line}`: {error}"))?;
            println!("{text}");
            each(&text);
        }
    }
    let status = child.wait().map_err(|error| format!("`{line}`: {error}"))?;
    Ok(status.success())
}

/// Whether a program is there and answers.
pub(crate) fn answers(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
