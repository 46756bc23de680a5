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

/// `cargo xtask bench`: prints the figures of the TPM layer, of TLS over it, and of others beside it.
pub(crate) fn bench() -> Result<(), Failure> {
    setup::packages()?;
    setup::install(PACKAGES)?;
    for (package, bench) in [("keybond-tpm", "figures"), ("keybond-tls", "handshake")] {
        run("cargo", &["bench", "--package", package, "--bench", bench])?;
    }
    let directory = target_dir().join("rivals");
    run(
        "cargo",
        &[
            "run",
            "--release",
            "--manifest-path",
            "benches/rivals/Cargo.toml",
            "--target-dir",
            &directory.to_string_lossy(),
        ],
    )
}
