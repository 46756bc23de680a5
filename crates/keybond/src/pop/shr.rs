//! Signed HTTP Requests: the access token inside a JWS about the request
//! (draft-ietf-oauth-signed-http-request-03, with the members that Microsoft's services know).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_keys::{HashAlgorithm, HeldKey, SignatureScheme};
use serde_json::{Map, Value, json};

use super::{
    jwk::Jwk,
    jws::{PopError, check_method, fresh_id, parse_url, sign},
};

/// A Signed HTTP Request to be: what to put into it, and [`SignedHttpRequest::sign`].
///
/// The result goes into `Authorization: PoP <jws>`.
///
/// ```
/// use std::time::SystemTime;
/// use keybond::pop::SignedHttpRequest;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = keybond_keys::KeyProvider::in_memory().get_or_create_key().await?;
/// let jws = SignedHttpRequest::new("access-token")
///     .request("GET", "https://resource.example/items?top=5")?
///     .sign(&key, SystemTime::now())
///     .await?;
/// assert_eq!(jws.split('.').count(), 3);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct SignedHttpRequest {
    claims: Map<String, Value>,
    scheme: SignatureScheme,
}

impl SignedHttpRequest {
    /// Starts with the access token (`at`). Signed with PS256 unless said otherwise.
    pub fn new(access_token: &str) -> Self {
        let mut claims = Map::new();
        claims.insert("at".into(), access_token.into());
        Self {
            claims,
            scheme: SignatureScheme::RsaPssSha256,
        }
    }

    /// Binds method (`m`), host with a port that is not the scheme's own (`u`), path (`p`) and the query (`q`).
    ///
    /// # Errors
    /// [`PopError::Url`] or [`PopError::Argument`].
    pub fn request(mut self, method: &str, url: &str) -> Result<Self, PopError> {
        check_method(method)?;
        let url = parse_url(url)?;
        let host = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        self.claims.insert("m".into(), method.into());
        self.claims.insert("u".into(), authority.into());
        self.claims.insert("p".into(), url.path().into());
        if let Some(query) = url.query().filter(|query| !query.is_empty()) {
            self.claims.insert("q".into(), query_hash(query));
        }
        Ok(self)
    }

    /// The nonce the server gave; a fresh random one if not set.
    pub fn nonce(mut self, nonce: &str) -> Self {
        self.claims.insert("nonce".into(), nonce.into());
        self
    }

    /// Another signature scheme, such as RS256.
    pub fn scheme(mut self, scheme: SignatureScheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Signs: adds `ts` (Unix seconds), `cnf.jwk` and the nonce; the header has `typ` `pop` and `kid`
    /// (RFC 7638).
    ///
    /// # Errors
    /// [`PopError::Key`], or [`PopError::Random`] when no nonce can be made.
    pub async fn sign(mut self, key: &HeldKey, now: SystemTime) -> Result<String, PopError> {
        let jwk = Jwk::of(key.public_key());
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.claims.insert("ts".into(), seconds.into());
        self.claims.insert("cnf".into(), json!({ "jwk": jwk }));
        if !self.claims.contains_key("nonce") {
            self.claims.insert("nonce".into(), fresh_id()?.into());
        }
        let mut header = Map::new();
        header.insert("typ".into(), "pop".into());
        header.insert("kid".into(), jwk.thumbprint().into());
        sign(key, self.scheme, header, &self.claims).await
    }
}

/// `q` (§3 of the draft): the parameters' names in order, and the hash of the parameters as they stand in the URL.
fn query_hash(query: &str) -> Value {
    let names: Vec<&str> = query
        .split('&')
        .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
        .collect();
    let hash = URL_SAFE_NO_PAD.encode(HashAlgorithm::Sha256.digest(query.as_bytes()));
    json!([names, hash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_example_of_the_draft() {
        // draft-ietf-oauth-signed-http-request-03, §3.
        assert_eq!(
            query_hash("b=bar&a=foo&c=duck"),
            json!([
                ["b", "a", "c"],
                "u4LgkGUWhP9MsKrEjA4dizIllDXluDku6ZqCeyuR-JY"
            ])
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let attempt = |method, url| {
            SignedHttpRequest::new("t")
                .request(method, url)
                .err()
                .map(|e| e.code())
        };
        assert_eq!(attempt("GET", "https://host/"), None);
        assert_eq!(
            attempt("GE T", "https://host/"),
            Some("pop_invalid_argument")
        );
        assert_eq!(attempt("GET", "ftp://host/"), Some("pop_invalid_url"));
        assert_eq!(attempt("GET", "/path"), Some("pop_invalid_url"));
    }
}
