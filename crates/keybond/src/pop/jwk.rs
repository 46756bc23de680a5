//! RSA public keys as JSON Web Keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_keys::{HashAlgorithm, PublicKey};
use serde::Serialize;

/// The public JWK of an RSA key (RFC 7517, RFC 7518 §6.3.1): `e`, `kty`, `n` and nothing else, in the order in
/// which RFC 7638 hashes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwk {
    e: String,
    kty: &'static str,
    n: String,
}

impl Jwk {
    /// The JWK of a public key.
    ///
    /// ```
    /// # use keybond_keys::PublicKey;
    /// let key = PublicKey::from_rsa_components(&[0xff; 256], &[1, 0, 1])?;
    /// let jwk = keybond::pop::Jwk::of(&key);
    /// assert!(jwk.canonical().starts_with(r#"{"e":"AQAB","kty":"RSA","n":"____"#));
    /// # Ok::<(), keybond_keys::InvalidPublicKey>(())
    /// ```
    pub fn of(key: &PublicKey) -> Self {
        Self {
            e: URL_SAFE_NO_PAD.encode(key.exponent()),
            kty: "RSA",
            n: URL_SAFE_NO_PAD.encode(key.modulus()),
        }
    }

    /// The canonical JSON of RFC 7638 §3: required members only, in lexicographic order, no spaces.
    pub fn canonical(&self) -> String {
        // Base64url needs no escapes.
        format!(
            r#"{{"e":"{}","kty":"{}","n":"{}"}}"#,
            self.e, self.kty, self.n
        )
    }

    /// The thumbprint (RFC 7638): base64url of the SHA-256 of the canonical JSON. Used as `kid` and `jkt`.
    pub fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(HashAlgorithm::Sha256.digest(self.canonical().as_bytes()))
    }

    /// The `req_cnf` parameter that asks for a token bound to this key: base64url of `{"kid":"<thumbprint>"}`.
    pub fn req_cnf(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!(r#"{{"kid":"{}"}}"#, self.thumbprint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_vector_of_rfc_7638() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi\
                 FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgn\
                 Yb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqb\
                 w0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let key = PublicKey::from_rsa_components(&URL_SAFE_NO_PAD.decode(n).unwrap(), &[1, 0, 1])
            .unwrap();
        let jwk = Jwk::of(&key);
        assert_eq!(
            jwk.thumbprint(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
        assert_eq!(
            jwk.req_cnf(),
            "eyJraWQiOiJOemJMc1hoOHVEQ2NkLTZNTndYRjRXXzdub1dYRlpBZkhreFpzUkdDOVhzIn0"
        );
    }
}
