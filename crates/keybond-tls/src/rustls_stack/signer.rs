//! The client's certificate and signature, and what became of them in one handshake.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use keybond_keys::{HeldKey, KeyError, SignatureScheme};
use rustls::{
    Error, SignatureAlgorithm, SignatureScheme as Code,
    client::ResolvesClientCert,
    pki_types::CertificateDer,
    sign::{CertifiedKey, Signer, SigningKey},
};

use crate::identity::ClientIdentity;

/// What happened to the client's certificate in one handshake.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    requested: AtomicBool,
    signature: Mutex<Option<Signature>>,
}

/// How the server's request for a signature ended.
#[derive(Clone, Debug)]
pub(super) enum Signature {
    Made(SignatureScheme),
    Failed(KeyError),
    /// The server accepts none that the key makes; holds what it accepts.
    NoCommonScheme(String),
}

impl Handshake {
    /// Whether the server asked for a certificate.
    pub(super) fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    pub(super) fn signature(&self) -> Option<Signature> {
        self.slot().clone()
    }

    /// The scheme of the signature that was made.
    pub(super) fn signed(&self) -> Option<SignatureScheme> {
        match self.signature() {
            Some(Signature::Made(scheme)) => Some(scheme),
            _ => None,
        }
    }

    fn ended(&self, how: Signature) {
        *self.slot() = Some(how);
    }

    fn slot(&self) -> MutexGuard<'_, Option<Signature>> {
        self.signature
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the server's request for a certificate: always with this one, whatever authorities it hints at.
#[derive(Debug)]
pub(super) struct Resolver {
    certified: Option<Arc<CertifiedKey>>,
    handshake: Arc<Handshake>,
}

impl Resolver {
    pub(super) fn new(identity: Option<&ClientIdentity>, handshake: Arc<Handshake>) -> Self {
        let certified = identity.map(|identity| {
            let chain = identity.chain().iter();
            let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
            let key = Key {
                key: Arc::clone(identity.key()),
                handshake: Arc::clone(&handshake),
            };
            Arc::new(CertifiedKey::new(chain, Arc::new(key)))
        });
        Self {
            certified,
            handshake,
        }
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[Code]) -> Option<Arc<CertifiedKey>> {
        self.handshake.requested.store(true, Ordering::Release);
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        self.certified.is_some()
    }
}

/// The held key, as rustls sees it.
#[derive(Clone, Debug)]
struct Key {
    key: Arc<HeldKey>,
    handshake: Arc<Handshake>,
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[Code]) -> Option<Box<dyn Signer>> {
        let schemes = self.key.schemes().iter();
        let mut common = schemes
            .filter_map(|scheme| Some((*scheme, code(*scheme)?)))
            .filter(|(_, code)| offered.contains(code));
        let Some((scheme, code)) = common.next() else {
            let offered = format!("the server accepts {offered:?}");
            self.handshake.ended(Signature::NoCommonScheme(offered));
            return None;
        };
        Some(Box::new(Signing {
            key: self.clone(),
            scheme,
            code,
        }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

/// One signature to be made.
#[derive(Debug)]
struct Signing {
    key: Key,
    scheme: SignatureScheme,
    code: Code,
}

impl Signer for Signing {
    /// On the thread of the handshake, which may block.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let digest = self.scheme.hash().digest(message);
        let key = &self.key.key;
        let signed = catch_unwind(AssertUnwindSafe(|| {
            key.sign_digest_blocking(self.scheme, &digest)
        }));
        let signed = signed.unwrap_or_else(|_| {
            Err(KeyError::Local {
                what: "signature".into(),
                cause: "the key's store panicked".into(),
            })
        });
        match signed {
            Ok(signature) => {
                self.key.handshake.ended(Signature::Made(self.scheme));
                Ok(signature)
            }
            Err(error) => {
                let told = Error::General(error.to_string());
                self.key.handshake.ended(Signature::Failed(error));
                Err(told)
            }
        }
    }

    fn scheme(&self) -> Code {
        self.code
    }
}

fn code(scheme: SignatureScheme) -> Option<Code> {
    Some(match scheme {
        SignatureScheme::RsaPssSha256 => Code::RSA_PSS_SHA256,
        SignatureScheme::RsaPssSha384 => Code::RSA_PSS_SHA384,
        SignatureScheme::RsaPssSha512 => Code::RSA_PSS_SHA512,
        SignatureScheme::RsaPkcs1Sha256 => Code::RSA_PKCS1_SHA256,
        SignatureScheme::RsaPkcs1Sha384 => Code::RSA_PKCS1_SHA384,
        SignatureScheme::RsaPkcs1Sha512 => Code::RSA_PKCS1_SHA512,
        _ => return None,
    })
}
