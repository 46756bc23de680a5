//! The certificate request: PKCS#10 (RFC 2986), to the byte as the metadata service wants it.
//!
//! What is particular, and refused by the service if otherwise:
//!
//! - the subject is DC (tenant, IA5String) before CN (client, PrintableString);
//! - one attribute, 1.3.6.1.4.1.311.90.2.10, holds a UTF8String with compact JSON of those machine ids that
//!   exist;
//! - the signature is RSASSA-PSS with SHA-256 and a salt of 32 bytes; the hash identifiers have no NULL
//!   parameter and the trailer field is left to its default (RFC 4055 §2.1, §3.1).

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keybond_keys::{HeldKey, KeyError, RSA_BITS, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::{der, random::is_uuid};

/// Whom a certificate is requested for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrSubject {
    /// The identity's client id: a UUID.
    pub client_id: String,
    /// Its tenant: a UUID.
    pub tenant_id: String,
    /// The machine.
    pub cu_id: CuId,
}

/// The ids of the compute unit, as platform metadata gives them; at least one is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CuId {
    /// The virtual machine's id.
    #[serde(rename = "vmId", default, skip_serializing_if = "absent")]
    pub vm_id: Option<String>,
    /// The scale set's id.
    #[serde(rename = "vmssId", default, skip_serializing_if = "absent")]
    pub vmss_id: Option<String>,
}

impl CuId {
    /// Whether no id is there.
    pub fn is_empty(&self) -> bool {
        absent(&self.vm_id) && absent(&self.vmss_id)
    }
}

/// A certificate request, signed by the key that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    der: Vec<u8>,
}

impl Csr {
    /// The request in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The DER in base64 on one line, as the metadata service takes it.
    pub fn to_base64(&self) -> String {
        BASE64_STANDARD.encode(&self.der)
    }

    /// The request in PEM (RFC 7468), for other tools.
    pub fn to_pem(&self) -> String {
        let text = self.to_base64();
        let mut pem = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE REQUEST-----\n");
        pem
    }
}

/// What can go wrong with a certificate request.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// The subject cannot be written.
    #[error("{field} `{}` is not {expected}", found.escape_debug())]
    Subject {
        /// The part.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The key is not of the one size that is certified.
    #[error("the key has {bits} bits; only RSA-{RSA_BITS} is certified")]
    KeySize {
        /// Its size.
        bits: usize,
    },
    /// The key did not sign.
    #[error("the request could not be signed: {0}")]
    Sign(#[from] KeyError),
}

impl CsrError {
    /// The part that is to blame.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Subject { field, .. } => Some(field),
            Self::KeySize { .. } => Some("key"),
            Self::Sign(_) => None,
        }
    }

    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Subject { .. } => "invalid_csr_subject",
            Self::KeySize { .. } => "unsupported_key_size",
            Self::Sign(error) => error.code(),
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Sign(error) if error.retryable())
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Subject { .. } => "Correct the id that is named.".into(),
            Self::KeySize { .. } => format!("Have the store make an RSA-{RSA_BITS} key."),
            Self::Sign(error) => error.remedy(),
        }
    }
}

/// Requests a certificate for `key`, signed by it.
///
/// # Errors
/// [`CsrError`] if an id in `subject` has the wrong form, the key the wrong size, or the key does not sign.
pub async fn build_csr(key: &HeldKey, subject: &CsrSubject) -> Result<Csr, CsrError> {
    let bits = key.public_key().bits();
    if bits != RSA_BITS {
        return Err(CsrError::KeySize { bits });
    }
    let info = request_info(key.public_key().spki_der(), subject)?;
    let signature = key.sign(SignatureScheme::RsaPssSha256, &info).await?;
    let signature = der::value(der::BIT_STRING, &[&[0], &signature]);
    let der = der::value(der::SEQUENCE, &[&info, RSASSA_PSS_SHA256, &signature]);
    Ok(Csr { der })
}

/// CertificationRequestInfo (RFC 2986 §4.1): the part that is signed.
fn request_info(spki: &[u8], subject: &CsrSubject) -> Result<Vec<u8>, CsrError> {
    const VERSION_0: &[u8] = &[0x02, 0x01, 0x00];
    let tenant = uuid("tenant_id", &subject.tenant_id)?;
    let client = uuid("client_id", &subject.client_id)?;
    let name = der::value(
        der::SEQUENCE,
        &[
            &relative_name(OID_DC, der::IA5_STRING, tenant),
            &relative_name(OID_CN, der::PRINTABLE_STRING, client),
        ],
    );
    let json = cu_id_json(&subject.cu_id)?;
    let json = der::value(der::UTF8_STRING, &[json.as_bytes()]);
    let values = der::value(der::SET, &[&json]);
    let attribute = der::value(der::SEQUENCE, &[OID_CU_ID, &values]);
    let attributes = der::value(der::CONTEXT_0, &[&attribute]);
    Ok(der::value(
        der::SEQUENCE,
        &[VERSION_0, &name, spki, &attributes],
    ))
}

fn relative_name(oid: &[u8], tag: u8, text: &str) -> Vec<u8> {
    let text = der::value(tag, &[text.as_bytes()]);
    let pair = der::value(der::SEQUENCE, &[oid, &text]);
    der::value(der::SET, &[&pair])
}

/// The members in this order, the absent ones left out, no space: `{"vmId":"…","vmssId":"…"}`.
fn cu_id_json(cu_id: &CuId) -> Result<String, CsrError> {
    if cu_id.is_empty() {
        return Err(CsrError::Subject {
            field: "cu_id",
            found: String::new(),
            expected: "the id of a virtual machine or a scale set",
        });
    }
    let mut json = String::from("{");
    for (name, id) in [("vmId", &cu_id.vm_id), ("vmssId", &cu_id.vmss_id)] {
        let Some(id) = id.as_deref().filter(|id| !id.is_empty()) else {
            continue;
        };
        // Escaping differs between JSON writers; what needs none leaves no doubt.
        if !id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte))
        {
            return Err(CsrError::Subject {
                field: name,
                found: id.to_owned(),
                expected: "an id of letters, digits and -_./:",
            });
        }
        let comma = if json.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(json, "{comma}\"{name}\":\"{id}\"");
    }
    json.push('}');
    Ok(json)
}

fn uuid<'a>(field: &'static str, text: &'a str) -> Result<&'a str, CsrError> {
    if is_uuid(text) {
        return Ok(text);
    }
    Err(CsrError::Subject {
        field,
        found: text.to_owned(),
        expected: "a UUID",
    })
}

fn absent(id: &Option<String>) -> bool {
    id.as_deref().is_none_or(str::is_empty)
}

/// 2.5.4.3, commonName.
const OID_CN: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

/// 0.9.2342.19200300.100.1.25, domainComponent.
const OID_DC: &[u8] = &[
    0x06, 0x0a, 0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19,
];

/// 1.3.6.1.4.1.311.90.2.10, the ids of the compute unit.
const OID_CU_ID: &[u8] = &[
    0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x5a, 0x02, 0x0a,
];

/// AlgorithmIdentifier: id-RSASSA-PSS `{ [0] SHA-256, [1] MGF1 { SHA-256 }, [2] 32 }`.
const RSASSA_PSS_SHA256: &[u8] = &[
    0x30, 0x3d, // AlgorithmIdentifier
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, // id-RSASSA-PSS
    0x30, 0x30, // RSASSA-PSS-params
    0xa0, 0x0d, 0x30, 0x0b, // [0] hashAlgorithm
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, // id-sha256, no NULL
    0xa1, 0x1a, 0x30, 0x18, // [1] maskGenAlgorithm
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, // id-mgf1
    0x30, 0x0b, // its hash
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, // id-sha256, no NULL
    0xa2, 0x03, 0x02, 0x01, 0x20, // [2] saltLength 32
];

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(vm_id: Option<&str>, vmss_id: Option<&str>) -> CsrSubject {
        CsrSubject {
            client_id: "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01".into(),
            tenant_id: "72f988bf-86f1-41af-91ab-2d7cd011db47".into(),
            cu_id: CuId {
                vm_id: vm_id.map(Into::into),
                vmss_id: vmss_id.map(Into::into),
            },
        }
    }

    /// The golden file was made by `openssl asn1parse -genconf` (`tests/data/README.md`).
    #[test]
    fn the_signed_part_is_the_golden_file() {
        let spki = include_bytes!("../tests/data/spki.der");
        let golden = include_bytes!("../tests/data/request-info.der");
        let subject = subject(Some("d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10"), None);
        assert_eq!(request_info(spki, &subject).unwrap(), golden);
    }

    #[test]
    fn only_ids_that_exist_are_written_in_order() {
        let json = |vm, vmss| cu_id_json(&subject(vm, vmss).cu_id);
        assert_eq!(json(Some("a"), Some("")).unwrap(), r#"{"vmId":"a"}"#);
        assert_eq!(json(None, Some("b")).unwrap(), r#"{"vmssId":"b"}"#);
        assert_eq!(
            json(Some("a"), Some("b")).unwrap(),
            r#"{"vmId":"a","vmssId":"b"}"#
        );
        assert_eq!(json(None, Some("")).unwrap_err().field(), Some("cu_id"));
        assert_eq!(json(Some("a\"b"), None).unwrap_err().field(), Some("vmId"));
    }

    #[test]
    fn ids_that_are_no_uuids_are_refused() {
        let mut wrong = subject(Some("a"), None);
        wrong.tenant_id = "contoso".into();
        let error = request_info(&[], &wrong).unwrap_err();
        assert_eq!(error.to_string(), "tenant_id `contoso` is not a UUID");
    }
}
