//! A certificate asked for by renegotiation, as Apache does for a protected path.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use keybond_keys::{HashAlgorithm, SignatureScheme};
use keybond_tls::{ClientIdentity, Leg, RenegotiationRefusal, TlsConnector, TlsError, TlsVersion};
use rustls::version::TLS13;
use tokio::time::timeout;

use crate::{
    apache::Apache,
    http::Http,
    pki::{CLIENT, Pki},
    rustls_server::RustlsServer,
    store::{Mood, handled_key},
};

async fn http(
    connector: &dyn TlsConnector,
    apache: &Apache,
    identity: &Arc<ClientIdentity>,
) -> Http {
    let connection = connector
        .connect(
            apache.dial().await,
            "localhost",
            Leg::OnDemand,
            Some(Arc::clone(identity)),
        )
        .await
        .unwrap();
    let info = connection.info();
    assert_eq!(info.version, TlsVersion::Tls12);
    assert_eq!((info.renegotiations, info.client_signature), (0, None));
    Http::over(connection).await
}

fn big_body() -> Vec<u8> {
    (0..5_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn sha256(body: &[u8]) -> String {
    let digest = HashAlgorithm::Sha256.digest(body);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn apache_asks_for_the_certificate_once_and_gets_it() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (connector, identity) = (pki.connector(), pki.identity().await);
    let mut http = http(&connector, &apache, &identity).await;

    let open = http.get("/open").await.unwrap();
    assert_eq!(open.status(), StatusCode::OK);
    for _ in 0..3 {
        let secret = http.get("/secure/secret").await.unwrap();
        assert_eq!(secret.status(), StatusCode::OK);
        assert_eq!(secret.body(), "secret\n");
        let client = secret.headers()["x-client"].to_str().unwrap();
        assert!(client.contains(CLIENT), "{client}");
    }

    let info = http.info();
    assert_eq!(info.renegotiations, 1);
    assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
    assert!(info.certificate_requested);
    assert_eq!(info.server_leaf, pki.server.der);
}

/// The issuers that a server hints at are a hint: with only one certificate there is nothing to choose.
#[tokio::test]
async fn the_certificate_is_sent_whoever_the_server_hints_at() {
    let pki = Pki::new();
    let other = Pki::named("somebody else's authority");
    let apache = Apache::hinting(&pki, "TLSv1.2", Some(&other)).await;
    let (connector, identity) = (pki.connector(), pki.identity().await);
    let mut http = http(&connector, &apache, &identity).await;
    let secret = http.get("/secure/secret").await.unwrap();
    assert_eq!(secret.body(), "secret\n");
    let client = secret.headers()["x-client"].to_str().unwrap();
    assert!(client.contains(CLIENT), "{client}");
}

#[tokio::test]
async fn a_header_may_decide() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (connector, identity) = (pki.connector(), pki.identity().await);
    let mut http = http(&connector, &apache, &identity).await;
    let request = Request::get("/open").header("x-ms-tokenboundauth", "true");
    let answer = http
        .send(request.body(Full::<Bytes>::default()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(
        answer.headers()["x-client"]
            .to_str()
            .unwrap()
            .contains(CLIENT)
    );
    assert_eq!(http.info().renegotiations, 1);
}

#[tokio::test]
async fn a_body_of_five_megabytes_arrives_whole_around_the_renegotiation() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (connector, identity) = (pki.connector(), pki.identity().await);
    let body = big_body();
    for preflight in [false, true] {
        let mut http = http(&connector, &apache, &identity).await;
        if preflight {
            http.get("/secure/secret").await.unwrap();
        }
        let answer = http.post("/cgi/secure/sum", &body).await.unwrap();
        let sum = String::from_utf8_lossy(answer.body()).into_owned();
        assert!(sum.starts_with(&sha256(&body)), "{} {sum}", answer.status());
        assert_eq!(http.info().renegotiations, 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_slow_key_does_not_stop_the_runtime_in_a_renegotiation() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let (connector, identity) = (pki.connector(), pki.identity_of(key));
    let mut http = http(&connector, &apache, &identity).await;
    hand.set(Mood::Wait);
    let calling = tokio::spawn(async move { (http.get("/secure/secret").await, http) });
    hand.signing().await;
    let heartbeat = tokio::spawn(async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    });
    timeout(Duration::from_secs(20), heartbeat)
        .await
        .unwrap()
        .unwrap();
    assert!(!calling.is_finished());
    hand.set(Mood::Sign);
    let (answer, http) = calling.await.unwrap();
    assert_eq!(answer.unwrap().body(), "secret\n");
    assert_eq!((hand.entered(), http.info().renegotiations), (1, 1));
}

#[tokio::test]
async fn a_call_given_up_during_a_renegotiation_leaves_the_connector_whole() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let (connector, identity) = (pki.connector(), pki.identity_of(key));
    for _ in 0..5 {
        let mut abandoned = http(&connector, &apache, &identity).await;
        hand.set(Mood::Wait);
        let calling = tokio::spawn(async move { abandoned.get("/secure/secret").await.map(drop) });
        hand.signing().await;
        calling.abort();
        assert!(calling.await.unwrap_err().is_cancelled());
        hand.set(Mood::Sign);
    }
    let mut http = http(&connector, &apache, &identity).await;
    assert_eq!(http.get("/secure/secret").await.unwrap().body(), "secret\n");
}

#[tokio::test]
async fn a_key_that_fails_in_a_renegotiation_is_the_error_of_the_call() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    for (mood, quick) in [
        (Mood::Refuse, false),
        (Mood::Panic, true),
        (Mood::Panic, false),
    ] {
        let (key, hand) = handled_key(quick, &SignatureScheme::ALL).await;
        let (connector, identity) = (pki.connector(), pki.identity_of(key));
        let mut http = http(&connector, &apache, &identity).await;
        hand.set(mood);
        let error = http.get("/secure/secret").await.unwrap_err();
        assert_eq!(error.code(), "tls_key_failed", "{error}");
        assert!(error.to_string().contains("renegotiation"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_is_refused_in_the_renegotiation() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let identity = Pki::named("a stranger").identity().await;
    let connector = pki.connector();
    let mut http = http(&connector, &apache, &identity).await;
    let error = http.get("/secure/secret").await.unwrap_err();
    assert_eq!(error.code(), "tls_client_certificate_refused", "{error}");
}

#[tokio::test]
async fn other_legs_do_not_renegotiate_and_the_error_says_so() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let connector = pki.connector();
    for (leg, identity, reason) in [
        (Leg::Plain, None, RenegotiationRefusal::Leg),
        (
            Leg::FirstHandshake,
            Some(pki.identity().await),
            RenegotiationRefusal::Leg,
        ),
        (Leg::OnDemand, None, RenegotiationRefusal::NoIdentity),
    ] {
        let tcp = apache.dial().await;
        let connection = connector
            .connect(tcp, "localhost", leg, identity)
            .await
            .unwrap();
        let mut http = Http::over(connection).await;
        let error = http.get("/secure/secret").await.unwrap_err();
        assert_eq!(error.code(), "tls_renegotiation_refused", "{error}");
        assert!(
            matches!(error, TlsError::RenegotiationRefused { reason: found, .. } if found == reason),
            "{error}"
        );
    }
}

#[tokio::test]
async fn apache_under_tls_1_3_alone_is_refused_with_the_reason() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.3").await;
    let error = pki
        .connector()
        .connect(
            apache.dial().await,
            "localhost",
            Leg::OnDemand,
            Some(pki.identity().await),
        )
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.code(), "tls_on_demand_unsupported", "{error}");
}

#[tokio::test]
async fn a_server_of_tls_1_3_alone_is_refused_before_the_key_is_touched() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS13).await;
    let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
    let connector = pki.connector();
    let (connected, _) = tokio::join!(
        async {
            let (tcp, identity) = (server.dial().await, Some(pki.identity_of(key)));
            let leg = Leg::OnDemand;
            connector
                .connect(tcp, "localhost", leg, identity)
                .await
                .map(drop)
        },
        server.accept(),
    );
    let error = connected.unwrap_err();
    assert_eq!(error.code(), "tls_on_demand_unsupported", "{error}");
    assert!(
        error.to_string().contains("post-handshake authentication"),
        "{error}"
    );
    assert_eq!(hand.entered(), 0);
    assert!(!error.retryable());
}
