//! The client: one managed identity, its binding and its tokens.

mod builder;
pub(crate) mod obtain;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::Method;
use keybond_keys::{KeyId, KeyProvider, Strength};

pub use self::builder::ManagedIdentityBuilder;
use self::obtain::Haste;
use crate::{
    acquisition::Acquisition,
    attestation::AttestationProvider,
    call::{RequestBuilder, ResourceRules, ResourceService, Timeouts, pool::Pool},
    credential::{Binding, cache::BindingCache, keeping, mint::Mint, store::CertificateStore},
    environment::Environment,
    error::Error,
    hosts::StsHosts,
    http::Deadline,
    identity::Identity,
    imds::Imds,
    leg::{Leg, OnLeg},
    random::{self, Random},
    source::{self, SourceReport, options::Surroundings},
    time::Clock,
    token::{
        AccessToken,
        cache::{Asked, TokenCache},
        resource_of,
        settle::RemedyState,
        sharing::{self, SharedTokens},
    },
};

/// A managed identity whose credential is a held key.
///
/// Clones share everything: key, certificate and tokens. The methods must be called on a tokio runtime with
/// its timer and network enabled. Every future may be dropped at any instant; work that others wait for goes
/// on.
#[derive(Clone)]
pub struct ManagedIdentity {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) imds: Imds,
    pub(crate) keys: KeyProvider,
    pub(crate) floor: Option<Strength>,
    pub(crate) attestation: Option<Arc<dyn AttestationProvider>>,
    pub(crate) sts_hosts: StsHosts,
    pub(crate) rules: ResourceRules,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) on_leg: Option<OnLeg>,
    pub(crate) deadline: Duration,
    pub(crate) probe_budget: Duration,
    pub(crate) response_limit: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) pool: Pool,
    pub(crate) bindings: BindingCache,
    pub(crate) tokens: TokenCache,
    pub(crate) certificates: Option<Arc<dyn CertificateStore>>,
    pub(crate) shared_tokens: Option<SharedTokens>,
    pub(crate) watcher: obtain::KeyWatcher,
    pub(crate) surroundings: Surroundings,
    pub(crate) remedies: RemedyState,
}

impl ManagedIdentity {
    /// Starts the configuration of a client.
    pub fn builder() -> ManagedIdentityBuilder {
        ManagedIdentityBuilder::default()
    }

    /// A token for a resource (`https://vault.azure.net`, or the scope with `/.default`), bound to this
    /// client's certificate. A cached one is returned at once.
    ///
    /// # Errors
    /// [`Error`] names the leg on which the way to the token ended.
    pub async fn token(&self, resource: &str) -> Result<Arc<AccessToken>, Error> {
        let shared = &self.shared;
        let now = shared.clock.now();
        // What is cached has a name that was checked.
        let cached = resource.strip_suffix("/.default").unwrap_or(resource);
        if let Some(token) = shared.tokens.fresh(cached, now, &shared.bindings) {
            return Ok(token);
        }
        let resource = resource_of(resource)?;
        match shared.tokens.fresh(resource, now, &shared.bindings) {
            Some(token) => Ok(token),
            None => self.token_that_is_due(resource, now).await,
        }
    }

    /// The rest of [`ManagedIdentity::token`]: there is none, or something is to be done about it.
    async fn token_that_is_due(
        &self,
        resource: &str,
        now: SystemTime,
    ) -> Result<Arc<AccessToken>, Error> {
        let shared = &self.shared;
        let slot = shared.tokens.slot(resource, now);
        let start = |refresh| obtain::fetch_token(Arc::clone(shared), Arc::clone(&slot), refresh);
        match slot.ask(now, &shared.bindings) {
            Asked::Use(token) => {
                obtain::tend(shared, now);
                Ok(token)
            }
            Asked::UseAndStart(token) => {
                obtain::tend(shared, now);
                slot.flight.launch(|| start(true));
                Ok(token)
            }
            Asked::Start => slot.flight.join(|| start(false)).await,
            Asked::Fail(cause) => Err(cause),
        }
    }

    /// The binding: key, certificate and what belongs to them. A cached one is returned at once.
    ///
    /// # Errors
    /// [`Error`] names the leg on which the way to the certificate ended.
    pub async fn credential(&self) -> Result<Arc<Binding>, Error> {
        obtain::binding(&self.shared, None, Haste::Now).await
    }

    /// Has the same key certified anew and gives up every token of older certificates.
    ///
    /// # Errors
    /// As [`ManagedIdentity::credential`]; the certificate in use then stays in use.
    pub async fn renew(&self) -> Result<Arc<Binding>, Error> {
        let shared = &self.shared;
        let way = shared.acquisition()?;
        let before = shared.bindings.current_version();
        loop {
            // The run that is joined may be one that merely found the binding that is to be replaced.
            let start = || obtain::mint(Arc::clone(shared), way.clone(), Mint::Demanded);
            let binding = shared.bindings.flight.join(start).await?;
            if binding.version() > before {
                shared.bindings.retire_below(binding.version());
                return Ok(binding);
            }
        }
    }

    /// Starts a request to a resource: bound token, mutual TLS with the same binding.
    pub fn request(&self, method: Method, url: &str) -> RequestBuilder {
        RequestBuilder::new(self.clone(), method, url)
    }

    /// [`ManagedIdentity::request`] with GET.
    pub fn get(&self, url: &str) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// This client as a `tower` service, for other HTTP code.
    pub fn service(&self) -> ResourceService {
        ResourceService::new(self.clone())
    }

    /// Finds out which metadata service is here, without a key or a credential and within the probe budget.
    ///
    /// # Errors
    /// [`Error::Configuration`] if no request id can be made; whatever the network answers is in the report.
    pub async fn source_probe(&self) -> Result<SourceReport, Error> {
        let mut way = self.shared.acquisition()?;
        way.deadline = Deadline::after(self.shared.probe_budget);
        source::find(&self.shared, &way).await
    }

    /// The file in which the certificate of this binding is kept in PEM, if it is kept in a file.
    pub fn certificate_file(&self, binding: &Binding) -> Option<PathBuf> {
        keeping::file_of(&self.shared, binding)
    }

    /// The provider of this client's key.
    pub fn key_provider(&self) -> &KeyProvider {
        &self.shared.keys
    }

    /// Whose credential this is.
    pub fn identity(&self) -> &Identity {
        &self.shared.imds.identity
    }
}

impl fmt::Debug for ManagedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedIdentity")
            .field("identity", self.identity())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Begins a way through the legs.
    pub(crate) fn acquisition(&self) -> Result<Acquisition, Error> {
        Ok(Acquisition::new(
            random::uuid(&*self.random)?.into(),
            Deadline::after(self.deadline),
            self.on_leg.clone(),
        ))
    }

    /// A dead key's certificates are worthless, and every token of theirs with them.
    pub(crate) async fn key_died(self: &Arc<Self>, key: KeyId) {
        if self.bindings.key_died(self.clock.now(), key) {
            tracing::warn!(target: "keybond", %key, "the key died: its certificate and tokens are given up");
        }
        keeping::drop_certificates_of(self, key).await;
        sharing::discard_of_key(self, key).await;
    }

    /// Asked before every leg that goes to the network for a bound token, and read anew each time.
    pub(crate) fn check_switch(&self, leg: Leg) -> Result<(), Error> {
        if let Some(switch) = self.surroundings.switch.thrown(&*self.environment) {
            return Err(Error::Disabled { leg, switch });
        }
        self.refuse_unbound(leg)
    }
}
