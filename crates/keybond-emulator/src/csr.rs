//! The strict reading of a certificate signing request.
//!
//! The Instance Metadata Service refuses a request that is encoded otherwise than it expects with
//! an opaque 400. This parser knows the one accepted encoding and says at which offset which byte
//! was expected. The form (RFC 2986, RFC 8017, and what MSAL sends):
//!
//! ```text
//! CertificationRequest
//!   CertificationRequestInfo
//!     version         INTEGER 0
//!     subject         DC=<tenant id> as IA5String, then CN=<client id>
//!     subjectPKInfo   rsaEncryption with NULL; exactly 2048 bits
//!     attributes [0]  exactly one: 1.3.6.1.4.1.311.90.2.10, SET { UTF8String <JSON of cuId> }
//!   signatureAlgorithm id-RSASSA-PSS { [0] SHA-256 without NULL,
//!                                      [1] MGF1 over SHA-256 without NULL, [2] 32 }
//!   signature         over CertificationRequestInfo
//! ```

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

use crate::{
    der::{
        BIT_STRING, CONTEXT_0, CONTEXT_1, CONTEXT_2, DerError, IA5_STRING, INTEGER, NULL, OID,
        PRINTABLE_STRING, Reader, SEQUENCE, SET, UTF8_STRING,
    },
    oid,
};

/// Bytes of a 2048-bit modulus.
const MODULUS_BYTES: usize = 256;
/// Bytes of the salt: as long as a SHA-256.
const SALT_BYTES: u8 = 32;

/// What a signing request must say: the values that platform metadata answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrRules {
    /// The client id, which is the common name.
    pub client_id: String,
    /// The tenant id, which is the domain component.
    pub tenant_id: String,
    /// The compact JSON of `cuId`: only the populated members, `vmId` before `vmssId`.
    pub cu_id: String,
}

/// An accepted signing request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    /// SubjectPublicKeyInfo, DER: the key to certify.
    pub public_key: Vec<u8>,
}

impl Csr {
    /// Reads and verifies a request (DER).
    ///
    /// # Errors
    /// The first byte that differs from the one accepted encoding; for a signature that does not
    /// verify, the offset of its first byte.
    pub fn parse(der: &[u8], rules: &CsrRules) -> Result<Self, DerError> {
        let mut input = Reader::new(der);
        let mut request = input.value(SEQUENCE, "CertificationRequest", "SEQUENCE")?;
        input.finish("CertificationRequest")?;

        let start = request.offset();
        let mut info = request.value(SEQUENCE, "CertificationRequestInfo", "SEQUENCE")?;
        let signed = request.since(start);
        info.bytes(&[INTEGER, 1, 0], "version 0")?;
        subject(&mut info, rules)?;
        let public_key = public_key(&mut info)?;
        attributes(&mut info, rules)?;
        info.finish("CertificationRequestInfo")?;

        signature_algorithm(&mut request)?;
        let mut signature = request.value(BIT_STRING, "signature", "BIT STRING")?;
        request.finish("CertificationRequest")?;
        signature.bytes(&[0], "signature, unused bits")?;
        if signature.rest().len() != MODULUS_BYTES {
            return Err(signature.refuse(
                "signature",
                format!("{MODULUS_BYTES} bytes, not {}", signature.rest().len()),
            ));
        }
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, &public_key)
            .verify(signed, signature.rest())
            .map_err(|_| DerError {
                offset: signature.offset(),
                field: "signature",
                expected: format!(
                    "an RSASSA-PSS signature (SHA-256, salt of {SALT_BYTES} bytes) of the \
                     CertificationRequestInfo by the key in it"
                ),
                found: None,
            })?;
        Ok(Self { public_key })
    }
}

fn subject(info: &mut Reader<'_>, rules: &CsrRules) -> Result<(), DerError> {
    let mut name = info.value(SEQUENCE, "subject", "SEQUENCE")?;

    const DC: &str = "subject, first name: DC=<tenant id>";
    let mut dc = relative_name(&mut name, DC, oid::DOMAIN_COMPONENT)?;
    let mut text = dc.value(IA5_STRING, DC, "IA5String")?;
    exact_text(&mut text, &rules.tenant_id, DC)?;
    dc.finish(DC)?;

    const CN: &str = "subject, second name: CN=<client id>";
    let mut cn = relative_name(&mut name, CN, oid::COMMON_NAME)?;
    let mut text = match cn.peek() {
        Some(UTF8_STRING) => cn.value(UTF8_STRING, CN, "UTF8String")?,
        _ => cn.value(
            PRINTABLE_STRING,
            CN,
            "PrintableString; UTF8String also accepted",
        )?,
    };
    exact_text(&mut text, &rules.client_id, CN)?;
    cn.finish(CN)?;

    name.finish("subject")
}

/// SET { SEQUENCE { type, value } } with one member: hands back the reader at the value.
fn relative_name<'a>(
    name: &mut Reader<'a>,
    field: &'static str,
    attribute: &[u8],
) -> Result<Reader<'a>, DerError> {
    let mut set = name.value(SET, field, "SET")?;
    let mut pair = set.value(SEQUENCE, field, "SEQUENCE")?;
    set.finish(field)?;
    exact_oid(&mut pair, attribute, field)?;
    Ok(pair)
}

fn public_key(info: &mut Reader<'_>) -> Result<Vec<u8>, DerError> {
    const KEY: &str = "subjectPublicKeyInfo";
    let start = info.offset();
    let mut spki = info.value(SEQUENCE, KEY, "SEQUENCE")?;
    let mut algorithm = spki.value(SEQUENCE, "public key algorithm", "SEQUENCE")?;
    exact_oid(
        &mut algorithm,
        oid::RSA_ENCRYPTION,
        "public key algorithm, rsaEncryption",
    )?;
    algorithm.bytes(&[NULL, 0], "public key algorithm, NULL parameters")?;
    algorithm.finish("public key algorithm")?;

    let mut bits = spki.value(BIT_STRING, "public key", "BIT STRING")?;
    spki.finish(KEY)?;
    bits.bytes(&[0], "public key, unused bits")?;
    let mut rsa = bits.value(SEQUENCE, "RSAPublicKey", "SEQUENCE")?;
    bits.finish("public key")?;

    const MODULUS: &str = "modulus, exactly 2048 bits";
    let before = rsa;
    let mut modulus = rsa.value(INTEGER, MODULUS, "INTEGER")?;
    if modulus.rest().len() != MODULUS_BYTES + 1 {
        return Err(before.refuse(
            MODULUS,
            format!(
                "an INTEGER of {} bytes, not {}",
                MODULUS_BYTES + 1,
                modulus.rest().len()
            ),
        ));
    }
    modulus.bytes(&[0], MODULUS)?;
    if modulus.peek().is_some_and(|top| top & 0x80 == 0) {
        return Err(modulus.refuse(MODULUS, "a byte with the highest bit set"));
    }

    const EXPONENT: &str = "public exponent 65537";
    rsa.bytes(&[INTEGER, 3, 1, 0, 1], EXPONENT)?;
    rsa.finish("RSAPublicKey")?;
    Ok(info.since(start).to_vec())
}

fn attributes(info: &mut Reader<'_>, rules: &CsrRules) -> Result<(), DerError> {
    const CUID: &str = "attribute 1.3.6.1.4.1.311.90.2.10 (CUID)";
    let mut attributes = info.value(CONTEXT_0, "attributes", "[0]")?;
    let mut attribute = attributes.value(SEQUENCE, CUID, "SEQUENCE")?;
    attributes.finish("attributes, exactly one")?;
    exact_oid(&mut attribute, oid::CUID, CUID)?;
    let mut values = attribute.value(SET, CUID, "SET")?;
    attribute.finish(CUID)?;
    let mut text = values.value(UTF8_STRING, CUID, "UTF8String")?;
    values.finish("attribute CUID, exactly one value")?;
    exact_text(
        &mut text,
        &rules.cu_id,
        "attribute CUID, compact JSON of cuId",
    )
}

fn signature_algorithm(request: &mut Reader<'_>) -> Result<(), DerError> {
    let mut algorithm = request.value(SEQUENCE, "signatureAlgorithm", "SEQUENCE")?;
    exact_oid(
        &mut algorithm,
        oid::RSASSA_PSS,
        "signatureAlgorithm, id-RSASSA-PSS",
    )?;
    let mut parameters = algorithm.value(SEQUENCE, "RSASSA-PSS parameters", "SEQUENCE")?;
    algorithm.finish("signatureAlgorithm")?;

    const HASH: &str = "RSASSA-PSS hash: SHA-256 without NULL";
    let mut hash = parameters.value(CONTEXT_0, HASH, "[0]")?;
    sha_256(&mut hash, HASH)?;
    hash.finish(HASH)?;

    const MASK: &str = "RSASSA-PSS mask: MGF1 over SHA-256 without NULL";
    let mut mask = parameters.value(CONTEXT_1, MASK, "[1]")?;
    let mut mgf1 = mask.value(SEQUENCE, MASK, "SEQUENCE")?;
    mask.finish(MASK)?;
    exact_oid(&mut mgf1, oid::MGF1, MASK)?;
    sha_256(&mut mgf1, MASK)?;
    mgf1.finish(MASK)?;

    const SALT: &str = "RSASSA-PSS salt length 32";
    let mut salt = parameters.value(CONTEXT_2, SALT, "[2]")?;
    salt.bytes(&[INTEGER, 1, SALT_BYTES], SALT)?;
    salt.finish(SALT)?;
    parameters.finish("RSASSA-PSS parameters, trailerField omitted")
}

fn sha_256(reader: &mut Reader<'_>, field: &'static str) -> Result<(), DerError> {
    let mut algorithm = reader.value(SEQUENCE, field, "SEQUENCE")?;
    exact_oid(&mut algorithm, oid::SHA_256, field)?;
    algorithm.finish(field)
}

fn exact_oid(reader: &mut Reader<'_>, content: &[u8], field: &'static str) -> Result<(), DerError> {
    reader.byte(OID, field, "OBJECT IDENTIFIER")?;
    reader.bytes(&[content.len() as u8], field)?;
    reader.bytes(content, field)
}

fn exact_text(
    reader: &mut Reader<'_>,
    expected: &str,
    field: &'static str,
) -> Result<(), DerError> {
    reader
        .bytes(expected.as_bytes(), field)
        .map_err(|refusal| DerError {
            expected: format!("{} of \"{expected}\"", refusal.expected),
            ..refusal
        })?;
    reader.finish(field)
}

#[cfg(test)]
#[path = "csr_tests.rs"]
mod tests;
