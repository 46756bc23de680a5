//! What a server needs: its key, its certificates, and what it thinks of the client's.

use std::sync::Arc;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
        RSA_PSS_SHA512, RsaEncoding,
    },
};

use tokio::sync::OnceCell;

use super::alert::{Alert, Failure};
use crate::error::EmulatorError;

/// Judges a client's certificate chain, leaf first, never empty.
pub(crate) type ClientTrust = Arc<dyn Fn(&[Vec<u8>]) -> Result<(), Alert> + Send + Sync>;

/// A server's identity and judgement.
pub(crate) struct Config {
    key: KeyPair,
    /// DER, the leaf first.
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) trust: ClientTrust,
}

impl Config {
    /// From an RSA key of 2048 bits or more (PKCS #8) and its certificates.
    pub(crate) fn new(
        pkcs8: &[u8],
        chain: Vec<Vec<u8>>,
        trust: ClientTrust,
    ) -> Result<Self, EmulatorError> {
        let key = KeyPair::from_pkcs8(pkcs8)
            .map_err(|_| EmulatorError::crypto("reading a server's RSA key"))?;
        Ok(Self { key, chain, trust })
    }

    /// Signs with the first of the server's schemes that the client knows.
    pub(super) fn sign(&self, offered: &[u16], message: &[u8]) -> Result<(u16, Vec<u8>), Failure> {
        let (scheme, padding) = SCHEMES
            .into_iter()
            .find(|(scheme, _)| offered.contains(scheme))
            .ok_or_else(|| {
                Alert::HandshakeFailure.because("no signature scheme for an RSA key in common")
            })?;
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(padding, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| Alert::InternalError.because("the server's key did not sign"))?;
        Ok((scheme, signature))
    }
}

/// A [`Config`] that is made when it is first needed: RSA keys take a while.
pub(crate) struct LazyConfig {
    make: Arc<dyn Fn() -> Result<Config, EmulatorError> + Send + Sync>,
    made: OnceCell<Arc<Config>>,
}

impl LazyConfig {
    pub(crate) fn new(
        make: impl Fn() -> Result<Config, EmulatorError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Arc::new(make),
            made: OnceCell::new(),
        }
    }

    pub(crate) async fn get(&self) -> Result<Arc<Config>, EmulatorError> {
        let make = || async {
            let make = self.make.clone();
            let made = tokio::task::spawn_blocking(move || make()).await;
            made.map_err(|_| EmulatorError::crypto("making a server's RSA key"))?
                .map(Arc::new)
        };
        self.made.get_or_try_init(make).await.cloned()
    }
}

/// What the server signs with, best first (RFC 8446, 4.2.3).
const SCHEMES: [(u16, &dyn RsaEncoding); 6] = [
    (0x0804, &RSA_PSS_SHA256),
    (0x0805, &RSA_PSS_SHA384),
    (0x0806, &RSA_PSS_SHA512),
    (0x0401, &RSA_PKCS1_SHA256),
    (0x0501, &RSA_PKCS1_SHA384),
    (0x0601, &RSA_PKCS1_SHA512),
];
