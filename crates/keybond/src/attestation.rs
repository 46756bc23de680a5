//! Attestation: somebody vouches that the key is what its evidence says. Optional: without a provider the
//! certificate is requested without it, and it is the issuer who decides whether that will do.

use std::{fmt, sync::Arc};

use keybond_keys::HeldKey;
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

/// The attestation leg.
pub(crate) async fn attest(
    provider: &dyn AttestationProvider,
    endpoint: &Url,
    key: &HeldKey,
    client_id: &str,
    correlation_id: &Arc<str>,
) -> Result<Done<AttestationToken>, Error> {
    if endpoint.scheme() != "https" {
        let expected = "an https URL";
        return Err(At::new(Leg::Attestation, correlation_id)
            .malformed("attestationEndpoint", Malformation::Unexpected { expected }));
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
    };
    let token = provider
        .attest(request)
        .await
        .map_err(|error| failed(error.detail, error.retryable))?;
    if token.0.trim().is_empty() {
        return Err(failed("the provider gave an empty token".into(), false));
    }
    Ok(Done::new(token, "the key was attested"))
}
