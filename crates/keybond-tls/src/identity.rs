//! A certificate chain and the held key that it certifies.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use der::{Decode as _, Encode as _};
use keybond_keys::HeldKey;
use x509_cert::Certificate;

use crate::error::TlsError;

/// A client certificate with the key that it certifies: the two always travel together.
pub struct ClientIdentity {
    chain: Vec<Vec<u8>>,
    key: Arc<HeldKey>,
    x5t_s256: [u8; 32],
}

impl ClientIdentity {
    /// Joins a certificate chain (DER, the client's own first) and its key.
    ///
    /// # Errors
    /// [`TlsError::Identity`] if the chain is empty, one of its certificates cannot be read, or the first
    /// certifies another key.
    pub fn new(chain: Vec<Vec<u8>>, key: Arc<HeldKey>) -> Result<Self, TlsError> {
        let leaf = chain
            .first()
            .ok_or_else(|| invalid("the certificate chain is empty"))?;
        let mut leaf_spki = None;
        for (position, certificate) in chain.iter().enumerate() {
            let spki = public_key_of(certificate).map_err(|error| {
                invalid(format!(
                    "certificate {} of the chain cannot be read: {error}",
                    position + 1
                ))
            })?;
            leaf_spki.get_or_insert(spki);
        }
        if leaf_spki.as_deref() != Some(key.public_key().spki_der()) {
            return Err(invalid("the certificate is for another key"));
        }
        let mut x5t_s256 = [0; 32];
        x5t_s256.copy_from_slice(digest(&SHA256, leaf).as_ref());
        Ok(Self {
            chain,
            key,
            x5t_s256,
        })
    }

    /// The certificates (DER), the client's own first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The key.
    pub fn key(&self) -> &Arc<HeldKey> {
        &self.key
    }

    /// SHA-256 of the client's certificate (DER): what a token's `cnf.x5t#S256` holds in base64url (RFC 8705 §3.1).
    pub fn x5t_s256(&self) -> [u8; 32] {
        self.x5t_s256
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("certificates", &self.chain.len())
            .field("key", &self.key)
            .finish()
    }
}

/// The SubjectPublicKeyInfo (DER) of a certificate.
fn public_key_of(certificate: &[u8]) -> der::Result<Vec<u8>> {
    Certificate::from_der(certificate)?
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
}

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> TlsError {
    TlsError::Identity {
        problem: problem.into(),
    }
}
