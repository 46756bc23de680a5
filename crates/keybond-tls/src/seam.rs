//! The seam: the rest of keybond sees two small traits and no TLS stack.

use std::{fmt, pin::Pin, sync::Arc};

use keybond_keys::SignatureScheme;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{error::TlsError, identity::ClientIdentity};

/// A boxed future, as the object-safe traits below return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// When a client certificate may be used on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    /// Never: a server that asks gets none.
    Plain,
    /// In the first handshake, as the token service asks for it.
    FirstHandshake,
    /// In the first handshake or, under TLS 1.2, in one renegotiation later, as Key Vault asks for it.
    OnDemand,
}

/// Makes TLS connections. The configuration is built once; connecting is cheap.
pub trait TlsConnector: Send + Sync + 'static {
    /// Performs the handshake over `tcp` with the server called `host` (a DNS name or an IP address, without
    /// port). `identity` is used as `leg` says; the signature comes from its held key, asynchronously.
    ///
    /// Dropping the future closes the connection.
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>>;

    /// [`TlsConnector::connect`], offering no version above `newest`. A connector that cannot say so to its stack
    /// refuses every limit below TLS 1.3 with [`TlsError::Setup`].
    fn connect_up_to<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        match newest {
            TlsVersion::Tls13 => self.connect(tcp, host, leg, identity),
            TlsVersion::Tls12 => Box::pin(async {
                Err(TlsError::Setup {
                    problem: "this connector cannot leave out TLS 1.3".into(),
                })
            }),
        }
    }
}

/// An established connection: bytes both ways, and facts about it.
pub trait TlsConn: AsyncRead + AsyncWrite + Send + Unpin {
    /// What is known about the connection now (a renegotiation changes it).
    fn info(&self) -> TlsInfo;

    /// Whether a renegotiation is under way: the server asked for one, and it is not over. Never, for a stack that
    /// does not renegotiate.
    fn is_renegotiating(&self) -> bool {
        false
    }
}

/// Facts about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// The protocol version.
    pub version: TlsVersion,
    /// The cipher suite's name, as the stack spells it.
    pub cipher_suite: String,
    /// Whether the server asked for a client certificate. Right as soon as the handshake has ended, under TLS 1.3,
    /// too: the request comes before the server's `Finished` (RFC 8446 §4.3.2).
    pub certificate_requested: bool,
    /// The scheme of the signature that the held key made for this connection, if it made one.
    pub client_signature: Option<SignatureScheme>,
    /// How often the server has renegotiated.
    pub renegotiations: u32,
    /// The server's certificate (DER).
    pub server_leaf: Vec<u8>,
}

/// TLS protocol versions in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}
