//! A certificate chain and the held key that it certifies.

use std::{fmt, sync::Arc};

use keybond_keys::HeldKey;

use crate::error::TlsError;

/// A client certificate with the key that it certifies: the two always travel together.
pub struct ClientIdentity {
    chain: Vec<Vec<u8>>,
    key: Arc<HeldKey>,
}

impl ClientIdentity {
    /// Joins a certificate chain (DER, the client's own first) and its key.
    ///
    /// # Errors
    /// [`TlsError::Identity`] if the chain is empty, its first certificate cannot be read or certifies
    /// another key.
    pub fn new(chain: Vec<Vec<u8>>, key: Arc<HeldKey>) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or(TlsError::Identity {
            problem: "the certificate chain is empty",
        })?;
        let spki = key.public_key().spki_der();
        // A SubjectPublicKeyInfo stands in a certificate byte for byte (RFC 5280 §4.1).
        if !leaf.windows(spki.len()).any(|window| window == spki) {
            return Err(TlsError::Identity {
                problem: "the certificate is for another key",
            });
        }
        Ok(Self { chain, key })
    }

    /// The certificates (DER), the client's own first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The key.
    pub fn key(&self) -> &Arc<HeldKey> {
        &self.key
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
