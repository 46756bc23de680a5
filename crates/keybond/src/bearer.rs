//! Bearer tokens, for those who ask for one knowingly. They are bound to nothing: whoever has one can use it.

pub(crate) mod arc;
pub(crate) mod cache;
pub(crate) mod request;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::cache::BearerSlot;
use crate::{
    client::{ManagedIdentity, Shared},
    error::Error,
    leg::Leg,
    source::Source,
    telemetry,
    time::rfc3339,
    token::{TokenType, resource_of},
};

/// A token is not handed out in its last minutes: it has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// After a failure in the background, how long until the next try.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(30);

/// A token that is bound to nothing, and where it came from. Printed without its secret:
///
/// ```compile_fail
/// fn copy(token: &keybond::BearerToken) -> keybond::BearerToken {
///     token.clone()
/// }
/// ```
///
/// ```compile_fail
/// fn write(token: &keybond::BearerToken) -> String {
///     serde_json::to_string(token).unwrap()
/// }
/// ```
pub struct BearerToken {
    pub(crate) secret: String,
    pub(crate) expires_on: SystemTime,
    pub(crate) refresh_on: SystemTime,
    pub(crate) usable_until: SystemTime,
    pub(crate) resource: String,
    pub(crate) source: Source,
}

impl BearerToken {
    /// The token itself. Whoever prints it, prints a secret that anybody can use.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// How it is used: always [`TokenType::Bearer`].
    pub fn token_type(&self) -> TokenType {
        TokenType::Bearer
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

    /// Who gave it.
    pub fn source(&self) -> Source {
        self.source
    }

    fn is_usable(&self, now: SystemTime) -> bool {
        now < self.usable_until
    }

    /// A token with its times: refreshed halfway, not handed out in its last minutes.
    pub(crate) fn new(
        secret: &str,
        resource: &str,
        source: Source,
        asked_at: SystemTime,
        life: Duration,
        refresh_in: Option<Duration>,
    ) -> Self {
        let refresh = refresh_in.filter(|refresh| !refresh.is_zero() && *refresh < life);
        Self {
            secret: secret.to_owned(),
            expires_on: asked_at + life,
            refresh_on: asked_at + refresh.unwrap_or(life / 2),
            usable_until: asked_at + life - MARGIN.min(life / 10),
            resource: resource.to_owned(),
            source,
        }
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BearerToken")
            .field("secret", &"<redacted>")
            .field("resource", &self.resource)
            .field("expires_on", &rfc3339(self.expires_on))
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("<redacted>")
    }
}

impl ManagedIdentity {
    /// A bearer token for a resource, from whichever source is here: the one that the environment names, else
    /// version 1 of the metadata service. A cached one is returned at once.
    ///
    /// This is another call than [`ManagedIdentity::token`], never its fallback: what it gives is bound to
    /// nothing, and whoever steals it can use it. The kill switch does not stop it.
    ///
    /// # Errors
    /// [`Error::Source`] if the identity cannot be asked for at this source; otherwise [`Error`] names what
    /// the source answered.
    pub async fn bearer_token(&self, resource: &str) -> Result<Arc<BearerToken>, Error> {
        let resource = resource_of(resource)?;
        let shared = &self.shared;
        let now = shared.clock.now();
        let slot = shared.surroundings.bearers.slot(resource, now);
        let start = |refresh| fetch(Arc::clone(shared), Arc::clone(&slot), refresh);
        if let Some(token) = slot.usable(now) {
            if now >= token.refresh_on() && slot.refresh.pass(now, BACKGROUND_PAUSE) {
                slot.flight.launch(|| start(true));
            }
            return Ok(token);
        }
        slot.flight.join(|| start(false)).await
    }
}

/// One run of a fetch. `refresh` says that a usable token need not stop it.
async fn fetch(
    shared: Arc<Shared>,
    slot: Arc<BearerSlot>,
    refresh: bool,
) -> Result<Arc<BearerToken>, Error> {
    // A run that ended between the caller's look and this one's start.
    if !refresh && let Some(token) = slot.usable(shared.clock.now()) {
        return Ok(token);
    }
    let way = shared.acquisition()?;
    let asking = Box::pin(request::request(&shared, &way, slot.resource()));
    let fetched = way.leg(Leg::Bearer, asking).await;
    telemetry::bearer_ended(&shared, &way.tally, &fetched);
    match &fetched {
        Ok(token) => slot.put(token),
        Err(error) if refresh => {
            tracing::warn!(target: "keybond", resource = slot.resource(), %error, "a bearer token could not be refreshed; the old one stays in use");
        }
        Err(_) => {}
    }
    fetched
}
