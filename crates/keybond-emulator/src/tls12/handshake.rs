//! One handshake, from the client's hello to its Finished.

use super::{
    alert::{Alert, Failure},
    certificate,
    codec::{Input, message, vector},
    config::Config,
    hello::{Agreed, ClientHello, VerifyData},
    keys::{Ephemeral, Secrets, Side, random, same},
    record::Sealer,
};

const SERVER_KEY_EXCHANGE: u8 = 12;
const CERTIFICATE: u8 = 11;
const SERVER_HELLO_DONE: u8 = 14;
const CERTIFICATE_VERIFY: u8 = 15;
const CLIENT_KEY_EXCHANGE: u8 = 16;
const FINISHED: u8 = 20;

/// `named_curve` (RFC 8422, 5.4).
const NAMED_CURVE: u8 = 3;

/// What the client is to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Certificate,
    KeyExchange,
    Verify,
    ChangeCipherSpec,
    Finished,
}

/// A handshake under way, after the hellos.
pub(super) struct Handshake {
    next: Next,
    /// Every message so far, with its header.
    transcript: Vec<u8>,
    agreed: Agreed,
    client_random: [u8; 32],
    server_random: [u8; 32],
    ephemeral: Ephemeral,
    secrets: Option<Secrets>,
    chain: Vec<Vec<u8>>,
}

/// What a message of the client leads to.
pub(super) enum Step {
    /// More messages are to come.
    More,
    /// The protection of the client's and of the server's records, once each says so.
    Keys(Sealer, Sealer),
    /// The handshake is done but for the server's Finished, which is this.
    Done { finished: Vec<u8>, session: Session },
}

/// What a handshake established.
pub(super) struct Session {
    pub(super) verify_data: VerifyData,
    /// Whether renegotiation is safe (RFC 5746).
    pub(super) secure: bool,
    /// DER of the client's certificate, whose key was proved.
    pub(super) certificate: Option<Vec<u8>>,
}

impl Handshake {
    /// Answers the client's hello; also gives the server's messages.
    ///
    /// `established`: the session that is renegotiated, when a certificate is asked for.
    pub(super) fn begin(
        config: &Config,
        raw: &[u8],
        hello: &ClientHello,
        established: Option<&VerifyData>,
    ) -> Result<(Self, Vec<u8>), Failure> {
        let agreed = hello.agree(established)?;
        let server_random = random()?;
        let ephemeral = Ephemeral::new(agreed.group)?;

        let mut parameters = vec![NAMED_CURVE];
        parameters.extend_from_slice(&agreed.group.number().to_be_bytes());
        parameters.extend_from_slice(&vector(1, &ephemeral.public));
        let signed = [&hello.random[..], &server_random, &parameters].concat();
        let (scheme, signature) = config.sign(&hello.schemes, &signed)?;
        parameters.extend_from_slice(&scheme.to_be_bytes());
        parameters.extend_from_slice(&vector(2, &signature));

        let mut flight = hello.answer(&agreed, &server_random, established);
        flight.extend(certificate::certificate_message(&config.chain));
        flight.extend(message(SERVER_KEY_EXCHANGE, &parameters));
        if established.is_some() {
            flight.extend(certificate::certificate_request());
        }
        flight.extend(message(SERVER_HELLO_DONE, &[]));
        let handshake = Self {
            next: match established {
                Some(_) => Next::Certificate,
                None => Next::KeyExchange,
            },
            transcript: [raw, &flight].concat(),
            agreed,
            client_random: hello.random,
            server_random,
            ephemeral,
            secrets: None,
            chain: Vec::new(),
        };
        Ok((handshake, flight))
    }

    /// Takes a message of the client; `raw` has its header, `body` has not.
    pub(super) fn message(
        &mut self,
        config: &Config,
        kind: u8,
        raw: &[u8],
        body: &[u8],
    ) -> Result<Step, Failure> {
        let step = match (self.next, kind) {
            (Next::Certificate, CERTIFICATE) => {
                self.chain = certificate::parse_chain(body)?;
                if !self.chain.is_empty() {
                    (config.trust)(&self.chain).map_err(|alert| {
                        alert.because("the client's certificate is not accepted")
                    })?;
                }
                self.next = Next::KeyExchange;
                Step::More
            }
            (Next::KeyExchange, CLIENT_KEY_EXCHANGE) => {
                let mut input = Input::new(body);
                let share = input.vector8()?.rest();
                input.finish()?;
                let premaster = self.ephemeral.agree(share)?;
                self.transcript.extend_from_slice(raw);
                return self.derive(&premaster);
            }
            (Next::Verify, CERTIFICATE_VERIFY) => {
                let leaf = self.chain.first().map_or(&[][..], Vec::as_slice);
                certificate::verify(leaf, &self.transcript, body)?;
                self.next = Next::ChangeCipherSpec;
                Step::More
            }
            (Next::Finished, FINISHED) => return self.finish(raw, body),
            _ => return Err(Alert::UnexpectedMessage.because("a message out of turn")),
        };
        self.transcript.extend_from_slice(raw);
        Ok(step)
    }

    /// The client says that what follows is protected by the new keys.
    pub(super) fn change_cipher_spec(&mut self) -> Result<(), Failure> {
        if self.next != Next::ChangeCipherSpec {
            return Err(Alert::UnexpectedMessage.because("ChangeCipherSpec out of turn"));
        }
        self.next = Next::Finished;
        Ok(())
    }

    /// Whether the client still protects records as before the handshake.
    pub(super) fn before_change(&self) -> bool {
        self.next != Next::Finished
    }

    fn derive(&mut self, premaster: &[u8]) -> Result<Step, Failure> {
        let hash = self.agreed.suite.hash(&self.transcript);
        let secrets = Secrets::new(
            self.agreed.suite,
            self.client_random,
            self.server_random,
            premaster,
            self.agreed.extended_master_secret.then_some(hash.as_ref()),
        );
        let (client, server) = secrets.sealers()?;
        self.secrets = Some(secrets);
        self.next = if self.chain.is_empty() {
            Next::ChangeCipherSpec
        } else {
            Next::Verify
        };
        Ok(Step::Keys(client, server))
    }

    fn finish(&mut self, raw: &[u8], body: &[u8]) -> Result<Step, Failure> {
        let secrets = self
            .secrets
            .as_ref()
            .ok_or_else(|| Alert::InternalError.because("Finished before the keys"))?;
        let client = secrets.finished(Side::Client, &self.transcript);
        if !same(&client, body) {
            return Err(Alert::DecryptError.because("the client's Finished is wrong"));
        }
        self.transcript.extend_from_slice(raw);
        let server = secrets.finished(Side::Server, &self.transcript);
        Ok(Step::Done {
            finished: message(FINISHED, &server),
            session: Session {
                verify_data: VerifyData { client, server },
                secure: self.agreed.secure,
                certificate: self.chain.first().cloned(),
            },
        })
    }
}
