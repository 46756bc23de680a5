//! Makes connections: one configuration without a certificate, and one for each identity and choice of versions.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use keybond_keys::{HeldKey, SignatureScheme};
use s2n_tls::{
    config::{Builder, Config},
    enums::ClientAuthType,
    error::Error,
    security::Policy,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    task::spawn_blocking,
};

use super::{
    renegotiation::{Control, Decide},
    session::{Session, setup},
    signer::Signer,
    stream::Stream,
};
use crate::{
    error::TlsError,
    host::Host,
    identity::ClientIdentity,
    pem,
    roots::TrustRoots,
    seam::{BoxFuture, Leg, TlsConn, TlsConnector, TlsVersion},
};

/// TLS 1.2 and 1.3; signatures RSASSA-PSS before PKCS#1 v1.5.
const BOTH_VERSIONS: &str = "default_tls13";
/// TLS 1.2 alone, otherwise alike: a server that asks later can do so only there.
const TLS12_ONLY: &str = "20240501";
/// TLS 1.2 alone, signatures PKCS#1 v1.5: TLS 1.3 demands RSASSA-PSS (RFC 8446 §4.2.3).
const PKCS1_ONLY: &str = "ELBSecurityPolicy-TLS-1-2-2017-01";

/// How long a handshake may take unless said otherwise.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Connections by `s2n-tls`.
///
/// No session is resumed: a resumed one would carry over whether the client was authenticated.
pub struct S2nConnector {
    roots: Arc<[String]>,
    plain: Config,
    plain12: OnceCell<Config>,
    bound: Mutex<Vec<Bound>>,
    handshake: Duration,
}

/// The configuration of an identity, as long as the identity lives.
struct Bound {
    identity: Weak<ClientIdentity>,
    policy: &'static str,
    config: Arc<OnceCell<Config>>,
}

impl S2nConnector {
    /// A connector that trusts `roots`. Takes some ten milliseconds with a system's roots: call it off the
    /// async runtime.
    ///
    /// # Errors
    /// [`TlsError::Setup`] if the TLS stack refuses the roots.
    pub fn new(roots: &TrustRoots) -> Result<Self, TlsError> {
        let roots: Arc<[String]> = roots.iter().map(pem::encode).collect();
        Ok(Self {
            plain: config(&roots, BOTH_VERSIONS, None).map_err(setup)?,
            roots,
            plain12: OnceCell::new(),
            bound: Mutex::default(),
            handshake: HANDSHAKE,
        })
    }

    /// Limits each handshake, and each renegotiation, to `limit` (30 seconds unless set), the key's signature
    /// included.
    #[must_use]
    pub fn handshake_deadline(mut self, limit: Duration) -> Self {
        self.handshake = limit;
        self
    }

    /// Shakes hands over any socket.
    async fn establish<S: AsyncRead + AsyncWrite + Send + Unpin>(
        &self,
        socket: S,
        host: &str,
        leg: Leg,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> Result<Stream<S>, TlsError> {
        let host = Host::parse(host)?;
        let identity = identity.filter(|_| leg != Leg::Plain);
        let control = Control::new(leg, identity.is_some());
        let config = match (identity, newest) {
            (Some(identity), _) => {
                let policy = policy(identity.key(), leg, newest);
                let cell = self.cell(&identity, policy);
                self.build(&cell, policy, Some(identity)).await?
            }
            (None, TlsVersion::Tls13) => self.plain.clone(),
            (None, TlsVersion::Tls12) => self.build(&self.plain12, TLS12_ONLY, None).await?,
        };
        let session = Session::handshake(config, socket, host, control, self.handshake).await?;
        Ok(Stream::new(session))
    }

    async fn build(
        &self,
        cell: &OnceCell<Config>,
        policy: &'static str,
        identity: Option<Arc<ClientIdentity>>,
    ) -> Result<Config, TlsError> {
        let config = cell
            .get_or_try_init(|| async {
                let roots = Arc::clone(&self.roots);
                // The roots are parsed again for each configuration: not on the runtime.
                let built = spawn_blocking(move || {
                    config(&roots, policy, identity.as_deref()).map_err(setup)
                });
                built.await.unwrap_or_else(|error| {
                    Err(TlsError::Setup {
                        problem: error.to_string(),
                    })
                })
            })
            .await?;
        Ok(config.clone())
    }

    fn cell(&self, identity: &Arc<ClientIdentity>, policy: &'static str) -> Arc<OnceCell<Config>> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.retain(|entry| entry.identity.strong_count() > 0);
        let known = bound.iter().find(|entry| {
            entry.policy == policy && std::ptr::eq(entry.identity.as_ptr(), Arc::as_ptr(identity))
        });
        if let Some(known) = known {
            return Arc::clone(&known.config);
        }
        let config = Arc::new(OnceCell::new());
        bound.push(Bound {
            identity: Arc::downgrade(identity),
            policy,
            config: Arc::clone(&config),
        });
        config
    }
}

impl TlsConnector for S2nConnector {
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        self.connect_up_to(tcp, host, leg, TlsVersion::Tls13, identity)
    }

    fn connect_up_to<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        Box::pin(async move {
            // Small records must not wait for each other; a socket that refuses is only slower.
            let _ = tcp.set_nodelay(true);
            let stream = self.establish(tcp, host, leg, newest, identity).await?;
            Ok(Box::new(stream) as Box<dyn TlsConn>)
        })
    }
}

impl fmt::Debug for S2nConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S2nConnector")
            .field("roots", &self.roots.len())
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}

/// The connector of this platform.
///
/// # Errors
/// As [`S2nConnector::new`].
pub fn default_connector(roots: &TrustRoots) -> Result<Arc<dyn TlsConnector>, TlsError> {
    Ok(Arc::new(S2nConnector::new(roots)?))
}

fn policy(key: &HeldKey, leg: Leg, newest: TlsVersion) -> &'static str {
    // Every scheme a server may choose from the other policies; s2n cannot narrow them further.
    if !key.supports(SignatureScheme::RsaPssSha256) {
        PKCS1_ONLY
    } else if leg == Leg::OnDemand || newest == TlsVersion::Tls12 {
        TLS12_ONLY
    } else {
        BOTH_VERSIONS
    }
}

fn config(
    roots: &[String],
    policy: &str,
    identity: Option<&ClientIdentity>,
) -> Result<Config, Error> {
    let mut builder = Builder::new();
    builder
        .with_system_certs(false)?
        .set_security_policy(&Policy::from_version(policy)?)?
        // Renegotiation is forbidden in HTTP/2 (RFC 9113 §9.2.1), and one protocol is enough.
        .set_application_protocol_preference(["http/1.1"])?
        // A client without a certificate answers a request with an empty one.
        .set_client_auth_type(ClientAuthType::Optional)?
        .set_renegotiate_callback(Decide)?;
    for root in roots {
        if let Err(error) = builder.trust_pem(root.as_bytes()) {
            // A system's bundle may hold what aws-lc does not read; the others still count.
            tracing::warn!(error = error.message(), "a trust root is left out");
        }
    }
    if let Some(identity) = identity {
        let chain: String = identity
            .chain()
            .iter()
            .map(|der| pem::encode(der))
            .collect();
        builder
            .load_public_pem(chain.as_bytes())?
            .set_private_key_callback(Signer {
                key: Arc::clone(identity.key()),
            })?;
    }
    builder.build()
}
