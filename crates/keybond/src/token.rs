//! Tokens that are bound to a certificate.

pub(crate) mod cache;
pub(crate) mod request;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use keybond_keys::Strength;

use crate::{credential::Binding, error::Error, time::rfc3339};

/// A token is not handed out in its last minutes: it has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5 * 60);

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
pub struct AccessToken {
    secret: String,
    expires_on: SystemTime,
    refresh_on: SystemTime,
    usable_until: SystemTime,
    resource: String,
    confirmed: bool,
    binding: Arc<Binding>,
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
        &self.secret
    }

    /// How it is used.
    pub fn token_type(&self) -> TokenType {
        TokenType::MtlsPop
    }

    /// When it expires.
    pub fn expires_on(&self) -> SystemTime {
        self.expires_on
    }

    /// From when on a fresh one is asked for in the background.
    pub fn refresh_on(&self) -> SystemTime {
        self.refresh_on
    }

    /// The resource it is for, without `/.default`.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The binding it belongs to; `None` for a token that is bound to nothing.
    pub fn binding(&self) -> Option<&Arc<Binding>> {
        Some(&self.binding)
    }

    /// What the key behind it was shown to be; `None` for a token that is bound to nothing.
    pub fn strength(&self) -> Option<Strength> {
        Some(self.binding.strength())
    }

    /// Whether the token itself states its certificate, and the right one. `false` means that it could not be
    /// read; a token that states another certificate is never returned.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether it may be handed out at this time.
    pub(crate) fn is_usable(&self, now: SystemTime) -> bool {
        now < self.usable_until && now < self.binding.not_after()
    }

    pub(crate) fn bound_to(&self) -> &Arc<Binding> {
        &self.binding
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("secret", &"<redacted>")
            .field("resource", &self.resource)
            .field("expires_on", &rfc3339(self.expires_on))
            .field("confirmed", &self.confirmed)
            .field("binding", &self.binding)
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
