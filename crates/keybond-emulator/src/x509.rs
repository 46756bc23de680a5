//! Certificates: the authority that issues them, and the reading of those presented.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::{self, SystemRandom},
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
        UnparsedPublicKey,
    },
};

use crate::{
    der::{
        self, BIT_STRING, CONTEXT_0, DerError, GENERALIZED_TIME, INTEGER, OID, Reader, SEQUENCE,
        SET, UTC_TIME,
    },
    error::EmulatorError,
    oid,
};

/// The authority's name: nobody can mistake it for Azure's.
const CA_NAME: &str = "keybond emulator CA (not Azure)";
/// How long the authority and its servers are valid: ten years.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates begin a little before now, so that a client whose clock is behind accepts them.
const BACKDATED: Duration = Duration::from_secs(300);

/// The emulator's certificate authority: an ECDSA P-256 key and its self-signed certificate.
pub(crate) struct Authority {
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
}

/// What a managed identity's certificate says.
pub(crate) struct LeafRequest<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) tenant_id: &'a str,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) public_key: &'a [u8],
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Authority {
    /// Makes a new authority: its PKCS #8 key and its certificate, both DER.
    pub(crate) fn generate(now: SystemTime) -> Result<(Vec<u8>, Vec<u8>), EmulatorError> {
        let failed = |_| EmulatorError::crypto("making the authority's key");
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let pkcs8 = key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec();
        let public_key = public_key_info(&key);
        let name = ca_name();
        let certificate = sign_certificate(
            &key,
            &name,
            &public_key,
            now - BACKDATED,
            now + CA_LIFETIME,
            &[
                // cA TRUE; pathLenConstraint 0.
                extension(
                    oid::BASIC_CONSTRAINTS,
                    true,
                    &der::sequence(&[&[der::BOOLEAN, 1, 0xff], &der::integer(0)]),
                ),
                // keyCertSign, cRLSign.
                extension(oid::KEY_USAGE, true, &[BIT_STRING, 2, 1, 0x06]),
                key_id_extension(oid::SUBJECT_KEY_ID, &key),
            ],
        )?;
        Ok((pkcs8, certificate))
    }

    /// An authority kept earlier.
    pub(crate) fn open(pkcs8: &[u8], certificate: Vec<u8>) -> Result<Self, EmulatorError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
            .map_err(|_| EmulatorError::crypto("reading the authority's key"))?;
        let authority = Self { key, certificate };
        let own = Certificate::parse(&authority.certificate)
            .ok()
            .is_some_and(|certificate| authority.issued(&certificate));
        if own {
            Ok(authority)
        } else {
            Err(EmulatorError::crypto(
                "matching the authority's key and certificate",
            ))
        }
    }

    /// The authority's certificate, DER.
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Certifies a managed identity's key. The subject has the request's order, DC before CN.
    pub(crate) fn issue(&self, request: &LeafRequest<'_>) -> Result<Vec<u8>, EmulatorError> {
        let subject = der::sequence(&[
            &relative_name(oid::DOMAIN_COMPONENT, &der::ia5_string(request.tenant_id)),
            &relative_name(oid::COMMON_NAME, &der::printable_string(request.client_id)),
        ]);
        sign_certificate(
            &self.key,
            &subject,
            request.public_key,
            request.not_before,
            request.not_after,
            &[
                // digitalSignature.
                extension(oid::KEY_USAGE, true, &[BIT_STRING, 2, 7, 0x80]),
                extension(
                    oid::EXTENDED_KEY_USAGE,
                    false,
                    &der::sequence(&[&der::oid(oid::CLIENT_AUTH)]),
                ),
                authority_key_id(&self.key),
            ],
        )
    }

    /// Makes a TLS server's key (PKCS #8) and certificate for these names, both DER.
    pub(crate) fn server(
        &self,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<(Vec<u8>, Vec<u8>), EmulatorError> {
        let failed = |_| EmulatorError::crypto("making a server's key");
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let pkcs8 = key.to_pkcs8v1().map_err(failed)?.as_ref().to_vec();
        let certificate = self.certify_server(&public_key_info(&key), hosts, now)?;
        Ok((pkcs8, certificate))
    }

    /// [`server`](Self::server) with an RSA-2048 key.
    pub(crate) fn rsa_server(
        &self,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<(Vec<u8>, Vec<u8>), EmulatorError> {
        let failed = |_| EmulatorError::crypto("making a server's RSA key");
        let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        let info: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(failed)?;
        let certificate = self.certify_server(info.as_ref(), hosts, now)?;
        Ok((pkcs8.as_ref().to_vec(), certificate))
    }

    fn certify_server(
        &self,
        public_key: &[u8],
        hosts: &[String],
        now: SystemTime,
    ) -> Result<Vec<u8>, EmulatorError> {
        let names: Vec<u8> = hosts
            .iter()
            .flat_map(|host| match host.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => der::tlv(0x87, &address.octets()),
                Ok(IpAddr::V6(address)) => der::tlv(0x87, &address.octets()),
                Err(_) => der::tlv(0x82, host.as_bytes()),
            })
            .collect();
        let subject = der::sequence(&[&relative_name(
            oid::ORGANIZATION,
            &der::printable_string("keybond emulator"),
        )]);
        sign_certificate(
            &self.key,
            &subject,
            public_key,
            now - BACKDATED,
            now + CA_LIFETIME,
            &[
                extension(oid::KEY_USAGE, true, &[BIT_STRING, 2, 7, 0x80]),
                extension(
                    oid::EXTENDED_KEY_USAGE,
                    false,
                    &der::sequence(&[&der::oid(oid::SERVER_AUTH)]),
                ),
                extension(oid::SUBJECT_ALT_NAME, false, &der::sequence(&[&names])),
                authority_key_id(&self.key),
            ],
        )
    }

    /// Whether this authority signed the certificate.
    pub(crate) fn issued(&self, certificate: &Certificate) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.key.public_key().as_ref())
            .verify(&certificate.signed, &certificate.signature)
            .is_ok()
    }
}

/// A certificate somebody presented, as far as the services look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The only CN, if there is exactly one.
    pub(crate) common_name: Option<String>,
    /// The only DC, if there is exactly one.
    pub(crate) domain_component: Option<String>,
    /// Seconds since 1970.
    pub(crate) not_before: u64,
    /// Seconds since 1970.
    pub(crate) not_after: u64,
    /// The key's algorithm, the content of an object identifier, and the key itself.
    key: (Vec<u8>, Vec<u8>),
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Certificate {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DerError> {
        let mut input = Reader::new(bytes);
        let mut outer = input.value(SEQUENCE, "Certificate", "SEQUENCE")?;
        input.finish("Certificate")?;
        let start = outer.offset();
        let mut tbs = outer.value(SEQUENCE, "TBSCertificate", "SEQUENCE")?;
        let signed = outer.since(start).to_vec();
        tbs.value(CONTEXT_0, "version", "[0]")?;
        tbs.value(INTEGER, "serialNumber", "INTEGER")?;
        tbs.value(SEQUENCE, "signature", "SEQUENCE")?;
        tbs.value(SEQUENCE, "issuer", "SEQUENCE")?;
        let mut validity = tbs.value(SEQUENCE, "validity", "SEQUENCE")?;
        let not_before = read_time(&mut validity)?;
        let not_after = read_time(&mut validity)?;
        let mut subject = tbs.value(SEQUENCE, "subject", "SEQUENCE")?;
        let (mut names, mut components) = (Vec::new(), Vec::new());
        while subject.peek().is_some() {
            let mut set = subject.value(SET, "subject", "SET")?;
            while set.peek().is_some() {
                let mut pair = set.value(SEQUENCE, "subject", "SEQUENCE")?;
                let kind = pair.value(OID, "subject", "OBJECT IDENTIFIER")?;
                let (_, value) = pair.any("subject")?;
                let text = String::from_utf8_lossy(value.rest()).into_owned();
                match kind.rest() {
                    oid::COMMON_NAME => names.push(text),
                    oid::DOMAIN_COMPONENT => components.push(text),
                    _ => {}
                }
            }
        }
        let mut info = tbs.value(SEQUENCE, "subjectPublicKeyInfo", "SEQUENCE")?;
        let mut algorithm = info.value(SEQUENCE, "subjectPublicKeyInfo", "SEQUENCE")?;
        let algorithm = algorithm.value(OID, "subjectPublicKeyInfo", "OBJECT IDENTIFIER")?;
        let mut key = info.value(BIT_STRING, "subjectPublicKeyInfo", "BIT STRING")?;
        key.bytes(&[0], "subjectPublicKeyInfo, unused bits")?;
        outer.value(SEQUENCE, "signatureAlgorithm", "SEQUENCE")?;
        let mut signature = outer.value(BIT_STRING, "signature", "BIT STRING")?;
        signature.bytes(&[0], "signature, unused bits")?;
        outer.finish("Certificate")?;
        let only = |mut values: Vec<String>| match values.len() {
            1 => values.pop(),
            _ => None,
        };
        Ok(Self {
            common_name: only(names),
            domain_component: only(components),
            not_before,
            not_after,
            key: (algorithm.rest().to_vec(), key.rest().to_vec()),
            signed,
            signature: signature.rest().to_vec(),
        })
    }

    /// The key, if it is of this algorithm: for RSA an RSAPublicKey (RFC 8017), DER.
    pub(crate) fn key(&self, algorithm: &[u8]) -> Option<&[u8]> {
        (self.key.0 == algorithm).then_some(&*self.key.1)
    }

    /// Whether a time (seconds since 1970) lies inside the validity, both ends included.
    pub(crate) fn valid_at(&self, epoch: u64) -> bool {
        (self.not_before..=self.not_after).contains(&epoch)
    }
}

/// The SubjectPublicKeyInfo (RSA-2048) of a key that nobody has: another modulus of the same form.
pub(crate) fn stranger_key(public_key: &[u8]) -> Vec<u8> {
    let mut stranger = public_key.to_vec();
    let middle = stranger.len() / 2;
    stranger[middle] ^= 0x55;
    stranger
}

fn sign_certificate(
    key: &EcdsaKeyPair,
    subject: &[u8],
    public_key: &[u8],
    not_before: SystemTime,
    not_after: SystemTime,
    extensions: &[Vec<u8>],
) -> Result<Vec<u8>, EmulatorError> {
    let failed = |_| EmulatorError::crypto("signing a certificate");
    let random = SystemRandom::new();
    let mut serial: [u8; 16] = rand::generate(&random).map_err(failed)?.expose();
    serial[0] = serial[0] & 0x7f | 0x40;
    let algorithm = der::sequence(&[&der::oid(oid::ECDSA_SHA_256)]);
    let tbs = der::sequence(&[
        &der::context(0, &der::integer(2)),
        &der::unsigned(&serial),
        &algorithm,
        &ca_name(),
        &der::sequence(&[&der::time(not_before), &der::time(not_after)]),
        subject,
        public_key,
        &der::context(3, &der::sequence(&[&extensions.concat()])),
    ]);
    let signature = key.sign(&random, &tbs).map_err(failed)?;
    Ok(der::sequence(&[
        &tbs,
        &algorithm,
        &der::bit_string(signature.as_ref()),
    ]))
}

fn ca_name() -> Vec<u8> {
    der::sequence(&[&relative_name(
        oid::COMMON_NAME,
        &der::printable_string(CA_NAME),
    )])
}

fn relative_name(attribute: &[u8], value: &[u8]) -> Vec<u8> {
    der::set(&der::sequence(&[&der::oid(attribute), value]))
}

fn public_key_info(key: &EcdsaKeyPair) -> Vec<u8> {
    der::sequence(&[
        &der::sequence(&[&der::oid(oid::EC_PUBLIC_KEY), &der::oid(oid::P256)]),
        &der::bit_string(key.public_key().as_ref()),
    ])
}

fn extension(kind: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical {
        &[der::BOOLEAN, 1, 0xff]
    } else {
        &[]
    };
    der::sequence(&[&der::oid(kind), critical, &der::octet_string(value)])
}

fn key_id(key: &EcdsaKeyPair) -> Vec<u8> {
    digest::digest(&digest::SHA256, key.public_key().as_ref()).as_ref()[..20].to_vec()
}

fn key_id_extension(kind: &[u8], key: &EcdsaKeyPair) -> Vec<u8> {
    extension(kind, false, &der::octet_string(&key_id(key)))
}

fn authority_key_id(key: &EcdsaKeyPair) -> Vec<u8> {
    let id = der::tlv(0x80, &key_id(key));
    extension(oid::AUTHORITY_KEY_ID, false, &der::sequence(&[&id]))
}

fn read_time(validity: &mut Reader<'_>) -> Result<u64, DerError> {
    let at = *validity;
    let (tag, text) = validity.any("validity")?;
    let parsed = std::str::from_utf8(text.rest())
        .ok()
        .and_then(|text| parse_time(tag, text));
    parsed.ok_or_else(|| at.refuse("validity", "UTCTime or GeneralizedTime ending in Z"))
}

fn parse_time(tag: u8, text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year: u64 = digits[..2].parse().ok()?;
            (
                if year < 50 { 2000 + year } else { 1900 + year },
                &digits[2..],
            )
        }
        (GENERALIZED_TIME, 14) => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let (hour, minute, second) = (part(4)?, part(6)?, part(8)?);
    // Days since 1970, counted from 1 March so that the leap day is the last of its year.
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let year = if month > 2 {
        year
    } else {
        year.checked_sub(1)?
    };
    let days = (year * 365 + year / 4 - year / 100 + year / 400 + (153 * shifted + 2) / 5 + day)
        .checked_sub(719_469)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn an_issued_certificate_reads_back_as_it_was_asked_for() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (pkcs8, certificate) = Authority::generate(now).unwrap();
        let authority = Authority::open(&pkcs8, certificate).unwrap();
        let leaf = authority
            .issue(&LeafRequest {
                client_id: "the-client",
                tenant_id: "the-tenant",
                public_key: &public_key_info(&authority.key),
                not_before: now,
                not_after: now + Duration::from_secs(90),
            })
            .unwrap();
        let read = Certificate::parse(&leaf).unwrap();
        assert_eq!(read.common_name.as_deref(), Some("the-client"));
        assert_eq!(read.domain_component.as_deref(), Some("the-tenant"));
        assert_eq!(
            (read.not_before, read.not_after),
            (1_800_000_000, 1_800_000_090)
        );
        assert!(authority.issued(&read));
        assert!(read.valid_at(1_800_000_090) && !read.valid_at(1_800_000_091));

        let (other_key, other_certificate) = Authority::generate(now).unwrap();
        let other = Authority::open(&other_key, other_certificate.clone()).unwrap();
        assert!(!other.issued(&read), "another authority did not sign it");
        assert!(
            Authority::open(&pkcs8, other_certificate).is_err(),
            "a key and a certificate that do not belong together"
        );
    }

    #[test]
    fn every_truncation_of_a_certificate_is_refused() {
        let (_, certificate) = Authority::generate(UNIX_EPOCH + BACKDATED).unwrap();
        for length in 0..certificate.len() {
            assert!(Certificate::parse(&certificate[..length]).is_err());
        }
    }

    #[test]
    fn both_time_forms_are_read() {
        assert_eq!(parse_time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(
            parse_time(GENERALIZED_TIME, "20500101000000Z"),
            Some(2_524_608_000)
        );
        assert_eq!(parse_time(UTC_TIME, "240229000000Z"), Some(1_709_164_800));
        assert_eq!(parse_time(UTC_TIME, "2402290000+1Z"), None);
    }
}
