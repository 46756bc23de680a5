//! The configuration of a client.

use std::{sync::Arc, time::Duration};

use keybond_keys::{KeyProvider, Strength};
use keybond_tls::TlsConnector;

use super::{ManagedIdentity, Shared, obtain::KeyWatcher};
use crate::{
    attestation::AttestationProvider,
    call::{
        ResourceRule, ResourceRules, Timeouts,
        pool::{Limits, Pool},
    },
    credential::{
        cache::BindingCache,
        store::{CertificateStore, DiskCertificates},
    },
    environment::{Environment, ProcessEnvironment},
    error::Error,
    hosts::{ImdsEndpoint, StsHosts},
    http::Net,
    identity::Identity,
    imds::Imds,
    leg::{LegReport, OnLeg},
    lifecycle::pace::{Rate, Turnstile},
    random::{Random, SecureRandom},
    source::options::Surroundings,
    time::{Clock, SystemClock},
    token::{cache::TokenCache, settle::RemedyState, sharing::SharedTokens},
};

/// Long enough for a metadata service that is being replaced (70 s) and for the legs after it.
const DEADLINE: Duration = Duration::from_secs(100);

/// A metadata service answers in milliseconds; where none is, nobody should wait.
const PROBE_BUDGET: Duration = Duration::from_secs(1);

/// The metadata service is shared by everything on the machine and throttles; a certificate needs two requests.
const IMDS_RATE: Rate = Rate {
    per_second: 5.0,
    burst: 5,
};

/// Bytes of a resource's answer that are read at most.
const RESPONSE_LIMIT: usize = 16 << 20;

/// Configures a [`ManagedIdentity`]. A key provider and a TLS connector are required.
#[must_use]
pub struct ManagedIdentityBuilder {
    identity: Identity,
    keys: Option<KeyProvider>,
    tls: Option<Arc<dyn TlsConnector>>,
    environment: Arc<dyn Environment>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    imds_endpoint: Option<String>,
    sts_hosts: StsHosts,
    rules: ResourceRules,
    floor: Option<Strength>,
    attestation: Option<Arc<dyn AttestationProvider>>,
    deadline: Duration,
    probe_budget: Duration,
    response_limit: usize,
    timeouts: Timeouts,
    connections: Limits,
    on_leg: Option<OnLeg>,
    certificates: Option<Arc<dyn CertificateStore>>,
    share_tokens: bool,
    imds_rate: Rate,
    pub(crate) surroundings: Surroundings,
    pub(crate) remedies: RemedyState,
}

impl Default for ManagedIdentityBuilder {
    fn default() -> Self {
        Self {
            identity: Identity::SystemAssigned,
            keys: None,
            tls: None,
            environment: Arc::new(ProcessEnvironment),
            clock: Arc::new(SystemClock),
            random: Arc::new(SecureRandom),
            imds_endpoint: None,
            sts_hosts: StsHosts::default(),
            rules: ResourceRules::default(),
            floor: None,
            attestation: None,
            deadline: DEADLINE,
            probe_budget: PROBE_BUDGET,
            response_limit: RESPONSE_LIMIT,
            timeouts: Timeouts::default(),
            connections: Limits::default(),
            on_leg: None,
            certificates: None,
            share_tokens: true,
            imds_rate: IMDS_RATE,
            surroundings: Surroundings::default(),
            remedies: RemedyState::default(),
        }
    }
}

impl ManagedIdentityBuilder {
    /// Whose credential; the machine's own if not set.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Where the key comes from. Required.
    pub fn key_provider(mut self, keys: KeyProvider) -> Self {
        self.keys = Some(keys);
        self
    }

    /// What makes TLS connections. Required.
    pub fn tls(mut self, tls: Arc<dyn TlsConnector>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Where environment variables come from; the process's if not set.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// What tells the time; the system's clock if not set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Where the bytes of request ids come from; the cryptography library's generator if not set.
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// Where the metadata service is: an http URL with a loopback or link-local address. If not set,
    /// `AZURE_POD_IDENTITY_AUTHORITY_HOST`, else `http://169.254.169.254`.
    pub fn imds_endpoint(mut self, url: impl Into<String>) -> Self {
        self.imds_endpoint = Some(url.into());
        self.surroundings.imds_named = true;
        self
    }

    /// Token services that may be used beside Azure's own: exact host names, with or without port. Those in
    /// `MSAL_MI_IMDSV2_ALLOWED_HOSTS` are allowed, too.
    pub fn allowed_sts_hosts<H: Into<String>>(
        mut self,
        hosts: impl IntoIterator<Item = H>,
    ) -> Self {
        self.sts_hosts.0.extend(hosts.into_iter().map(Into::into));
        self
    }

    /// How a resource wants to be called; goes before the built-in rules.
    pub fn resource_rule(mut self, rule: ResourceRule) -> Self {
        self.rules.add(rule);
        self
    }

    /// The floor: with a key that was shown to be weaker, nothing is sent. The key provider's if not set.
    pub fn minimum_strength(mut self, floor: Strength) -> Self {
        self.floor = Some(floor);
        self
    }

    /// Who attests the key; if not set, certificates are requested without attestation.
    pub fn attestation(mut self, provider: Arc<dyn AttestationProvider>) -> Self {
        self.attestation = Some(provider);
        self
    }

    /// How long the whole way to a token or certificate may take, retries included; 100 s if not set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long [`ManagedIdentity::source_probe`] may take, and the first connection to the metadata service: 1 s
    /// if not set. A service that takes the connection and answers late is waited for.
    pub fn probe_budget(mut self, budget: Duration) -> Self {
        self.probe_budget = budget;
        self
    }

    /// How often this client asks the metadata service at most, retries included: `burst` times at once and
    /// `per_second` times a second in the long run; 5 and 5 if not set. Who comes too early waits, and
    /// fails at once if its turn would come after its deadline. `per_second` is from 0.001 to a million, `burst`
    /// at least 1; [`build`](Self::build) refuses anything else.
    pub fn imds_rate(mut self, per_second: f64, burst: u32) -> Self {
        self.imds_rate = Rate { per_second, burst };
        self
    }

    /// Bytes of a resource's answer that are read at most; 16 MiB if not set.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.response_limit = bytes;
        self
    }

    /// How long each part of a call to a resource may take, unless the call says otherwise.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// How long a connection to a resource is kept for the next request while nobody uses it (60 s if not set),
    /// and how old it may become (10 minutes).
    pub fn keep_connections(mut self, idle: Duration, life: Duration) -> Self {
        self.connections = Limits { idle, life };
        self
    }

    /// Who is told how each leg ended.
    pub fn on_leg(mut self, listener: Arc<dyn Fn(&LegReport) + Send + Sync>) -> Self {
        self.on_leg = Some(listener);
        self
    }

    /// Where certificates are kept for other processes and clients. If not set, they are kept in files below
    /// the state directory, if there is one ([`DiskCertificates`]); a certificate whose key lives in process
    /// memory is not, for nobody else can use it.
    pub fn certificate_store(mut self, store: Arc<dyn CertificateStore>) -> Self {
        self.certificates = Some(store);
        self
    }

    /// Whether bound tokens are kept in files below the state directory, so that the other processes of this user
    /// need not ask for their own: if not said otherwise, they are, where the certificate is kept beyond the process
    /// and its key is not in process memory. Whoever has such a file and not the key has nothing. Bearer tokens and
    /// those with claims are never kept. `MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE` turns this off, too.
    pub fn share_tokens(mut self, share: bool) -> Self {
        self.share_tokens = share;
        self
    }

    /// Finishes the configuration. Nothing is sent and no key is made before it is needed.
    ///
    /// # Errors
    /// [`Error::Configuration`] names the setting that cannot be used.
    pub fn build(self) -> Result<ManagedIdentity, Error> {
        let required = |what| Error::configuration(what, "is required");
        let tls = self.tls.ok_or_else(|| required("tls"))?;
        let keys = self.keys.ok_or_else(|| required("key_provider"))?;
        let certificates = self.certificates.or_else(|| {
            let state = self.surroundings.switch.directory.as_ref()?;
            Some(Arc::new(DiskCertificates::new(state)))
        });
        let shared_tokens = (self.surroundings.switch.directory.as_ref())
            .filter(|_| self.share_tokens)
            .map(SharedTokens::new);
        let endpoint = ImdsEndpoint::choose(self.imds_endpoint.as_deref(), &*self.environment)?;
        let shared = Shared {
            imds: Imds {
                net: Net {
                    tls,
                    older_only: Arc::default(),
                    imds_pace: Arc::new(Turnstile::new(self.imds_rate.checked()?)),
                },
                endpoint,
                identity: self.identity.checked()?,
                first_contact: self.probe_budget,
                seen: Arc::default(),
            },
            keys,
            floor: self.floor,
            attestation: self.attestation,
            sts_hosts: self.sts_hosts,
            rules: self.rules,
            environment: self.environment,
            clock: self.clock,
            random: self.random,
            on_leg: self.on_leg,
            deadline: self.deadline,
            probe_budget: self.probe_budget,
            response_limit: self.response_limit,
            timeouts: self.timeouts,
            pool: Pool::new(self.connections),
            bindings: BindingCache::new(),
            tokens: TokenCache::new(),
            certificates,
            shared_tokens,
            watcher: KeyWatcher::default(),
            surroundings: self.surroundings,
            remedies: self.remedies,
        };
        Ok(ManagedIdentity {
            shared: Arc::new(shared),
        })
    }
}
