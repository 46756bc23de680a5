//! Asking for a token until it is there or nothing helps: the hands of the remedy machine.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keybond_keys::Verdict;
use tokio::time::Instant;

use super::{
    AccessToken,
    claims::Demanded,
    remedy::{Allowance, Finding, KeyVerdict, Remedies, RemedyPolicy, Step},
    request, resource_of,
    sharing::{self, Sharing},
};
use crate::{
    acquisition::Acquisition,
    attestation::Attestations,
    client::{
        ManagedIdentity, ManagedIdentityBuilder, Shared,
        obtain::{self, Haste},
    },
    credential::{Binding, mint::Mint},
    downgrade::refusals::Refusals,
    error::Error,
    leg::Leg,
    random,
    single_flight::SingleFlight,
    telemetry,
    time::Pause,
};

/// Settings and state of what is done about failures.
pub(crate) struct RemedyState {
    policy: RemedyPolicy,
    /// What the client says it understands (`xms_cc`).
    pub(crate) client_capabilities: Vec<String>,
    allowance: Allowance,
    /// Who said that bound tokens cannot be had, for callers who take others.
    pub(crate) unbound: Refusals,
    pub(crate) downgrade_warning: Pause,
    pub(crate) attestations: Attestations,
    challenges: Challenges,
}

impl Default for RemedyState {
    fn default() -> Self {
        let policy = RemedyPolicy::default();
        Self {
            policy,
            client_capabilities: Vec::new(),
            allowance: Allowance::new(policy, Instant::now()),
            unbound: Refusals::default(),
            downgrade_warning: Pause::new(),
            attestations: Attestations::default(),
            challenges: Challenges::default(),
        }
    }
}

impl ManagedIdentityBuilder {
    /// How far to go to cure refusals of the token service by new certificates.
    pub fn remedy_policy(mut self, policy: RemedyPolicy) -> Self {
        self.remedies.policy = policy;
        self.remedies.allowance = Allowance::new(policy, Instant::now());
        self
    }

    /// What the client understands, for the token service to put into tokens (`xms_cc`): `cp1` says that it
    /// handles claims challenges, and lets tokens live longer. None if not set.
    pub fn client_capabilities<C: Into<String>>(
        mut self,
        capabilities: impl IntoIterator<Item = C>,
    ) -> Self {
        self.remedies.client_capabilities = capabilities.into_iter().map(Into::into).collect();
        self
    }
}

impl ManagedIdentity {
    /// A token that meets a resource's claims challenge: with a new certificate first, issued past every cache,
    /// for a challenge may mean that the old one was revoked. It takes the place of the cached token.
    ///
    /// It is for those who do not know which token was challenged, and takes the challenge for one of the
    /// certificate in use: one that was answered already costs another certificate. Who knows the token asks
    /// [`ManagedIdentity::token_after_challenge`]; the calls of [`ManagedIdentity::request`] do so by themselves.
    ///
    /// `claims` are those of the challenge (`WWW-Authenticate: … claims="…"`), as JSON or in base64 as they
    /// stand there. Callers with the same challenge share one run. If challenges have used up the new
    /// certificates of [`RemedyPolicy`], the token is asked for with the certificate in use.
    ///
    /// # Errors
    /// [`Error::Configuration`] if the claims are no JSON object; otherwise as [`ManagedIdentity::token`].
    pub async fn token_for_claims(
        &self,
        resource: &str,
        claims: &str,
    ) -> Result<Arc<AccessToken>, Error> {
        self.token_after(None, resource, claims).await
    }

    /// A token that meets the claims challenge that a resource answered this token with.
    ///
    /// If the client has another one for the resource by now, nobody challenged that: it is given at once. If the
    /// certificate in use is newer than the token's, the token is asked for with it. Otherwise, and in what
    /// `claims` are, it is [`ManagedIdentity::token_for_claims`].
    ///
    /// # Errors
    /// As [`ManagedIdentity::token_for_claims`].
    pub async fn token_after_challenge(
        &self,
        challenged: &AccessToken,
        claims: &str,
    ) -> Result<Arc<AccessToken>, Error> {
        Demanded::parse(claims)?;
        let shared = &self.shared;
        let (resource, now) = (challenged.resource(), shared.clock.now());
        let present = shared.tokens.usable(resource, now, &shared.bindings);
        match present.filter(|token| token.secret() != challenged.secret()) {
            Some(another) => Ok(another),
            None => {
                let binding = Some(challenged.bound_to());
                self.token_after(binding, resource, claims).await
            }
        }
    }

    /// The same for the challenge of a token with this binding. If there is a newer one by now, nobody challenged that.
    pub(crate) async fn token_after(
        &self,
        challenged: Option<&Arc<Binding>>,
        resource: &str,
        claims: &str,
    ) -> Result<Arc<AccessToken>, Error> {
        let resource = resource_of(resource)?;
        let demanded = Arc::new(Demanded::parse(claims)?);
        let shared = &self.shared;
        let version = challenged.map(|binding| binding.version());
        let flight = (shared.remedies.challenges).flight(resource, claims, version);
        let start = || {
            let answering = answer_challenge(
                Arc::clone(shared),
                resource.to_owned(),
                Arc::clone(&demanded),
                challenged.cloned(),
            );
            // The run is found for as long as it goes on, though whoever started it went away.
            let flight = Arc::clone(&flight);
            async move {
                let answered = answering.await;
                drop(flight);
                answered
            }
        };
        flight.join(start).await
    }
}

async fn answer_challenge(
    shared: Arc<Shared>,
    resource: String,
    demanded: Arc<Demanded>,
    challenged: Option<Arc<Binding>>,
) -> Result<Arc<AccessToken>, Error> {
    let way = shared.acquisition()?;
    let now = shared.clock.now();
    let slot = shared.tokens.slot(&resource, now);
    if let Some(cause) = slot.held(now) {
        return Err(cause);
    }
    let answered = async {
        shared.check_switch(Leg::Token)?;
        let challenged = match challenged {
            Some(binding) => binding,
            None => obtain::binding(&shared, Some(&way), Haste::Now).await?,
        };
        // If it was revoked, none of its tokens is good any more.
        sharing::discard_of_certificate(&shared, &challenged).await;
        let newer = shared.bindings.current_version() > challenged.version();
        let why = Mint::Challenged(Arc::clone(&challenged));
        if !newer && !new_certificate(&shared, &way, &challenged, &why, "claims").await? {
            tracing::warn!(
                target: "keybond", %resource,
                "claims challenges have used up the new certificates; the one in use stays"
            );
        }
        let want = Want::Claims(&demanded);
        token(&shared, &way, &resource, Haste::Now, want).await
    };
    let answered = Box::pin(answered).await;
    telemetry::bound_ended(&shared, &way.tally, &answered);
    let now = shared.clock.now();
    match &answered {
        Ok(token) => slot.put(now, token),
        Err(error) => {
            let jitter = random::jitter(&*shared.random);
            slot.failed(now, error, error.retry_after(), jitter);
        }
    }
    answered
}

/// What token is wanted.
#[derive(Clone, Copy)]
pub(crate) enum Want<'a> {
    /// One that another process got will do.
    Shared(&'a Sharing<'a>),
    /// One with these claims, for this client alone.
    Claims(&'a Demanded),
}

/// Asks for a token, and does what the remedy machine says about every failure.
pub(crate) async fn token(
    shared: &Arc<Shared>,
    way: &Acquisition,
    resource: &str,
    haste: Haste,
    want: Want<'_>,
) -> Result<Arc<AccessToken>, Error> {
    let mut remedies = Remedies::new(shared.remedies.policy);
    loop {
        let binding = obtain::binding(shared, Some(way), haste).await?;
        let asked = match want {
            Want::Shared(sharing) => sharing.token(&binding).await,
            Want::Claims(claims) => {
                let asking = request::request(shared, way, &binding, resource, Some(claims));
                let arrived = way.leg(Leg::Token, asking).await;
                arrived.map(|arrived| arrived.token)
            }
        };
        let failure = match asked {
            Ok(token) => {
                // A renewal in the meantime gave this certificate up: the next round uses the new one.
                if shared.bindings.is_retired(binding.version()) {
                    continue;
                }
                if remedies.certificates() > 0 {
                    telemetry::remedy("new_certificate", "cured");
                }
                return Ok(token);
            }
            Err(failure) => failure,
        };
        let mut step = remedies.after(Finding::of(&failure));
        if step == Step::ProveKey {
            step = remedies.after_proof(prove_key(shared, way, &binding, &failure).await?);
        }
        let helped = match step {
            Step::NewCertificate { after } => {
                replace(shared, way, &binding, after, &failure).await?
            }
            Step::Surface | Step::ProveKey => false,
        };
        if !helped {
            if remedies.certificates() > 0 {
                telemetry::remedy("new_certificate", "failed");
            }
            return Err(failure.after_certificates(remedies.certificates()));
        }
    }
}

/// Puts another certificate in the place of one that was refused; `false` if none may be asked for.
async fn replace(
    shared: &Arc<Shared>,
    way: &Acquisition,
    refused: &Arc<Binding>,
    after: Duration,
    failure: &Error,
) -> Result<bool, Error> {
    sharing::discard_of_certificate(shared, refused).await;
    // Another resource's refusal of the same certificate may have brought a new one already.
    if shared.bindings.current_version() > refused.version() {
        return Ok(true);
    }
    if Instant::now() + after >= way.deadline.at {
        return Ok(false);
    }
    tracing::warn!(target: "keybond", %failure, ?after, "the certificate is refused: asking for a new one");
    tokio::time::sleep(after).await;
    let why = Mint::Refused(Arc::clone(refused));
    new_certificate(shared, way, refused, &why, cause(failure)).await
}

/// A certificate that no cache on the way may answer with, in the place of `old`; `false` if the identity has had
/// too many. Whoever asks for the same meanwhile shares it, and it counts once.
async fn new_certificate(
    shared: &Arc<Shared>,
    way: &Acquisition,
    old: &Arc<Binding>,
    why: &Mint,
    cause: &'static str,
) -> Result<bool, Error> {
    loop {
        let denied = Arc::new(AtomicBool::new(false));
        let start = || {
            let run = Run {
                shared: Arc::clone(shared),
                way: way.clone(),
                why: why.clone(),
                cause,
                denied: Arc::clone(&denied),
            };
            run.mint()
        };
        let binding = shared.bindings.flight.join(start).await?;
        if binding.version() > old.version() {
            return Ok(true);
        }
        // The run that was joined may be another's, which merely found the binding that is to be replaced.
        if denied.load(Ordering::Relaxed) {
            return Ok(false);
        }
    }
}

/// One run of the way to a new certificate.
struct Run {
    shared: Arc<Shared>,
    way: Acquisition,
    why: Mint,
    cause: &'static str,
    denied: Arc<AtomicBool>,
}

impl Run {
    async fn mint(self) -> Result<Arc<Binding>, Error> {
        let why = self.why;
        if let Some(binding) = self.shared.bindings.usable(self.shared.clock.now()) {
            if why.is_served_by(&binding) {
                return Ok(binding);
            }
            if !self.shared.remedies.allowance.take(Instant::now()) {
                self.denied.store(true, Ordering::Relaxed);
                return Ok(binding);
            }
        }
        let minted = obtain::mint(self.shared, self.way, why).await;
        telemetry::new_certificate(self.cause, minted.is_ok());
        minted
    }
}

/// Has the provider find out by a signature whether the key is alive, and replace it only if it is not.
async fn prove_key(
    shared: &Arc<Shared>,
    way: &Acquisition,
    binding: &Arc<Binding>,
    failure: &Error,
) -> Result<KeyVerdict, Error> {
    let cause = failure.to_string();
    let proving = shared.keys.report_failure(binding.key(), &cause);
    let verdict = match way.deadline.bound(Leg::Key, &way.id, proving).await {
        Ok(verdict) => verdict.map_err(|cause| Error::Key {
            cause,
            correlation_id: Arc::clone(&way.id),
        })?,
        // The connection's failure is what the caller should hear of, not that there was no time to look.
        Err(_) => return Ok(KeyVerdict::Unproven),
    };
    let (verdict, outcome) = match verdict {
        Verdict::Alive => (KeyVerdict::Alive, "alive"),
        Verdict::Replaced(_) => (KeyVerdict::Replaced, "replaced"),
        Verdict::Unproven(error) => {
            tracing::warn!(target: "keybond", %error, "the key's device does not say whether it is alive");
            (KeyVerdict::Unproven, "unproven")
        }
    };
    telemetry::remedy("prove_key", outcome);
    Ok(verdict)
}

/// Why a certificate is replaced, for the metric: few values, none from outside.
fn cause(failure: &Error) -> &'static str {
    match Finding::of(failure) {
        Finding::CertificateRejected => "rejected",
        Finding::Ambiguous | Finding::KeyFailed | Finding::Final => "key_replaced",
    }
}

type Flight = SingleFlight<Arc<AccessToken>>;

/// Resource, claims and the version that was challenged, if that is known.
type Challenge = (String, String, Option<u64>);

/// The challenges that are being answered. An entry lives as long as its run, or somebody who waits for it.
#[derive(Default)]
struct Challenges(Mutex<HashMap<Challenge, Weak<Flight>>>);

impl Challenges {
    fn flight(&self, resource: &str, claims: &str, version: Option<u64>) -> Arc<Flight> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (resource.to_owned(), claims.to_owned(), version);
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(SingleFlight::new());
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }
}
