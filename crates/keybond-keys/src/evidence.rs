//! Evidence: what a key was shown to be after it was made or opened. Strength follows from this alone,
//! never from what was asked for.

use aws_lc_rs::rand;
use serde::Serialize;

use crate::{
    public_key::{KeyId, PublicKey, RSA_BITS},
    refusal::{Reason, Unavailable},
    scheme::SignatureScheme,
    store::{ExportAttempt, Isolation, KeyProperties, Origin, StoredKey},
    strength::{StoreId, Strength},
};

/// What a key was shown to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The store that holds the key.
    pub store: StoreId,
    /// SHA-256 of the public key that every check below used.
    pub key_id: KeyId,
    /// Size of the modulus in bits.
    pub bits: usize,
    /// The schemes in which a fresh random message was signed and strictly verified.
    pub verified: Vec<SignatureScheme>,
    /// The schemes the key claimed, but signed wrongly or refused; they are not offered.
    pub rejected: Vec<RejectedScheme>,
    /// What the device says about the key.
    pub properties: KeyProperties,
    /// The outcome of trying to export the private key.
    pub export: ExportAttempt,
}

/// A claimed scheme that did not pass its trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RejectedScheme {
    /// The scheme.
    pub scheme: SignatureScheme,
    /// What was wrong with it.
    pub cause: String,
}

impl Evidence {
    /// What the key is, on this evidence: the only place where strength is decided.
    ///
    /// A key that came out, or may have a copy elsewhere, is software wherever it is kept.
    pub fn strength(&self) -> Strength {
        let held = self.export != ExportAttempt::Exported
            && self.properties.exportable != Some(true)
            && self.properties.origin == Origin::Device;
        match self.properties.isolation {
            Isolation::Vbs { per_boot: true } if held => Strength::KeyGuard,
            Isolation::Device if held => Strength::Hardware,
            Isolation::Vbs { .. } | Isolation::Device | Isolation::Process => Strength::Software,
        }
    }
}

/// Gathers the evidence for a key that a store has just made or opened.
///
/// The public key is read twice and must be the same RSA-2048 key; every claimed scheme signs a fresh random
/// message that is verified here with a strict salt; export is really attempted. `answered` is called after each
/// answer of the device.
///
/// # Errors
/// [`Unavailable`] with [`Reason::TooWeak`] when the key is of another size or changes under examination,
/// [`Reason::Dead`] when it signs in no scheme and the device does not say that this has another cause, or
/// whatever the device answers.
pub(crate) fn gather(
    store: StoreId,
    key: &dyn StoredKey,
    answered: &dyn Fn(),
) -> Result<(PublicKey, Evidence), Unavailable> {
    let too_weak = |detail: String| Unavailable::new(store, Reason::TooWeak, detail);
    let spki = key.public_key()?;
    answered();
    let public = PublicKey::from_spki_der(&spki).map_err(|error| too_weak(error.to_string()))?;
    if public.bits() != RSA_BITS {
        return Err(too_weak(format!(
            "the key has {} bits, expected exactly {RSA_BITS}",
            public.bits()
        )));
    }

    let mut verified = Vec::new();
    let mut rejected = Vec::new();
    let mut inconclusive = None;
    for scheme in key.schemes() {
        let tried = try_scheme(store, key, &public, scheme);
        answered();
        match tried {
            Ok(()) => verified.push(scheme),
            Err(refusal) => {
                rejected.push(RejectedScheme {
                    scheme,
                    cause: refusal.to_string(),
                });
                if refusal.retryable {
                    // A busy device proves nothing: neither the key's health nor the lack of a scheme.
                    return Err(refusal);
                }
                if !matches!(refusal.reason, Reason::Dead | Reason::NotSupported) {
                    inconclusive.get_or_insert(refusal);
                }
            }
        }
    }
    // A device that refuses to work (no permission, removed) does not show that the key is lost.
    if let Some(refusal) = inconclusive.filter(|_| verified.is_empty()) {
        return Err(refusal);
    }
    if verified.is_empty() {
        let causes: Vec<_> = rejected
            .iter()
            .map(|r| format!("{}: {}", r.scheme, r.cause))
            .collect();
        return Err(Unavailable::new(
            store,
            Reason::Dead,
            format!("the key signs in no scheme ({})", causes.join("; ")),
        ));
    }

    let properties = key.properties()?;
    answered();
    let export = key.attempt_export()?;
    answered();
    if key.public_key()? != spki {
        return Err(too_weak(
            "the public key changed while it was examined".into(),
        ));
    }
    let evidence = Evidence {
        store,
        key_id: public.id(),
        bits: public.bits(),
        verified,
        rejected,
        properties,
        export,
    };
    Ok((public, evidence))
}

/// One real signature over a fresh random message, verified strictly.
pub(crate) fn try_scheme(
    store: StoreId,
    key: &dyn StoredKey,
    public: &PublicKey,
    scheme: SignatureScheme,
) -> Result<(), Unavailable> {
    let mut message = [0; 32];
    rand::fill(&mut message).map_err(|_| {
        Unavailable::new(
            store,
            Reason::Failed,
            "no randomness for the trial signature",
        )
    })?;
    let signature = key.sign_digest(scheme, &scheme.hash().digest(&message))?;
    if public.verify(scheme, &message, &signature) {
        return Ok(());
    }
    Err(Unavailable::new(
        store,
        Reason::Dead,
        "the signature does not verify with this public key and a salt as long as the hash",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(
        isolation: Isolation,
        origin: Origin,
        exportable: Option<bool>,
        export: ExportAttempt,
    ) -> Evidence {
        Evidence {
            store: StoreId::KeyGuard,
            key_id: PublicKey::from_rsa_components(&[0xff; 256], &[1, 0, 1])
                .unwrap()
                .id(),
            bits: RSA_BITS,
            verified: vec![SignatureScheme::RsaPssSha256],
            rejected: vec![],
            properties: KeyProperties {
                isolation,
                origin,
                exportable,
                ..KeyProperties::default()
            },
            export,
        }
    }

    #[test]
    fn strength_over_every_combination() {
        let isolations = [
            Isolation::Process,
            Isolation::Device,
            Isolation::Vbs { per_boot: false },
            Isolation::Vbs { per_boot: true },
        ];
        let origins = [
            Origin::Unknown,
            Origin::Process,
            Origin::Device,
            Origin::Imported,
        ];
        let exports = [
            ExportAttempt::NoSuchCall,
            ExportAttempt::Refused("no".into()),
            ExportAttempt::Exported,
        ];
        for isolation in isolations {
            for origin in origins {
                for exportable in [None, Some(false), Some(true)] {
                    for export in exports.clone() {
                        let strength =
                            evidence(isolation, origin, exportable, export.clone()).strength();
                        let safe = origin == Origin::Device
                            && exportable != Some(true)
                            && export != ExportAttempt::Exported;
                        let expected = match (safe, isolation) {
                            (true, Isolation::Vbs { per_boot: true }) => Strength::KeyGuard,
                            (true, Isolation::Device) => Strength::Hardware,
                            _ => Strength::Software,
                        };
                        assert_eq!(
                            strength, expected,
                            "{isolation:?} {origin:?} {exportable:?} {export:?}"
                        );
                    }
                }
            }
        }
    }
}
