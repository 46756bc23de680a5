//! The last tier: an RSA key in the memory of this process.
//!
//! The key is made by aws-lc, lives in its allocation and dies with it. Nothing is written anywhere, on any
//! platform; two processes have two keys.

use std::fmt;

use aws_lc_rs::{
    digest::{self, Digest},
    encoding::{AsDer as _, PublicKeyX509Der},
    rsa::KeySize,
    signature::{self, KeyPair as _, RsaEncoding, RsaKeyPair},
};

use super::{ExportAttempt, Isolation, KeyName, KeyProperties, KeyStore, Origin, StoredKey};
use crate::{
    refusal::{Reason, Unavailable},
    scheme::{HashAlgorithm, SignatureScheme},
    strength::StoreId,
};

/// Makes RSA-2048 keys in process memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryStore;

impl KeyStore for MemoryStore {
    fn id(&self) -> StoreId {
        StoreId::Memory
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    /// Always `None`: a key in memory cannot be found again by name.
    fn open(&self, _name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        Ok(None)
    }

    fn create(&self, _name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048)
            .map_err(|_| failed("RSA key generation failed"))?;
        Ok(Box::new(MemoryKey(pair)))
    }

    fn delete(&self, _name: &KeyName) -> Result<bool, Unavailable> {
        Ok(false)
    }

    fn outlives_process(&self) -> bool {
        false
    }
}

struct MemoryKey(RsaKeyPair);

impl fmt::Debug for MemoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryKey(..)")
    }
}

impl StoredKey for MemoryKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let der: PublicKeyX509Der<'_> = self
            .0
            .public_key()
            .as_der()
            .map_err(|_| failed("the public key cannot be encoded"))?;
        Ok(der.as_ref().to_vec())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        SignatureScheme::ALL.to_vec()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let algorithm = match scheme.hash() {
            HashAlgorithm::Sha256 => &digest::SHA256,
            HashAlgorithm::Sha384 => &digest::SHA384,
            HashAlgorithm::Sha512 => &digest::SHA512,
        };
        let digest = Digest::import_less_safe(digest, algorithm)
            .map_err(|_| failed("the digest's length does not fit the scheme"))?;
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign_digest(encoding(scheme), &digest, &mut signature)
            .map_err(|_| failed("the RSA operation failed"))?;
        Ok(signature)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        Ok(KeyProperties {
            isolation: Isolation::Process,
            origin: Origin::Process,
            exportable: None,
            file: None,
            details: vec![("library".into(), "aws-lc".into())],
        })
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(ExportAttempt::NoSuchCall)
    }

    fn is_quick(&self) -> bool {
        true
    }
}

fn encoding(scheme: SignatureScheme) -> &'static dyn RsaEncoding {
    match scheme {
        SignatureScheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
        SignatureScheme::RsaPssSha384 => &signature::RSA_PSS_SHA384,
        SignatureScheme::RsaPssSha512 => &signature::RSA_PSS_SHA512,
        SignatureScheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
        SignatureScheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
        SignatureScheme::RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
    }
}

fn failed(detail: &str) -> Unavailable {
    Unavailable::new(StoreId::Memory, Reason::Failed, detail)
}
