//! Verification by a library that shares no code with any store: the `openssl` command; on Windows, which has
//! none, aws-lc (the stores there sign by the system's own cryptography).

#[cfg(not(windows))]
use std::{fs, process::Command};

use keybond_keys::{KeyError, PublicKey, SignatureScheme};

/// Verifies strictly: PSS with a salt as long as the hash and no other.
#[cfg(windows)]
pub(super) fn verify(
    spki: &[u8],
    scheme: SignatureScheme,
    digest: &[u8],
    signature: &[u8],
) -> Result<(), String> {
    use aws_lc_rs::{digest, signature as by};
    let (hash, pss, pkcs1) = match digest.len() {
        32 => (
            &digest::SHA256,
            &by::RSA_PSS_2048_8192_SHA256,
            &by::RSA_PKCS1_2048_8192_SHA256,
        ),
        48 => (
            &digest::SHA384,
            &by::RSA_PSS_2048_8192_SHA384,
            &by::RSA_PKCS1_2048_8192_SHA384,
        ),
        64 => (
            &digest::SHA512,
            &by::RSA_PSS_2048_8192_SHA512,
            &by::RSA_PKCS1_2048_8192_SHA512,
        ),
        other => return Err(format!("a digest of {other} bytes")),
    };
    let algorithm = if scheme.is_pss() { pss } else { pkcs1 };
    let digest = digest::Digest::import_less_safe(digest, hash).map_err(text)?;
    by::UnparsedPublicKey::new(algorithm, spki)
        .verify_digest(&digest, signature)
        .map_err(|_| format!("aws-lc does not verify {scheme}"))
}

/// Verifies strictly: PSS with a salt as long as the hash and no other.
#[cfg(not(windows))]
pub(super) fn verify(
    spki: &[u8],
    scheme: SignatureScheme,
    digest: &[u8],
    signature: &[u8],
) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text)?;
    for (name, content) in [("pub.der", spki), ("digest", digest), ("sig", signature)] {
        fs::write(dir.path().join(name), content).map_err(text)?;
    }
    let (hash, salt) = (
        format!("digest:sha{}", digest.len() * 8),
        format!("rsa_pss_saltlen:{}", digest.len()),
    );
    let mut command = Command::new("openssl");
    command
        .current_dir(&dir)
        .args(["pkeyutl", "-verify", "-pubin", "-keyform", "DER"])
        .args(["-inkey", "pub.der", "-in", "digest", "-sigfile", "sig"])
        .args(["-pkeyopt", &hash]);
    if scheme.is_pss() {
        command.args(["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", &salt]);
    }
    let output = command.output().map_err(text)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Err(format!("openssl does not verify {scheme}: {said}"))
}

/// The public key in a store's answer.
pub(super) fn public_key(spki: &[u8]) -> Result<PublicKey, String> {
    PublicKey::from_spki_der(spki).map_err(text)
}

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An error of the provider, with the decision.
pub(super) fn told(error: KeyError) -> String {
    format!("{}: {error}", error.code())
}
