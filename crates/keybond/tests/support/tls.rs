//! A TLS connector without TLS: bytes pass through, and what would have been shown is remembered.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use keybond::{
    keys::SignatureScheme,
    tls::{
        Alert, BoxFuture, ClientIdentity, Leg, Stage, TlsConn, TlsConnector, TlsError, TlsInfo,
        TlsVersion,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
};

/// One connection that was asked for.
pub struct Shown {
    pub host: String,
    pub leg: Leg,
    pub newest: TlsVersion,
    pub identity: Option<Arc<ClientIdentity>>,
}

pub struct PassThrough {
    pub shown: Mutex<Vec<Shown>>,
    /// The certificate that servers are said to have shown.
    pub server_leaf: Mutex<Vec<u8>>,
    /// Whether the client is said to have shown its certificate.
    pub certificate_shown: AtomicBool,
    /// The versions under which servers ask for no certificate, and those that they do not speak.
    pub silent: Mutex<Vec<TlsVersion>>,
    pub unspoken: Mutex<Vec<TlsVersion>>,
    /// A permit for every connection that has ended.
    pub ended: Arc<Semaphore>,
    /// Whether the client's key signs the first handshake, and not only its certificate is remembered.
    pub signed: AtomicBool,
    /// Connections on demand wait here, and say so.
    pub gate: Semaphore,
    pub waiting: Semaphore,
}

impl Default for PassThrough {
    fn default() -> Self {
        Self {
            shown: Mutex::default(),
            server_leaf: Mutex::default(),
            certificate_shown: AtomicBool::new(true),
            silent: Mutex::default(),
            unspoken: Mutex::default(),
            ended: Arc::new(Semaphore::new(0)),
            signed: AtomicBool::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            waiting: Semaphore::new(0),
        }
    }
}

impl PassThrough {
    /// The certificate of the last connection.
    pub fn last_certificate(&self) -> Vec<u8> {
        let shown = self.shown.lock().unwrap();
        shown.last().unwrap().identity.as_ref().unwrap().chain()[0].clone()
    }

    /// The certificates shown on connections on demand, in their order.
    pub fn on_demand(&self) -> Vec<Vec<u8>> {
        let shown = self.shown.lock().unwrap();
        let on_demand = shown.iter().filter(|shown| shown.leg == Leg::OnDemand);
        on_demand
            .map(|shown| shown.identity.as_ref().unwrap().chain()[0].clone())
            .collect()
    }
}

impl TlsConnector for PassThrough {
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
        let signing = identity.clone().filter(|_| self.signed.load(SeqCst));
        self.shown.lock().unwrap().push(Shown {
            host: host.into(),
            leg,
            newest,
            identity,
        });
        let spoken = !self.unspoken.lock().unwrap().contains(&newest);
        let asked = !self.silent.lock().unwrap().contains(&newest);
        let conn = Conn {
            tcp,
            info: TlsInfo {
                version: newest,
                cipher_suite: "made up".into(),
                certificate_requested: asked,
                client_signature: (asked && self.certificate_shown.load(SeqCst))
                    .then_some(SignatureScheme::RsaPssSha256),
                renegotiations: 0,
                server_leaf: self.server_leaf.lock().unwrap().clone(),
            },
            ended: Arc::clone(&self.ended),
        };
        Box::pin(async move {
            if leg == Leg::OnDemand {
                self.waiting.add_permits(1);
                drop(self.gate.acquire().await.unwrap());
            }
            if let Some(identity) = signing {
                let key = identity.key();
                let signature = key.sign(key.schemes()[0], b"a transcript").await;
                signature.map_err(|source| TlsError::Key {
                    stage: Stage::Handshake,
                    source,
                })?;
            }
            if spoken {
                return Ok(Box::new(conn) as Box<dyn TlsConn>);
            }
            Err(TlsError::Alert {
                host: host.into(),
                alert: Alert::PROTOCOL_VERSION,
                stage: Stage::Handshake,
                certificate: keybond::tls::CertificateUse::NotRequested,
            })
        })
    }
}

struct Conn {
    tcp: TcpStream,
    info: TlsInfo,
    ended: Arc<Semaphore>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.ended.add_permits(1);
    }
}

impl TlsConn for Conn {
    fn info(&self) -> TlsInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
