//! OpenSSL's provider tpm2, driven by a small program in C: one process, the key loaded once, many signatures.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{Failure, Times, swtpm::Swtpm};

pub(crate) struct OpenSsl(PathBuf);

impl OpenSsl {
    pub(crate) fn build(dir: &Path) -> Result<Self, Failure> {
        let program = dir.join("provider");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/provider.c");
        let status = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(&program)
            .args([source, "-lcrypto"])
            .status()?;
        match status.success() {
            true => Ok(Self(program)),
            false => Err(format!("cc: {status}").into()),
        }
    }

    pub(crate) fn signatures(&self, swtpm: &Swtpm, key: &Path, count: usize) -> Times {
        let output = Command::new(&self.0)
            .arg(key)
            .arg(count.to_string())
            .env("TPM2OPENSSL_TCTI", format!("swtpm:{}", swtpm.tss_config()))
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let nanoseconds = String::from_utf8(output.stdout)?;
        nanoseconds
            .lines()
            .map(|line| Ok(Duration::from_nanos(line.parse()?)))
            .collect()
    }
}
