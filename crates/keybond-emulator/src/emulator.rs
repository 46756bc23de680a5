//! A running emulator.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    admin,
    attestation::{self, AttestationFlaw, AttestationRule},
    builder::Builder,
    clock::Clock,
    counters::Counters,
    env::{self, Shell},
    error::EmulatorError,
    fabric::{self, Fabric},
    fault::Fault,
    identity::Identity,
    jwt::TokenSigner,
    scenario::Scenario,
    server::{Server, Transport, serve},
    service::{Role, admit, answer},
    state::{State, pem},
    tls::Tls,
    tls12::{Alert, Config, LazyConfig},
    world::{Addresses, Honeypot, World},
    x509::{Authority, Certificate},
};

/// Azure on loopback, while this value lives. Dropping it stops the servers at once.
pub struct Emulator {
    world: Arc<World>,
    servers: Vec<JoinHandle<()>>,
    stop: watch::Sender<()>,
}

impl Emulator {
    /// Sets up an emulator.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) async fn start(builder: Builder) -> Result<Self, EmulatorError> {
        let [imds, sts, vault, renegotiating] = builder.ports;
        let names = [
            ("imds", imds),
            ("sts", sts),
            ("vault", vault),
            ("renegotiating vault", renegotiating),
            ("honeypot", 0),
        ];
        let scenarios = builder.scenarios.clone();
        let mut listeners = Vec::with_capacity(names.len());
        for (server, port) in names {
            let address = SocketAddr::new(builder.bind, port);
            let listen = async {
                let listener = TcpListener::bind(address).await?;
                let port = listener.local_addr()?.port();
                Ok((listener, port))
            };
            listeners.push(listen.await.map_err(|cause| EmulatorError::Listen {
                server,
                address,
                cause,
            })?);
        }
        let host = url_host(&builder.settings.public_host);
        let imds_host = if builder.bind.is_unspecified() {
            host.clone()
        } else {
            url_host(&builder.bind.to_string())
        };
        let bind = builder.bind;
        // Making keys takes a while, and reading state blocks.
        let (world, tls, hosts) = tokio::task::spawn_blocking(move || prepare(builder, bind))
            .await
            .map_err(|_| EmulatorError::crypto("preparing keys"))??;
        let [imds, sts, vault, renegotiating, honeypot]: [_; 5] = listeners
            .try_into()
            .map_err(|_| EmulatorError::crypto("counting to five"))?;
        let addresses = Addresses {
            imds: format!("http://{imds_host}:{}", imds.1),
            sts: format!("https://{host}:{}", sts.1),
            vault: format!("https://{host}:{}", vault.1),
            renegotiating_vault: format!("https://{host}:{}", renegotiating.1),
            honeypot: Honeypot {
                http: format!("http://{host}:{}", honeypot.1),
                https: format!("https://{host}:{}", honeypot.1),
            },
        };
        tracing::info!(
            imds = addresses.imds,
            sts = addresses.sts,
            vault = addresses.vault,
            "emulator started"
        );
        let world = Arc::new(world);
        world.addresses.get_or_init(|| addresses);
        let (stop, stopped) = watch::channel(());
        for scenario in &scenarios {
            world.play(scenario)?;
        }
        let run = |role: Role, listener, transport| {
            let (gate, world) = (world.clone(), world.clone());
            let server = Server {
                name: role.name(),
                transport,
                admit: move || admit(&gate, role),
                service: move |request, peer| answer(world.clone(), role, request, peer),
            };
            tokio::spawn(serve(listener, stopped.clone(), server))
        };
        let sts_world = world.clone();
        let sts_asks = Arc::new(move || sts_world.asks_under_tls13());
        let servers = vec![
            run(Role::Imds, imds.0, Transport::Plain),
            run(Role::Sts, sts.0, Transport::Tls(tls.clone(), sts_asks)),
            run(
                Role::Vault,
                vault.0,
                Transport::Tls(tls.clone(), Arc::new(|| true)),
            ),
            run(
                Role::RenegotiatingVault,
                renegotiating.0,
                Transport::Renegotiating(Arc::new(renegotiating_tls(world.clone(), hosts))),
            ),
            run(Role::Honeypot, honeypot.0, Transport::Either(tls)),
        ];
        Ok(Self {
            world,
            servers,
            stop,
        })
    }

    /// Where the Instance Metadata Service listens: `http://127.0.0.1:PORT`, without a slash at the
    /// end.
    pub fn imds_url(&self) -> String {
        self.world.addresses().imds
    }

    /// Where the token service listens: `https://localhost:PORT`.
    pub fn sts_url(&self) -> String {
        self.world.addresses().sts
    }

    /// Where the vault listens: `https://localhost:PORT`.
    pub fn vault_url(&self) -> String {
        self.world.addresses().vault
    }

    /// Where the vault listens that asks for the client's certificate by renegotiation under TLS
    /// 1.2, as Key Vault does: `https://localhost:PORT`. It opens to the same as the other one.
    pub fn renegotiating_vault_url(&self) -> String {
        self.world.addresses().renegotiating_vault
    }

    /// Where redirects lead that a fault made: `http://localhost:PORT`. The same port speaks HTTPS.
    pub fn honeypot_url(&self) -> String {
        self.world.addresses().honeypot.http
    }

    /// The resource to ask a token for so that the vault accepts it.
    pub fn vault_resource(&self) -> &'static str {
        crate::vault::AUDIENCE
    }

    /// The tenant's id.
    pub fn tenant_id(&self) -> &str {
        &self.world.settings.tenant_id
    }

    /// The identities assigned to the emulated machine.
    pub fn identities(&self) -> &[Identity] {
        &self.world.settings.identities
    }

    /// The authority's certificate: what clients must trust.
    pub fn ca_pem(&self) -> String {
        pem("CERTIFICATE", self.world.authority.certificate())
    }

    /// The file with the authority's certificate: in the state folder, else in a temporary folder
    /// that goes away with the emulator.
    pub fn ca_file(&self) -> PathBuf {
        self.world.state.ca_file()
    }

    /// The environment that sends clients here: names and values.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        env::variables(&self.world)
    }

    /// [`env`](Self::env) as lines to paste, each ended by a line feed.
    pub fn env_lines(&self, shell: Shell) -> String {
        env::lines(&self.world, shell)
    }

    /// The environment of a program in a Service Fabric cluster, beside [`env`](Self::env): it names the cluster's
    /// token service and the secret that opens it, and goes before the metadata service.
    pub fn service_fabric_env(&self) -> Vec<(&'static str, String)> {
        fabric::variables(&self.world)
    }

    /// How often each leg was asked.
    pub fn counters(&self) -> Counters {
        self.world.counting.snapshot()
    }

    /// Counts from zero again.
    pub fn reset_counters(&self) {
        self.world.counting.reset();
    }

    /// Plays a scenario from now on: what it says for the start has happened when this returns, the
    /// rest follows as the emulator's clock goes on.
    ///
    /// # Errors
    /// A step that cannot be done; nothing of the scenario is played then.
    pub fn play(&self, scenario: &Scenario) -> Result<(), EmulatorError> {
        self.world.play(scenario)
    }

    /// The steps of scenarios that are still to come: in how many seconds, and what they are.
    pub fn steps_to_come(&self) -> Vec<(u64, String)> {
        self.world.catch_up();
        self.world.script.list(self.world.clock.epoch())
    }

    /// Forgets the steps that are still to come. What has happened stays.
    pub fn forget_steps(&self) {
        self.world.script.clear();
    }

    /// Says how `issuecredential` treats attestation tokens from now on.
    pub fn set_attestation(&self, rule: AttestationRule) {
        self.world.set_attestation(rule);
    }

    /// A statement of the attestation service about a key (SubjectPublicKeyInfo, DER), valid for
    /// eight hours; with a flaw made on purpose, if one is given. The service itself gives it for
    /// `POST {attestationEndpoint}/attest/keyguard` `{"key":"…","flaw":"issuer"}`.
    ///
    /// # Errors
    /// The emulator's key did not sign.
    pub fn attest(
        &self,
        public_key: &[u8],
        flaw: Option<AttestationFlaw>,
    ) -> Result<String, EmulatorError> {
        attestation::statement(&self.world, public_key, flaw)
    }

    /// Makes a leg misbehave from the next request on. Several faults may be in force at once.
    ///
    /// # Errors
    /// A fault that its leg cannot have.
    pub fn inject(&self, fault: Fault) -> Result<(), EmulatorError> {
        self.inject_all(vec![fault])
    }

    /// Makes legs misbehave: all of the faults come into force, or none.
    ///
    /// # Errors
    /// A fault that its leg cannot have.
    pub fn inject_all(&self, faults: Vec<Fault>) -> Result<(), EmulatorError> {
        self.world.faults.inject(faults, self.world.clock.epoch())
    }

    /// The faults in force, with the requests and seconds that are left of them.
    pub fn faults(&self) -> Vec<Fault> {
        self.world.catch_up();
        self.world.faults.list(self.world.clock.epoch())
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.world.faults.clear();
    }

    /// The emulator's time.
    pub fn now(&self) -> SystemTime {
        self.world.catch_up();
        self.world.clock.now()
    }

    /// Moves the emulator's clock forward by whole seconds.
    ///
    /// # Errors
    /// More than a century since the start.
    pub fn advance_clock(&self, by: Duration) -> Result<(), EmulatorError> {
        self.world.clock.advance(by)
    }

    /// How long certificates issued from now on are valid.
    ///
    /// # Errors
    /// Less than a second or more than ten years.
    pub fn set_certificate_lifetime(&self, lifetime: Duration) -> Result<(), EmulatorError> {
        self.world.set_certificate_lifetime(lifetime)
    }

    /// How long tokens issued from now on are valid.
    ///
    /// # Errors
    /// Less than a second or more than ten years.
    pub fn set_token_lifetime(&self, lifetime: Duration) -> Result<(), EmulatorError> {
        self.world.set_token_lifetime(lifetime)
    }

    /// Makes the token service refuse a certificate, named by the base64url of the SHA-256 of its
    /// DER (`x5t#S256`), with `invalid_client` and AADSTS1000610, until the emulator ends.
    pub fn revoke(&self, thumbprint: &str) {
        self.world.revoke(thumbprint, admin::REVOKED);
    }

    /// [`revoke`](Self::revoke) for every certificate issued since the start; how many these were.
    pub fn revoke_all(&self) -> usize {
        self.world.revoke_issued(admin::REVOKED)
    }

    /// [`revoke_all`](Self::revoke_all), and the metadata service, which keeps certificates, hands
    /// out revoked ones until it is asked with `bypass_cache=true`: for each identity the request
    /// of this number gets the first good one; with `None` none ever does.
    pub fn revoke_until_reissued(&self, reissues: Option<u32>) {
        self.world.revoke_kept(admin::REVOKED, reissues);
    }

    /// For how long certificates issued from now on get tokens, whatever their validity; then the
    /// token service refuses them with AADSTS1000901.
    ///
    /// # Errors
    /// Less than a second or more than ten years.
    pub fn set_token_not_after(&self, window: Duration) -> Result<(), EmulatorError> {
        self.world.set_token_window(window)
    }

    /// Whether the token service asks for the client's certificate under TLS 1.3, too. It does, if
    /// nothing else is said.
    pub fn ask_under_tls13(&self, ask: bool) {
        self.world.set_ask_under_tls13(ask);
    }

    /// Sets a secret of the vault.
    ///
    /// # Errors
    /// The state folder could not be written.
    pub fn set_secret(&self, name: &str, value: &str) -> Result<(), EmulatorError> {
        self.world.set_secret(name, value).map(drop)
    }

    /// Stops the servers and ends their connections; returns when their ports are free and the
    /// state folder may be used again.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(());
        for server in std::mem::take(&mut self.servers) {
            if let Err(error) = server.await {
                tracing::error!(%error, "a server ended badly");
            }
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("addresses", &self.world.addresses())
            .finish_non_exhaustive()
    }
}

/// Opens or makes what the servers need.
fn prepare(builder: Builder, bind: IpAddr) -> Result<(World, Tls, Vec<String>), EmulatorError> {
    const KEY: &str = "PRIVATE KEY";

    let state = State::open(builder.state_dir.as_deref())?;
    let clock = Clock::new(builder.clock);
    let now = clock.now();

    // One file holds key and certificate, so that a crash cannot part them.
    let kept = state.read_pem(
        "ca.key",
        [KEY, "CERTIFICATE"],
        "the authority's key (PKCS #8) and certificate, as PEM",
    )?;
    let authority = match kept {
        Some([key, certificate]) => Authority::open(&key, certificate)?,
        None => {
            let (key, certificate) = Authority::generate(now)?;
            state.write_pem("ca.key", &[(KEY, &key), ("CERTIFICATE", &certificate)])?;
            Authority::open(&key, certificate)?
        }
    };
    state.write_ca(authority.certificate())?;
    let kept = state.read_pem("sts.key", [KEY], "the token service's key (PKCS #8, PEM)")?;
    let signer = match kept {
        Some([key]) => key,
        None => {
            let key = TokenSigner::generate()?;
            state.write_pem("sts.key", &[(KEY, &key)])?;
            key
        }
    };
    let signer = TokenSigner::open(&signer)?;

    let mut hosts = vec![
        builder.settings.public_host.clone(),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    if !bind.is_unspecified() {
        hosts.push(bind.to_string());
    }
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    let (key, certificate) = authority.server(&hosts, now)?;
    let fabric = Fabric::new(&certificate)?;
    let tls = Tls::new(key, certificate, authority.certificate().to_vec())?;
    let world = World::new(builder.settings, clock, authority, signer, state, fabric)?;
    Ok((world, tls, hosts))
}

/// The TLS of the vault that renegotiates: it takes the certificates of the emulator's authority.
fn renegotiating_tls(world: Arc<World>, hosts: Vec<String>) -> LazyConfig {
    LazyConfig::new(move || {
        let authority = world.authority.certificate().to_vec();
        let (key, certificate) = world.authority.rsa_server(&hosts, world.clock.now())?;
        let world = world.clone();
        let trust = move |chain: &[Vec<u8>]| {
            let leaf = chain.first().map_or(&[][..], Vec::as_slice);
            let leaf = Certificate::parse(leaf).map_err(|_| Alert::BadCertificate)?;
            if world.authority.issued(&leaf) {
                Ok(())
            } else {
                Err(Alert::UnknownCa)
            }
        };
        Config::new(&key, vec![certificate, authority], Arc::new(trust))
    })
}

/// A host as it stands in a URL.
fn url_host(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}
