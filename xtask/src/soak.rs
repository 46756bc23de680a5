//! Long runs: many signatures, and no handle or memory lost; many cold starts, and one key each time;
//! certificates that rotate under load, and no request that fails.

use crate::{
    run::{Failure, run_with},
    setup,
};

/// What one long-lived process makes before anybody restarts it.
const SIGNATURES: &str = "70000";

const COLD_STARTS: &str = "200";

/// `cargo xtask soak [N]`: N signatures in a software TPM, with a second session idle beside;
/// `cargo xtask soak cold-starts [N]`: 8 processes start N times, one of them is killed;
/// `cargo xtask soak rotation`: ten minutes of calls with certificates of 90 seconds;
/// `cargo xtask soak lives`: certificates and tokens through decades, and many kills.
pub(crate) fn soak(options: &[String]) -> Result<(), Failure> {
    let positive = |count: &String| count.parse::<u32>().is_ok_and(|count| count > 0);
    let count = match options {
        [what] if what == "cold-starts" => return cold_starts(COLD_STARTS),
        [what, count] if what == "cold-starts" && positive(count) => return cold_starts(count),
        [what] if what == "rotation" => return rotation(),
        [what] if what == "lives" => return lives(),
        [] => SIGNATURES,
        [count] if positive(count) => count,
        _ => {
            return Err(
                "expected a number of signatures, rotation, lives, or cold-starts and a number"
                    .into(),
            );
        }
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

fn cold_starts(count: &str) -> Result<(), Failure> {
    let arguments = ["test", "--package", "keybond-keys", "--test", "provider"];
    let test = [
        "--",
        "--exact",
        "machine::cold_starts_with_a_kill_leave_one_valid_key",
        "--nocapture",
    ];
    run_with(
        "cargo",
        &[&arguments[..], &test].concat(),
        &[("KEYBOND_COLD_STARTS", count)],
    )
}

fn rotation() -> Result<(), Failure> {
    // As `cargo test --workspace` builds it; the key provider has a test file of the same name.
    let file = ["test", "--workspace", "--test", "rotation"];
    let test = [
        "--",
        "--exact",
        "no_request_fails_or_mixes_versions_while_certificates_rotate",
        "--nocapture",
    ];
    run_with(
        "cargo",
        &[&file[..], &test].concat(),
        &[("KEYBOND_ROTATION", "600,90")],
    )
}

/// Forty times two years of certificates and tokens, then processes killed and started by the hundred.
fn lives() -> Result<(), Failure> {
    let decades = [
        "test",
        "--release",
        "--package",
        "keybond",
        "--lib",
        "two_years",
    ];
    run_with(
        "cargo",
        &[&decades[..], &["--", "--nocapture"]].concat(),
        &[("KEYBOND_SEEDS", "40"), ("KEYBOND_PHASE_DAYS", "365")],
    )?;
    let kills = ["test", "--package", "keybond", "--test", "processes"];
    run_with(
        "cargo",
        &[&kills[..], &["--", "--nocapture", "--test-threads=1"]].concat(),
        &[("KEYBOND_KILLS", "1000"), ("KEYBOND_WORKERS", "200")],
    )
}
