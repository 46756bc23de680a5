//! A client's side of a signing request, written by hand: keys, DER and signatures.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PSS_SHA256},
};
use base64::{Engine, engine::general_purpose::STANDARD};

/// An RSA key of a client.
pub struct ClientKey(KeyPair);

impl ClientKey {
    pub fn new() -> Self {
        Self::with_size(KeySize::Rsa2048)
    }

    pub fn with_size(size: KeySize) -> Self {
        Self(KeyPair::generate(size).unwrap())
    }

    pub fn public_key(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        der.as_ref().to_vec()
    }

    pub fn pkcs8(&self) -> Vec<u8> {
        let der: Pkcs8V1Der<'_> = self.0.as_der().unwrap();
        der.as_ref().to_vec()
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(
                &RSA_PSS_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .unwrap();
        signature
    }
}

/// The parts of a request; the default is the one accepted form.
#[derive(Clone)]
pub struct Request {
    pub version: u8,
    pub names: Vec<Vec<u8>>,
    pub attributes: Vec<Vec<u8>>,
    pub algorithm: Vec<u8>,
}

impl Request {
    pub fn new(client_id: &str, tenant_id: &str, cu_id: &str) -> Self {
        Self {
            version: 0,
            names: vec![dc(0x16, tenant_id), cn(0x13, client_id)],
            attributes: vec![cuid(0x0c, cu_id)],
            algorithm: pss(&[
                tlv(0xa0, &sha_256(&[])),
                tlv(0xa1, &mgf1(&sha_256(&[]))),
                tlv(0xa2, &tlv(2, &[32])),
            ]),
        }
    }

    /// CertificationRequestInfo: what is signed.
    pub fn info(&self, key: &ClientKey) -> Vec<u8> {
        self.info_of(&key.public_key())
    }

    /// The same for a key of which only the public half (SubjectPublicKeyInfo) is known.
    pub fn info_of(&self, public_key: &[u8]) -> Vec<u8> {
        tlv(
            0x30,
            &[
                tlv(2, &[self.version]),
                tlv(0x30, &self.names.concat()),
                public_key.to_vec(),
                tlv(0xa0, &self.attributes.concat()),
            ]
            .concat(),
        )
    }

    /// The request with this signature.
    pub fn with_signature(&self, key: &ClientKey, signature: &[u8]) -> Vec<u8> {
        self.with_signature_of(&key.public_key(), signature)
    }

    /// The same for a key of which only the public half is known.
    pub fn with_signature_of(&self, public_key: &[u8], signature: &[u8]) -> Vec<u8> {
        let signature = tlv(3, &[&[0], signature].concat());
        let info = self.info_of(public_key);
        tlv(0x30, &[info, self.algorithm.clone(), signature].concat())
    }

    pub fn sign(&self, key: &ClientKey) -> Vec<u8> {
        self.with_signature(key, &key.sign(&self.info(key)))
    }

    pub fn base64(&self, key: &ClientKey) -> String {
        STANDARD.encode(self.sign(key))
    }
}

pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match length {
        0..=0x7f => vec![tag, length as u8],
        0x80..=0xff => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [head, content.to_vec()].concat()
}

fn relative_name(oid: &[u8], tag: u8, text: &str) -> Vec<u8> {
    let pair = [tlv(6, oid), tlv(tag, text.as_bytes())].concat();
    tlv(0x31, &tlv(0x30, &pair))
}

/// 0.9.2342.19200300.100.1.25
pub fn dc(tag: u8, text: &str) -> Vec<u8> {
    relative_name(b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19", tag, text)
}

/// 2.5.4.3
pub fn cn(tag: u8, text: &str) -> Vec<u8> {
    relative_name(b"\x55\x04\x03", tag, text)
}

/// 1.3.6.1.4.1.311.90.2.10
pub fn cuid(tag: u8, text: &str) -> Vec<u8> {
    attribute(b"\x2b\x06\x01\x04\x01\x82\x37\x5a\x02\x0a", tag, text)
}

pub fn attribute(oid: &[u8], tag: u8, text: &str) -> Vec<u8> {
    let values = tlv(0x31, &tlv(tag, text.as_bytes()));
    tlv(0x30, &[tlv(6, oid), values].concat())
}

/// 1.2.840.113549.1.1.10 with parameters.
pub fn pss(parameters: &[Vec<u8>]) -> Vec<u8> {
    let oid = tlv(6, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a");
    tlv(0x30, &[oid, tlv(0x30, &parameters.concat())].concat())
}

/// 2.16.840.1.101.3.4.2.1
pub fn sha_256(parameters: &[u8]) -> Vec<u8> {
    let oid = tlv(6, b"\x60\x86\x48\x01\x65\x03\x04\x02\x01");
    tlv(0x30, &[&oid, parameters].concat())
}

/// 1.2.840.113549.1.1.8
pub fn mgf1(hash: &[u8]) -> Vec<u8> {
    let oid = tlv(6, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08");
    tlv(0x30, &[&oid, hash].concat())
}
