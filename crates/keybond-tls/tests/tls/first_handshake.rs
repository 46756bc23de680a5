//! The client certificate in the first handshake, as OpenSSL sees it.

use keybond_keys::SignatureScheme;
use keybond_tls::{Leg, TlsConnector as _, TlsError, TlsVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    openssl::OpensslServer,
    pki::{CLIENT, Pki},
    store::handled_key,
};

#[tokio::test]
async fn openssl_verifies_a_pss_signature_under_tls_1_2() {
    speaks("-tls1_2", TlsVersion::Tls12, "localhost").await;
}

#[tokio::test]
async fn openssl_verifies_a_pss_signature_under_tls_1_3() {
    speaks("-tls1_3", TlsVersion::Tls13, "localhost").await;
}

#[tokio::test]
async fn a_server_may_be_called_by_its_address() {
    speaks("-tls1_3", TlsVersion::Tls13, "127.0.0.1").await;
}

async fn speaks(version_option: &str, version: TlsVersion, host: &str) {
    let pki = Pki::new();
    let mut server = OpensslServer::start(&pki, &["-Verify", "1", version_option]).await;
    let identity = pki.identity().await;
    let tcp = server.connect().await;
    let mut connection = pki
        .connector()
        .connect(tcp, host, Leg::FirstHandshake, Some(identity))
        .await
        .unwrap();

    let subject = server.line_with("subject=").await;
    assert!(subject.contains(CLIENT), "{subject}");
    let digest = server.line_with("Peer signing digest").await;
    assert!(digest.ends_with("SHA256"), "{digest}");
    let signature = server.line_with("Peer signature type").await;
    assert!(signature.ends_with("RSA-PSS"), "{signature}");

    connection.write_all(b"hello\n").await.unwrap();
    connection.flush().await.unwrap();
    server.line_with("hello").await;
    server.say("good day");
    let mut answer = [0; 9];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"good day\n");

    let info = connection.info();
    assert_eq!(info.version, version);
    assert!(info.certificate_requested);
    assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
    assert_eq!(info.renegotiations, 0);
    assert_eq!(info.server_leaf, pki.server.der);
    assert!(info.cipher_suite.contains("AES"), "{}", info.cipher_suite);

    connection.shutdown().await.unwrap();
    server.line_with("DONE").await;
}

#[tokio::test]
async fn a_key_without_pss_signs_pkcs1_under_tls_1_2() {
    let pki = Pki::new();
    let mut server = OpensslServer::start(&pki, &["-Verify", "1"]).await;
    let pkcs1 = [SignatureScheme::RsaPkcs1Sha256];
    let (key, _hand) = handled_key(true, &pkcs1).await;
    let connection = pki
        .connector()
        .connect(
            server.connect().await,
            "localhost",
            Leg::FirstHandshake,
            Some(pki.identity_of(key)),
        )
        .await
        .unwrap();
    let signature = server.line_with("Peer signature type").await;
    assert!(signature.ends_with("RSA"), "{signature}");
    let info = connection.info();
    assert_eq!(info.version, TlsVersion::Tls12);
    assert_eq!(info.client_signature, Some(SignatureScheme::RsaPkcs1Sha256));
}

#[tokio::test]
async fn the_certificate_is_sent_though_the_server_hints_at_other_authorities() {
    let pki = Pki::new();
    let other = Pki::named("another authority");
    let hint = other.file("other.pem", &other.ca_pem);
    let options = ["-Verify", "1", "-CAfile", hint.to_str().unwrap()];
    for version in ["-tls1_2", "-tls1_3"] {
        let mut server = OpensslServer::start(&pki, &[&options[..], &[version]].concat()).await;
        let connection = pki
            .connector()
            .connect(
                server.connect().await,
                "localhost",
                Leg::FirstHandshake,
                Some(pki.identity().await),
            )
            .await
            .unwrap();
        let report = server.report().await;
        assert!(report.contains(CLIENT), "{report}");
        assert!(connection.info().client_signature.is_some());
    }
}

#[tokio::test]
async fn the_plain_leg_never_shows_a_certificate() {
    let pki = Pki::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut server = OpensslServer::start(&pki, &["-verify", "1", version]).await;
        let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
        let connection = pki
            .connector()
            .connect(
                server.connect().await,
                "localhost",
                Leg::Plain,
                Some(pki.identity_of(key)),
            )
            .await
            .unwrap();
        let report = server.report().await;
        assert!(!report.contains("subject="), "{report}");
        assert_eq!(hand.entered(), 0);
        let info = connection.info();
        assert!(info.certificate_requested);
        assert_eq!(info.client_signature, None);
    }
}

#[tokio::test]
async fn a_server_that_does_not_ask_gets_none() {
    let pki = Pki::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut server = OpensslServer::start(&pki, &[version]).await;
        let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
        let connection = pki
            .connector()
            .connect(
                server.connect().await,
                "localhost",
                Leg::FirstHandshake,
                Some(pki.identity_of(key)),
            )
            .await
            .unwrap();
        let report = server.report().await;
        assert!(!report.contains("subject="), "{report}");
        assert_eq!(hand.entered(), 0);
        assert!(!connection.info().certificate_requested);
    }
}

#[tokio::test]
async fn whether_the_server_asked_is_known_when_the_handshake_ends() {
    let pki = Pki::new();
    let connector = pki.connector();
    // With this group the server sends the client's first TLS 1.3 hello back (RFC 8446 §4.1.4).
    for options in [
        &["-tls1_2"][..],
        &["-tls1_3"],
        &["-tls1_3", "-groups", "P-384"],
    ] {
        for asks in [true, false] {
            let verify: &[&str] = if asks { &["-verify", "1"] } else { &[] };
            let server = OpensslServer::start(&pki, &[options, verify].concat()).await;
            let identity = pki.identity().await;
            let tcp = server.connect().await;
            let connection = connector
                .connect(tcp, "localhost", Leg::FirstHandshake, Some(identity))
                .await
                .unwrap();
            let info = connection.info();
            assert_eq!(info.certificate_requested, asks, "{options:?}");
            assert_eq!(info.client_signature.is_some(), asks, "{options:?}");
        }
    }
}

#[tokio::test]
async fn a_missing_certificate_is_told_as_such() {
    let pki = Pki::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let server = OpensslServer::start(&pki, &["-Verify", "1", version]).await;
        let tcp = server.connect().await;
        let connector = pki.connector();
        let connected = connector.connect(tcp, "localhost", Leg::Plain, None).await;
        // Under TLS 1.3 the client is done before the server looks at the certificate (RFC 8446 §4.4.2.4).
        let error = match connected {
            Err(error) => error,
            Ok(mut connection) => {
                let error = connection.read_u8().await.unwrap_err();
                TlsError::find(&error).unwrap().clone()
            }
        };
        assert_eq!(error.code(), "tls_client_certificate_required", "{error}");
        assert!(!error.retryable());
    }
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_is_told_as_refused() {
    let pki = Pki::new();
    let stranger = Pki::named("a stranger");
    for version in ["-tls1_2", "-tls1_3"] {
        let server = OpensslServer::start(&pki, &["-Verify", "1", version]).await;
        let tcp = server.connect().await;
        let identity = stranger.identity().await;
        let connector = pki.connector();
        let connected = connector
            .connect(tcp, "localhost", Leg::FirstHandshake, Some(identity))
            .await;
        let error = match connected {
            Err(error) => error,
            Ok(mut connection) => {
                let error = connection.read_u8().await.unwrap_err();
                TlsError::find(&error).unwrap().clone()
            }
        };
        assert_eq!(error.code(), "tls_client_certificate_refused", "{error}");
        assert!(error.to_string().contains("unknown_ca (48)"), "{error}");
    }
}
