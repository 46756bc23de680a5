//! The shell around the machine: it moves bytes between the machine and a transport.
//!
//! Two may look at one connection: whoever reads and writes content, and whoever has asked for a
//! renegotiation. Both may be polled by one task or by two. Whoever makes progress moves everything
//! there is and wakes the other, so that no readiness of the transport is lost between them.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    config::Config,
    connection::{CannotAsk, Connection, read},
};

/// Bytes read from the transport at once.
const CHUNK: usize = 16 * 1024;
/// Output beyond this waits for the transport before more is written.
const BACKLOG: usize = 64 * 1024;

/// A connection over which content is read and written.
pub(crate) struct TlsStream<W>(Arc<Mutex<Shared<W>>>);

/// A handle that asks the client of a connection for its certificate.
pub(crate) struct Renegotiator<W>(Arc<Mutex<Shared<W>>>);

/// What a renegotiation led to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenegotiationError {
    /// The client could not be asked.
    #[error(transparent)]
    CannotAsk(#[from] CannotAsk),
    /// The client said that it will not.
    #[error("the client refuses to renegotiate")]
    Refused,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

struct Shared<W> {
    wire: W,
    machine: Connection,
    reader: Option<Waker>,
    asker: Option<Waker>,
    ended: bool,
}

/// How long a client may take to hear an alert.
const LINGER: Duration = Duration::from_secs(2);

/// Who polls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Reader,
    Asker,
}

impl<W: AsyncRead + AsyncWrite + Unpin> TlsStream<W> {
    /// Shakes hands, without asking for a certificate.
    pub(crate) async fn accept(wire: W, config: Arc<Config>) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            wire,
            machine: Connection::new(config),
            reader: None,
            asker: None,
            ended: false,
        }));
        settle(&shared, Who::Reader).await?;
        Ok(Self(shared))
    }

    /// A handle to ask for the certificate with.
    pub(crate) fn renegotiator(&self) -> Renegotiator<W> {
        Renegotiator(self.0.clone())
    }
}

impl<W: AsyncRead + AsyncWrite + Unpin> Renegotiator<W> {
    /// DER of the client's certificate, if it was asked for and proved to have the key.
    pub(crate) fn certificate(&self) -> Option<Arc<[u8]>> {
        lock(&self.0).machine.certificate().map(Arc::from)
    }

    /// Asks the client for its certificate and waits for the end of the new handshake: its DER, if
    /// the client has one and proved to have the key.
    pub(crate) async fn ask(&self) -> Result<Option<Arc<[u8]>>, RenegotiationError> {
        let before = {
            let mut shared = lock(&self.0);
            shared.machine.renegotiate()?;
            shared.machine.renegotiations()
        };
        settle(&self.0, Who::Asker).await?;
        let shared = lock(&self.0);
        if shared.machine.renegotiations() == before {
            return Err(RenegotiationError::Refused);
        }
        Ok(shared.machine.certificate().map(Arc::from))
    }
}

/// Moves bytes until no handshake is under way or asked for.
async fn settle<W: AsyncRead + AsyncWrite + Unpin>(
    shared: &Mutex<Shared<W>>,
    who: Who,
) -> io::Result<()> {
    let settled = std::future::poll_fn(|cx| {
        let mut shared = lock(shared);
        ready!(shared.pump(cx, who, Connection::is_settled))?;
        shared.poll_drain(cx)
    })
    .await;
    if settled
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
    {
        // Closed while more arrives, the connection would be reset, and the alert lost with it.
        let lingering = std::future::poll_fn(|cx| lock(shared).poll_linger(cx));
        let _ = tokio::time::timeout(LINGER, lingering).await;
    }
    settled
}

impl<W> Clone for Renegotiator<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: AsyncRead + AsyncWrite + Unpin> Shared<W> {
    /// Moves bytes until the machine is as wanted.
    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        who: Who,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Poll<io::Result<()>> {
        let own = match who {
            Who::Reader => &mut self.reader,
            Who::Asker => &mut self.asker,
        };
        *own = Some(cx.waker().clone());
        let mut chunk = [0; CHUNK];
        loop {
            if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
            if wanted(&self.machine) {
                return Poll::Ready(Ok(()));
            }
            if self.ended || self.machine.peer_closed() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.wire).poll_read(cx, &mut buffer))?;
            self.ended = buffer.filled().is_empty();
            let received = self.machine.receive(buffer.filled());
            let other = match who {
                Who::Reader => self.asker.take(),
                Who::Asker => self.reader.take(),
            };
            if let Some(other) = other {
                other.wake();
            }
            if let Err(failure) = received {
                // The alert goes out if it can at all.
                let _ = self.poll_drain(cx);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure)));
            }
        }
    }

    /// Sends the alert and takes no notice of what still arrives, until the client has heard it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.wire).poll_shutdown(cx))?;
        let mut chunk = [0; CHUNK];
        loop {
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.wire).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends what the machine has to say.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let output = self.machine.output();
        let mut sent = 0;
        let result = loop {
            if sent == output.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.wire).poll_write(cx, &output[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        output.drain(..sent);
        result
    }
}

impl<W: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        if shared.machine.content().is_empty() {
            let something = |machine: &Connection| machine.has_content() || machine.peer_closed();
            ready!(shared.pump(cx, Who::Reader, something))?;
        }
        let count = read(shared.machine.content(), buf.initialize_unfilled());
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.0);
        if shared.machine.output().len() >= BACKLOG {
            ready!(shared.poll_drain(cx))?;
        }
        let count = buf.len().min(CHUNK);
        match shared.machine.send(&buf[..count]) {
            Ok(true) => Poll::Ready(Ok(count)),
            Ok(false) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Err(failure) => Poll::Ready(Err(io::Error::other(failure))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        shared.machine.close();
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.wire).poll_shutdown(cx)
    }
}

fn lock<W>(shared: &Mutex<Shared<W>>) -> MutexGuard<'_, Shared<W>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
