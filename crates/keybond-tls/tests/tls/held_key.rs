//! The signature comes from the held key, and a slow, refusing or broken key harms nobody else.

use std::{sync::Arc, time::Duration};

use keybond_keys::{KeyError, SignatureScheme};
use keybond_tls::{Leg, TlsConnector as _, TlsError};
use rustls::version::{TLS12, TLS13};
use tokio::time::timeout;

use crate::{
    pki::Pki,
    rustls_server::RustlsServer,
    store::{Mood, handled_key},
};

#[tokio::test(flavor = "current_thread")]
async fn a_slow_key_does_not_stop_the_runtime() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let server = RustlsServer::start(&pki, version).await;
        let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
        let (connector, identity) = (pki.connector(), pki.identity_of(key));
        hand.set(Mood::Wait);
        let tcp = server.dial().await;
        let accepting = tokio::spawn(async move { server.accept().await.map(drop) });
        let connecting = tokio::spawn(async move {
            connector
                .connect(tcp, "localhost", Leg::FirstHandshake, Some(identity))
                .await
                .map(|connection| connection.info())
        });

        hand.signing().await;
        let heartbeat = tokio::spawn(async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        });
        // On this one thread, nothing else could tick if the signature held it.
        timeout(Duration::from_secs(20), heartbeat)
            .await
            .unwrap()
            .unwrap();
        assert!(!connecting.is_finished());

        hand.set(Mood::Sign);
        let info = connecting.await.unwrap().unwrap();
        assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
        assert_eq!(hand.entered(), 1);
        accepting.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_connect_given_up_while_the_key_signs_leaves_the_connector_whole() {
    let pki = Pki::new();
    let server = Arc::new(RustlsServer::start(&pki, &TLS13).await);
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let connector = Arc::new(pki.connector());
    let identity = pki.identity_of(key);
    for _ in 0..10 {
        hand.set(Mood::Wait);
        let tcp = server.dial().await;
        let accepting = tokio::spawn({
            let server = Arc::clone(&server);
            async move { server.accept().await }
        });
        let connecting = tokio::spawn({
            let (connector, identity) = (Arc::clone(&connector), Arc::clone(&identity));
            async move {
                connector
                    .connect(tcp, "localhost", Leg::FirstHandshake, Some(identity))
                    .await
                    .map(drop)
            }
        });
        hand.signing().await;
        connecting.abort();
        assert!(connecting.await.unwrap_err().is_cancelled());
        // Dropping the future closed the connection.
        assert!(accepting.await.unwrap().is_err());
        hand.set(Mood::Sign);
    }
    let tcp = server.dial().await;
    let (connected, accepted) = tokio::join!(
        connector.connect(tcp, "localhost", Leg::FirstHandshake, Some(identity)),
        server.accept(),
    );
    accepted.unwrap();
    assert!(connected.unwrap().info().client_signature.is_some());
}

#[tokio::test]
async fn a_refusing_key_is_the_error_and_its_remedy_the_remedy() {
    let error = fails_with(Mood::Refuse, false).await;
    assert_eq!(error.code(), "tls_key_failed");
    assert_eq!(error.remedy(), "Unlock the device.");
    let TlsError::Key { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        matches!(source, KeyError::Refused(refusal) if refusal.detail == "the device is locked")
    );
}

#[tokio::test]
async fn a_panicking_store_is_an_error_wherever_it_runs() {
    for quick in [true, false] {
        let error = fails_with(Mood::Panic, quick).await;
        assert_eq!(error.code(), "tls_key_failed", "{error}");
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}

async fn fails_with(mood: Mood, quick: bool) -> TlsError {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS13).await;
    let (key, hand) = handled_key(quick, &SignatureScheme::ALL).await;
    hand.set(mood);
    let connector = pki.connector();
    let tcp = server.dial().await;
    let (connected, _) = tokio::join!(
        async {
            // Dropped before the server is done, so that it ends as well.
            let identity = Some(pki.identity_of(key));
            connector
                .connect(tcp, "localhost", Leg::FirstHandshake, identity)
                .await
                .map(drop)
        },
        server.accept(),
    );
    connected.unwrap_err()
}

#[tokio::test]
async fn eight_handshakes_with_a_slow_key_wait_side_by_side() {
    let pki = Pki::new();
    let server = Arc::new(RustlsServer::start(&pki, &TLS13).await);
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let connector = Arc::new(pki.connector());
    let identity = pki.identity_of(key);
    hand.set(Mood::Wait);
    let mut connecting = Vec::new();
    for _ in 0..8 {
        let (server, connector) = (Arc::clone(&server), Arc::clone(&connector));
        let identity = Arc::clone(&identity);
        connecting.push(tokio::spawn(async move {
            let tcp = server.dial().await;
            let (connected, accepted) = tokio::join!(
                connector.connect(tcp, "localhost", Leg::FirstHandshake, Some(identity)),
                server.accept(),
            );
            accepted.unwrap();
            connected.unwrap().info()
        }));
    }
    hand.signing().await;
    hand.set(Mood::Sign);
    for connected in connecting {
        assert!(connected.await.unwrap().client_signature.is_some());
    }
    assert_eq!(hand.entered(), 8);
}

#[tokio::test]
async fn the_deadline_counts_the_key_too() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS13).await;
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    hand.set(Mood::Wait);
    let connector = pki
        .connector()
        .handshake_deadline(Duration::from_millis(200));
    let tcp = server.dial().await;
    let (connected, _) = tokio::join!(
        async {
            let identity = Some(pki.identity_of(key));
            connector
                .connect(tcp, "localhost", Leg::FirstHandshake, identity)
                .await
                .map(drop)
        },
        server.accept(),
    );
    let error = connected.unwrap_err();
    assert_eq!(error.code(), "tls_handshake_timed_out", "{error}");
    assert!(error.retryable());
    hand.set(Mood::Sign);
}
