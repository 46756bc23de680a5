//! What must not connect does not, and the error says why.

use std::time::Duration;

use keybond_keys::SignatureScheme;
use keybond_tls::{Alert, Leg, TlsConnector, TlsError};
use rcgen::date_time_ymd;
use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{pki::Pki, rustls_server::RustlsServer, store::handled_key};

/// Connects to a server that is expected to be refused or to refuse.
async fn refused(
    pki: &Pki,
    connector: &dyn TlsConnector,
    server: &RustlsServer,
    host: &str,
    leg: Leg,
) -> TlsError {
    let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
    let tcp = server.dial().await;
    let (connected, _) = tokio::join!(
        async {
            let identity = Some(pki.identity_of(key));
            connector.connect(tcp, host, leg, identity).await.map(drop)
        },
        server.accept(),
    );
    let error = connected.unwrap_err();
    // A server that is not trusted gets no signature.
    assert_eq!(hand.entered(), 0);
    assert!(!error.remedy().is_empty());
    assert!(!error.retryable(), "{error}");
    error
}

#[tokio::test]
async fn a_server_of_an_unknown_authority() {
    let pki = Pki::new();
    let stranger = Pki::named("a stranger");
    for version in [&TLS12, &TLS13] {
        let server = RustlsServer::start(&stranger, version).await;
        let started = std::time::Instant::now();
        let error = refused(
            &pki,
            &pki.connector(),
            &server,
            "localhost",
            Leg::FirstHandshake,
        )
        .await;
        assert_eq!(error.code(), "tls_server_untrusted", "{error}");
        // s2n itself would hold such an error back for 10 seconds and more.
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn no_roots_trust_nobody() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS13).await;
    let connector = keybond_tls::default_connector(&keybond_tls::TrustRoots::empty()).unwrap();
    let error = refused(&pki, &*connector, &server, "localhost", Leg::FirstHandshake).await;
    assert_eq!(error.code(), "tls_server_untrusted", "{error}");
}

#[tokio::test]
async fn a_server_called_by_another_name() {
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let server = RustlsServer::start(&pki, version).await;
        for host in ["vault.test", "127.0.0.2", "localhost.test"] {
            let error = refused(&pki, &pki.connector(), &server, host, Leg::FirstHandshake).await;
            assert_eq!(error.code(), "tls_server_host_mismatch", "{error}");
            let text = error.to_string();
            assert!(
                text.contains(host) && text.contains("localhost, 127.0.0.1, ::1"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_server_certificate_outside_its_validity() {
    let pki = Pki::new();
    for (from, to, text) in [
        (2001, 2002, "has expired"),
        (2060, 2061, "is not valid yet"),
    ] {
        let certificate = pki.server_with(|params| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(to, 1, 1);
        });
        let server = RustlsServer::with(&pki, &certificate, &TLS13, &[]).await;
        let error = refused(
            &pki,
            &pki.connector(),
            &server,
            "localhost",
            Leg::FirstHandshake,
        )
        .await;
        assert_eq!(error.code(), "tls_server_certificate_expired");
        assert!(error.to_string().ends_with(text), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_for_servers() {
    let pki = Pki::new();
    let certificate = pki.server_with(|params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let server = RustlsServer::with(&pki, &certificate, &TLS13, &[]).await;
    let error = refused(
        &pki,
        &pki.connector(),
        &server,
        "localhost",
        Leg::FirstHandshake,
    )
    .await;
    assert_eq!(error.code(), "tls_server_untrusted", "{error}");
}

#[tokio::test]
async fn a_server_that_speaks_another_protocol_says_so_by_alert() {
    let pki = Pki::new();
    let server = RustlsServer::with(&pki, &pki.server, &TLS13, &["h2"]).await;
    let error = refused(
        &pki,
        &pki.connector(),
        &server,
        "localhost",
        Leg::FirstHandshake,
    )
    .await;
    let TlsError::Alert { alert, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*alert, Alert(120));
    let text = error.to_string();
    assert!(text.contains("no_application_protocol (120)"), "{text}");
    assert!(
        text.ends_with("no client certificate was asked for"),
        "{text}"
    );
}

#[tokio::test]
async fn a_host_that_is_none_is_refused_before_a_byte_is_sent() {
    let pki = Pki::new();
    let (tcp, mut peer) = socket_pair().await;
    let error = pki
        .connector()
        .connect(tcp, "https://localhost", Leg::Plain, None)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(error.code(), "tls_host_invalid");
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert!(received.is_empty());
}

#[tokio::test]
async fn a_peer_that_hangs_up_during_the_handshake() {
    let pki = Pki::new();
    let (tcp, mut peer) = socket_pair().await;
    let connector = pki.connector();
    let (connected, ()) = tokio::join!(
        connector.connect(tcp, "localhost", Leg::Plain, None),
        async {
            client_hello(&mut peer).await;
            drop(peer);
        }
    );
    let error = connected.map(drop).unwrap_err();
    assert_eq!(error.code(), "tls_connection_closed", "{error}");
    assert!(
        error.to_string().ends_with("during the handshake"),
        "{error}"
    );
    assert!(error.retryable());
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls() {
    let pki = Pki::new();
    let (tcp, mut peer) = socket_pair().await;
    let connector = pki.connector();
    let (connected, ()) = tokio::join!(
        connector.connect(tcp, "localhost", Leg::Plain, None),
        async {
            client_hello(&mut peer).await;
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    );
    let error = connected.map(drop).unwrap_err();
    assert_eq!(error.code(), "tls_protocol_error", "{error}");
    assert!(error.remedy().contains("TLS server"));
}

#[tokio::test]
async fn a_peer_that_is_silent_costs_the_deadline() {
    let pki = Pki::new();
    let (tcp, _peer) = socket_pair().await;
    let connector = pki
        .connector()
        .handshake_deadline(Duration::from_millis(50));
    let connected = connector.connect(tcp, "localhost", Leg::Plain, None).await;
    let error = connected.map(drop).unwrap_err();
    assert_eq!(error.code(), "tls_handshake_timed_out", "{error}");
    assert!(error.retryable());
}

/// Reads the client's first record.
async fn client_hello(peer: &mut TcpStream) {
    let mut header = [0; 5];
    peer.read_exact(&mut header).await.unwrap();
    assert_eq!(header[0], 22, "the first record is not of a handshake");
    let mut body = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
    peer.read_exact(&mut body).await.unwrap();
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}
