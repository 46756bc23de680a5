//! Servers: they accept, shake hands, and hand each request to a service. A connection that fails
//! or panics takes nobody with it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Response;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    http_io::ReplyBody,
    tls::Tls,
    tls12::{LazyConfig, RenegotiationError, Renegotiator, TlsStream},
};

/// How long a client may take for the TLS handshake or for the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// The first byte of a TLS connection (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// What a service knows about the connection of a request.
#[derive(Clone)]
pub(crate) struct Peer {
    certificate: Option<Arc<[u8]>>,
    renegotiator: Option<Renegotiator<Wire>>,
    reset: Arc<AtomicBool>,
}

/// A service's wish to end the connection instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("the connection is ended without an answer")]
pub(crate) struct Hangup;

impl Peer {
    /// DER of the client's certificate, whose key was proved.
    pub(crate) fn certificate(&self) -> Option<Arc<[u8]>> {
        match &self.renegotiator {
            Some(renegotiator) => renegotiator.certificate(),
            None => self.certificate.clone(),
        }
    }

    /// Asks for the client's certificate, if it has not shown one and this connection can be
    /// renegotiated; whether it was.
    pub(crate) async fn ask_certificate(&self) -> Result<bool, Hangup> {
        let Some(renegotiator) = &self.renegotiator else {
            return Ok(false);
        };
        if renegotiator.certificate().is_some() {
            return Ok(false);
        }
        match tokio::time::timeout(PATIENCE, renegotiator.ask()).await {
            Ok(Ok(_)) => Ok(true),
            // A client that knows no renegotiation goes on without.
            Ok(Err(error @ (RenegotiationError::Refused | RenegotiationError::CannotAsk(_)))) => {
                tracing::debug!(%error, "no renegotiation");
                Ok(false)
            }
            Ok(Err(RenegotiationError::Io(error))) => {
                tracing::debug!(%error, "a renegotiation failed");
                Err(Hangup)
            }
            Err(_) => {
                tracing::debug!("a renegotiation took too long");
                Err(Hangup)
            }
        }
    }

    /// Marks the connection, which then ends with a TCP reset.
    pub(crate) fn reset(&self) -> Hangup {
        self.reset.store(true, Ordering::Relaxed);
        Hangup
    }
}

/// What connections speak before there is HTTP.
#[derive(Clone)]
pub(crate) enum Transport {
    Plain,
    /// TLS, and whether clients that know TLS 1.3 are asked for their certificate.
    Tls(Tls, Arc<dyn Fn() -> bool + Send + Sync>),
    /// Whichever the client begins with.
    Either(Tls),
    /// TLS 1.2, with the client's certificate asked for by renegotiation.
    Renegotiating(Arc<LazyConfig>),
}

/// What is served.
#[derive(Clone)]
pub(crate) struct Server<A, S> {
    /// For logs.
    pub(crate) name: &'static str,
    pub(crate) transport: Transport,
    /// Whether a connection that has sent its first byte may go on; else it is reset.
    pub(crate) admit: A,
    /// Answers one request.
    pub(crate) service: S,
}

/// Serves until told to stop, or until the task is aborted; its connections end with it.
pub(crate) async fn serve<A, S, F>(
    listener: TcpListener,
    mut stop: watch::Receiver<()>,
    server: Server<A, S>,
) where
    A: Fn() -> bool + Clone + Send + 'static,
    S: Fn(hyper::Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<ReplyBody>, Hangup>> + Send + 'static,
{
    let name = server.name;
    let mut connections = JoinSet::new();
    loop {
        let tcp = tokio::select! {
            // The only change is to stop; an error means that nobody is left to say so.
            _ = stop.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(server = name, %error, "a connection could not be accepted");
                    // Out of file descriptors, most likely: another attempt at once would spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            Some(ended) = connections.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!(server = name, "a connection ended in a panic");
                }
                continue;
            }
        };
        connections.spawn(connection(tcp, server.clone()));
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection<A, S, F>(tcp: TcpStream, server: Server<A, S>)
where
    A: Fn() -> bool,
    S: Fn(hyper::Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<ReplyBody>, Hangup>> + Send + 'static,
{
    let Server {
        name,
        transport,
        admit,
        service,
    } = server;
    let reset = Arc::new(AtomicBool::new(false));
    let wire = Wire {
        tcp,
        reset: reset.clone(),
    };
    let mut first = [0];
    match tokio::time::timeout(PATIENCE, wire.tcp.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        _ => return,
    }
    if !admit() {
        reset.store(true, Ordering::Relaxed);
        return;
    }
    let tls = match transport {
        Transport::Tls(tls, ask_under_tls13) => Some((tls, ask_under_tls13())),
        Transport::Either(tls) if first == [HANDSHAKE] => Some((tls, true)),
        Transport::Either(_) | Transport::Plain => None,
        Transport::Renegotiating(config) => {
            return renegotiable(name, wire, &config, reset, service).await;
        }
    };
    let Some((tls, ask_under_tls13)) = tls else {
        let peer = Peer {
            certificate: None,
            renegotiator: None,
            reset,
        };
        return requests(name, wire, peer, service).await;
    };
    let accepting = tls.accept(wire, ask_under_tls13);
    let stream = match tokio::time::timeout(PATIENCE, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(server = name, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(server = name, "a TLS handshake took too long");
            return;
        }
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| Arc::from(certificate.as_ref()));
    let peer = Peer {
        certificate,
        renegotiator: None,
        reset,
    };
    requests(name, stream, peer, service).await;
}

async fn renegotiable<S, F>(
    name: &'static str,
    wire: Wire,
    config: &LazyConfig,
    reset: Arc<AtomicBool>,
    service: S,
) where
    S: Fn(hyper::Request<Incoming>, Peer) -> F,
    F: Future<Output = Result<Response<ReplyBody>, Hangup>> + Send + 'static,
{
    let config = match config.get().await {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(server = name, %error, "no TLS for a connection");
            return;
        }
    };
    let stream = match tokio::time::timeout(PATIENCE, TlsStream::accept(wire, config)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(server = name, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(server = name, "a TLS handshake took too long");
            return;
        }
    };
    let peer = Peer {
        certificate: None,
        renegotiator: Some(stream.renegotiator()),
        reset,
    };
    requests(name, stream, peer, service).await;
}

async fn requests<I, S, F>(name: &'static str, io: I, peer: Peer, service: S)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(hyper::Request<Incoming>, Peer) -> F,
    F: Future<Output = Result<Response<ReplyBody>, Hangup>> + Send + 'static,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(
            TokioIo::new(io),
            service_fn(|request| service(request, peer.clone())),
        )
        .await;
    if let Err(error) = served {
        tracing::debug!(server = name, %error, "a connection ended early");
    }
}

/// A TCP connection that can be made to end with a reset.
pub(crate) struct Wire {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Closing without lingering is what makes the kernel send RST.
            if let Err(error) = self.tcp.set_zero_linger() {
                tracing::warn!(%error, "a connection could not be reset");
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
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
        if self.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http_io::Reply;

    async fn ask(address: std::net::SocketAddr, path: &str) -> io::Result<String> {
        let mut tcp = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_panic_or_a_reset_ends_one_connection_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(());
        let service = |request: hyper::Request<Incoming>, peer: Peer| async move {
            match request.uri().path() {
                "/panic" => panic!("on purpose"),
                "/reset" => Err(peer.reset()),
                _ => Ok(Reply::bytes(StatusCode::OK, "text/plain", "fine").into_response()),
            }
        };
        let server = Server {
            name: "test",
            transport: Transport::Plain,
            admit: || true,
            service,
        };
        let server = tokio::spawn(serve(listener, stopped, server));
        assert_eq!(ask(address, "/panic").await.unwrap(), "");
        assert_eq!(
            ask(address, "/reset").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert!(ask(address, "/").await.unwrap().ends_with("fine"));
        let idle = TcpStream::connect(address).await.unwrap();
        stop.send(()).unwrap();
        server.await.unwrap();
        assert!(ask(address, "/").await.is_err(), "nobody listens any more");
        drop(idle);
    }
}
