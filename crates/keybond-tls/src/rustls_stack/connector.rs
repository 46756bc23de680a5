//! Makes connections: one configuration for all, with the certificate of the one that is being made.

use std::{
    fmt, future::poll_fn, io, net::Shutdown, pin::pin, sync::Arc, task::Poll, thread,
    time::Duration,
};

use keybond_keys::SignatureScheme;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::{net::TcpStream, runtime::Handle, sync::oneshot, time::timeout};
use tokio_rustls::{Connect, client::TlsStream};

use super::{
    classify::Situation,
    signer::{Handshake, Resolver},
    stream::Stream,
};
use crate::{
    error::{Stage, TlsError},
    host::Host,
    identity::ClientIdentity,
    roots::TrustRoots,
    seam::{BoxFuture, Leg, TlsConn, TlsConnector, TlsVersion},
};

/// How long a handshake may take unless said otherwise.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Connections by rustls, for [`Leg::Plain`] and [`Leg::FirstHandshake`].
///
/// No session is resumed: a resumed one would carry over whether the client was authenticated.
pub struct RustlsConnector {
    both_versions: ClientConfig,
    /// For keys without PSS, which TLS 1.3 demands (RFC 8446 §4.2.3).
    tls12: ClientConfig,
    handshake: Duration,
}

impl RustlsConnector {
    /// A connector that trusts `roots`. Takes a while with a system's roots: call it off the async runtime.
    ///
    /// # Errors
    /// [`TlsError::Setup`] if the TLS stack refuses its configuration.
    pub fn new(roots: &TrustRoots) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for root in roots.iter() {
            if let Err(error) = store.add(CertificateDer::from(root)) {
                // A system's bundle may hold what rustls does not read; the others still count.
                tracing::warn!(%error, "a trust root is left out");
            }
        }
        let store = Arc::new(store);
        Ok(Self {
            both_versions: config(&store, &[&TLS13, &TLS12])?,
            tls12: config(&store, &[&TLS12])?,
            handshake: HANDSHAKE,
        })
    }

    /// Limits each handshake to `limit` (30 seconds unless set), the key's signature included.
    #[must_use]
    pub fn handshake_deadline(mut self, limit: Duration) -> Self {
        self.handshake = limit;
        self
    }

    async fn establish(
        &self,
        tcp: TcpStream,
        host: Host,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> Result<Stream, TlsError> {
        let handshake = Arc::new(Handshake::default());
        let base = match &identity {
            _ if newest == TlsVersion::Tls12 => &self.tls12,
            Some(identity) if !identity.key().supports(SignatureScheme::RsaPssSha256) => {
                &self.tls12
            }
            _ => &self.both_versions,
        };
        let mut config = base.clone();
        let signs = identity.is_some();
        config.client_auth_cert_resolver =
            Arc::new(Resolver::new(identity.as_deref(), Arc::clone(&handshake)));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = server_name(&host)?;
        let situation = Situation {
            host,
            handshake,
            stage: Stage::Handshake,
        };
        let connecting = async {
            if signs {
                let (tcp, door) = Door::on(tcp)?;
                let connected = on_a_thread(connector.connect(name, tcp)).await?;
                door.stays_open();
                Ok(connected)
            } else {
                connector.connect(name, tcp).await
            }
        };
        match timeout(self.handshake, connecting).await {
            Ok(Ok(tls)) => Ok(Stream::new(tls, situation)),
            Ok(Err(error)) => Err(situation.classify(error)),
            Err(_) => Err(TlsError::TimedOut {
                host: situation.host.to_string(),
                stage: Stage::Handshake,
                after: self.handshake,
            }),
        }
    }
}

impl TlsConnector for RustlsConnector {
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
            let host = Host::parse(host)?;
            if leg == Leg::OnDemand {
                let host = host.to_string();
                return Err(TlsError::OnDemandUnavailable { host });
            }
            // Small records must not wait for each other; a socket that refuses is only slower.
            let _ = tcp.set_nodelay(true);
            let identity = identity.filter(|_| leg == Leg::FirstHandshake);
            let stream = self.establish(tcp, host, newest, identity).await?;
            Ok(Box::new(stream) as Box<dyn TlsConn>)
        })
    }
}

impl fmt::Debug for RustlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RustlsConnector")
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}

/// The connector of this platform.
///
/// # Errors
/// As [`RustlsConnector::new`].
#[cfg(target_env = "msvc")]
pub fn default_connector(roots: &TrustRoots) -> Result<Arc<dyn TlsConnector>, TlsError> {
    Ok(Arc::new(RustlsConnector::new(roots)?))
}

/// A second handle of the socket of a handshake that may hang in a signature: dropped before the handshake is
/// over, it closes the connection, whatever the thread of the handshake is waiting for.
struct Door(Option<std::net::TcpStream>);

impl Door {
    fn on(tcp: TcpStream) -> io::Result<(TcpStream, Self)> {
        let tcp = tcp.into_std()?;
        let door = Self(Some(tcp.try_clone()?));
        Ok((TcpStream::from_std(tcp)?, door))
    }

    fn stays_open(mut self) {
        self.0 = None;
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(socket) = self.0.take() {
            // It fails when the server has closed it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Shakes hands on a thread that may block, until nobody waits any more. Not one of the runtime's: a runtime
/// that ends would wait for a device that hangs.
async fn on_a_thread(connecting: Connect<TcpStream>) -> io::Result<TlsStream<TcpStream>> {
    let (mut answer, answered) = oneshot::channel();
    let runtime = Handle::current();
    thread::Builder::new()
        .name("keybond-tls".into())
        .spawn(move || {
            let connected = runtime.block_on(async {
                let mut connecting = pin!(connecting);
                let mut given_up = pin!(answer.closed());
                poll_fn(|context| match connecting.as_mut().poll(context) {
                    Poll::Ready(connected) => Poll::Ready(Some(connected)),
                    Poll::Pending => given_up.as_mut().poll(context).map(|()| None),
                })
                .await
            });
            if let Some(connected) = connected {
                // Given up at the last moment: dropping it closes the connection.
                let _ = answer.send(connected);
            }
        })?;
    answered
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread of the handshake ended early")))
}

fn config(
    roots: &Arc<RootCertStore>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Setup {
            problem: error.to_string(),
        })?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn server_name(host: &Host) -> Result<ServerName<'static>, TlsError> {
    Ok(match host {
        Host::Ip(ip) => ServerName::from(*ip),
        Host::Dns(name) => {
            ServerName::try_from(name.clone()).map_err(|_| TlsError::InvalidHost {
                host: name.clone(),
                problem: "expected a DNS name or an IP address",
            })?
        }
    })
}
