//! From a bound token to one that is bound to nothing: only if the caller's policy says so in as many words, only
//! because bound tokens cannot be had here, and never unseen.
//!
//! What is no reason: anything that may pass (an outage, a deadline), anything that an attacker can bring about
//! by answering wrongly (a redirect, a 404 that is not the metadata service's, a certificate for another key, a
//! token of another type), a certificate or a key that is refused, an attestation that fails. And a floor above
//! `software` rules it out altogether: a token without a key is weaker than every key.

pub(crate) mod refusals;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use keybond_keys::Strength;
use tokio::time::Instant;

use crate::{
    bearer::BearerToken,
    client::{ManagedIdentity, Shared},
    error::{Error, SourceProblem},
    leg::Leg,
    telemetry,
    token::{
        AccessToken, TokenType,
        remedy::{RESOURCE_UNBOUND, TENANT_UNBOUND},
        resource_of,
    },
};

/// How long it is remembered that a service takes no bound tokens, for callers who take others.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// The warning is given no more often than this; the metric counts every time.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Whether a token must be bound to the held key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BindingPolicy {
    /// It must: where bound tokens cannot be had, there is an error.
    #[default]
    Required,
    /// Where bound tokens cannot be had, one that is bound to nothing will do. Whoever steals it can use it.
    AllowBearer,
}

/// A token as a [`BindingPolicy`] allowed it.
#[derive(Debug)]
#[must_use]
pub enum GrantedToken {
    /// Bound to the held key.
    Bound(Arc<AccessToken>),
    /// Bound to nothing, for the reason given.
    Downgraded {
        /// The token.
        token: Arc<BearerToken>,
        /// Why there is no bound one.
        reason: Error,
    },
}

impl GrantedToken {
    /// The token itself. Whoever prints it, prints a secret.
    pub fn secret(&self) -> &str {
        match self {
            Self::Bound(token) => token.secret(),
            Self::Downgraded { token, .. } => token.secret(),
        }
    }

    /// How it is used.
    pub fn token_type(&self) -> TokenType {
        match self {
            Self::Bound(token) => token.token_type(),
            Self::Downgraded { token, .. } => token.token_type(),
        }
    }

    /// When it expires.
    pub fn expires_on(&self) -> SystemTime {
        match self {
            Self::Bound(token) => token.expires_on(),
            Self::Downgraded { token, .. } => token.expires_on(),
        }
    }

    /// The resource it is for, without `/.default`.
    pub fn resource(&self) -> &str {
        match self {
            Self::Bound(token) => token.resource(),
            Self::Downgraded { token, .. } => token.resource(),
        }
    }

    /// What the key behind it was shown to be; `None` for a token that is bound to nothing.
    pub fn strength(&self) -> Option<Strength> {
        match self {
            Self::Bound(token) => token.strength(),
            Self::Downgraded { .. } => None,
        }
    }

    /// Why it is bound to nothing; `None` if it is bound.
    pub fn downgraded(&self) -> Option<&Error> {
        match self {
            Self::Bound(_) => None,
            Self::Downgraded { reason, .. } => Some(reason),
        }
    }
}

impl ManagedIdentity {
    /// A token for a resource, bound if it can be had, otherwise as the policy says.
    ///
    /// With [`BindingPolicy::Required`] this is [`ManagedIdentity::token`]. A downgrade is in the result, in the
    /// log (a warning, target `keybond`) and in the metric `keybond_downgrades_total` with the reason's code.
    /// Bound tokens that are cached are used whatever the reason.
    ///
    /// # Errors
    /// As [`ManagedIdentity::token`], and if the reason allows a downgrade, as [`ManagedIdentity::bearer_token`].
    pub async fn token_with_policy(
        &self,
        resource: &str,
        policy: BindingPolicy,
    ) -> Result<GrantedToken, Error> {
        let resource = resource_of(resource)?;
        if policy == BindingPolicy::Required {
            return Ok(GrantedToken::Bound(self.token(resource).await?));
        }
        let shared = &self.shared;
        // What was said about bound tokens says nothing about one that is here.
        let cached = (shared.tokens)
            .usable(resource, shared.clock.now(), &shared.bindings)
            .is_some();
        let unbound = &shared.remedies.unbound;
        let reason = match unbound.of(resource, Instant::now()).filter(|_| !cached) {
            Some(reason) => reason,
            None => match self.token(resource).await {
                Ok(token) => return Ok(GrantedToken::Bound(token)),
                Err(error) => error,
            },
        };
        if !shared.may_downgrade(&reason) {
            return Err(reason);
        }
        shared.remember_unbound(resource, &reason);
        let token = self.bearer_token(resource).await?;
        if shared
            .remedies
            .downgrade_warning
            .pass(shared.clock.now(), WARN_EVERY)
        {
            tracing::warn!(
                target: "keybond", %resource, code = reason.code(), %reason,
                "downgraded: this token is bound to nothing, as the caller's policy allows"
            );
        }
        telemetry::downgraded(&reason);
        Ok(GrantedToken::Downgraded { token, reason })
    }
}

impl Shared {
    /// Whether an error means that bound tokens cannot be had here, and no floor stands against a downgrade.
    fn may_downgrade(&self, reason: &Error) -> bool {
        self.effective_floor() <= Strength::Software && is_incapability(reason)
    }

    /// A service that said no is not asked again for every token.
    fn remember_unbound(&self, resource: &str, reason: &Error) {
        let now = Instant::now();
        let unbound = &self.remedies.unbound;
        // What is known without asking anybody need not be remembered, and the switch is read live.
        let asked = matches!(reason, Error::V1Only { .. } | Error::Refused { .. });
        if asked && unbound.of(resource, now).is_none() {
            unbound.remember(resource, reason, now + REMEMBERED, now);
        }
    }
}

fn is_incapability(reason: &Error) -> bool {
    match reason {
        Error::Disabled { .. } | Error::V1Only { .. } => true,
        Error::Source { problem, .. } => matches!(problem, SourceProblem::PopNotSupported),
        // The same numbers from anybody else are not the token service's word.
        Error::Refused {
            at, error_codes, ..
        } => {
            at.leg == Leg::Token
                && error_codes
                    .iter()
                    .any(|code| [RESOURCE_UNBOUND, TENANT_UNBOUND].contains(code))
        }
        _ => false,
    }
}
