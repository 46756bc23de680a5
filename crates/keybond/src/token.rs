//! Tokens that are bound to a certificate.

pub(crate) mod cache;
pub(crate) mod claims;
mod kept;
mod record;
pub(crate) mod remedy;
pub(crate) mod request;
pub(crate) mod settle;
pub(crate) mod sharing;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use keybond_keys::Strength;

use crate::{
    credential::Binding,
    error::Error,
    lifecycle::{Age, Life, SKEW},
    time::rfc3339,
};

/// An access token with the binding that it belongs to. Printed without its secret:
///
/// ```compile_fail
/// fn copy(token: &keybond::AccessToken) -> keybond::AccessToken {
///     token.clone()
/// }
/// ```
///
/// ```compile_fail
/// fn write(token: &keybond::AccessToken) -> String {
///     serde_json::to_string(token).unwrap()
/// }
/// ```
// The reference count before it gets a cache line of its own: see `cache`.
#[repr(align(64))]
pub struct AccessToken {
    /// From when until when nothing is to be looked at but this and the version.
    fresh_from: SystemTime,
    fresh_until: SystemTime,
    /// The binding's.
    version: u64,
    facts: Arc<Facts>,
}

/// What a token is, once for all handles to it.
struct Facts {
    secret: String,
    expires_on: SystemTime,
    life: Life,
    resource: String,
    confirmed: bool,
    binding: Arc<Binding>,
    refused: AtomicBool,
}

/// How a token is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenType {
    /// Bound to a certificate; accepted only over mutual TLS with it.
    MtlsPop,
    /// Accepted from whoever has it.
    Bearer,
}

impl TokenType {
    /// The name in the protocol and in the `Authorization` header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MtlsPop => "mtls_pop",
            Self::Bearer => "Bearer",
        }
    }
}

impl fmt::Display for TokenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl AccessToken {
    /// The token itself. Whoever prints it, prints a secret.
    pub fn secret(&self) -> &str {
        &self.facts.secret
    }

    /// How it is used.
    pub fn token_type(&self) -> TokenType {
        TokenType::MtlsPop
    }

    /// When it expires.
    pub fn expires_on(&self) -> SystemTime {
        self.facts.expires_on
    }

    /// From when on a fresh one is asked for in the background.
    pub fn refresh_on(&self) -> SystemTime {
        self.facts.life.refresh_on
    }

    /// The resource it is for, without `/.default`.
    pub fn resource(&self) -> &str {
        &self.facts.resource
    }

    /// The binding it belongs to; `None` for a token that is bound to nothing.
    pub fn binding(&self) -> Option<&Arc<Binding>> {
        Some(&self.facts.binding)
    }

    /// What the key behind it was shown to be; `None` for a token that is bound to nothing.
    pub fn strength(&self) -> Option<Strength> {
        Some(self.facts.binding.strength())
    }

    /// Whether the token itself states its certificate, and the right one. `false` means that it could not be
    /// read; a token that states another certificate is never returned.
    pub fn is_confirmed(&self) -> bool {
        self.facts.confirmed
    }

    /// A token that came as an answer.
    pub(crate) fn new(
        secret: String,
        expires_on: SystemTime,
        life: Life,
        resource: String,
        confirmed: bool,
        binding: Arc<Binding>,
    ) -> Self {
        Self::of(Arc::new(Facts {
            secret,
            expires_on,
            life,
            resource,
            confirmed,
            binding,
            refused: AtomicBool::new(false),
        }))
    }

    fn of(facts: Arc<Facts>) -> Self {
        Self {
            fresh_from: facts.life.obtained.checked_sub(SKEW).unwrap_or(UNIX_EPOCH),
            // When the certificate is to be replaced, somebody has to see to it.
            fresh_until: facts.life.refresh_on.min(facts.binding.renew_on()),
            version: facts.binding.version(),
            facts,
        }
    }

    /// Another handle to the same token, with a reference count of its own.
    fn another(&self) -> Self {
        Self::of(Arc::clone(&self.facts))
    }

    /// Whether it may be handed out at this time and nothing else is to be done.
    fn is_fresh(&self, now: SystemTime) -> bool {
        self.fresh_from <= now && now < self.fresh_until
    }

    /// Whether it may be handed out at this time.
    pub(crate) fn is_usable(&self, now: SystemTime) -> bool {
        self.facts.life.age(now) != Age::Over
    }

    /// When it was asked for, by this machine's clock.
    pub(crate) fn obtained(&self) -> SystemTime {
        self.facts.life.obtained
    }

    /// Takes note that a resource refused it; whether it is the first to do so.
    pub(crate) fn is_first_refusal(&self) -> bool {
        !self.facts.refused.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn bound_to(&self) -> &Arc<Binding> {
        &self.facts.binding
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("secret", &"<redacted>")
            .field("resource", &self.facts.resource)
            .field("expires_on", &rfc3339(self.facts.expires_on))
            .field("confirmed", &self.facts.confirmed)
            .field("binding", &self.facts.binding)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("<redacted>")
    }
}

/// The resource behind a resource URI or a scope: `https://x/`, `https://x/.default` and `https://x` are one.
pub(crate) fn resource_of(resource: &str) -> Result<&str, Error> {
    let trimmed = resource.trim();
    let trimmed = trimmed.strip_suffix("/.default").unwrap_or(trimmed);
    let trimmed = trimmed.trim_end_matches('/');
    if trimmed.is_empty() || trimmed.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::configuration(
            "resource",
            format!(
                "`{}` is neither a resource URI nor a scope that ends in /.default",
                resource.escape_debug()
            ),
        ));
    }
    Ok(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_and_scopes_are_one() {
        for text in [
            "https://vault.azure.net",
            "https://vault.azure.net/",
            "https://vault.azure.net/.default",
            "https://vault.azure.net//.default",
            " https://vault.azure.net ",
        ] {
            assert_eq!(resource_of(text).unwrap(), "https://vault.azure.net");
        }
        for text in ["", "/", "/.default", "https://a https://b", "a\nb"] {
            assert_eq!(resource_of(text).unwrap_err().field(), Some("resource"));
        }
    }
}
