//! Benches: figures as ratios against the bare exchange in the same run.

use crate::{
    run::{Failure, run},
    setup,
};

/// `cargo xtask bench`: prints the figures of the TPM layer.
pub(crate) fn bench() -> Result<(), Failure> {
    setup::packages()?;
    run(
        "cargo",
        &["bench", "--package", "keybond-tpm", "--bench", "figures"],
    )
}
