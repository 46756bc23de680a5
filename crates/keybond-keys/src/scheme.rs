//! Signature schemes: the six RSA schemes that certificates, tokens and TLS use with a held key.
//!
//! PSS always means MGF1 with the same hash and a salt as long as the hash, which is what TLS 1.3
//! (RFC 8446 §4.2.3), JOSE (RFC 7518 §3.5) and the MSI v2 certificate request all demand. A key that can
//! only make PSS with another salt does not offer these schemes.

use std::fmt;

use aws_lc_rs::digest;
use serde::{Serialize, Serializer};

/// A hash function of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashAlgorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// Length of a digest in bytes; also the PSS salt length.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Hashes `message`.
    pub fn digest(self, message: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, message).as_ref().to_vec()
    }
}

/// A signature scheme for RSA keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SignatureScheme {
    /// RSASSA-PSS, SHA-256, MGF1-SHA-256, 32-byte salt (`PS256`, TLS `rsa_pss_rsae_sha256`).
    RsaPssSha256,
    /// RSASSA-PSS, SHA-384, MGF1-SHA-384, 48-byte salt (`PS384`).
    RsaPssSha384,
    /// RSASSA-PSS, SHA-512, MGF1-SHA-512, 64-byte salt (`PS512`).
    RsaPssSha512,
    /// RSASSA-PKCS1-v1_5, SHA-256 (`RS256`).
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5, SHA-384 (`RS384`).
    RsaPkcs1Sha384,
    /// RSASSA-PKCS1-v1_5, SHA-512 (`RS512`).
    RsaPkcs1Sha512,
}

impl SignatureScheme {
    /// Every scheme, strongest family first: the order in which keybond offers them.
    pub const ALL: [Self; 6] = [
        Self::RsaPssSha256,
        Self::RsaPssSha384,
        Self::RsaPssSha512,
        Self::RsaPkcs1Sha256,
        Self::RsaPkcs1Sha384,
        Self::RsaPkcs1Sha512,
    ];

    /// The hash that is signed.
    pub const fn hash(self) -> HashAlgorithm {
        match self {
            Self::RsaPssSha256 | Self::RsaPkcs1Sha256 => HashAlgorithm::Sha256,
            Self::RsaPssSha384 | Self::RsaPkcs1Sha384 => HashAlgorithm::Sha384,
            Self::RsaPssSha512 | Self::RsaPkcs1Sha512 => HashAlgorithm::Sha512,
        }
    }

    /// Whether this is RSASSA-PSS (otherwise RSASSA-PKCS1-v1_5).
    pub const fn is_pss(self) -> bool {
        matches!(
            self,
            Self::RsaPssSha256 | Self::RsaPssSha384 | Self::RsaPssSha512
        )
    }

    /// The name registered for JOSE (RFC 7518 §3.1): `PS256` … `RS512`.
    pub const fn jose_name(self) -> &'static str {
        match self {
            Self::RsaPssSha256 => "PS256",
            Self::RsaPssSha384 => "PS384",
            Self::RsaPssSha512 => "PS512",
            Self::RsaPkcs1Sha256 => "RS256",
            Self::RsaPkcs1Sha384 => "RS384",
            Self::RsaPkcs1Sha512 => "RS512",
        }
    }

    /// The scheme with this JOSE name, in any case.
    pub fn from_jose_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.jose_name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.jose_name())
    }
}

impl Serialize for SignatureScheme {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.jose_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for scheme in SignatureScheme::ALL {
            assert_eq!(
                SignatureScheme::from_jose_name(scheme.jose_name()),
                Some(scheme)
            );
            assert_eq!(scheme.is_pss(), scheme.jose_name().starts_with("PS"));
            assert_eq!(format!("{scheme:>7}"), format!("  {}", scheme.jose_name()));
            assert_eq!(serde_json::to_value(scheme).unwrap(), scheme.jose_name());
        }
        assert_eq!(SignatureScheme::from_jose_name("ES256"), None);
    }

    #[test]
    fn digest_lengths_are_those_announced() {
        for hash in [
            HashAlgorithm::Sha256,
            HashAlgorithm::Sha384,
            HashAlgorithm::Sha512,
        ] {
            assert_eq!(hash.digest(b"keybond").len(), hash.digest_len());
        }
    }
}
