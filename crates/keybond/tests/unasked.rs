//! Servers that do not ask for the client certificate in the first handshake: under TLS 1.3, or at all.
#![cfg(not(target_env = "msvc"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use keybond::{
    Leg, ManagedIdentity, ResourceRule,
    keys::KeyProvider,
    tls::{
        BoxFuture, ClientIdentity, Leg as TlsLeg, TlsConn, TlsConnector, TlsError,
        TlsVersion::{self, Tls12, Tls13},
        TrustRoots, default_connector,
    },
};
use keybond_emulator::Emulator;
use rcgen::{CertificateParams, KeyPair};
use support::{Bench, RESOURCE, TestEnv, azure::Service, server::Reply};
use tokio::net::TcpStream;

/// A handshake: the newest version that was offered, the one agreed on, and whether the certificate was asked for.
type Handshake = (TlsVersion, TlsVersion, bool);

/// Keybond's own TLS, and what it did.
struct Recorder {
    inner: Arc<dyn TlsConnector>,
    made: Mutex<Vec<Handshake>>,
}

impl Recorder {
    fn new(roots: &str) -> Arc<Self> {
        let roots = TrustRoots::from_pem(roots).unwrap();
        Arc::new(Self {
            inner: default_connector(&roots).unwrap(),
            made: Mutex::default(),
        })
    }

    /// The handshakes since the last time.
    fn made(&self) -> Vec<Handshake> {
        std::mem::take(&mut *self.made.lock().unwrap())
    }
}

impl TlsConnector for Recorder {
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: TlsLeg,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        self.connect_up_to(tcp, host, leg, Tls13, identity)
    }

    fn connect_up_to<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: TlsLeg,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        Box::pin(async move {
            let connecting = self.inner.connect_up_to(tcp, host, leg, newest, identity);
            let conn = connecting.await?;
            let info = conn.info();
            let handshake = (newest, info.version, info.certificate_requested);
            self.made.lock().unwrap().push(handshake);
            Ok(conn)
        })
    }
}

fn client(azure: &Emulator, tls: Arc<Recorder>) -> ManagedIdentity {
    let env = TestEnv::default();
    for (name, value) in azure.env() {
        env.set(name, &value);
    }
    ManagedIdentity::builder()
        .key_provider(KeyProvider::in_memory())
        .tls(tls)
        .environment(Arc::new(env))
        .resource_rule(
            ResourceRule::new("localhost")
                .resource(RESOURCE)
                .token_bound_header(),
        )
        .build()
        .unwrap()
}

const UNASKED: Handshake = (Tls13, Tls13, false);
const ASKED: Handshake = (Tls12, Tls12, true);

#[tokio::test]
async fn a_token_service_that_asks_under_tls_1_2_alone_is_met_there_and_remembered() {
    let azure = Emulator::builder().start().await.unwrap();
    azure.ask_under_tls13(false);
    let tls = Recorder::new(&azure.ca_pem());
    let client = client(&azure, tls.clone());

    client.token(RESOURCE).await.unwrap();
    assert_eq!(tls.made(), [UNASKED, ASKED]);
    // One request, and it was answered: none went over the connection without the certificate.
    assert_eq!(azure.counters().token, 1);

    client.token("https://other.example").await.unwrap();
    assert_eq!(tls.made(), [ASKED]);
    assert_eq!(azure.counters().token, 2);

    let url = format!("{}/secrets/demo?api-version=7.4", azure.vault_url());
    let response = client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(tls.made(), [(Tls13, Tls13, true)], "another server");
}

#[tokio::test]
async fn a_resource_that_asks_under_tls_1_2_alone_is_met_there() {
    let azure = Emulator::builder().start().await.unwrap();
    let tls = Recorder::new(&azure.ca_pem());
    let client = client(&azure, tls.clone());
    client.token(RESOURCE).await.unwrap();
    assert_eq!(tls.made(), [(Tls13, Tls13, true)]);

    azure.ask_under_tls13(false);
    let response = client.get(&azure.sts_url()).send().await.unwrap();
    let info = response.tls_info().unwrap();
    assert!(info.client_signature.is_some(), "{info:?}");
    assert_eq!(tls.made(), [UNASKED, ASKED]);
}

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `openssl s_server` prints what it hears, and ends after two connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_server_that_never_asks() {
    let azure = Emulator::builder().start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()])
        .unwrap()
        .self_signed(&key)
        .unwrap()
        .pem();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let server = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "2"])
        .arg("-cert")
        .arg(file("server.pem", &certificate))
        .arg("-key")
        .arg(file("server.key", &key.serialize_pem()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs the program `openssl` (Debian: apt-get install openssl)");
    let mut server = Program(server);
    let mut output = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ACCEPT ") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "no server");
    }
    let port = line.trim().rsplit_once(':').unwrap().1.to_owned();

    let tls = Recorder::new(&format!("{}{certificate}", azure.ca_pem()));
    let client = client(&azure, tls.clone());
    client.token(RESOURCE).await.unwrap();
    tls.made();
    let url = format!("https://localhost:{port}/secret");
    let error = client.get(&url).send().await.unwrap_err();
    assert_eq!(error.code(), "tls_client_certificate_not_requested");
    assert_eq!(error.leg(), Some(Leg::Resource));
    assert!(!error.retryable());
    assert_eq!(
        error.to_string(),
        format!(
            "resource leg: TLS with localhost:{port}: localhost asked for no client certificate in the first \
             handshake, under TLS 1.3 and TLS 1.2; nothing was sent"
        )
    );
    assert!(error.remedy().contains("on-demand"), "{}", error.remedy());
    assert_eq!(tls.made(), [UNASKED, (Tls12, Tls12, false)]);

    let heard = tokio::task::spawn_blocking(move || {
        let mut heard = String::new();
        output.read_to_string(&mut heard).unwrap();
        heard
    });
    let heard = tokio::time::timeout(Duration::from_secs(60), heard).await;
    let heard = heard.unwrap().unwrap();
    assert_eq!(heard.matches("CIPHER is").count(), 2, "{heard}");
    for word in ["GET", "secret", "authorization"] {
        assert!(!heard.contains(word), "{heard}");
    }
}

/// The newest versions that were offered since the last time.
fn offered(bench: &Bench) -> Vec<TlsVersion> {
    let mut shown = bench.tls.shown.lock().unwrap();
    shown.drain(..).map(|shown| shown.newest).collect()
}

#[tokio::test]
async fn a_token_service_that_never_asks_is_told_as_such() {
    let bench = Bench::new().await;
    let client = bench.client();
    for (unspoken, said) in [
        (vec![], "under TLS 1.3 and TLS 1.2; nothing was sent"),
        (
            vec![Tls12],
            "under TLS 1.3, and it refused TLS 1.2 (alert protocol_version); nothing was sent",
        ),
    ] {
        *bench.tls.silent.lock().unwrap() = vec![Tls12, Tls13];
        *bench.tls.unspoken.lock().unwrap() = unspoken;
        let error = client.token(RESOURCE).await.unwrap_err();
        assert_eq!(error.code(), "tls_client_certificate_not_requested");
        assert_eq!(error.leg(), Some(Leg::Token));
        assert!(error.to_string().contains(said), "{error}");
        // No new certificate is tried, for it would not be asked for either, and nothing is believed.
        assert_eq!(offered(&bench), [Tls13, Tls12]);
        assert_eq!(bench.azure.count(Service::Issue), 1);
        assert_eq!(bench.azure.count(Service::Token), 0);
    }
}

#[tokio::test]
async fn what_is_remembered_of_a_server_ends_when_it_is_wrong() {
    let bench = Bench::new().await;
    let client = bench.client();
    let mut resources = (1..).map(|n| format!("https://resource-{n}.example"));
    let mut ask = async |expected: &[TlsVersion]| {
        client.token(&resources.next().unwrap()).await.unwrap();
        assert_eq!(offered(&bench), expected);
    };
    *bench.tls.silent.lock().unwrap() = vec![Tls13];
    ask(&[Tls13, Tls12]).await;
    ask(&[Tls12]).await;
    // It learns to ask under TLS 1.3, and leaves the older version.
    *bench.tls.silent.lock().unwrap() = vec![];
    *bench.tls.unspoken.lock().unwrap() = vec![Tls12];
    ask(&[Tls12, Tls13]).await;
    ask(&[Tls13]).await;
    // Back again, and then it asks under TLS 1.3 alone.
    *bench.tls.silent.lock().unwrap() = vec![Tls13];
    *bench.tls.unspoken.lock().unwrap() = vec![];
    ask(&[Tls13, Tls12]).await;
    *bench.tls.silent.lock().unwrap() = vec![Tls12];
    ask(&[Tls12, Tls13]).await;
    ask(&[Tls13]).await;
}

#[tokio::test]
async fn a_rule_that_ends_at_tls_1_2_is_kept_and_on_demand_is_left_alone() {
    let bench = Bench::new().await;
    *bench.tls.silent.lock().unwrap() = vec![Tls12, Tls13];
    let rule = || ResourceRule::new("127.0.0.1").resource(RESOURCE);
    for (rule, expected) in [
        (rule().newest_tls(Tls12), None),
        (rule().on_demand(), Some(200)),
    ] {
        let client = bench.builder().resource_rule(rule).build().unwrap();
        bench.tls.silent.lock().unwrap().clear();
        client.token(RESOURCE).await.unwrap();
        *bench.tls.silent.lock().unwrap() = vec![Tls12, Tls13];
        offered(&bench);
        let called = client.get(&bench.azure.url("/x")).send().await;
        match expected {
            Some(status) => assert_eq!(called.unwrap().status(), status),
            None => {
                let error = called.unwrap_err();
                assert_eq!(error.code(), "tls_client_certificate_not_requested");
                assert!(error.to_string().contains("under TLS 1.2;"), "{error}");
            }
        }
        assert_eq!(offered(&bench).len(), 1);
    }
    assert_eq!(bench.azure.count(Service::Resource), 1);
}

#[tokio::test]
async fn a_certificate_lost_on_the_way_is_not_made_anew() {
    let bench = Bench::new().await;
    bench.azure.twist(|service, _, reply| match service {
        Service::Token => {
            Reply::status(401, r#"{"error":"invalid_client","error_codes":[392200]}"#)
        }
        _ => reply,
    });
    let error = bench.client().token(RESOURCE).await.unwrap_err();
    let remedy = error.remedy();
    assert!(remedy.contains("what ends TLS"), "{remedy}");
    assert_eq!(bench.azure.count(Service::Issue), 1);
}
