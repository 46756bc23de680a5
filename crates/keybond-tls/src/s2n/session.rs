//! One TLS connection as a state machine over s2n: handshake, transfer, renegotiation, end.
//!
//! 1. Bytes to send are copied to `outgoing` before s2n sees them, at most one record of them, and stay there until
//!    s2n has acknowledged them all. So a retry is always with the same bytes, as s2n demands, whatever the
//!    caller does after `Pending`.
//! 2. The connection is wiped for a renegotiation only when `outgoing` is empty, no record is half read and no
//!    decrypted byte waits inside s2n: a wipe loses all three.
//! 3. Application data that arrives during a renegotiation waits in `early`, in order, before anything read later.
//! 4. After a wipe and until the new handshake is over, nothing is sent but that handshake.
//! 5. A TLS failure is final for both directions. A peer that is gone may have left something to read, its reason
//!    above all: a writer learns of the loss when that is read, or when nobody reads. A reader that has read before
//!    may never come back: the writer waits for it as long as a handshake may take, anew with whatever it takes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use s2n_tls::{
    config::Config,
    connection::Connection,
    enums::{Blinding, Version},
    error::{Error, ErrorType},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};

use super::{
    classify::{SeenNames, Situation, VerifyHost},
    renegotiation::Control,
    transport::Transport,
};
use crate::{
    error::{RenegotiationRefusal, Stage, TlsError},
    host::Host,
    seam::{TlsInfo, TlsVersion},
};

/// Bytes sent at a time: what surely fits into one record of s2n's usual size (8087).
const RECORD: usize = 8000;
/// Application data kept for the reader while a writer drives a renegotiation.
const EARLY: usize = 64 * 1024;

pub(super) struct Session<S> {
    connection: Connection,
    transport: Transport<S>,
    host: Host,
    seen: SeenNames,
    control: Arc<Control>,
    limit: Duration,
    outgoing: Vec<u8>,
    early: VecDeque<u8>,
    running: Option<Renegotiation>,
    warned: bool,
    has_reader: bool,
    /// How long a writer still waits for the reader to take what a lost peer said.
    patience: Option<Pin<Box<Sleep>>>,
    info: TlsInfo,
    failure: Option<TlsError>,
}

struct Renegotiation {
    wiped: bool,
    deadline: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Shakes hands over `socket`, for at most `limit`; a renegotiation may later take as long again.
    pub(super) async fn handshake(
        config: Config,
        socket: S,
        host: Host,
        control: Control,
        limit: Duration,
    ) -> Result<Self, TlsError> {
        let mut session = Self {
            connection: Connection::new_client(),
            transport: Transport::new(socket),
            host,
            seen: SeenNames::default(),
            control: Arc::new(control),
            limit,
            outgoing: Vec::new(),
            early: VecDeque::new(),
            running: None,
            warned: false,
            has_reader: false,
            patience: None,
            info: TlsInfo {
                version: TlsVersion::Tls12,
                cipher_suite: String::new(),
                certificate_requested: false,
                client_signature: None,
                renegotiations: 0,
                server_leaf: Vec::new(),
            },
            failure: None,
        };
        session.configure(Some(config)).map_err(setup)?;
        let negotiation = poll_fn(|context| {
            session.step(context, Stage::Handshake, |connection| {
                connection.poll_negotiate().map_ok(|_| ())
            })
        });
        match tokio::time::timeout(limit, negotiation).await {
            Ok(result) => result?,
            Err(_) => return Err(session.timed_out(Stage::Handshake)),
        }
        session.info = session.learn(Stage::Handshake)?;
        Ok(session)
    }

    /// What is known about the connection.
    pub(super) fn info(&self) -> &TlsInfo {
        &self.info
    }

    /// Whether a renegotiation was accepted and is not over.
    pub(super) fn is_renegotiating(&self) -> bool {
        self.control.requested()
    }

    /// Reads into `buffer`, which is not empty; 0 is the end.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, TlsError>> {
        self.has_reader = true;
        loop {
            if !self.early.is_empty() {
                let (front, _) = self.early.as_slices();
                let count = front.len().min(buffer.len());
                buffer[..count].copy_from_slice(&front[..count]);
                if self.early.len() >= EARLY || self.patience.take().is_some() {
                    // Whoever drives a renegotiation waits for room, a writer without a peer for the reader.
                    context.waker().wake_by_ref();
                }
                self.early.drain(..count);
                return Poll::Ready(Ok(count));
            }
            if !self.control.requested() {
                let read = self.poll_receive(context, buffer);
                if read.is_pending() && self.control.requested() {
                    continue;
                }
                return read;
            }
            let renegotiated = self.poll_renegotiation(context);
            if self.early.is_empty() {
                ready!(renegotiated)?;
            }
        }
    }

    /// Takes bytes to send, and sends what the socket accepts.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TlsError>> {
        if self.control.requested() {
            ready!(self.poll_renegotiation(context))?;
        }
        ready!(self.poll_outgoing(context))?;
        let count = bytes.len().min(RECORD);
        self.outgoing.extend_from_slice(&bytes[..count]);
        // Pending is no news for the caller: the bytes are taken.
        if let Poll::Ready(Err(error)) = self.poll_outgoing(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
    }

    /// Sends what was taken.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        self.poll_outgoing(context)
    }

    /// Sends what was taken, then says that nothing more comes. The socket is the caller's to shut down.
    pub(super) fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        ready!(self.poll_outgoing(context))?;
        if self.control.requested() {
            // Between two handshakes there is no moment for a close_notify.
            return Poll::Ready(Ok(()));
        }
        self.step(context, Stage::Transfer, |connection| {
            connection.poll_shutdown_send().map_ok(|_| ())
        })
    }

    /// The socket below.
    pub(super) fn socket(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.transport.socket)
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, TlsError>> {
        let read = self.step(context, Stage::Transfer, |connection| {
            connection.poll_recv(buffer)
        });
        if !self.warned && self.control.refused().is_some() && self.failure.is_none() {
            // The refusal is only queued; nobody may write for a long time.
            let warned = if self.outgoing.is_empty() {
                self.step(context, Stage::Transfer, |connection| {
                    connection.poll_flush().map_ok(|_| ())
                })
            } else {
                self.poll_outgoing(context)
            };
            self.warned = warned.is_ready();
        }
        read
    }

    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        while !self.outgoing.is_empty() {
            let outgoing = mem::take(&mut self.outgoing);
            let sent = self.step(context, Stage::Transfer, |connection| {
                connection.poll_send(&outgoing)
            });
            self.outgoing = outgoing;
            match sent {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) => drop(self.outgoing.drain(..count)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        if let Err(error) = ready!(self.transport.poll_flight(context)) {
            return Poll::Ready(Err(TlsError::Io {
                host: self.host.to_string(),
                stage: Stage::Transfer,
                source: Arc::new(error),
            }));
        }
        match self.transport.lost() {
            Some(lost) => self.poll_last_words(context, lost),
            None => Poll::Ready(Ok(())),
        }
    }

    /// The peer is gone: what a writer is told, once everything that the peer said is read.
    fn poll_last_words(
        &mut self,
        context: &mut Context<'_>,
        lost: io::Error,
    ) -> Poll<Result<(), TlsError>> {
        if self.running.as_ref().is_some_and(|running| running.wiped) {
            // That handshake will read them.
            return Poll::Ready(Ok(()));
        }
        let mut chunk = [0; RECORD];
        let mut said = None;
        while self.early.len() < EARLY {
            match ready!(self.poll_receive(context, &mut chunk)) {
                Ok(0) => break,
                Ok(count) => self.keep(context, &chunk[..count]),
                Err(error) => {
                    said = Some(error);
                    break;
                }
            }
        }
        ready!(self.poll_reader(context));
        Poll::Ready(Err(said.unwrap_or_else(|| TlsError::Io {
            host: self.host.to_string(),
            stage: Stage::Transfer,
            source: Arc::new(lost),
        })))
    }

    /// Ready when the reader has taken what was kept for it, when there is none, or when it took too long.
    fn poll_reader(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.has_reader || self.early.is_empty() {
            return Poll::Ready(());
        }
        let limit = self.limit;
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(limit)));
        patience.as_mut().poll(context)
    }

    fn poll_renegotiation(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let limit = self.limit;
        let running = self.running.get_or_insert_with(|| Renegotiation {
            wiped: false,
            deadline: Box::pin(sleep(limit)),
        });
        if running.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(self.timed_out(Stage::Renegotiation)));
        }
        if !running.wiped {
            ready!(self.poll_outgoing(context))?;
            ready!(self.poll_to_boundary(context))?;
            self.wipe()?;
        }
        let mut chunk = [0; RECORD];
        loop {
            if self.early.len() >= EARLY {
                return Poll::Pending;
            }
            let mut received = 0;
            let polled = self.step(context, Stage::Renegotiation, |connection| {
                let (polled, count) = connection.poll_renegotiate(&mut chunk);
                received = count;
                polled
            });
            self.keep(context, &chunk[..received]);
            match polled {
                Poll::Ready(Ok(())) => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if received > 0 => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        self.finish_renegotiation()?;
        // Those who waited for the end of it may go on.
        context.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    /// Reads what s2n holds or has begun to read.
    fn poll_to_boundary(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let mut chunk = [0; RECORD];
        while self.connection.peek_len() > 0 || !self.transport.at_record_boundary() {
            if self.early.len() >= EARLY {
                return Poll::Pending;
            }
            let count = ready!(self.poll_receive(context, &mut chunk))?;
            if count == 0 {
                return Poll::Ready(Err(self.fail_with(TlsError::Closed {
                    host: self.host.to_string(),
                    stage: Stage::Renegotiation,
                })));
            }
            self.keep(context, &chunk[..count]);
        }
        Poll::Ready(Ok(()))
    }

    fn keep(&mut self, context: &mut Context<'_>, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.early.extend(bytes);
            // The reader may sleep while a writer drives.
            context.waker().wake_by_ref();
        }
    }

    fn wipe(&mut self) -> Result<(), TlsError> {
        let wiped = self
            .connection
            .wipe_for_renegotiate()
            .and_then(|()| self.configure(None));
        if let Err(error) = wiped {
            return Err(self.fail(Stage::Renegotiation, &error));
        }
        if let Some(running) = &mut self.running {
            running.wiped = true;
        }
        Ok(())
    }

    fn finish_renegotiation(&mut self) -> Result<(), TlsError> {
        self.control.finish();
        self.running = None;
        let after = self.learn(Stage::Renegotiation)?;
        if self.info.server_leaf != after.server_leaf {
            return Err(self.fail_with(TlsError::RenegotiationRefused {
                host: self.host.to_string(),
                reason: RenegotiationRefusal::ServerChanged,
            }));
        }
        self.info = after;
        Ok(())
    }

    /// Settings that live on the connection, not in the shared configuration; a wipe loses them.
    fn configure(&mut self, config: Option<Config>) -> Result<(), Error> {
        if let Some(config) = config {
            self.connection.set_config(config)?;
            if let Some(name) = self.host.server_name() {
                self.connection.set_server_name(name)?;
            }
        }
        // s2n would delay every error by 10 to 30 seconds; a client that closes at once leaks nothing by time.
        self.connection.set_blinding(Blinding::SelfService)?;
        self.connection
            .set_application_context(Arc::clone(&self.control));
        self.connection.set_verify_host_callback(VerifyHost {
            host: self.host.clone(),
            seen: Arc::clone(&self.seen),
        })?;
        Ok(())
    }

    fn learn(&mut self, stage: Stage) -> Result<TlsInfo, TlsError> {
        match self.facts() {
            Ok(Some(info)) => Ok(info),
            Ok(None) => Err(self.fail_with(TlsError::Protocol {
                host: self.host.to_string(),
                stage,
                problem: "neither TLS 1.2 nor TLS 1.3 was agreed on".into(),
            })),
            Err(error) => Err(self.fail(stage, &error)),
        }
    }

    fn facts(&self) -> Result<Option<TlsInfo>, Error> {
        let version = match self.connection.actual_protocol_version()? {
            Version::TLS12 => TlsVersion::Tls12,
            Version::TLS13 => TlsVersion::Tls13,
            _ => return Ok(None),
        };
        let chain = self.connection.peer_cert_chain()?;
        let Some(leaf) = chain.iter().next().transpose()? else {
            return Ok(None);
        };
        Ok(Some(TlsInfo {
            version,
            cipher_suite: self.connection.cipher_suite()?.to_owned(),
            certificate_requested: self.certificate_requested(),
            client_signature: self.control.signature(),
            renegotiations: self.control.renegotiations(),
            server_leaf: leaf.der()?.to_vec(),
        }))
    }

    fn certificate_requested(&self) -> bool {
        self.info.certificate_requested
            || self
                .connection
                .handshake_type()
                .is_ok_and(|flags| flags.contains("CLIENT_AUTH"))
    }

    /// Lets s2n work, and makes its errors ours.
    fn step<R>(
        &mut self,
        context: &mut Context<'_>,
        stage: Stage,
        work: impl FnOnce(&mut Connection) -> Poll<Result<R, Error>>,
    ) -> Poll<Result<R, TlsError>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        self.transport
            .drive(
                &mut self.connection,
                context,
                stage != Stage::Transfer,
                work,
            )
            .map_err(|error| self.fail(stage, &error))
    }

    fn fail(&mut self, stage: Stage, error: &Error) -> TlsError {
        let socket = match error.kind() {
            ErrorType::IOError => self.transport.take_error(),
            _ => None,
        };
        let situation = Situation {
            host: &self.host,
            seen: &self.seen,
            control: &self.control,
            stage,
            certificate_requested: self.certificate_requested(),
        };
        let error = situation.classify(error, &self.connection, socket);
        match error {
            TlsError::Io { .. } if stage == Stage::Transfer => error,
            error => self.fail_with(error),
        }
    }

    fn fail_with(&mut self, error: TlsError) -> TlsError {
        self.failure.get_or_insert(error).clone()
    }

    fn timed_out(&mut self, stage: Stage) -> TlsError {
        self.fail_with(TlsError::TimedOut {
            host: self.host.to_string(),
            stage,
            after: self.limit,
        })
    }
}

pub(super) fn setup(error: Error) -> TlsError {
    TlsError::Setup {
        problem: format!("{} ({})", error.message(), error.name()),
    }
}
