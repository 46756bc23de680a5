//! Signature schemes, and how a TPM makes PSS.

use std::fmt;

use aws_lc_rs::{
    digest,
    signature::{
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
        RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
        RsaParameters,
    },
};

/// A hash algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

impl Hash {
    /// Length of a digest in bytes.
    #[allow(clippy::len_without_is_empty, reason = "no hash is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Hashes a message.
    pub fn digest(self, message: &[u8]) -> Vec<u8> {
        digest::digest(self.algorithm(), message).as_ref().to_vec()
    }

    pub(crate) fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

/// An RSA signature scheme (RFC 8017 §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5
    Pkcs1(Hash),
    /// RSASSA-PSS, MGF1 with the same hash, salt as long as the hash: what TLS 1.3 and JWT demand.
    Pss(Hash),
}

impl Scheme {
    /// Every scheme a key may be asked for.
    pub const ALL: [Self; 6] = [
        Self::Pss(Hash::Sha256),
        Self::Pss(Hash::Sha384),
        Self::Pss(Hash::Sha512),
        Self::Pkcs1(Hash::Sha256),
        Self::Pkcs1(Hash::Sha384),
        Self::Pkcs1(Hash::Sha512),
    ];

    /// The hash whose digest is signed.
    pub const fn hash(self) -> Hash {
        match self {
            Self::Pkcs1(hash) | Self::Pss(hash) => hash,
        }
    }

    /// The verifier of this scheme; for PSS it accepts no other salt than one as long as the hash.
    pub(crate) fn verifier(self) -> &'static RsaParameters {
        match self {
            Self::Pkcs1(Hash::Sha256) => &RSA_PKCS1_2048_8192_SHA256,
            Self::Pkcs1(Hash::Sha384) => &RSA_PKCS1_2048_8192_SHA384,
            Self::Pkcs1(Hash::Sha512) => &RSA_PKCS1_2048_8192_SHA512,
            Self::Pss(Hash::Sha256) => &RSA_PSS_2048_8192_SHA256,
            Self::Pss(Hash::Sha384) => &RSA_PSS_2048_8192_SHA384,
            Self::Pss(Hash::Sha512) => &RSA_PSS_2048_8192_SHA512,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let padding = match self {
            Self::Pkcs1(_) => "RSASSA-PKCS1-v1_5",
            Self::Pss(_) => "RSASSA-PSS",
        };
        write!(f, "{padding} with SHA-{}", self.hash().len() * 8)
    }
}

/// How a key makes PSS signatures with a salt as long as the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PssMode {
    /// TPM2_Sign does it.
    Native,
    /// TPM2_Sign uses another salt or knows no PSS: encoded in software, raw RSA in the TPM.
    Synthesised,
    /// Neither works with this key on this TPM.
    Unavailable,
}

impl PssMode {
    /// The name used in records: `native`, `synthesised` or `unavailable`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Synthesised => "synthesised",
            Self::Unavailable => "unavailable",
        }
    }

    /// The mode with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Native, Self::Synthesised, Self::Unavailable]
            .into_iter()
            .find(|mode| mode.name() == name)
    }
}

impl fmt::Display for PssMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
