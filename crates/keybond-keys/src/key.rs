//! A key that is held: it signs, and that is all it does.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    decision::Decision,
    error::KeyError,
    evidence::{self, Evidence},
    offload::Offload,
    public_key::{KeyId, PublicKey},
    scheme::SignatureScheme,
    store::{Isolation, StoredKey},
    strength::{StoreId, Strength},
};

/// A private key that stays where it is.
///
/// No method, trait or feature yields private material:
///
/// ```compile_fail
/// fn steal(key: &keybond_keys::HeldKey) -> Vec<u8> {
///     key.private_key()
/// }
/// ```
///
/// ```compile_fail
/// fn copy(key: &keybond_keys::HeldKey) -> String {
///     serde_json::to_string(key).unwrap()
/// }
/// ```
///
/// A cheap reference to it is an `Arc<HeldKey>`, as the provider returns it; the key itself cannot be cloned.
/// Two references to one key may be two pointers: what tells keys apart is [`HeldKey::id`].
///
/// ```compile_fail
/// fn duplicate(key: &keybond_keys::HeldKey) -> keybond_keys::HeldKey {
///     key.clone()
/// }
/// ```
// A cache line of its own: threads count references to different handles, and none waits for another's.
#[repr(align(64))]
pub struct HeldKey(Arc<Inner>);

/// What all handles of one key share; the key is released with it.
struct Inner {
    stored: Arc<dyn StoredKey>,
    public: PublicKey,
    strength: Strength,
    evidence: Evidence,
    decision: Arc<Decision>,
    offload: Offload,
    deadline: Duration,
    quick: bool,
}

impl HeldKey {
    pub(crate) fn new(
        stored: Arc<dyn StoredKey>,
        public: PublicKey,
        evidence: Evidence,
        decision: Arc<Decision>,
        offload: Offload,
        deadline: Duration,
    ) -> Self {
        let strength = evidence.strength();
        // A device may hang, whatever it says of its speed.
        let quick = stored.is_quick() && evidence.properties.isolation == Isolation::Process;
        Self(Arc::new(Inner {
            stored,
            public,
            strength,
            evidence,
            decision,
            offload,
            deadline,
            quick,
        }))
    }

    /// One more handle of this key, with a reference count of its own.
    pub(crate) fn handle(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public
    }

    /// The key's identity: SHA-256 of its SubjectPublicKeyInfo.
    pub fn id(&self) -> KeyId {
        self.0.evidence.key_id
    }

    /// The store that holds the key.
    pub fn store(&self) -> StoreId {
        self.0.evidence.store
    }

    /// What the key was shown to be.
    pub fn strength(&self) -> Strength {
        self.0.strength
    }

    /// What it was shown by.
    pub fn evidence(&self) -> &Evidence {
        &self.0.evidence
    }

    /// How it was chosen.
    pub fn decision(&self) -> &Arc<Decision> {
        &self.0.decision
    }

    /// The schemes in which the key was shown to sign, strongest family first.
    pub fn schemes(&self) -> &[SignatureScheme] {
        &self.0.evidence.verified
    }

    /// Whether the key signs in `scheme`.
    pub fn supports(&self, scheme: SignatureScheme) -> bool {
        self.schemes().contains(&scheme)
    }

    /// Signs `message`: hashes it with the scheme's hash, then as [`HeldKey::sign_digest`].
    ///
    /// # Errors
    /// As [`HeldKey::sign_digest`].
    pub async fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.sign_digest(scheme, &scheme.hash().digest(message))
            .await
    }

    /// Signs a digest of exactly `scheme.hash().digest_len()` bytes; the signature is 256 bytes, big endian.
    ///
    /// A key in memory signs where it is asked (well under a millisecond on the machines measured); any other
    /// signs on a thread of its own, and the caller waits at most for the key's deadline. Dropping the future
    /// returns at once.
    ///
    /// # Errors
    /// [`KeyError::UnsupportedScheme`] and [`KeyError::DigestLength`] before the key is touched,
    /// [`KeyError::DeadlineExceeded`] when the device hangs, [`KeyError::Refused`] with the device's answer.
    pub async fn sign_digest(
        &self,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.check(scheme, digest)?;
        if self.0.quick {
            return Ok(self.0.stored.sign_digest(scheme, digest)?);
        }
        let stored = Arc::clone(&self.0.stored);
        let digest = digest.to_vec();
        let signed = self
            .0
            .offload
            .run(self.0.deadline, move || stored.sign_digest(scheme, &digest))
            .await?;
        Ok(signed?)
    }

    /// [`HeldKey::sign_digest`] for threads that may block. There is no deadline but the device's own.
    ///
    /// # Errors
    /// As [`HeldKey::sign_digest`], without the deadline.
    pub fn sign_digest_blocking(
        &self,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.check(scheme, digest)?;
        Ok(self.0.stored.sign_digest(scheme, digest)?)
    }

    /// Proves that the key still works: one real signature over a fresh random message, strictly verified.
    ///
    /// # Errors
    /// [`KeyError::Refused`] with the device's answer, or [`KeyError::DeadlineExceeded`].
    pub async fn prove_alive(&self) -> Result<(), KeyError> {
        let stored = Arc::clone(&self.0.stored);
        let public = self.0.public.clone();
        let (store, scheme) = (self.store(), self.schemes()[0]);
        let proven = self
            .0
            .offload
            .run(self.0.deadline, move || {
                evidence::try_scheme(store, &*stored, &public, scheme)
            })
            .await?;
        Ok(proven?)
    }

    fn check(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<(), KeyError> {
        if !self.supports(scheme) {
            return Err(KeyError::UnsupportedScheme {
                scheme,
                offered: self.schemes().to_vec(),
            });
        }
        let expected = scheme.hash().digest_len();
        if digest.len() != expected {
            return Err(KeyError::DigestLength {
                scheme,
                expected,
                given: digest.len(),
            });
        }
        Ok(())
    }
}

impl fmt::Debug for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldKey")
            .field("store", &self.store())
            .field("strength", &self.0.strength)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{provider::KeyProvider, public_key::RSA_BITS};

    const SIGNATURE: usize = RSA_BITS / 8;

    async fn held() -> Arc<HeldKey> {
        KeyProvider::in_memory().get_or_create_key().await.unwrap()
    }

    #[tokio::test]
    async fn a_message_is_signed_by_its_digest_on_every_way() {
        let key = held().await;
        for &scheme in key.schemes() {
            let message = b"message";
            let digest = scheme.hash().digest(message);
            for signature in [
                key.sign(scheme, message).await.unwrap(),
                key.sign_digest(scheme, &digest).await.unwrap(),
                key.sign_digest_blocking(scheme, &digest).unwrap(),
            ] {
                assert_eq!(signature.len(), SIGNATURE);
                assert!(key.public_key().verify(scheme, message, &signature));
                assert!(!key.public_key().verify(scheme, b"another", &signature));
            }
        }
        key.prove_alive().await.unwrap();
    }

    /// A key like `key` that was shown to sign in fewer schemes.
    fn with_schemes(key: &HeldKey, schemes: &[SignatureScheme]) -> HeldKey {
        let inner = &*key.0;
        let evidence = Evidence {
            verified: schemes.to_vec(),
            ..inner.evidence.clone()
        };
        HeldKey::new(
            Arc::clone(&inner.stored),
            inner.public.clone(),
            evidence,
            Arc::clone(&inner.decision),
            inner.offload.clone(),
            inner.deadline,
        )
    }

    #[tokio::test]
    async fn nothing_is_signed_that_was_not_shown_or_is_no_digest() {
        let (shown, other) = (
            SignatureScheme::RsaPkcs1Sha256,
            SignatureScheme::RsaPssSha256,
        );
        let key = with_schemes(&*held().await, &[shown]);
        assert!(key.supports(shown) && !key.supports(other));
        let digest = [7; 32];
        let refused = KeyError::UnsupportedScheme {
            scheme: other,
            offered: vec![shown],
        };
        for error in [
            key.sign_digest(other, &digest).await.unwrap_err(),
            key.sign(other, b"message").await.unwrap_err(),
            key.sign_digest_blocking(other, &digest).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), refused.to_string());
        }
        for length in [0, 31, 33, 48] {
            let error = key
                .sign_digest_blocking(shown, &vec![7; length])
                .unwrap_err();
            assert!(
                matches!(error, KeyError::DigestLength { expected: 32, given, .. } if given == length),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_printed_of_a_key_says_which_and_where_and_nothing_else() {
        let key = held().await;
        assert_eq!(
            format!("{key:?}"),
            format!(
                "HeldKey {{ store: {:?}, strength: {:?}, id: {:?}, .. }}",
                StoreId::Memory,
                Strength::Software,
                key.id()
            )
        );
    }
}
