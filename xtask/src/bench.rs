//! Benches: figures as ratios against the bare exchange in the same run.

use crate::{
    run::{Failure, run, target_dir},
    setup,
};

/// What only the rivals need.
const PACKAGES: &[(&str, &str)] = &[
    ("libtss2-dev", "/usr/include/tss2/tss2_esys.h"),
    ("pkg-config", "/usr/bin/pkg-config"),
];

/// `cargo xtask bench`: prints the figures of the TPM layer, of TLS over it, of cached tokens, and of others
/// beside them.
pub(crate) fn bench() -> Result<(), Failure> {
    setup::packages()?;
    setup::install(PACKAGES)?;
    for (package, bench) in [
        ("keybond-tpm", "figures"),
        ("keybond-tls", "handshake"),
        ("keybond-tls", "figures"),
    ] {
        run("cargo", &["bench", "--package", package, "--bench", bench])?;
    }
    outside("tokens")?;
    outside("rivals")
}

/// A crate outside the workspace: what it needs is no part of keybond.
fn outside(name: &str) -> Result<(), Failure> {
    let directory = target_dir().join(name);
    run(
        "cargo",
        &[
            "run",
            "--release",
            "--manifest-path",
            &format!("benches/{name}/Cargo.toml"),
            "--target-dir",
            &directory.to_string_lossy(),
        ],
    )
}
