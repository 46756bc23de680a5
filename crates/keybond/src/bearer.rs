//! Bearer tokens, for those who ask for one knowingly. They are bound to nothing: whoever has one can use it.

pub(crate) mod arc;
pub(crate) mod cache;
pub(crate) mod request;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};

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

    /// Whether it is the same token.
    fn is(&self, other: &Self) -> bool {
        self.secret == other.secret
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
        let start = |why| fetch(Arc::clone(shared), Arc::clone(&slot), why);
        if let Some(token) = slot.usable(now) {
            if now >= token.refresh_on() && slot.refresh.pass(now, BACKGROUND_PAUSE) {
                slot.flight.launch(|| start(Why::Due));
            }
            return Ok(token);
        }
        slot.flight.join(|| start(Why::Missing)).await
    }

    /// A bearer token in the place of one that a resource answered with a claims challenge. If the client has
    /// another one by now, that is given at once.
    ///
    /// Sources keep tokens, too. Service Fabric is told which one was refused (`token_sha256_to_refresh`), and gives
    /// another; the claims themselves do not matter to it. Other sources know no such request: they are asked anew,
    /// and may give the same token again.
    ///
    /// # Errors
    /// As [`ManagedIdentity::bearer_token`]. The refused token then stays in use.
    pub async fn bearer_token_after_challenge(
        &self,
        challenged: &BearerToken,
    ) -> Result<Arc<BearerToken>, Error> {
        let shared = &self.shared;
        let now = shared.clock.now();
        let slot = shared.surroundings.bearers.slot(&challenged.resource, now);
        if let Some(token) = slot.usable(now).filter(|token| !token.is(challenged)) {
            return Ok(token);
        }
        let refused = TokenHash::of(challenged);
        let start = || fetch(Arc::clone(shared), Arc::clone(&slot), Why::Refused(refused));
        let token = slot.flight.join(start).await?;
        // The run that was joined may be one that did not say which token is refused.
        if token.is(challenged) && token.source() == Source::ServiceFabric {
            return slot.flight.join(start).await;
        }
        Ok(token)
    }
}

/// Why a token is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// There is none.
    Missing,
    /// There is one that should be refreshed.
    Due,
    /// A resource refused the one that there is.
    Refused(TokenHash),
}

impl Why {
    /// Whether there is nothing to do if there is this one by now.
    fn is_served_by(self, token: &BearerToken) -> bool {
        match self {
            Self::Missing => true,
            Self::Due => false,
            Self::Refused(refused) => TokenHash::of(token) != refused,
        }
    }
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
struct TokenHash([u8; 32]);

impl TokenHash {
    fn of(token: &BearerToken) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.secret.as_bytes()).as_ref());
        Self(hash)
    }
}

/// In hexadecimal digits, as the source is told it.
impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One run of a fetch.
async fn fetch(
    shared: Arc<Shared>,
    slot: Arc<BearerSlot>,
    why: Why,
) -> Result<Arc<BearerToken>, Error> {
    // A run that ended between the caller's look and this one's start.
    if let Some(token) = slot.usable(shared.clock.now())
        && why.is_served_by(&token)
    {
        return Ok(token);
    }
    let way = shared.acquisition()?;
    let refused = match why {
        Why::Refused(hash) => Some(hash),
        Why::Missing | Why::Due => None,
    };
    let asking = Box::pin(request::request(&shared, &way, slot.resource(), refused));
    let fetched = way.leg(Leg::Bearer, asking).await;
    telemetry::bearer_ended(&shared, &way.tally, &fetched);
    match &fetched {
        Ok(token) => slot.put(token),
        Err(error) if why == Why::Due => {
            tracing::warn!(target: "keybond", resource = slot.resource(), %error, "a bearer token could not be refreshed; the old one stays in use");
        }
        Err(_) => {}
    }
    fetched
}
