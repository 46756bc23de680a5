//! The vault that asks by renegotiation, as keybond's own TLS meets it with a held key.
#![cfg(not(target_env = "msvc"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use keybond_emulator::Emulator;
use keybond_keys::{HashAlgorithm, HeldKey, KeyProvider, MemoryStore, SignatureScheme};
use keybond_tls::{
    ClientIdentity, Leg, TlsConn, TlsInfo, TlsVersion, TrustRoots, default_connector,
};
use serde_json::Value;
use support::Client;
use tokio::net::TcpStream;

async fn held_key() -> Arc<HeldKey> {
    let provider = KeyProvider::builder().store(MemoryStore).build();
    provider.get_or_create_key().await.unwrap()
}

/// A certificate for a held key.
async fn enrol(client: &Client<'_>, key: Arc<HeldKey>) -> Arc<ClientIdentity> {
    let request = client.request("").await;
    let public_key = key.public_key().spki_der().to_vec();
    let signature = key
        .sign(SignatureScheme::RsaPssSha256, &request.info_of(&public_key))
        .await
        .unwrap();
    let csr = STANDARD.encode(request.with_signature_of(&public_key, &signature));
    let issued = client.issue("", &csr).await.unwrap().json();
    let der = STANDARD
        .decode(issued["certificate"].as_str().unwrap())
        .unwrap();
    Arc::new(ClientIdentity::new(vec![der], key).unwrap())
}

async fn connect(
    azure: &Emulator,
    url: &str,
    leg: Leg,
    identity: &Arc<ClientIdentity>,
) -> Box<dyn TlsConn> {
    let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
    let connector = default_connector(&roots).unwrap();
    let port = url.rsplit_once(':').unwrap().1.parse().unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connector
        .connect(tcp, "localhost", leg, Some(identity.clone()))
        .await
        .unwrap()
}

/// Sends a request and reads the answer; HTTP beneath must end well.
async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> (u16, Value) {
    let answer: Response<_> = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

struct Bench {
    azure: Emulator,
    identity: Arc<ClientIdentity>,
    token: String,
}

impl Bench {
    async fn new() -> Self {
        let azure = Emulator::builder().start().await.unwrap();
        let client = Client::new(&azure);
        let identity = enrol(&client, held_key().await).await;
        let form = client.form(
            client.system(),
            "https://vault.azure.net/.default",
            "mtls_pop",
        );
        let connection = connect(&azure, &azure.sts_url(), Leg::FirstHandshake, &identity).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .unwrap();
        let serving = tokio::spawn(connection);
        let request = Request::post(format!("/{}/oauth2/v2.0/token", azure.tenant_id()))
            .header("host", "localhost")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(form))
            .unwrap();
        let (status, answer) = send(&mut sender, request).await;
        assert_eq!(status, 200, "{answer}");
        drop(sender);
        serving.await.unwrap().unwrap();
        let token = answer["access_token"].as_str().unwrap().to_owned();
        Self {
            azure,
            identity,
            token,
        }
    }

    fn request(&self, method: &str, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("mtls_pop {}", self.token))
            .header("x-ms-tokenboundauth", "true")
            .body(Full::from(body))
            .unwrap()
    }

    /// Sends requests over one new connection to the vault that renegotiates.
    async fn call(&self, requests: Vec<Request<Full<Bytes>>>) -> (Vec<(u16, Value)>, TlsInfo) {
        let url = self.azure.renegotiating_vault_url();
        let connection = connect(&self.azure, &url, Leg::OnDemand, &self.identity).await;
        assert_eq!(connection.info().renegotiations, 0);
        let (mut sender, mut connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .unwrap();
        let asking = async {
            let mut answers = Vec::new();
            for request in requests {
                answers.push(send(&mut sender, request).await);
            }
            answers
        };
        let driving = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx));
        let answers = tokio::select! {
            biased;
            answers = asking => answers,
            ended = driving => panic!("the connection ended: {ended:?}"),
        };
        let info = connection.into_parts().io.into_inner().info();
        (answers, info)
    }
}

#[tokio::test]
async fn a_client_that_knows_tls_1_3_may_not_be_asked() {
    let bench = Bench::new().await;
    bench.azure.ask_under_tls13(false);
    let url = bench.azure.sts_url();
    let connection = connect(&bench.azure, &url, Leg::FirstHandshake, &bench.identity).await;
    let info = connection.info();
    assert_eq!(info.version, TlsVersion::Tls13);
    assert!(!info.certificate_requested);
}

#[tokio::test]
async fn a_secret_is_read_with_a_held_key() {
    let bench = Bench::new().await;
    let get = || bench.request("GET", "/secrets/demo?api-version=7.4", Vec::new());
    let (answers, info) = bench.call(vec![get(), get()]).await;
    for (status, answer) in answers {
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["value"], "opened by a bound token");
    }
    assert_eq!(info.renegotiations, 1);
    assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
    assert_eq!(bench.azure.counters().renegotiations, 1);
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_an_upload_says_why() {
    let mut bench = Bench::new().await;
    // The token is this emulator's, the certificate another's.
    let elsewhere = Emulator::builder().start().await.unwrap();
    bench.identity = enrol(&Client::new(&elsewhere), held_key().await).await;
    for _ in 0..20 {
        let url = bench.azure.renegotiating_vault_url();
        let connection = connect(&bench.azure, &url, Leg::OnDemand, &bench.identity).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .unwrap();
        let request = bench.request("POST", "/checksum?api-version=7.4", vec![0; 5_000_000]);
        let (answer, ended) = tokio::join!(sender.send_request(request), connection);
        let errors = format!("{:?} {:?}", answer.unwrap_err(), ended);
        assert!(errors.contains("ClientCertificateRefused"), "{errors}");
    }
}

#[tokio::test]
async fn an_upload_under_way_when_the_vault_asks_arrives_as_it_was_sent() {
    let bench = Bench::new().await;
    let body: Vec<u8> = (0..5_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sum: String = HashAlgorithm::Sha256
        .digest(&body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let post = || bench.request("POST", "/checksum?api-version=7.4", body.clone());
    // The vault asks as soon as it has read the head of the first.
    let (answers, info) = bench.call(vec![post(), post()]).await;
    for (status, answer) in answers {
        assert_eq!(status, 200, "{answer}");
        assert_eq!(
            (&answer["bytes"], &answer["sha256"]),
            (&5_000_000.into(), &sum.clone().into())
        );
    }
    assert_eq!(info.renegotiations, 1);
}
