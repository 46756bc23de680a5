//! The connector of windows-msvc against the same peers as the other one.
#![cfg(all(unix, feature = "rustls"))]
#![allow(clippy::unwrap_used)]

#[path = "../tls/openssl.rs"]
mod openssl;
#[path = "../tls/pki.rs"]
mod pki;
#[path = "../tls/rustls_server.rs"]
mod rustls_server;
#[path = "../tls/store.rs"]
mod store;

#[path = "../tls/first_handshake.rs"]
mod first_handshake;
#[path = "../tls/held_key.rs"]
mod held_key;
#[path = "../tls/refusals.rs"]
mod refusals;
#[path = "../tls/transfer.rs"]
mod transfer;

use keybond_keys::SignatureScheme;
pub(crate) use keybond_tls::RustlsConnector as Connector;
use keybond_tls::{Leg, TlsConnector as _, TlsVersion};
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncReadExt as _;

use crate::{
    pki::Pki,
    rustls_server::RustlsServer,
    store::{Mood, handled_key},
};

#[tokio::test]
async fn on_demand_is_refused_before_a_byte_is_sent() {
    let pki = Pki::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (tcp, accepted) = tokio::join!(tcp, listener.accept());
    let identity = pki.identity().await;
    let connector = pki.connector();
    let connected = connector
        .connect(tcp.unwrap(), "localhost", Leg::OnDemand, Some(identity))
        .await;
    let error = connected.map(drop).unwrap_err();
    assert_eq!(error.code(), "tls_on_demand_unsupported");
    assert!(error.to_string().contains("rustls"), "{error}");
    assert!(error.remedy().contains("windows-gnu"));
    assert!(!error.retryable());
    let mut received = Vec::new();
    let (mut peer, _) = accepted.unwrap();
    peer.read_to_end(&mut received).await.unwrap();
    assert!(received.is_empty());
}

/// rustls calls for the signature and cannot wait: were that on a worker of the runtime, the only one here
/// would be held up, and the test with it.
#[tokio::test(flavor = "current_thread")]
async fn a_slow_signature_holds_up_no_worker() {
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let server = RustlsServer::start(&pki, version).await;
        // A key that says it is quick is no exception here.
        let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
        hand.set(Mood::Wait);
        let connector = pki.connector();
        let identity = Some(pki.identity_of(key));
        let tcp = server.dial().await;
        let (connected, accepted, ()) = tokio::join!(
            connector.connect(tcp, "localhost", Leg::FirstHandshake, identity),
            server.accept(),
            async {
                hand.signing().await;
                hand.set(Mood::Sign);
            }
        );
        accepted.unwrap();
        assert!(connected.unwrap().info().client_signature.is_some());
    }
}

/// Servers that ask for certificates under TLS 1.2 alone are called up to that version.
#[tokio::test]
async fn tls_1_3_can_be_left_out() {
    let pki = Pki::new();
    for (version, served) in [(&TLS12, true), (&TLS13, false)] {
        let server = RustlsServer::start(&pki, version).await;
        let (connector, identity) = (pki.connector(), pki.identity().await);
        let tcp = server.dial().await;
        let (connected, _) = tokio::join!(
            connector.connect_up_to(
                tcp,
                "localhost",
                Leg::FirstHandshake,
                TlsVersion::Tls12,
                Some(identity)
            ),
            server.accept()
        );
        match connected {
            Ok(connection) => assert!(served && connection.info().version == TlsVersion::Tls12),
            Err(error) => assert!(!served && error.code() == "tls_alert_received", "{error}"),
        }
    }
}
