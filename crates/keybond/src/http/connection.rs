//! A connection: TCP, or TLS whose facts stay readable while HTTP uses it.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use ::http::{Method, Request, Response, header};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use keybond_tls::{TlsError, TlsInfo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    task::JoinHandle,
    time::Instant,
};
use url::{Host, Url};

use super::{
    Ask, CONNECT_TIMEOUT, Net, Via,
    body::Outgoing,
    header_value, secured,
    shared::{Activity, SharedConn},
};
use crate::{
    error::{At, Error, NoAnswer, THUMBPRINT},
    hosts::{is_local, is_private},
};

/// A connection with HTTP/1.1 on it. Dropping it closes it at once.
pub(crate) struct Connection {
    sender: SendRequest<Outgoing>,
    driver: JoinHandle<()>,
    tls: Option<SharedConn>,
    address: String,
    opened: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(crate) async fn open(net: &Net, url: &Url, via: &Via, at: &At) -> Result<Self, Error> {
        let address = address(url);
        match via {
            Via::LocalTcp { .. } | Via::PrivateTcp => {
                let tcp = dial(url, via, at, &address).await?;
                // A name like `localhost` can be made to lead anywhere.
                let peer = tcp.peer_addr().map_err(|e| broken(at, &address, &e))?;
                let private = matches!(via, Via::PrivateTcp) && is_private(peer.ip());
                if !is_local(peer.ip()) && !private {
                    return Err(Error::Host {
                        at: at.clone(),
                        field: match via {
                            Via::PrivateTcp => "endpoint".into(),
                            _ => "imds_endpoint".into(),
                        },
                        address: peer.to_string(),
                        problem: "it leads off this machine and its link",
                    });
                }
                Self::start(tcp, None, address, at).await
            }
            Via::ServerTls { .. } | Via::Tls(..) | Via::Resource { .. } => {
                let conn = secured::connect(net, url, via, at, &address).await?;
                if let Via::ServerTls {
                    thumbprint: Some(expected),
                } = via
                {
                    let found = thumbprint(&conn.info().server_leaf);
                    if found != *expected {
                        // The one expected is not repeated: it is a value of the environment.
                        return Err(at.mismatch(THUMBPRINT, "the one named beforehand", found));
                    }
                }
                let shared = SharedConn::new(conn);
                Self::start(shared.clone(), Some(shared), address, at).await
            }
        }
    }

    async fn start<I>(
        io: I,
        tls: Option<SharedConn>,
        address: String,
        at: &At,
    ) -> Result<Self, Error>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, driver) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| broken(at, &address, &error))?;
        let driver = tokio::spawn(async move {
            // Its error reaches the sender or the body, too.
            let _ = driver.await;
        });
        Ok(Self {
            sender,
            driver,
            tls,
            address,
            opened: Instant::now(),
        })
    }

    pub(super) async fn send(&mut self, ask: &Ask, at: &At) -> Result<Response<Incoming>, Error> {
        let body = Outgoing::whole(ask.body.clone());
        let mut request = request(ask.method.clone(), &ask.url, body)?;
        let host = request.headers_mut().remove(header::HOST);
        *request.headers_mut() = ask.headers.clone();
        request
            .headers_mut()
            .extend(host.map(|host| (header::HOST, host)));
        self.sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(at, &error))
    }

    /// Sends a request. One that was not sent comes back with the error.
    pub(crate) fn try_send(
        &mut self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>> + use<>
    {
        self.sender.try_send_request(request)
    }

    /// Waits until the exchange before this one is over. `false`: the connection is closed.
    pub(crate) async fn is_ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// When it was made.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// When bytes last moved on it, if it is one of TLS.
    pub(crate) fn activity(&self) -> Option<Arc<Activity>> {
        self.tls.as_ref().map(|tls| Arc::clone(tls.activity()))
    }

    /// Keeps the leave to use the key until the key has signed on this connection, or until it is given back.
    pub(crate) fn hold(&self, turn: OwnedSemaphorePermit) {
        if let Some(tls) = &self.tls {
            tls.hold(turn);
        }
    }

    /// Ends [`Connection::hold`].
    pub(crate) fn give_back(&self) {
        if let Some(tls) = &self.tls {
            tls.give_back();
        }
    }

    /// Whether the server asked for a renegotiation that is not over.
    pub(crate) fn is_renegotiating(&self) -> bool {
        self.tls.as_ref().is_some_and(SharedConn::is_renegotiating)
    }

    pub(crate) fn tls(&self) -> Option<TlsInfo> {
        self.tls.as_ref().map(SharedConn::info)
    }

    pub(super) fn broken(&self, at: &At, error: &(dyn StdError + 'static)) -> Error {
        broken(at, &self.address, error)
    }

    pub(super) fn silent(&self, at: &At, waited: Duration) -> Error {
        unanswered(at, &self.address, waited)
    }
}

/// A certificate's SHA-1 in capital hexadecimal digits, as Service Fabric names its servers. It picks one
/// certificate among those that are trusted; trust does not rest on it.
fn thumbprint(der: &[u8]) -> String {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, der)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

pub(super) fn silent(at: &At, url: &Url, waited: Duration) -> Error {
    unanswered(at, &address(url), waited)
}

pub(super) async fn dial(url: &Url, via: &Via, at: &At, address: &str) -> Result<TcpStream, Error> {
    let within = match via {
        Via::LocalTcp { within } => *within,
        _ => CONNECT_TIMEOUT,
    };
    let port = url.port_or_known_default().unwrap_or(0);
    let dialled = async {
        match url.host() {
            Some(Host::Domain(name)) => TcpStream::connect((name, port)).await,
            Some(Host::Ipv4(ip)) => TcpStream::connect((ip, port)).await,
            Some(Host::Ipv6(ip)) => TcpStream::connect((ip, port)).await,
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    };
    let tcp = tokio::time::timeout(within, dialled)
        .await
        .map_err(|_| {
            let cause = format!("no connection within {within:?}");
            unreachable(at, address, cause, NoAnswer::NoConnection)
        })?
        .map_err(|error| {
            let how = match error.kind() {
                io::ErrorKind::TimedOut => NoAnswer::NoConnection,
                _ => NoAnswer::Refused,
            };
            unreachable(at, address, error.to_string(), how)
        })?;
    // Requests are written whole; nothing is gained by waiting for more. Failing to say so only costs time.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// A request in origin form.
pub(crate) fn request(
    method: Method,
    url: &Url,
    body: Outgoing,
) -> Result<Request<Outgoing>, Error> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, header_value("host", &host)?)
        .body(body)
        .map_err(|error| Error::configuration("url", error.to_string()))
}

pub(crate) fn address(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{host}:{}", url.port_or_known_default().unwrap_or(0))
}

/// A connection that stood and then failed. If the TLS layer knows why, it has the word: a server that refuses
/// a certificate may say so only after the handshake.
pub(crate) fn broken(at: &At, address: &str, error: &(dyn StdError + 'static)) -> Error {
    if let Some(cause) = TlsError::find(error) {
        return Error::Tls {
            at: at.clone(),
            host: address.to_owned(),
            cause: Arc::new(cause.clone()),
        };
    }
    let mut cause = error.to_string();
    let mut how = NoAnswer::Broken;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::TimedOut
        {
            how = NoAnswer::Silence;
        }
        next = error.source();
        if let Some(source) = next {
            cause = format!("{cause}: {source}");
        }
    }
    unreachable(at, address, cause, how)
}

pub(crate) fn unanswered(at: &At, address: &str, waited: Duration) -> Error {
    let cause = format!("no answer within {waited:?}");
    unreachable(at, address, cause, NoAnswer::Silence)
}

pub(crate) fn unreachable(at: &At, address: &str, cause: String, how: NoAnswer) -> Error {
    Error::Unreachable {
        at: at.clone(),
        address: address.to_owned(),
        cause,
        how,
    }
}
