//! A session as a tokio stream.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{session::Session, wakers::Wakers};
use crate::{
    error::TlsError,
    seam::{TlsConn, TlsInfo, TlsVersion},
};

/// An established connection.
pub(super) struct Stream<S> {
    session: Session<S>,
    wakers: Arc<Wakers>,
    waker: Waker,
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    pub(super) fn new(session: Session<S>) -> Self {
        let wakers = Arc::new(Wakers::default());
        Self {
            session,
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
            closing: false,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> TlsConn for Stream<S> {
    fn info(&self) -> TlsInfo {
        self.session.info().clone()
    }

    fn is_renegotiating(&self) -> bool {
        self.session.is_renegotiating()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        this.wakers.reader(context.waker());
        let mut context = Context::from_waker(&this.waker);
        let read = ready!(
            this.session
                .poll_read(&mut context, buffer.initialize_unfilled())
        );
        let count = match read {
            Ok(count) => count,
            // Under TLS 1.2 our end is the end of both directions (RFC 5246 §7.2.1).
            Err(TlsError::Closed { .. })
                if this.closing && this.session.info().version == TlsVersion::Tls12 =>
            {
                0
            }
            Err(error) => return Poll::Ready(Err(error.into())),
        };
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.wakers.writer(context.waker());
        let mut context = Context::from_waker(&this.waker);
        this.session
            .poll_write(&mut context, bytes)
            .map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.wakers.writer(context.waker());
        let mut context = Context::from_waker(&this.waker);
        ready!(this.session.poll_flush(&mut context))?;
        this.session.socket().poll_flush(&mut context)
    }

    /// Sends `close_notify` and ends the sending half of the socket. Under TLS 1.3 the other half stays open.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.closing = true;
        this.wakers.writer(context.waker());
        let mut context = Context::from_waker(&this.waker);
        let closed = ready!(this.session.poll_close(&mut context));
        ready!(this.session.socket().poll_shutdown(&mut context))?;
        Poll::Ready(closed.map_err(io::Error::from))
    }
}
