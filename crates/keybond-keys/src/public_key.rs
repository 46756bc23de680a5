//! Public keys as SubjectPublicKeyInfo, the one form in which keys are compared, hashed and certified.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
        RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
        UnparsedPublicKey, VerificationAlgorithm,
    },
};
use serde::{Serialize, Serializer};

use crate::scheme::SignatureScheme;

/// The one key size that MSI v2 certifies, in bits.
pub const RSA_BITS: usize = 2048;

/// An RSA public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl PublicKey {
    /// Reads an RSA SubjectPublicKeyInfo (RFC 5280 §4.1, RFC 8017 A.1.1) in DER.
    ///
    /// # Errors
    /// [`InvalidPublicKey`] names the part that is not as expected.
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, InvalidPublicKey> {
        const RSA_ENCRYPTION: &[u8] = &[
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05,
            0x00,
        ];
        let (body, rest) = der_value(spki, 0x30).ok_or(InvalidPublicKey("SubjectPublicKeyInfo"))?;
        let key = body
            .strip_prefix(RSA_ENCRYPTION)
            .ok_or(InvalidPublicKey("algorithm (rsaEncryption)"))?;
        let (bits, after) = der_value(key, 0x03).ok_or(InvalidPublicKey("subjectPublicKey"))?;
        let bits = bits
            .strip_prefix(&[0])
            .ok_or(InvalidPublicKey("subjectPublicKey unused bits"))?;
        let (sequence, end) = der_value(bits, 0x30).ok_or(InvalidPublicKey("RSAPublicKey"))?;
        let (modulus, tail) = der_value(sequence, 0x02).ok_or(InvalidPublicKey("modulus"))?;
        let (exponent, last) = der_value(tail, 0x02).ok_or(InvalidPublicKey("publicExponent"))?;
        if !(rest.is_empty() && after.is_empty() && end.is_empty() && last.is_empty()) {
            return Err(InvalidPublicKey("end of the structure (trailing bytes)"));
        }
        let modulus = unsigned(modulus).ok_or(InvalidPublicKey("modulus"))?;
        let exponent = unsigned(exponent).ok_or(InvalidPublicKey("publicExponent"))?;
        Ok(Self {
            spki: spki.to_vec(),
            modulus: modulus.to_vec(),
            exponent: exponent.to_vec(),
        })
    }

    /// Builds the key from modulus and public exponent (big endian, leading zeros allowed).
    ///
    /// # Errors
    /// [`InvalidPublicKey`] if either is zero.
    pub fn from_rsa_components(modulus: &[u8], exponent: &[u8]) -> Result<Self, InvalidPublicKey> {
        let modulus = trim(modulus);
        let exponent = trim(exponent);
        if modulus.is_empty() || exponent.is_empty() {
            return Err(InvalidPublicKey("modulus or publicExponent (zero)"));
        }
        let integer = |value: &[u8]| {
            let mut content = Vec::with_capacity(value.len() + 1);
            if value[0] & 0x80 != 0 {
                content.push(0);
            }
            content.extend_from_slice(value);
            der(0x02, &content)
        };
        let rsa_key = der(0x30, &[integer(modulus), integer(exponent)].concat());
        let mut bits = vec![0];
        bits.extend_from_slice(&rsa_key);
        let algorithm = der(
            0x30,
            &[
                0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
            ],
        );
        let spki = der(0x30, &[algorithm, der(0x03, &bits)].concat());
        Self::from_spki_der(&spki)
    }

    /// The SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The modulus, big endian without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big endian without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// The size of the modulus in bits.
    pub fn bits(&self) -> usize {
        let top = self
            .modulus
            .first()
            .map_or(8, |byte| byte.leading_zeros() as usize);
        self.modulus.len() * 8 - top
    }

    /// The key's identity: the SHA-256 of its SubjectPublicKeyInfo.
    pub fn id(&self) -> KeyId {
        let hash = digest(&SHA256, &self.spki);
        let mut id = [0; 32];
        id.copy_from_slice(hash.as_ref());
        KeyId(id)
    }

    /// Verifies `signature` over `message`. Strict: for PSS the salt must be as long as the hash.
    pub fn verify(&self, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match scheme {
            SignatureScheme::RsaPssSha256 => &RSA_PSS_2048_8192_SHA256,
            SignatureScheme::RsaPssSha384 => &RSA_PSS_2048_8192_SHA384,
            SignatureScheme::RsaPssSha512 => &RSA_PSS_2048_8192_SHA512,
            SignatureScheme::RsaPkcs1Sha256 => &RSA_PKCS1_2048_8192_SHA256,
            SignatureScheme::RsaPkcs1Sha384 => &RSA_PKCS1_2048_8192_SHA384,
            SignatureScheme::RsaPkcs1Sha512 => &RSA_PKCS1_2048_8192_SHA512,
        };
        UnparsedPublicKey::new(algorithm, &self.spki)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey(RSA-{}, sha256:{})", self.bits(), self.id())
    }
}

/// The identity of a key: SHA-256 over its SubjectPublicKeyInfo (DER). Printed as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

impl KeyId {
    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A public key that is not an RSA SubjectPublicKeyInfo; names the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RSA public key in SubjectPublicKeyInfo form: unexpected {0}")]
pub struct InvalidPublicKey(&'static str);

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        len @ 0..=0x7f => out.push(len as u8),
        len @ 0x80..=0xff => out.extend([0x81, len as u8]),
        len => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend_from_slice(content);
    out
}

/// The content of the DER value with `tag` at the start of `input`, and what follows it.
fn der_value(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = input.split_first()?;
    if *first != tag {
        return None;
    }
    let (len, rest) = match rest {
        [len @ 0..=0x7f, rest @ ..] => (usize::from(*len), rest),
        [0x81, len @ 0x80..=0xff, rest @ ..] => (usize::from(*len), rest),
        [0x82, high @ 1..=0xff, low, rest @ ..] => {
            (usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

/// The magnitude of a positive DER INTEGER in its shortest form.
fn unsigned(content: &[u8]) -> Option<&[u8]> {
    match content {
        [0, rest @ ..] if rest.first().is_some_and(|top| *top >= 0x80) => Some(rest),
        [0x01..=0x7f, ..] => Some(content),
        _ => None,
    }
}

fn trim(value: &[u8]) -> &[u8] {
    let zeros = value.iter().take_while(|byte| **byte == 0).count();
    &value[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{KeyName, KeyStore as _, MemoryStore};

    fn spki() -> Vec<u8> {
        MemoryStore
            .create(&KeyName::default())
            .unwrap()
            .public_key()
            .unwrap()
    }

    #[test]
    fn components_and_spki_are_the_same_key() {
        let key = PublicKey::from_spki_der(&spki()).unwrap();
        assert_eq!(key.bits(), RSA_BITS);
        assert_eq!(key.exponent(), [1, 0, 1]);
        let again = PublicKey::from_rsa_components(key.modulus(), key.exponent()).unwrap();
        assert_eq!(again.spki_der(), key.spki_der());
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let mut spki = spki();
        for len in 0..spki.len() {
            assert!(
                PublicKey::from_spki_der(&spki[..len]).is_err(),
                "{len} bytes were accepted"
            );
        }
        spki.push(0);
        assert!(PublicKey::from_spki_der(&spki).is_err());
    }

    /// DER of another hand: every length in its shortest form.
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = match content.len() {
            length @ 0..=127 => vec![u8::try_from(length).unwrap()],
            length => {
                let bytes = length.to_be_bytes();
                let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap()..];
                [&[0x80 | u8::try_from(bytes.len()).unwrap()], bytes].concat()
            }
        };
        [&[tag][..], &length, content].concat()
    }

    const ALGORITHM: [u8; 15] = [
        0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0,
    ];

    fn spki_of(algorithm: &[u8], unused_bits: u8, integers: &[&[u8]]) -> Vec<u8> {
        let integers: Vec<u8> = integers
            .iter()
            .flat_map(|content| tlv(0x02, content))
            .collect();
        let bits = [vec![unused_bits], tlv(0x30, &integers)].concat();
        tlv(0x30, &[algorithm.to_vec(), tlv(0x03, &bits)].concat())
    }

    #[test]
    fn keys_of_every_length_are_written_as_others_write_them() {
        for length in [1, 2, 60, 63, 64, 100, 127, 128, 129, 255, 256, 257, 512] {
            for top in [0x01_u8, 0x7f, 0x80, 0xff] {
                let modulus = [vec![top], vec![0x5a; length - 1]].concat();
                let key = PublicKey::from_rsa_components(&modulus, &[3]).unwrap();
                let sign: &[u8] = if top >= 0x80 { &[0] } else { &[] };
                let integer = [sign, &modulus].concat();
                let expected = spki_of(&ALGORITHM, 0, &[&integer, &[3]]);
                assert_eq!(key.spki_der(), expected, "{length} bytes, {top:#x} first");
                assert_eq!(PublicKey::from_spki_der(&expected).unwrap(), key);
                let bits = length * 8 - top.leading_zeros() as usize;
                assert_eq!(key.bits(), bits);
            }
        }
    }

    #[test]
    fn leading_zeros_are_no_part_of_a_number_and_zero_is_none() {
        let key = PublicKey::from_rsa_components(&[0, 0, 0x80, 1], &[0, 1, 0, 1]).unwrap();
        assert_eq!(
            (key.modulus(), key.exponent()),
            (&[0x80, 1][..], &[1, 0, 1][..])
        );
        for (modulus, exponent) in [
            (&[][..], &[3][..]),
            (&[0, 0], &[3]),
            (&[5], &[]),
            (&[5], &[0]),
        ] {
            assert!(PublicKey::from_rsa_components(modulus, exponent).is_err());
        }
    }

    #[test]
    fn what_is_no_positive_integer_in_its_shortest_form_is_refused() {
        let good: [&[u8]; 2] = [&[0, 0xff, 1], &[1, 0, 1]];
        assert!(PublicKey::from_spki_der(&spki_of(&ALGORITHM, 0, &good)).is_ok());
        let bad: [&[u8]; 7] = [
            &[],
            &[0],
            &[0, 0x7f],
            &[0, 0, 0xff],
            &[0x80],
            &[0xff, 1],
            &[0, 1],
        ];
        for integer in bad {
            for integers in [[integer, good[1]], [good[0], integer]] {
                let spki = spki_of(&ALGORITHM, 0, &integers);
                assert!(PublicKey::from_spki_der(&spki).is_err(), "{integers:02x?}");
            }
        }
        let (none, one, three) = (&good[..0], &good[..1], [good[0], good[1], good[1]]);
        for integers in [none, one, &three] {
            let spki = spki_of(&ALGORITHM, 0, integers);
            assert!(PublicKey::from_spki_der(&spki).is_err(), "{integers:02x?}");
        }
        assert!(PublicKey::from_spki_der(&spki_of(&ALGORITHM, 1, &good)).is_err());
        let mut other = ALGORITHM;
        other[12] = 10;
        assert!(PublicKey::from_spki_der(&spki_of(&other, 0, &good)).is_err());
    }

    #[test]
    fn lengths_in_a_longer_form_are_refused() {
        let good = spki_of(&ALGORITHM, 0, &[&[0, 0xff, 1], &[3]]);
        let content = &good[2..];
        let length = u8::try_from(content.len()).unwrap();
        assert_eq!(good[1], length);
        for longer in [
            vec![0x81, length],
            vec![0x82, 0, length],
            vec![0x83, 0, 0, length],
            vec![0x80],
        ] {
            let spki = [&[0x30][..], &longer, content].concat();
            assert!(PublicKey::from_spki_der(&spki).is_err(), "{longer:02x?}");
        }
    }

    #[test]
    fn a_key_is_printed_by_its_size_and_hash() {
        let key = PublicKey::from_rsa_components(&[0xff; 256], &[3]).unwrap();
        let id = key.id().to_string();
        assert_eq!(id.len(), 64);
        let hash: String = digest(&SHA256, key.spki_der())
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(id, hash);
        assert_eq!(
            key.id().as_bytes()[..],
            *digest(&SHA256, key.spki_der()).as_ref()
        );
        assert_eq!(
            format!("{key:?}"),
            format!("PublicKey(RSA-2048, sha256:{id})")
        );
        assert_eq!(format!("{:?}", key.id()), format!("KeyId({id})"));
        assert_eq!(serde_json::to_value(key.id()).unwrap(), id);
    }
}
