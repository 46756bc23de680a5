//! DPoP proofs (RFC 9449).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_keys::{HashAlgorithm, HeldKey, SignatureScheme};
use serde_json::{Map, Value, json};

use super::{
    jwk::Jwk,
    jws::{PopError, check_method, fresh_id, parse_url, sign},
};

/// A DPoP proof to be, for one request. The result goes into the header `DPoP`, the token it belongs to into
/// `Authorization: DPoP <token>`.
///
/// ```
/// use std::time::SystemTime;
/// use keybond::pop::DpopProof;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = keybond_keys::KeyProvider::in_memory().get_or_create_key().await?;
/// let proof = DpopProof::new("POST", "https://server.example/token")?.sign(&key, SystemTime::now()).await?;
/// assert_eq!(proof.split('.').count(), 3);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct DpopProof {
    claims: Map<String, Value>,
    scheme: SignatureScheme,
}

impl DpopProof {
    /// A proof for this method (`htm`) and URL (`htu`: without query and fragment, RFC 9449 §4.2). Signed with
    /// PS256 unless said otherwise.
    ///
    /// # Errors
    /// [`PopError::Url`] or [`PopError::Argument`].
    pub fn new(method: &str, url: &str) -> Result<Self, PopError> {
        check_method(method)?;
        let mut url = parse_url(url)?;
        url.set_query(None);
        url.set_fragment(None);
        let mut claims = Map::new();
        claims.insert("htm".into(), method.into());
        claims.insert("htu".into(), url.as_str().into());
        Ok(Self {
            claims,
            scheme: SignatureScheme::RsaPssSha256,
        })
    }

    /// Ties the proof to an access token: `ath`, the token's SHA-256 (RFC 9449 §4.2).
    pub fn access_token(mut self, token: &str) -> Self {
        let hash = HashAlgorithm::Sha256.digest(token.as_bytes());
        self.claims
            .insert("ath".into(), URL_SAFE_NO_PAD.encode(hash).into());
        self
    }

    /// The nonce that the server demands (RFC 9449 §8).
    pub fn nonce(mut self, nonce: &str) -> Self {
        self.claims.insert("nonce".into(), nonce.into());
        self
    }

    /// Another signature scheme, such as RS256.
    pub fn scheme(mut self, scheme: SignatureScheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Signs: adds `iat` (Unix seconds) and a fresh `jti`; the header has `typ` `dpop+jwt` and the public `jwk`.
    ///
    /// # Errors
    /// [`PopError::Key`], or [`PopError::Random`] when no `jti` can be made.
    pub async fn sign(mut self, key: &HeldKey, now: SystemTime) -> Result<String, PopError> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.claims.insert("iat".into(), seconds.into());
        self.claims.insert("jti".into(), fresh_id()?.into());
        let mut header = Map::new();
        header.insert("typ".into(), "dpop+jwt".into());
        header.insert("jwk".into(), json!(Jwk::of(key.public_key())));
        sign(key, self.scheme, header, &self.claims).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn htu_has_neither_query_nor_fragment() {
        let proof = DpopProof::new("GET", "https://host:8443/a/b?c=d#e").unwrap();
        assert_eq!(proof.claims["htu"], "https://host:8443/a/b");
    }

    #[test]
    fn ath_is_that_of_rfc_9449() {
        // RFC 9449 §7.1.
        let proof =
            DpopProof::new("GET", "https://resource.example.org/protectedresource").unwrap();
        let proof = proof.access_token("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU");
        assert_eq!(
            proof.claims["ath"],
            "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
        );
    }
}
