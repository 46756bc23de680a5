//! The other side, for tests: a client that says what tests tell it to, right or wrong.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PSS_SHA256},
};

use super::{
    alert::{Alert, Failure},
    codec::{Input, message, vector},
    config::Config,
    connection::Connection,
    hello::VerifyData,
    keys::{Ephemeral, Group, Secrets, Side, Suite},
    record::{self, ContentType, Record, Sealer},
};
use crate::{
    clock::epoch,
    x509::{Authority, Certificate, LeafRequest},
};

pub(super) const HELLO: u8 = 1;
pub(super) const CERTIFICATE: u8 = 11;
pub(super) const KEY_EXCHANGE: u8 = 16;
pub(super) const VERIFY: u8 = 15;
pub(super) const FINISHED: u8 = 20;

/// An authority, a server's configuration and a client's credential, made once.
pub(super) struct World {
    pub(super) config: Arc<Config>,
    key: KeyPair,
    pub(super) certificate: Vec<u8>,
    /// By another authority, for the same key.
    pub(super) foreign: Vec<u8>,
}

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let now = std::time::SystemTime::now();
        assert!(epoch(now) > 0);
        let authority = || {
            let (key, certificate) = Authority::generate(now).unwrap();
            Authority::open(&key, certificate).unwrap()
        };
        let (own, other) = (Arc::new(authority()), authority());
        let (server, chain) = own.rsa_server(&["localhost".into()], now).unwrap();
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let public_key: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let issue = |authority: &Authority| {
            authority
                .issue(&LeafRequest {
                    client_id: "the-client",
                    tenant_id: "the-tenant",
                    public_key: public_key.as_ref(),
                    not_before: now,
                    not_after: now + std::time::Duration::from_secs(3600),
                })
                .unwrap()
        };
        let (certificate, foreign) = (issue(&own), issue(&other));
        let trust = {
            let own = own.clone();
            move |chain: &[Vec<u8>]| {
                let leaf = Certificate::parse(&chain[0]).map_err(|_| Alert::BadCertificate)?;
                own.issued(&leaf).then_some(()).ok_or(Alert::UnknownCa)
            }
        };
        let config = Config::new(&server, vec![chain], Arc::new(trust)).unwrap();
        let key: Pkcs8V1Der<'_> = key.as_der().unwrap();
        World {
            config: Arc::new(config),
            key: KeyPair::from_pkcs8(key.as_ref()).unwrap(),
            certificate,
            foreign,
        }
    })
}

/// What a client of a test sends instead of what it should: for each message its kind and itself,
/// without the header. `None` leaves it out.
pub(super) type Tamper<'a> = &'a mut dyn FnMut(u8, Vec<u8>) -> Option<Vec<u8>>;

pub(super) struct TestClient {
    pub(super) server: Connection,
    pub(super) suite: Suite,
    pub(super) group: Group,
    pub(super) extended_master_secret: bool,
    /// The client's certificate; `None` says that there is none.
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) established: Option<VerifyData>,
    /// Sent right before the client's ChangeCipherSpec, protected as before.
    pub(super) content_before_change: Vec<u8>,
    /// Sent right before the client's Finished, protected anew.
    pub(super) content_after_change: Vec<u8>,
    sealer: Option<Sealer>,
    opener: Option<Sealer>,
}

impl TestClient {
    pub(super) fn new() -> Self {
        Self {
            server: Connection::new(world().config.clone()),
            suite: Suite::Aes128GcmSha256,
            group: Group::X25519,
            extended_master_secret: true,
            certificate: Some(world().certificate.clone()),
            established: None,
            content_before_change: Vec::new(),
            content_after_change: Vec::new(),
            sealer: None,
            opener: None,
        }
    }

    /// A client after its first handshake.
    pub(super) fn connected() -> Self {
        let mut client = Self::new();
        client.shake(&mut |_, body| Some(body)).unwrap();
        client
    }

    /// Sends a record.
    pub(super) fn send(&mut self, kind: ContentType, content: &[u8]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        record::put(&mut bytes, self.sealer.as_mut(), kind, content).unwrap();
        self.server.receive(&bytes)
    }

    /// A record as it is on the wire.
    pub(super) fn sealed(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        record::put(&mut bytes, self.sealer.as_mut(), kind, content).unwrap();
        bytes
    }

    /// The next record of the server.
    pub(super) fn record(&mut self) -> Option<Record> {
        record::take(self.server.output(), self.opener.as_mut(), false).unwrap()
    }

    /// The alert that ends what the server has sent: level and number.
    pub(super) fn last_alert(&mut self) -> Option<[u8; 2]> {
        let mut last = None;
        while let Some(record) = self.record() {
            last = Some(record);
        }
        let last = last.filter(|record| record.kind == ContentType::Alert)?;
        last.fragment.try_into().ok()
    }

    pub(super) fn hello(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, content: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&vector(2, content));
        };
        extension(10, &vector(2, &self.group.number().to_be_bytes()));
        extension(11, &[1, 0]);
        extension(13, &vector(2, &[8, 4, 4, 1]));
        if self.extended_master_secret {
            extension(23, &[]);
        }
        let info = self.established.map(|data| data.client.to_vec());
        extension(0xff01, &vector(1, &info.unwrap_or_default()));
        let mut body = vec![3, 3];
        body.extend_from_slice(&[0x5a; 32]);
        body.push(0);
        body.extend_from_slice(&vector(2, &self.suite.number().to_be_bytes()));
        body.extend_from_slice(&[1, 0]);
        body.extend_from_slice(&vector(2, &extensions));
        body
    }

    /// A whole handshake, its messages changed by `tamper`; the server's first failure.
    pub(super) fn shake(&mut self, tamper: Tamper<'_>) -> Result<(), Failure> {
        let mut transcript = Vec::new();
        let hello = self.hello();
        self.say(HELLO, hello, tamper, &mut transcript)?;

        let (mut server_random, mut share, mut asked) = ([0; 32], Vec::new(), false);
        let mut messages = Vec::new();
        while let Some(record) = self.record() {
            assert_eq!(record.kind, ContentType::Handshake);
            messages.extend(record.fragment);
        }
        // HelloRequest is not part of the handshake.
        if messages.starts_with(&[0, 0, 0, 0]) {
            messages.drain(..4);
        }
        let mut input = Input::new(&messages);
        let mut done = false;
        while !input.is_empty() {
            let (kind, body) = (input.u8().unwrap(), input.vector24().unwrap());
            match kind {
                2 => server_random.copy_from_slice(&body.rest()[2..34]),
                12 => {
                    share = Input::new(&body.rest()[3..])
                        .vector8()
                        .unwrap()
                        .rest()
                        .to_vec()
                }
                13 => asked = true,
                14 => done = true,
                _ => {}
            }
        }
        if !done {
            // The hello was changed into something that is no hello and yet no failure.
            return Ok(());
        }
        assert_eq!(asked, self.established.is_some());
        transcript.extend(&messages);

        if asked {
            let chain = self.certificate.iter().flat_map(|der| vector(3, der));
            let chain = vector(3, &chain.collect::<Vec<u8>>());
            self.say(CERTIFICATE, chain, tamper, &mut transcript)?;
        }
        let own = Ephemeral::new(self.group).unwrap();
        let Ok(premaster) = own.agree(&share) else {
            // The server understood another group.
            return Ok(());
        };
        self.say(
            KEY_EXCHANGE,
            vector(1, &own.public),
            tamper,
            &mut transcript,
        )?;
        let hash = self.suite.hash(&transcript);
        let hash = self.extended_master_secret.then_some(hash.as_ref());
        let secrets = Secrets::new(self.suite, [0x5a; 32], server_random, &premaster, hash);
        if asked && self.certificate.is_some() {
            let key = &world().key;
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(
                &RSA_PSS_SHA256,
                &SystemRandom::new(),
                &transcript,
                &mut signature,
            )
            .unwrap();
            let body = [&[8, 4], &*vector(2, &signature)].concat();
            self.say(VERIFY, body, tamper, &mut transcript)?;
        }
        let content = std::mem::take(&mut self.content_before_change);
        self.send(ContentType::ApplicationData, &content)?;
        self.send(ContentType::ChangeCipherSpec, &[1])?;
        let (sealer, opener) = secrets.sealers().unwrap();
        self.sealer = Some(sealer);
        let content = std::mem::take(&mut self.content_after_change);
        self.send(ContentType::ApplicationData, &content)?;
        let client = secrets.finished(Side::Client, &transcript);
        self.say(FINISHED, client.to_vec(), tamper, &mut transcript)?;

        let change = self.record().unwrap();
        assert_eq!(
            (change.kind, &*change.fragment),
            (ContentType::ChangeCipherSpec, &[1][..])
        );
        self.opener = Some(opener);
        let server = secrets.finished(Side::Server, &transcript);
        let finished = self.record().unwrap();
        assert_eq!(finished.fragment, message(FINISHED, &server));
        self.established = Some(VerifyData { client, server });
        Ok(())
    }

    fn say(
        &mut self,
        kind: u8,
        body: Vec<u8>,
        tamper: Tamper<'_>,
        transcript: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let Some(body) = tamper(kind, body) else {
            return Ok(());
        };
        let message = message(kind, &body);
        transcript.extend_from_slice(&message);
        self.send(ContentType::Handshake, &message)
    }
}

/// The alert a failure was told by; the client must have been told.
pub(super) fn told(client: &mut TestClient, result: Result<(), Failure>) -> Alert {
    let Err(Failure::Sent { alert, what }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(client.last_alert(), Some([2, alert as u8]), "{what}");
    alert
}
