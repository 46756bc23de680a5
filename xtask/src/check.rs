//! Everything that can be said about the code without running it.

use crate::run::{Failure, root, run, run_with};

pub(crate) fn check() -> Result<(), Failure> {
    run("cargo", &["fmt", "--all", "--check"])?;
    run(
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    run_with(
        "cargo",
        &["doc", "--workspace", "--no-deps"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )?;
    run("cargo", &["deny", "check", "bans", "licenses", "sources"])?;
    msrv()
}

/// The compiler in use is the one the manifest promises to be enough.
fn msrv() -> Result<(), Failure> {
    let manifest =
        std::fs::read_to_string(root().join("Cargo.toml")).map_err(|error| error.to_string())?;
    let promised = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
        .ok_or("Cargo.toml names no rust-version")?;
    let output = std::process::Command::new("rustc")
        .arg("--version")
        .current_dir(root())
        .output()
        .map_err(|error| format!("`rustc --version`: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let used = version.split(' ').nth(1).unwrap_or_default();
    if used.starts_with(promised) {
        println!("\nMSRV {promised}: everything above ran with exactly this version");
    } else {
        println!("\nSKIPPED MSRV: the manifest promises {promised}, this is {used}");
    }
    Ok(())
}
