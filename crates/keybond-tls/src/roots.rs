//! Whom to trust: the system's roots, and those that the user adds.

use std::{collections::BTreeSet, fs, path::Path};

use der::Decode as _;
use x509_cert::Certificate;

use crate::{error::TlsError, pem};

/// Certificates of authorities that may vouch for servers.
#[derive(Clone, Debug, Default)]
pub struct TrustRoots {
    roots: BTreeSet<Vec<u8>>,
}

impl TrustRoots {
    /// No roots: every server is untrusted until some are added.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The operating system's roots: its certificate bundle or directory on Unix, the certificate store on
    /// Windows, the key chain on macOS. The environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR` replace
    /// them, as with OpenSSL (the crate `rustls-native-certs` reads them).
    ///
    /// Reads files: call it off the async runtime. A system without any roots gives an empty set and a warning in
    /// the log, since roots may be added; single unreadable ones are left out with a warning.
    ///
    /// # Errors
    /// [`TlsError::TrustRoots`] if there are roots but none could be read.
    pub fn system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = Self::empty();
        for certificate in found.certs {
            roots.roots.insert(certificate.as_ref().to_vec());
        }
        for problem in &found.errors {
            tracing::warn!(%problem, "a trust root of the system is left out");
        }
        if roots.is_empty() {
            if let Some(problem) = found.errors.first() {
                return Err(TlsError::TrustRoots {
                    place: "the system's trust store".into(),
                    problem: problem.to_string(),
                });
            }
            tracing::warn!(
                "the system has no trust roots; is the package ca-certificates installed?"
            );
        }
        Ok(roots)
    }

    /// The roots in PEM text.
    ///
    /// # Errors
    /// As [`TrustRoots::add_pem`].
    pub fn from_pem(text: impl AsRef<[u8]>) -> Result<Self, TlsError> {
        let mut roots = Self::empty();
        roots.add_pem(text)?;
        Ok(roots)
    }

    /// Adds the certificates in PEM text.
    ///
    /// # Errors
    /// [`TlsError::TrustRoots`] if there is none in it or one of them is damaged; then nothing is added.
    pub fn add_pem(&mut self, text: impl AsRef<[u8]>) -> Result<&mut Self, TlsError> {
        self.add(text.as_ref(), "the PEM text")
    }

    /// Adds the certificates in a PEM file.
    ///
    /// # Errors
    /// [`TlsError::TrustRoots`] with the file's name if it cannot be read, holds no certificate or a damaged
    /// one; then nothing is added.
    pub fn add_pem_file(&mut self, path: impl AsRef<Path>) -> Result<&mut Self, TlsError> {
        let path = path.as_ref();
        let place = path.display().to_string();
        let text = fs::read(path).map_err(|error| TlsError::TrustRoots {
            place: place.clone(),
            problem: error.to_string(),
        })?;
        self.add(&text, &place)
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The roots (DER).
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(Vec::as_slice)
    }

    fn add(&mut self, text: &[u8], place: &str) -> Result<&mut Self, TlsError> {
        let broken = |problem: String| TlsError::TrustRoots {
            place: place.to_owned(),
            problem,
        };
        let found = pem::certificates(text).map_err(&broken)?;
        if found.is_empty() {
            return Err(broken(
                "there is no certificate in it (expected `-----BEGIN CERTIFICATE-----`)".into(),
            ));
        }
        for (position, der) in found.iter().enumerate() {
            Certificate::from_der(der).map_err(|error| {
                broken(format!(
                    "certificate {} cannot be read: {error}",
                    position + 1
                ))
            })?;
        }
        self.roots.extend(found);
        Ok(self)
    }
}
