//! The token service's signing key: RS256 JSON Web Tokens and the key set that verifies them.

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{
        KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaPublicKeyComponents,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    der::{INTEGER, Reader, SEQUENCE},
    error::EmulatorError,
};

/// An RSA-2048 key that signs tokens.
pub(crate) struct TokenSigner {
    key: KeyPair,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    key_id: String,
}

impl TokenSigner {
    /// Makes a new key: PKCS #8, DER.
    pub(crate) fn generate() -> Result<Vec<u8>, EmulatorError> {
        let failed = |_| EmulatorError::crypto("making the token service's key");
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        Ok(pkcs8.as_ref().to_vec())
    }

    /// A key made earlier.
    pub(crate) fn open(pkcs8: &[u8]) -> Result<Self, EmulatorError> {
        let failed = || EmulatorError::crypto("reading the token service's key");
        let key = KeyPair::from_pkcs8(pkcs8).map_err(|_| failed())?;
        let (modulus, exponent) = {
            let mut reader = Reader::new(key.public_key().as_ref());
            let mut rsa = reader
                .value(SEQUENCE, "RSAPublicKey", "SEQUENCE")
                .map_err(|_| failed())?;
            let mut number = || -> Result<Vec<u8>, EmulatorError> {
                let value = rsa
                    .value(INTEGER, "RSAPublicKey", "INTEGER")
                    .map_err(|_| failed())?;
                let bytes = value.rest();
                Ok(bytes.strip_prefix(&[0]).unwrap_or(bytes).to_vec())
            };
            (number()?, number()?)
        };
        let key_id = base64url(digest::digest(&digest::SHA256, &modulus).as_ref());
        Ok(Self {
            key,
            modulus,
            exponent,
            key_id,
        })
    }

    /// A signed token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, EmulatorError> {
        self.sign_with(&json!({}), claims)
    }

    /// A signed token with these further members of its header.
    pub(crate) fn sign_with(
        &self,
        members: &Value,
        claims: &Value,
    ) -> Result<String, EmulatorError> {
        let mut header = json!({ "typ": "JWT", "alg": "RS256", "kid": self.key_id });
        for (name, value) in members.as_object().into_iter().flatten() {
            header[name] = value.clone();
        }
        let input = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                input.as_bytes(),
                &mut signature,
            )
            .map_err(|_| EmulatorError::crypto("signing a token"))?;
        Ok(format!("{input}.{}", base64url(&signature)))
    }

    /// The claims of a token this key signed; `None` for any other.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        self.verify_with_header(token).map(|(_, claims)| claims)
    }

    /// Header and claims of a token this key signed.
    pub(crate) fn verify_with_header(&self, token: &str) -> Option<(Value, Value)> {
        let (input, signature) = token.rsplit_once('.')?;
        let (header, claims) = input.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "RS256" || header["kid"] != self.key_id.as_str() {
            return None;
        }
        RsaPublicKeyComponents {
            n: &self.modulus,
            e: &self.exponent,
        }
        .verify(
            &RSA_PKCS1_2048_8192_SHA256,
            input.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).ok()?,
        )
        .ok()?;
        let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        Some((header, claims))
    }

    /// The public half as a JSON Web Key Set (RFC 7517).
    pub(crate) fn key_set(&self) -> Value {
        json!({ "keys": [{
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.key_id,
            "n": base64url(&self.modulus),
            "e": base64url(&self.exponent),
        }] })
    }
}

/// The name RFC 8705 gives to a certificate: base64url of the SHA-256 of its DER.
pub(crate) fn thumbprint(certificate: &[u8]) -> String {
    base64url(digest::digest(&digest::SHA256, certificate).as_ref())
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_verifies_with_the_published_key_set_and_only_unchanged() {
        let signer = TokenSigner::open(&TokenSigner::generate().unwrap()).unwrap();
        let token = signer.sign(&json!({ "aud": "x" })).unwrap();
        assert_eq!(signer.verify(&token).unwrap()["aud"], "x");

        let keys = signer.key_set();
        let part = |name: &str| {
            URL_SAFE_NO_PAD
                .decode(keys["keys"][0][name].as_str().unwrap())
                .unwrap()
        };
        let (input, signature) = token.rsplit_once('.').unwrap();
        RsaPublicKeyComponents {
            n: part("n"),
            e: part("e"),
        }
        .verify(
            &RSA_PKCS1_2048_8192_SHA256,
            input.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();

        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(signer.verify(&changed).is_none(), "byte {at} changed");
        }
    }

    #[test]
    fn another_key_and_other_algorithms_are_refused() {
        let signer = TokenSigner::open(&TokenSigner::generate().unwrap()).unwrap();
        let other = TokenSigner::open(&TokenSigner::generate().unwrap()).unwrap();
        let token = other.sign(&json!({})).unwrap();
        assert!(signer.verify(&token).is_none());
        let none = format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(b"{}"));
        assert!(signer.verify(&none).is_none());
        assert!(signer.verify("").is_none());
        assert!(signer.verify("a.b").is_none());
    }
}
