//! Long runs: many signatures, and no handle or memory lost.

use crate::{
    run::{Failure, run_with},
    setup,
};

/// What one long-lived process makes before anybody restarts it.
const SIGNATURES: &str = "70000";

/// `cargo xtask soak [N]`: N signatures in a software TPM, with a second session idle beside.
pub(crate) fn soak(options: &[String]) -> Result<(), Failure> {
    let count = match options {
        [] => SIGNATURES,
        [count] if count.parse::<u32>().is_ok_and(|count| count > 0) => count,
        _ => return Err("expected at most a number of signatures".into()),
    };
    setup::packages()?;
    run_with(
        "cargo",
        &[
            "test",
            "--package",
            "keybond-tpm",
            "--test",
            "soak",
            "--",
            "--nocapture",
        ],
        &[("KEYBOND_SOAK", count)],
    )
}
