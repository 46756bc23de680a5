//! The public area of a key (TPMT_PUBLIC): attributes, RSA numbers, SubjectPublicKeyInfo, name.

use std::fmt;

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};

use crate::{der, error::TpmError, wire::Reader};

/// An object's attributes (TPMA_OBJECT, TPM 2.0 Library Part 2, §8.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyAttributes(u32);

const NAMES: [(u32, &str); 11] = [
    (0x2, "fixedTPM"),
    (0x4, "stClear"),
    (0x10, "fixedParent"),
    (0x20, "sensitiveDataOrigin"),
    (0x40, "userWithAuth"),
    (0x80, "adminWithPolicy"),
    (0x400, "noDA"),
    (0x800, "encryptedDuplication"),
    (0x1_0000, "restricted"),
    (0x2_0000, "decrypt"),
    (0x4_0000, "sign"),
];

impl KeyAttributes {
    /// The raw bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The key can never leave this TPM, in no form.
    pub const fn fixed_tpm(self) -> bool {
        self.0 & 0x2 != 0
    }

    /// The key can never be moved to another parent.
    pub const fn fixed_parent(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// The TPM made the private part itself; nobody ever had it outside.
    pub const fn sensitive_data_origin(self) -> bool {
        self.0 & 0x20 != 0
    }

    /// Wrong PINs are not counted, and a lockout does not stop this key.
    pub const fn no_da(self) -> bool {
        self.0 & 0x400 != 0
    }

    /// The key signs only what the TPM itself made.
    pub const fn restricted(self) -> bool {
        self.0 & 0x1_0000 != 0
    }

    /// The key does raw RSA.
    pub const fn decrypt(self) -> bool {
        self.0 & 0x2_0000 != 0
    }

    /// The key signs.
    pub const fn sign(self) -> bool {
        self.0 & 0x4_0000 != 0
    }
}

impl fmt::Display for KeyAttributes {
    /// The names in the specification, joined by `|`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (bit, name) in NAMES {
            if self.0 & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyAttributes({:#x} {self})", self.0)
    }
}

/// The public half of an RSA signing key, as the TPM describes it.
#[derive(Clone, PartialEq, Eq)]
pub struct RsaPublic {
    modulus: Vec<u8>,
    exponent: u32,
    attributes: KeyAttributes,
    name: Vec<u8>,
    has_policy: bool,
}

impl RsaPublic {
    /// The modulus, big endian.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent.
    pub fn exponent(&self) -> u32 {
        self.exponent
    }

    /// The size of the modulus in bits.
    pub fn bits(&self) -> usize {
        self.modulus.len() * 8
    }

    /// The attributes.
    pub fn attributes(&self) -> KeyAttributes {
        self.attributes
    }

    /// The object's name: the algorithm's identifier and the hash of the public area.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether the object has an authorization policy.
    pub fn has_policy(&self) -> bool {
        self.has_policy
    }

    /// The public key as SubjectPublicKeyInfo (RFC 5280 §4.1, RFC 8017 A.1.1) in DER.
    pub fn spki_der(&self) -> Vec<u8> {
        let mut bits = vec![0];
        bits.extend_from_slice(&self.pkcs1_der());
        der::sequence(&[&der::RSA_ENCRYPTION, &der::value(der::BIT_STRING, &bits)])
    }

    /// The public key as RSAPublicKey (RFC 8017 A.1.1) in DER.
    pub fn pkcs1_der(&self) -> Vec<u8> {
        der::sequence(&[
            &der::unsigned(&self.modulus),
            &der::unsigned(&self.exponent.to_be_bytes()),
        ])
    }

    /// Reads a TPMT_PUBLIC (without the length of a TPM2B) of an RSA key of 2048 to 4096 bits.
    pub(crate) fn parse(command: &'static str, area: &[u8]) -> Result<Self, TpmError> {
        let mut reader = Reader::new(command, area);
        let kind = reader.u16("type")?;
        if kind != 0x0001 {
            return Err(reader.bad("type", format!("{kind:#06x}, expected RSA (0x0001)")));
        }
        reader.u16("nameAlg")?;
        let attributes = KeyAttributes(reader.u32("objectAttributes")?);
        let policy = reader.sized("authPolicy")?;
        let symmetric = reader.u16("symmetric")?;
        if symmetric != 0x0010 {
            return Err(reader.bad("symmetric", "a storage key, expected a signing key".into()));
        }
        let scheme = reader.u16("scheme")?;
        match scheme {
            // NULL and RSAES have no hash; RSASSA, RSAPSS and OAEP have one.
            0x0010 | 0x0015 => {}
            0x0014 | 0x0016 | 0x0017 => drop(reader.u16("scheme hash")?),
            other => return Err(reader.bad("scheme", format!("{other:#06x} is not one of RSA"))),
        }
        let bits = reader.u16("keyBits")?;
        if !matches!(bits, 2048 | 3072 | 4096) {
            return Err(reader.bad("keyBits", format!("{bits}, expected 2048, 3072 or 4096")));
        }
        let exponent = match reader.u32("exponent")? {
            0 => 65537,
            odd if odd % 2 == 1 && odd > 2 => odd,
            bad => return Err(reader.bad("exponent", format!("{bad}, expected an odd number"))),
        };
        let modulus = reader.sized("unique")?;
        if modulus.len() * 8 != usize::from(bits) || modulus[0] & 0x80 == 0 {
            return Err(reader.bad("unique", format!("not a modulus of {bits} bits")));
        }
        reader.end("publicArea")?;
        let name = name_of(area).ok_or_else(|| reader.bad("nameAlg", "unknown".into()))?;
        Ok(Self {
            modulus: modulus.to_vec(),
            exponent,
            attributes,
            name,
            has_policy: !policy.is_empty(),
        })
    }
}

impl fmt::Debug for RsaPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RsaPublic")
            .field("bits", &self.bits())
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}

/// The name of the object with this TPMT_PUBLIC (Part 1, §16): `None` for name algorithms beyond SHA-2.
pub(crate) fn name_of(area: &[u8]) -> Option<Vec<u8>> {
    let algorithm = area.get(2..4)?;
    let hash = match algorithm {
        [0, 0x0b] => &SHA256,
        [0, 0x0c] => &SHA384,
        [0, 0x0d] => &SHA512,
        _ => return None,
    };
    Some([algorithm, digest(hash, area).as_ref()].concat())
}
