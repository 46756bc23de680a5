//! A connection as a machine: bytes in, bytes out, and the server's wish to renegotiate.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::{
    alert::{Alert, Failure},
    codec::{Input, message},
    config::Config,
    handshake::{Handshake, Session, Step},
    hello::{CLIENT_HELLO, ClientHello, HELLO_REQUEST},
    record::{self, ContentType, Record, Sealer},
};

/// Handshake messages longer than this are refused.
const MESSAGE_LIMIT: usize = 64 * 1024;
/// The most content that is kept while nobody reads it.
const CONTENT_LIMIT: usize = 32 * 1024 * 1024;
/// Warnings beyond so many end the connection.
const WARNINGS: u32 = 8;

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A TLS connection of the server's side.
pub(crate) struct Connection {
    config: Arc<Config>,
    state: State,
    session: Option<Session>,
    renegotiations: u32,
    /// What has arrived and is not a whole record yet.
    incoming: Vec<u8>,
    /// Handshake messages that are not whole yet.
    messages: Vec<u8>,
    content: BytesMut,
    output: Vec<u8>,
    opener: Option<Sealer>,
    sealer: Option<Sealer>,
    /// The keys of the handshake under way: the client's until it has changed to them.
    next_opener: Option<Sealer>,
    next_sealer: Option<Sealer>,
    heard: bool,
    warnings: u32,
    peer_closed: bool,
    closed: bool,
    failure: Option<Failure>,
}

enum State {
    /// Nothing was received.
    Start,
    Shaking(Box<Handshake>),
    Established,
    /// The client was asked to renegotiate and has not answered.
    Asked,
}

/// Why the client cannot be asked to renegotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotAsk {
    /// It did not say that it knows how to do so safely.
    #[error("the client does not know secure renegotiation (RFC 5746)")]
    NotSecure,
    /// A handshake is under way, or the connection is closed.
    #[error("the connection is not in a state to renegotiate")]
    NotNow,
}

impl Connection {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            state: State::Start,
            session: None,
            renegotiations: 0,
            incoming: Vec::new(),
            messages: Vec::new(),
            content: BytesMut::new(),
            output: Vec::new(),
            opener: None,
            sealer: None,
            next_opener: None,
            next_sealer: None,
            heard: false,
            warnings: 0,
            peer_closed: false,
            closed: false,
            failure: None,
        }
    }

    /// Takes bytes from the client. After a failure only [`output`](Self::output) is of use: it has
    /// the alert.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.incoming.extend_from_slice(bytes);
        self.digest().inspect_err(|failure| {
            self.failure = Some(failure.clone());
            self.incoming.clear();
            if let Failure::Sent { alert, .. } = failure {
                self.alert(FATAL, *alert);
            }
        })
    }

    /// What is to be sent to the client; whoever has sent some of it drains that.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Content from the client that nobody has read yet.
    pub(crate) fn content(&mut self) -> &mut BytesMut {
        &mut self.content
    }

    /// Whether there is content that nobody has read yet.
    pub(crate) fn has_content(&self) -> bool {
        !self.content.is_empty()
    }

    /// Puts content for the client into the output; `false` if there is no session.
    pub(crate) fn send(&mut self, content: &[u8]) -> Result<bool, Failure> {
        if self.session.is_none() || self.closed || self.failure.is_some() {
            return Ok(false);
        }
        let sealer = self.sealer.as_mut();
        record::put(
            &mut self.output,
            sealer,
            ContentType::ApplicationData,
            content,
        )?;
        Ok(true)
    }

    /// Asks the client for a new handshake, with its certificate.
    pub(crate) fn renegotiate(&mut self) -> Result<(), CannotAsk> {
        let secure = self.session.as_ref().is_some_and(|session| session.secure);
        if !matches!(self.state, State::Established) || self.closed || self.peer_closed {
            return Err(CannotAsk::NotNow);
        }
        if !secure {
            return Err(CannotAsk::NotSecure);
        }
        // Not part of any transcript (RFC 5246, 7.4.1.1).
        self.put_messages(&message(HELLO_REQUEST, &[]))
            .map_err(|_| CannotAsk::NotNow)?;
        self.state = State::Asked;
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub(crate) fn close(&mut self) {
        if !self.closed && self.failure.is_none() {
            self.alert(WARNING, Alert::CloseNotify);
        }
        self.closed = true;
    }

    /// Whether content can be exchanged and no handshake is under way or asked for.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state, State::Established)
    }

    /// Whether the client said that it will send nothing more.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// How many renegotiations are done.
    pub(crate) fn renegotiations(&self) -> u32 {
        self.renegotiations
    }

    /// DER of the client's certificate, whose key was proved in the last handshake.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        self.session.as_ref()?.certificate.as_deref()
    }

    fn digest(&mut self) -> Result<(), Failure> {
        while !self.peer_closed {
            let taken = record::take(&mut self.incoming, self.opener.as_mut(), !self.heard)?;
            let Some(Record { kind, fragment }) = taken else {
                return Ok(());
            };
            self.heard = true;
            // Messages of the handshake are not to be mixed with anything else.
            if kind != ContentType::Handshake && !self.messages.is_empty() {
                return Err(Alert::UnexpectedMessage.because("a record inside of a message"));
            }
            match kind {
                ContentType::Handshake => self.handshake(&fragment)?,
                ContentType::ChangeCipherSpec => self.change_cipher_spec(&fragment)?,
                ContentType::Alert => self.hear_alert(&fragment)?,
                ContentType::ApplicationData => self.hear_content(&fragment)?,
            }
        }
        self.incoming.clear();
        Ok(())
    }

    fn handshake(&mut self, fragment: &[u8]) -> Result<(), Failure> {
        self.messages.extend_from_slice(fragment);
        while let Some(header) = self.messages.first_chunk::<4>() {
            let kind = header[0];
            let length = Input::new(&header[1..]).u24()?;
            if length > MESSAGE_LIMIT {
                return Err(Alert::DecodeError.because("a message that is too long"));
            }
            if self.messages.len() < 4 + length {
                break;
            }
            let rest = self.messages.split_off(4 + length);
            let raw = std::mem::replace(&mut self.messages, rest);
            self.message(kind, &raw)?;
        }
        Ok(())
    }

    fn message(&mut self, kind: u8, raw: &[u8]) -> Result<(), Failure> {
        let body = &raw[4..];
        let step = match &mut self.state {
            State::Start | State::Asked if kind == CLIENT_HELLO => {
                let hello = ClientHello::parse(body)?;
                let established = self.session.as_ref().map(|session| &session.verify_data);
                let (handshake, flight) = Handshake::begin(&self.config, raw, &hello, established)?;
                self.state = State::Shaking(Box::new(handshake));
                self.put_messages(&flight)?;
                Step::More
            }
            State::Established if kind == CLIENT_HELLO => {
                // Only the server may ask (RFC 5246, 7.2.2).
                self.alert(WARNING, Alert::NoRenegotiation);
                self.warn()?;
                Step::More
            }
            State::Shaking(handshake) => handshake.message(&self.config, kind, raw, body)?,
            _ => return Err(Alert::UnexpectedMessage.because("a message out of turn")),
        };
        match step {
            Step::More => {}
            Step::Keys(client, server) => {
                self.next_opener = Some(client);
                self.next_sealer = Some(server);
            }
            Step::Done { finished, session } => {
                if !self.messages.is_empty() {
                    return Err(Alert::UnexpectedMessage.because("a message after Finished"));
                }
                let sealer = self.sealer.as_mut();
                record::put(
                    &mut self.output,
                    sealer,
                    ContentType::ChangeCipherSpec,
                    &[1],
                )?;
                self.sealer = self.next_sealer.take();
                self.put_messages(&finished)?;
                self.renegotiations += u32::from(self.session.is_some());
                self.session = Some(session);
                self.state = State::Established;
            }
        }
        Ok(())
    }

    fn change_cipher_spec(&mut self, fragment: &[u8]) -> Result<(), Failure> {
        let State::Shaking(handshake) = &mut self.state else {
            return Err(Alert::UnexpectedMessage.because("ChangeCipherSpec out of turn"));
        };
        if fragment != [1] {
            return Err(Alert::DecodeError.because("ChangeCipherSpec is one byte"));
        }
        handshake.change_cipher_spec()?;
        self.opener = self.next_opener.take();
        Ok(())
    }

    fn hear_alert(&mut self, fragment: &[u8]) -> Result<(), Failure> {
        let &[level, description] = fragment else {
            return Err(Alert::DecodeError.because("an alert is two bytes"));
        };
        match (level, description) {
            (WARNING, description) if description == Alert::CloseNotify as u8 => {
                self.peer_closed = true;
                Ok(())
            }
            (WARNING, description) => {
                if description == Alert::NoRenegotiation as u8 && matches!(self.state, State::Asked)
                {
                    self.state = State::Established;
                }
                self.warn()
            }
            (FATAL, description) => Err(Failure::Received { description }),
            _ => Err(Alert::IllegalParameter.because("an alert of unknown level")),
        }
    }

    fn hear_content(&mut self, fragment: &[u8]) -> Result<(), Failure> {
        let allowed = match &self.state {
            State::Start => false,
            State::Established | State::Asked => true,
            // What was in flight when the server asked.
            State::Shaking(handshake) => self.session.is_some() && handshake.before_change(),
        };
        if !allowed {
            return Err(Alert::UnexpectedMessage.because("content before the end of a handshake"));
        }
        if self.content.len() + fragment.len() > CONTENT_LIMIT {
            return Err(Alert::InternalError.because("too much content that nobody reads"));
        }
        self.content.extend_from_slice(fragment);
        Ok(())
    }

    fn warn(&mut self) -> Result<(), Failure> {
        self.warnings += 1;
        if self.warnings > WARNINGS {
            return Err(Alert::UnexpectedMessage.because("too many warnings"));
        }
        Ok(())
    }

    fn put_messages(&mut self, messages: &[u8]) -> Result<(), Failure> {
        let sealer = self.sealer.as_mut();
        record::put(&mut self.output, sealer, ContentType::Handshake, messages)
    }

    fn alert(&mut self, level: u8, alert: Alert) {
        let content = [level, alert as u8];
        let sealer = self.sealer.as_mut();
        // If not even that can be protected, the connection ends without it.
        if record::put(&mut self.output, sealer, ContentType::Alert, &content).is_err() {
            self.closed = true;
        }
    }
}

/// Copies content that is there into a buffer; how much.
pub(crate) fn read(content: &mut BytesMut, buffer: &mut [u8]) -> usize {
    let count = content.len().min(buffer.len());
    content.copy_to_slice(&mut buffer[..count]);
    count
}
