//! The client's certificate and the proof that it has the key.

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    UnparsedPublicKey,
};

use super::{
    alert::{Alert, Failure},
    codec::{Input, message, vector},
};
use crate::{oid, x509::Certificate};

const CERTIFICATE: u8 = 11;
const CERTIFICATE_REQUEST: u8 = 13;
/// rsa_sign (RFC 5246, 7.4.4).
const RSA_SIGN: u8 = 1;
/// A chain longer than this is not looked at.
const CHAIN_LIMIT: usize = 10;

/// What a client may sign with (RFC 8446, 4.2.3).
const SCHEMES: [(u16, &RsaParameters); 6] = [
    (0x0804, &RSA_PSS_2048_8192_SHA256),
    (0x0805, &RSA_PSS_2048_8192_SHA384),
    (0x0806, &RSA_PSS_2048_8192_SHA512),
    (0x0401, &RSA_PKCS1_2048_8192_SHA256),
    (0x0501, &RSA_PKCS1_2048_8192_SHA384),
    (0x0601, &RSA_PKCS1_2048_8192_SHA512),
];

/// A Certificate message.
pub(super) fn certificate_message(chain: &[Vec<u8>]) -> Vec<u8> {
    let chain: Vec<u8> = chain.iter().flat_map(|der| vector(3, der)).collect();
    message(CERTIFICATE, &vector(3, &chain))
}

/// A CertificateRequest message. It names no authorities: clients must present their certificate
/// whether or not a hint names its issuer.
pub(super) fn certificate_request() -> Vec<u8> {
    let schemes: Vec<u8> = SCHEMES
        .iter()
        .flat_map(|(scheme, _)| scheme.to_be_bytes())
        .collect();
    let body = [vector(1, &[RSA_SIGN]), vector(2, &schemes), vector(2, &[])];
    message(CERTIFICATE_REQUEST, &body.concat())
}

/// Reads a Certificate message: DER, the leaf first; empty if the client has none.
pub(super) fn parse_chain(body: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut input = Input::new(body);
    let mut list = input.vector24()?;
    input.finish()?;
    let mut chain = Vec::new();
    while !list.is_empty() {
        let der = list.vector24()?.rest();
        if der.is_empty() {
            return Err(Alert::DecodeError.because("an empty certificate"));
        }
        if chain.len() == CHAIN_LIMIT {
            return Err(Alert::BadCertificate.because("too many certificates"));
        }
        chain.push(der.to_vec());
    }
    Ok(chain)
}

/// Verifies a CertificateVerify message over all messages before it.
pub(super) fn verify(leaf: &[u8], transcript: &[u8], body: &[u8]) -> Result<(), Failure> {
    let mut input = Input::new(body);
    let scheme = input.u16()?;
    let signature = input.vector16()?.rest();
    input.finish()?;
    let (_, algorithm) = SCHEMES
        .into_iter()
        .find(|(known, _)| *known == scheme)
        .ok_or_else(|| {
            Alert::IllegalParameter.because("a signature scheme that was not asked for")
        })?;
    let certificate = Certificate::parse(leaf)
        .map_err(|_| Alert::BadCertificate.because("the certificate cannot be read"))?;
    let key = certificate
        .key(oid::RSA_ENCRYPTION)
        .ok_or_else(|| Alert::UnsupportedCertificate.because("the certificate has no RSA key"))?;
    UnparsedPublicKey::new(algorithm, key)
        .verify(transcript, signature)
        .map_err(|_| Alert::DecryptError.because("the client did not prove to have the key"))
}
