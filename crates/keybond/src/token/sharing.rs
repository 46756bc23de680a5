//! Tokens shared by the processes of one user: what another process got is looked for and checked again; one asks, the
//! others find what it kept. Whatever is wrong with the files, the token service is asked instead.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use keybond_keys::{KeyId, StateLock, StoreId};
use tokio::time::Instant;

use super::{
    AccessToken,
    kept::{Answer, DiskTokens},
    record::{TokenRecord, TokenSlot},
    request::{self, Arrived},
};
use crate::{
    acquisition::Acquisition,
    client::Shared,
    credential::{Binding, keeping},
    error::Error,
    leg::{Done, Leg},
    lifecycle::{self, Age, SKEW},
    random, telemetry,
    time::{Pause, rfc3339},
    turn::{self, Attempt, PATIENCE, Questions, Turn},
};

/// How often one client looks for tokens that ended.
const SWEEP: Duration = Duration::from_secs(10 * 60);

/// How long files that did not answer are left alone.
const SILENCE: Duration = Duration::from_secs(60);

/// The tokens in files, as one client sees them.
pub(crate) struct SharedTokens {
    files: Arc<DiskTokens>,
    /// Trouble is told once as a warning.
    told: AtomicBool,
    silent_until: Mutex<Option<Instant>>,
    swept: Pause,
}

impl SharedTokens {
    pub(crate) fn new(state: impl AsRef<Path>) -> Self {
        Self {
            files: Arc::new(DiskTokens::new(state.as_ref())),
            told: AtomicBool::new(false),
            silent_until: Mutex::new(None),
            swept: Pause::new(),
        }
    }

    fn trouble(&self, detail: &str) {
        telemetry::shared_token("trouble");
        let place = self.files.describe();
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!(target: "keybond", %place, %detail, "tokens are not shared");
        } else {
            tracing::warn!(
                target: "keybond", %place, %detail,
                "tokens are not shared: each process asks for its own"
            );
        }
    }

    fn is_silent(&self) -> bool {
        let until = *self.silence();
        until.is_some_and(|until| Instant::now() < until)
    }

    fn fell_silent(&self) {
        *self.silence() = Some(Instant::now() + SILENCE);
        self.trouble("the files do not answer");
    }

    fn silence(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        (self.silent_until.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

/// One run's view of them.
pub(crate) struct Sharing<'a> {
    shared: &'a Shared,
    way: &'a Acquisition,
    resource: &'a str,
    /// When the token that is to be refreshed was got: one that is no newer is no help.
    newer_than: Option<SystemTime>,
    /// Drawn once, lest whoever waits looks until an old token seems fresh.
    jitter: f64,
    questions: Questions,
    /// Until when somebody else's turn is waited for.
    wait_until: Instant,
    /// One that is due and still good, for the case that no other is to be had.
    spare: Mutex<Option<Arc<AccessToken>>>,
}

impl<'a> Sharing<'a> {
    /// `in_use` is the token that the run is to refresh, if there is one.
    pub(crate) fn new(
        shared: &'a Shared,
        way: &'a Acquisition,
        resource: &'a str,
        in_use: Option<&AccessToken>,
    ) -> Self {
        // After a clock was set back every other token seems older than that one.
        let latest = shared.clock.now() + SKEW;
        Self {
            shared,
            way,
            resource,
            newer_than: in_use.map(AccessToken::obtained).filter(|at| *at <= latest),
            jitter: random::jitter(&*shared.random),
            questions: Questions::until(way.deadline.at),
            wait_until: turn::half_way(way.deadline.at),
            spare: Mutex::new(None),
        }
    }

    /// The token that another process got for this binding, or one from the token service.
    pub(crate) async fn token(&self, binding: &Arc<Binding>) -> Result<Arc<AccessToken>, Error> {
        self.set_spare(None);
        let Some(tokens) = self.tokens_of(binding) else {
            return Ok(self.ask(binding).await?.token);
        };
        // What must not be asked must not be believed either.
        request::check_host(self.shared, self.way, binding)?;
        let slot = self.slot(binding);
        let look = || self.look(tokens, &slot, binding);
        let turn = turn::take(self.wait_until, look, || self.try_lock(tokens, &slot)).await;
        let lock = match turn {
            Turn::Served(token) => return self.adopted(tokens, token).await,
            Turn::Mine(lock) => lock,
        };
        let arrived = self.ask(binding).await?;
        self.keep(tokens, slot, &arrived, lock).await;
        Ok(arrived.token)
    }

    /// A token that is due and may be used, if none was to be had for a reason that says nothing against it.
    pub(crate) fn spare(&self, now: SystemTime) -> Option<Arc<AccessToken>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let retired = |token: &AccessToken| self.shared.bindings.is_retired(token.version);
        let spare = spare.clone()?;
        (spare.is_usable(now) && !retired(&spare)).then_some(spare)
    }

    fn set_spare(&self, token: Option<Arc<AccessToken>>) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// The files, if tokens of this binding are in them at all and answer.
    fn tokens_of(&self, binding: &Binding) -> Option<&'a SharedTokens> {
        let tokens = self.shared.shared_tokens.as_ref()?;
        let shareable = binding.key().store() != StoreId::Memory
            && keeping::is_kept_beyond_process(self.shared, binding.key());
        (shareable && !self.questions.is_silent() && !tokens.is_silent()).then_some(tokens)
    }

    fn slot(&self, binding: &Binding) -> TokenSlot {
        TokenSlot {
            source: self.shared.imds.endpoint.as_str().to_owned(),
            client_id: binding.client_id().to_ascii_lowercase(),
            tenant_id: binding.tenant_id().to_ascii_lowercase(),
            token_endpoint: binding.token_endpoint().to_owned(),
            attested: binding.is_attested(),
            key_id: binding.key().id().to_string(),
            x5t_s256: binding.x5t_s256().to_owned(),
            resource: self.resource.to_owned(),
            client_capabilities: self.shared.remedies.client_capabilities.clone(),
        }
    }

    async fn ask(&self, binding: &Arc<Binding>) -> Result<Arrived, Error> {
        let asking = request::request(self.shared, self.way, binding, self.resource, None);
        let asked = self.way.leg(Leg::Token, asking).await;
        if let Err(error) = &asked
            && !error.retryable()
            && !matches!(error, Error::Unreachable { .. })
        {
            // A refusal may be meant for the certificate and all its tokens.
            self.set_spare(None);
        }
        asked
    }

    async fn adopted(
        &self,
        tokens: &SharedTokens,
        token: Arc<AccessToken>,
    ) -> Result<Arc<AccessToken>, Error> {
        telemetry::shared_token("adopted");
        let outcome = format!(
            "mtls_pop for {}, kept in {} by another process, valid until {}",
            self.resource,
            tokens.files.describe(),
            rfc3339(token.expires_on())
        );
        let done = async { Ok(Done::new(token, outcome)) };
        self.way.leg(Leg::Token, done).await
    }

    /// What another process kept, if it passes every check again and is fresh.
    async fn look(
        &self,
        tokens: &SharedTokens,
        slot: &TokenSlot,
        binding: &Arc<Binding>,
    ) -> Option<Arc<AccessToken>> {
        let (files, asked) = (Arc::clone(&tokens.files), slot.clone());
        match self.question(tokens, move || files.find(&asked)).await? {
            Answer::Token(record) => self.adopt(*record, binding),
            Answer::Absent => None,
            Answer::Unreadable { detail } => {
                tokens.trouble(&detail);
                None
            }
            Answer::Unusable { detail, set_aside } => {
                telemetry::shared_token("set_aside");
                let place = tokens.files.describe();
                tracing::warn!(target: "keybond", %place, %detail, ?set_aside, "a kept token is not used");
                None
            }
        }
    }

    fn adopt(&self, record: TokenRecord, binding: &Arc<Binding>) -> Option<Arc<AccessToken>> {
        let now = self.shared.clock.now();
        let granted = record.granted();
        let obtained = granted.asked_at;
        // That of a clock that ran ahead says nothing of the token's end.
        let from_the_future = obtained > now + SKEW;
        if from_the_future || self.newer_than.is_some_and(|than| obtained <= than) {
            return None;
        }
        let life = lifecycle::token::life(granted, binding.life(), self.jitter);
        let token = Arc::new(AccessToken::new(
            record.secret(),
            obtained + granted.expires_in,
            life,
            self.resource.to_owned(),
            true,
            Arc::clone(binding),
        ));
        match life.age(now) {
            Age::Fresh => return Some(token),
            Age::Due => self.set_spare(Some(token)),
            Age::Over => {}
        }
        None
    }

    async fn try_lock(&self, tokens: &SharedTokens, slot: &TokenSlot) -> Attempt<StateLock> {
        let (files, asked) = (Arc::clone(&tokens.files), slot.clone());
        match self.question(tokens, move || files.try_lock(&asked)).await {
            Some(Ok(Some(lock))) => Attempt::Taken(lock),
            Some(Ok(None)) => Attempt::Elsewhere,
            Some(Err(detail)) => {
                tokens.trouble(&detail);
                Attempt::Unavailable
            }
            None => Attempt::Unavailable,
        }
    }

    /// Keeps a token that came, and gives the turn back when it is written, however long that takes. One that does
    /// not show its certificate is not known to be bound.
    async fn keep(
        &self,
        tokens: &SharedTokens,
        slot: TokenSlot,
        arrived: &Arrived,
        lock: Option<StateLock>,
    ) {
        let token = &arrived.token;
        let binding = token.bound_to();
        if !token.is_confirmed() || self.shared.bindings.is_retired(binding.version()) {
            return;
        }
        let record = TokenRecord::new(slot, binding.not_after(), arrived.granted, token.secret());
        let files = Arc::clone(&tokens.files);
        let now = self.shared.clock.now();
        let sweep = tokens.swept.pass(now, SWEEP);
        let keeping = move || {
            let kept = files.keep(&record, now);
            drop(lock);
            if sweep {
                files.sweep(now);
            }
            kept
        };
        match self.question(tokens, keeping).await {
            Some(Ok(())) => telemetry::shared_token("kept"),
            Some(Err(detail)) => tokens.trouble(&detail),
            None => {}
        }
    }

    async fn question<T: Send + 'static>(
        &self,
        tokens: &SharedTokens,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.questions.ask(question, || tokens.fell_silent()).await
    }
}

/// Drops every shared token of a certificate that was refused or challenged, lest somebody adopts it.
pub(crate) async fn discard_of_certificate(shared: &Shared, binding: &Binding) {
    let x5t = binding.x5t_s256().to_owned();
    discard(shared, move |slot| slot.x5t_s256 == x5t).await;
}

/// Drops a shared token that a resource refused, lest a process that starts anew is refused, too. Once for each token:
/// there are resources that refuse every one.
pub(crate) async fn discard_refused(shared: &Shared, token: &AccessToken) {
    if shared.shared_tokens.is_none() || !token.is_first_refusal() {
        return;
    }
    let x5t = token.bound_to().x5t_s256().to_owned();
    let resource = token.resource().to_owned();
    let refused = move |slot: &TokenSlot| slot.x5t_s256 == x5t && slot.resource == resource;
    discard(shared, refused).await;
}

/// Drops every shared token of a key that is dead.
pub(crate) async fn discard_of_key(shared: &Shared, key: KeyId) {
    let key = key.to_string();
    discard(shared, move |slot| slot.key_id == key).await;
}

async fn discard(shared: &Shared, which: impl Fn(&TokenSlot) -> bool + Send + 'static) {
    let Some(tokens) = shared.shared_tokens.as_ref().filter(|t| !t.is_silent()) else {
        return;
    };
    let files = Arc::clone(&tokens.files);
    let questions = Questions::until(Instant::now() + PATIENCE);
    let discarding = move || files.discard(which);
    let discarded = questions.ask(discarding, || tokens.fell_silent()).await;
    if let Some(Err(detail)) = discarded {
        tokens.trouble(&detail);
    }
}
