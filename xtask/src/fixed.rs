//! The command as one file that needs nothing of the machine it runs on.

use std::fs;

use keybond_testkit::Swtpm;

use crate::{
    run::{Failure, answers, root, run},
    setup,
};

const TARGET: &str = "x86_64-unknown-linux-musl";

/// `cargo xtask static`: builds the command statically and runs its demo with the key in a software TPM.
pub(crate) fn build() -> Result<(), Failure> {
    setup::packages()?;
    if !answers("musl-gcc", &["--version"]) {
        return Err("a static build needs musl's compiler: `apt-get install musl-tools`".into());
    }
    run("rustup", &["target", "add", TARGET])?;
    run(
        "cargo",
        &[
            "build",
            "--release",
            "--target",
            TARGET,
            "--package",
            "keybond-cli",
        ],
    )?;
    let file = root().join("target").join(TARGET).join("release/keybond");
    let size = fs::metadata(&file)
        .map_err(|error| format!("{}: {error}", file.display()))?
        .len();
    let program = file.to_string_lossy();
    let tpm = Swtpm::start().map_err(|error| error.to_string())?;
    run(&program, &["demo", "--tpm", &tpm.address()])?;
    println!("\n{program}: {:.1} MB", size as f64 / 1e6);
    Ok(())
}
