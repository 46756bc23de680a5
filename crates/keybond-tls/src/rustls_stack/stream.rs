//! A connection of tokio-rustls with our facts and our errors.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::ProtocolVersion;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::classify::Situation;
use crate::{
    error::Stage,
    seam::{TlsConn, TlsInfo, TlsVersion},
};

/// An established connection.
pub(super) struct Stream {
    tls: TlsStream<TcpStream>,
    situation: Situation,
    closing: bool,
}

impl Stream {
    pub(super) fn new(tls: TlsStream<TcpStream>, mut situation: Situation) -> Self {
        situation.stage = Stage::Transfer;
        Self {
            tls,
            situation,
            closing: false,
        }
    }

    fn version(&self) -> TlsVersion {
        match self.tls.get_ref().1.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
            _ => TlsVersion::Tls12,
        }
    }

    fn explained(&self, error: io::Error) -> io::Error {
        self.situation.classify(error).into()
    }
}

impl TlsConn for Stream {
    fn info(&self) -> TlsInfo {
        let connection = self.tls.get_ref().1;
        let suite = connection.negotiated_cipher_suite();
        let chain = connection.peer_certificates().unwrap_or_default();
        TlsInfo {
            version: self.version(),
            cipher_suite: suite.map_or_else(String::new, |suite| format!("{:?}", suite.suite())),
            certificate_requested: self.situation.handshake.requested(),
            client_signature: self.situation.handshake.signed(),
            renegotiations: 0,
            server_leaf: chain.first().map_or_else(Vec::new, |leaf| leaf.to_vec()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Under TLS 1.2 our end is the end of both directions (RFC 5246 §7.2.1).
        if this.closing && this.version() == TlsVersion::Tls12 {
            return Poll::Ready(Ok(()));
        }
        let read = ready!(Pin::new(&mut this.tls).poll_read(context, buffer));
        Poll::Ready(read.map_err(|error| this.explained(error)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = ready!(Pin::new(&mut this.tls).poll_write(context, bytes));
        Poll::Ready(written.map_err(|error| this.explained(error)))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.tls).poll_flush(context));
        Poll::Ready(flushed.map_err(|error| this.explained(error)))
    }

    /// Sends `close_notify` and ends the sending half of the socket. Under TLS 1.3 the other half stays open.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.closing = true;
        let ended = ready!(Pin::new(&mut this.tls).poll_shutdown(context));
        Poll::Ready(ended.map_err(|error| this.explained(error)))
    }
}
