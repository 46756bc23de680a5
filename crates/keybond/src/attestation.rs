//! Attestation: somebody vouches that the key is what its evidence says. Optional: without a provider the
//! certificate is requested without it, and it is the issuer who decides whether that will do.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use keybond_keys::{HeldKey, KeyId};
use keybond_tls::BoxFuture;
use url::Url;

use crate::{
    error::{At, Error, Malformation},
    leg::{Done, Leg},
};

/// Gets a statement about a key from an attestation service.
pub trait AttestationProvider: Send + Sync + 'static {
    /// Attests the key. The caller bounds the time by dropping the future.
    fn attest<'a>(
        &'a self,
        request: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>>;
}

/// What is to be attested, and where.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttestationRequest<'a> {
    /// The attestation service, as platform metadata names it: an https URL.
    pub endpoint: &'a str,
    /// The key.
    pub key: &'a HeldKey,
    /// The client id of the identity that the key is for.
    pub client_id: &'a str,
    /// Whether what was attested before is not accepted any more: a provider that keeps statements must get a
    /// new one.
    pub fresh: bool,
}

/// An attestation service's statement: a JWT. Not printed, for whoever has it can present it.
pub struct AttestationToken(String);

impl AttestationToken {
    /// Wraps a JWT.
    pub fn new(jwt: impl Into<String>) -> Self {
        Self(jwt.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AttestationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttestationToken(<redacted>)")
    }
}

/// Why a key was not attested. A failure is never a reason to go on without attestation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct AttestationError {
    /// What happened, in words, without secrets.
    pub detail: String,
    /// Whether the same request may succeed a little later.
    pub retryable: bool,
}

/// A statement is not used in its last minutes: it has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// The statement in use, kept while it holds for the same key and service.
#[derive(Default)]
pub(crate) struct Attestations {
    kept: ArcSwapOption<Kept>,
}

struct Kept {
    endpoint: String,
    key: KeyId,
    token: Arc<AttestationToken>,
    until: SystemTime,
}

impl Attestations {
    /// Gives the statement up: whoever it was presented to did not accept it.
    pub(crate) fn forget(&self) {
        self.kept.store(None);
    }

    fn usable(
        &self,
        endpoint: &Url,
        key: &HeldKey,
        now: SystemTime,
    ) -> Option<Arc<AttestationToken>> {
        let kept = self.kept.load();
        let kept = kept.as_ref()?;
        let fits = kept.endpoint == endpoint.as_str() && kept.key == key.id() && now < kept.until;
        fits.then(|| Arc::clone(&kept.token))
    }

    /// Keeps a statement that says until when it holds; another one is asked for each time.
    fn keep(&self, endpoint: &Url, key: &HeldKey, token: &Arc<AttestationToken>, now: SystemTime) {
        let until = expiry(&token.0).and_then(|expiry| expiry.checked_sub(MARGIN));
        if let Some(until) = until.filter(|until| now < *until) {
            self.kept.store(Some(Arc::new(Kept {
                endpoint: endpoint.as_str().to_owned(),
                key: key.id(),
                token: Arc::clone(token),
                until,
            })));
        }
    }
}

/// When a JWT expires, if it can be read and says so.
fn expiry(jwt: &str) -> Option<SystemTime> {
    let payload = jwt.split('.').nth(1)?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let seconds = claims.get("exp")?.as_u64()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// What is to be attested, for one way to a certificate.
pub(crate) struct Attesting<'a> {
    pub(crate) provider: &'a dyn AttestationProvider,
    pub(crate) kept: &'a Attestations,
    pub(crate) endpoint: &'a Url,
    pub(crate) key: &'a HeldKey,
    pub(crate) client_id: &'a str,
    /// Whether the statement in use is given up first.
    pub(crate) fresh: bool,
    pub(crate) now: SystemTime,
}

/// The attestation leg.
pub(crate) async fn attest(
    attesting: Attesting<'_>,
    correlation_id: &Arc<str>,
) -> Result<Done<Arc<AttestationToken>>, Error> {
    let Attesting {
        provider,
        kept,
        endpoint,
        key,
        client_id,
        fresh,
        now,
    } = attesting;
    if endpoint.scheme() != "https" {
        let expected = "an https URL";
        return Err(At::new(Leg::Attestation, correlation_id)
            .malformed("attestationEndpoint", Malformation::Unexpected { expected }));
    }
    if fresh {
        kept.forget();
    } else if let Some(token) = kept.usable(endpoint, key, now) {
        return Ok(Done::new(token, "the key was attested before"));
    }
    let failed = |detail: String, retryable| Error::Attestation {
        detail,
        retryable,
        correlation_id: Arc::clone(correlation_id),
    };
    let request = AttestationRequest {
        endpoint: endpoint.as_str(),
        key,
        client_id,
        fresh,
    };
    let token = provider
        .attest(request)
        .await
        .map_err(|error| failed(error.detail, error.retryable))?;
    if token.0.trim().is_empty() {
        return Err(failed("the provider gave an empty token".into(), false));
    }
    let token = Arc::new(token);
    kept.keep(endpoint, key, &token, now);
    Ok(Done::new(token, "the key was attested"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_says_when_it_expires_or_is_not_kept() {
        let jwt = |payload: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(expiry(&jwt(r#"{"exp":1781481600}"#)), at(1_781_481_600));
        for other in [
            r#"{"exp":"soon"}"#,
            r#"{"exp":-1}"#,
            "{}",
            "x",
            r#"{"exp":18446744073709551615}"#,
        ] {
            assert_eq!(expiry(&jwt(other)), None, "{other}");
        }
        for other in ["", "opaque", "a.b", "a.!.c"] {
            assert_eq!(expiry(other), None, "{other}");
        }
    }
}
