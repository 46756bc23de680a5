//! A key in a token.

use std::sync::{Arc, Mutex};

use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    object::{Attribute, AttributeType, ObjectHandle},
    session::Session,
};
use zeroize::Zeroize as _;

use super::{
    module::Lease,
    private_keys,
    refusal::{is_stale, other, refused},
    token::{Token, lock, ulong},
};
use crate::{
    public_key::PublicKey,
    refusal::{Reason, Unavailable},
    scheme::{HashAlgorithm, SignatureScheme},
    store::{ExportAttempt, Isolation, KeyProperties, Origin, StoredKey},
};

pub(super) struct Pkcs11Key {
    token: Arc<Token>,
    label: String,
    handle: Mutex<ObjectHandle>,
    /// While this key lives its handle must not come to mean another.
    _lease: Lease,
}

impl Pkcs11Key {
    pub(super) fn new(
        token: Arc<Token>,
        label: String,
        handle: ObjectHandle,
        lease: Lease,
    ) -> Self {
        Self {
            token,
            label,
            handle: Mutex::new(handle),
            _lease: lease,
        }
    }

    /// Runs `work` with the key, once more if its handle is out of date: a token that was pulled and put back
    /// has the same key under another handle.
    fn with<T>(
        &self,
        work: impl Fn(&Session, ObjectHandle) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        let handle = *lock(&self.handle);
        match self.token.read(|session| work(session, handle)) {
            Err(refusal) if is_stale(&refusal) => {}
            answer => return answer,
        }
        let handles = self
            .token
            .read(|session| private_keys(session, &self.label))?;
        let [handle] = handles[..] else {
            let detail = format!("the key `{}` is no longer in the token", self.label);
            return Err(other(Reason::Dead, detail));
        };
        *lock(&self.handle) = handle;
        self.token.read(|session| work(session, handle))
    }

    fn attributes(&self, wanted: &[AttributeType]) -> Result<Vec<Attribute>, Unavailable> {
        self.with(|session, key| session.get_attributes(key, wanted).map_err(refused))
    }
}

impl StoredKey for Pkcs11Key {
    /// From the private key's own attributes: the public object is a copy that may be another's.
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let attributes =
            self.attributes(&[AttributeType::Modulus, AttributeType::PublicExponent])?;
        let mut modulus = &[][..];
        let mut exponent = &[][..];
        for attribute in &attributes {
            match attribute {
                Attribute::Modulus(value) => modulus = value,
                Attribute::PublicExponent(value) => exponent = value,
                _ => {}
            }
        }
        PublicKey::from_rsa_components(modulus, exponent)
            .map(|key| key.spki_der().to_vec())
            .map_err(|error| other(Reason::Failed, error.to_string()))
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let mechanisms = self.token.mechanisms().unwrap_or_default();
        SignatureScheme::ALL
            .into_iter()
            .filter(|scheme| {
                let needed = if scheme.is_pss() {
                    MechanismType::RSA_PKCS_PSS
                } else {
                    MechanismType::RSA_PKCS
                };
                mechanisms.contains(&needed)
            })
            .collect()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        if digest.len() != scheme.hash().digest_len() {
            return Err(other(
                Reason::Failed,
                "the digest's length does not fit the scheme",
            ));
        }
        let (hash, mgf, prefix) = match scheme.hash() {
            HashAlgorithm::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 1),
            HashAlgorithm::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 2),
            HashAlgorithm::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 3),
        };
        let (mechanism, input) = if scheme.is_pss() {
            let s_len = ulong(digest.len())?;
            let params = PkcsPssParams {
                hash_alg: hash,
                mgf,
                s_len,
            };
            (Mechanism::RsaPkcsPss(params), digest.to_vec())
        } else {
            (Mechanism::RsaPkcs, digest_info(prefix, digest))
        };
        self.with(|session, key| session.sign(&mechanism, key, &input).map_err(refused))
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        let attributes = self.attributes(&[
            AttributeType::Token,
            AttributeType::Sensitive,
            AttributeType::AlwaysSensitive,
            AttributeType::Extractable,
            AttributeType::NeverExtractable,
            AttributeType::Local,
        ])?;
        // An attribute that is missing counts as the weaker of its values.
        let has = |wanted: &Attribute| attributes.contains(wanted);
        let closed = has(&Attribute::Token(true))
            && has(&Attribute::Sensitive(true))
            && has(&Attribute::AlwaysSensitive(true))
            && has(&Attribute::NeverExtractable(true));
        let mut details = self.token.details()?;
        let told = attributes.iter().map(|a| format!("{a:?}"));
        details.push(("attributes".into(), told.collect::<Vec<_>>().join(", ")));
        Ok(KeyProperties {
            isolation: if closed {
                Isolation::Device
            } else {
                Isolation::Process
            },
            origin: if has(&Attribute::Local(true)) {
                Origin::Device
            } else {
                Origin::Imported
            },
            exportable: Some(!has(&Attribute::Extractable(false))),
            file: None,
            details,
        })
    }

    /// Reads every part of the private key, and wraps it with a key of our own.
    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        const PARTS: [AttributeType; 6] = [
            AttributeType::PrivateExponent,
            AttributeType::Prime1,
            AttributeType::Prime2,
            AttributeType::Exponent1,
            AttributeType::Exponent2,
            AttributeType::Coefficient,
        ];
        let mut answers = Vec::new();
        for part in PARTS {
            match self.attributes(&[part]) {
                Ok(mut values) => {
                    let mut came_out = false;
                    for value in &mut values {
                        if let Attribute::PrivateExponent(secret)
                        | Attribute::Prime1(secret)
                        | Attribute::Prime2(secret)
                        | Attribute::Exponent1(secret)
                        | Attribute::Exponent2(secret)
                        | Attribute::Coefficient(secret) = value
                        {
                            came_out |= !secret.is_empty();
                            secret.zeroize();
                        }
                    }
                    if came_out {
                        return Ok(ExportAttempt::Exported);
                    }
                }
                // A token that is busy or gone has refused nothing.
                Err(refusal) if could_not_try(&refusal) => return Err(refusal),
                Err(refusal) => answers.push(refusal.detail),
            }
        }
        match self.with(wrap) {
            Ok(()) => return Ok(ExportAttempt::Exported),
            Err(refusal) if could_not_try(&refusal) => return Err(refusal),
            Err(refusal) => answers.push(refusal.detail),
        }
        answers.dedup();
        answers.insert(0, "no part of the private key can be read".into());
        Ok(ExportAttempt::Refused(answers.join("; ")))
    }
}

fn wrap(session: &Session, key: ObjectHandle) -> Result<(), Unavailable> {
    let length = ulong(32)?;
    let template = [
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::ValueLen(length),
    ];
    let wrapping = session
        .generate_key(&Mechanism::AesKeyGen, &template)
        .map_err(refused)?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, key);
    // Best effort: it dies with the session anyway.
    let _ = session.destroy_object(wrapping);
    wrapped.map(drop).map_err(refused)
}

/// Whether the token gave no answer to the attempt itself.
fn could_not_try(refusal: &Unavailable) -> bool {
    matches!(
        refusal.reason,
        Reason::Busy | Reason::TimedOut | Reason::NotPresent
    )
}

/// DigestInfo (RFC 8017 §9.2 note 1) for the hash with this last arc under 2.16.840.1.101.3.4.2.
fn digest_info(arc: u8, digest: &[u8]) -> Vec<u8> {
    let length = digest.len() as u8;
    let mut info = vec![
        0x30,
        17 + length,
        0x30,
        0x0d,
        0x06,
        0x09,
        0x60,
        0x86,
        0x48,
        0x01,
        0x65,
        0x03,
        0x04,
        0x02,
        arc,
        0x05,
        0x00,
        0x04,
        length,
    ];
    info.extend_from_slice(digest);
    info
}
