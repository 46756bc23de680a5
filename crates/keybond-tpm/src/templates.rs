//! What keys are made from. Two parties that use the same template on the same TPM get the same primary key.

use tpm2_protocol::{
    basic::TpmUint16,
    data::{
        Tpm2bDigest, Tpm2bEccParameter, Tpm2bPublic, TpmAlgId, TpmEccCurve, TpmaObject,
        TpmsEccParms, TpmsEccPoint, TpmsRsaParms, TpmsSchemeHash, TpmtEccScheme, TpmtPublic,
        TpmtSymDef, TpmtSymDefObject, TpmuAsymScheme, TpmuPublicId, TpmuPublicParms,
        TpmuSymKeyBits, TpmuSymMode,
    },
};

/// The one key size of MSI v2, in bits.
pub(crate) const RSA_BITS: u16 = 2048;

/// PolicySecret(TPM_RH_ENDORSEMENT) with SHA-256: the policy of every default EK (TCG EK Credential Profile,
/// "PolicyA").
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

fn in_the_tpm_for_ever() -> TpmaObject {
    TpmaObject::FIXED_TPM | TpmaObject::FIXED_PARENT | TpmaObject::SENSITIVE_DATA_ORIGIN
}

/// The storage root key: ECC P-256 with an empty unique field (TCG TPM v2.0 Provisioning Guidance). This very
/// template is what parent 0x40000001 in a TSS2 PEM means, so other software finds the same parent.
pub(crate) fn storage_root() -> Tpm2bPublic {
    let attributes = in_the_tpm_for_ever()
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT;
    let unique = TpmsEccPoint::default();
    ecc(
        attributes,
        Tpm2bDigest::default(),
        aes_128_cfb(),
        TpmtEccScheme::default(),
        unique,
    )
}

/// The endorsement key: ECC P-256, template L-2 of the TCG EK Credential Profile. It survives TPM2_Clear, so its
/// name tells a cleared TPM from another one; ECC, because an RSA primary key takes seconds on a real chip.
pub(crate) fn endorsement() -> Tpm2bPublic {
    let attributes = in_the_tpm_for_ever()
        | TpmaObject::ADMIN_WITH_POLICY
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT;
    let zero = || Tpm2bEccParameter::try_from(&[0; 32][..]).unwrap_or_default();
    let policy = Tpm2bDigest::try_from(&POLICY_A[..]).unwrap_or_default();
    let unique = TpmsEccPoint {
        x: zero(),
        y: zero(),
    };
    ecc(
        attributes,
        policy,
        aes_128_cfb(),
        TpmtEccScheme::default(),
        unique,
    )
}

/// A key that signs only what the TPM itself says: ECDSA P-256 with SHA-256. Always the same one on the same TPM,
/// so nothing needs to be kept.
pub(crate) fn attestation() -> Tpm2bPublic {
    let attributes = in_the_tpm_for_ever()
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | TpmaObject::RESTRICTED
        | TpmaObject::SIGN_ENCRYPT;
    let scheme = TpmtEccScheme {
        scheme: TpmAlgId::Ecdsa,
        details: TpmuAsymScheme::Hash(TpmsSchemeHash {
            hash_alg: TpmAlgId::Sha256,
        }),
    };
    ecc(
        attributes,
        Tpm2bDigest::default(),
        no_symmetric(),
        scheme,
        TpmsEccPoint::default(),
    )
}

fn ecc(
    attributes: TpmaObject,
    policy: Tpm2bDigest,
    symmetric: TpmtSymDefObject,
    scheme: TpmtEccScheme,
    unique: TpmsEccPoint,
) -> Tpm2bPublic {
    Tpm2bPublic {
        inner: TpmtPublic {
            object_type: TpmAlgId::Ecc,
            name_alg: TpmAlgId::Sha256,
            object_attributes: attributes,
            auth_policy: policy,
            parameters: TpmuPublicParms::Ecc(TpmsEccParms {
                symmetric,
                scheme,
                curve_id: TpmEccCurve::NistP256,
                kdf: Default::default(),
            }),
            unique: TpmuPublicId::Ecc(unique),
        },
    }
}

fn aes_128_cfb() -> TpmtSymDefObject {
    TpmtSymDef {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::from(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    }
}

/// An RSA-2048 signing key with scheme NULL, so that each signature names its own.
///
/// `raw_rsa` adds the attribute `decrypt`, without which the TPM does no raw RSA. `pin` leaves `noDA` out: wrong
/// PINs are counted, and a lockout holds for this key.
pub(crate) fn signing_key(raw_rsa: bool, pin: bool) -> Tpm2bPublic {
    let mut attributes =
        in_the_tpm_for_ever() | TpmaObject::USER_WITH_AUTH | TpmaObject::SIGN_ENCRYPT;
    if raw_rsa {
        attributes |= TpmaObject::DECRYPT;
    }
    if !pin {
        attributes |= TpmaObject::NO_DA;
    }
    Tpm2bPublic {
        inner: TpmtPublic {
            object_type: TpmAlgId::Rsa,
            name_alg: TpmAlgId::Sha256,
            object_attributes: attributes,
            auth_policy: Tpm2bDigest::default(),
            parameters: TpmuPublicParms::Rsa(TpmsRsaParms {
                symmetric: no_symmetric(),
                scheme: Default::default(),
                key_bits: RSA_BITS.into(),
                // 0 means 65537.
                exponent: 0.into(),
            }),
            unique: TpmuPublicId::Rsa(Default::default()),
        },
    }
}

pub(crate) fn no_symmetric() -> TpmtSymDefObject {
    TpmtSymDef {
        algorithm: TpmAlgId::Null,
        key_bits: TpmuSymKeyBits::Null,
        mode: TpmuSymMode::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_the_specification() {
        let bits = |public: Tpm2bPublic| public.inner.object_attributes.bits();
        assert_eq!(bits(signing_key(false, false)), 0x0004_0472);
        assert_eq!(bits(signing_key(true, false)), 0x0006_0472);
        assert_eq!(bits(signing_key(false, true)), 0x0004_0072);
        assert_eq!(bits(storage_root()), 0x0003_0472);
        assert_eq!(bits(endorsement()), 0x0003_00b2);
        assert_eq!(bits(attestation()), 0x0005_0472);
    }
}
