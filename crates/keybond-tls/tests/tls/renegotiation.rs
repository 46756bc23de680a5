//! Renegotiation at the worst moments: nothing lost, nothing twice, never a second time, never another server.

use std::{
    fs::File, future::poll_fn, pin::pin, process::Command, sync::Arc, task::Poll, time::Duration,
};

use keybond_keys::{HashAlgorithm, SignatureScheme};
use keybond_tls::{Leg, RenegotiationRefusal, TlsConn, TlsConnector as _, TlsError};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, split},
    net::TcpStream,
    time::timeout,
};

use crate::{
    pki::{CLIENT, Pki},
    reneg_server::RenegServer,
    store::{Mood, handled_key},
};

const REQUEST: &[u8; 16] = b"GET / HTTP/1.1\r\n";
const UPLOAD: usize = 5_000_000;
const DOWNLOAD: usize = 4_000_000;

async fn connect(pki: &Pki, tcp: TcpStream) -> Box<dyn TlsConn> {
    let identity = pki.identity().await;
    pki.connector()
        .connect(tcp, "localhost", Leg::OnDemand, Some(identity))
        .await
        .unwrap()
}

/// The pattern that the server sends, too.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn expected_answer(body: &[u8]) -> String {
    let digest = HashAlgorithm::Sha256.digest(body);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex} {CLIENT}\n")
}

#[tokio::test]
async fn an_upload_survives_a_renegotiation_in_its_middle() {
    for size in [1, 997, 8000, 64 * 1024] {
        let pki = Pki::new();
        let server = RenegServer::start(&pki, "upload");
        let connection = connect(&pki, server.dial().await).await;
        let body = pattern(if size == 1 { UPLOAD / 10 } else { UPLOAD });
        let rest = pattern(UPLOAD)[body.len()..].to_vec();
        let (reader, mut writer) = split(connection);
        let uploading = async {
            writer.write_all(REQUEST).await.unwrap();
            for piece in body.chunks(size) {
                writer.write_all(piece).await.unwrap();
            }
            writer.write_all(&rest).await.unwrap();
            writer.flush().await.unwrap();
        };
        let mut answer = String::new();
        let mut reader = BufReader::new(reader);
        // Read from the start, as an HTTP client does.
        let (read, ()) = tokio::join!(reader.read_line(&mut answer), uploading);
        read.unwrap();
        assert_eq!(answer, expected_answer(&pattern(UPLOAD)));
        let info = reader.into_inner().unsplit(writer).info();
        assert_eq!(info.renegotiations, 1);
        assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
    }
}

#[tokio::test]
async fn an_upload_survives_while_the_key_takes_its_time() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "upload");
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let connection = pki
        .connector()
        .connect(
            server.dial().await,
            "localhost",
            Leg::OnDemand,
            Some(pki.identity_of(key)),
        )
        .await
        .unwrap();
    hand.set(Mood::Wait);
    let body = pattern(UPLOAD);
    let (reader, mut writer) = split(connection);
    let uploading = async {
        writer.write_all(REQUEST).await.unwrap();
        writer.flush().await.unwrap();
        // The rest is written while the signature is being made.
        hand.signing().await;
        let mut writing = pin!(async {
            writer.write_all(&body).await.unwrap();
            writer.flush().await.unwrap();
        });
        let first = poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await;
        assert!(
            first.is_pending(),
            "nothing may be sent between two handshakes"
        );
        hand.set(Mood::Sign);
        writing.await;
    };
    let mut answer = String::new();
    let mut reader = BufReader::new(reader);
    let (read, ()) = tokio::join!(reader.read_line(&mut answer), uploading);
    read.unwrap();
    assert_eq!(answer, expected_answer(&body));
}

#[tokio::test]
async fn a_writer_alone_gets_through_a_renegotiation() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "upload");
    let mut connection = connect(&pki, server.dial().await).await;
    let body = pattern(UPLOAD);
    connection.write_all(REQUEST).await.unwrap();
    connection.flush().await.unwrap();
    let mut looked = 0;
    for piece in body.chunks(10_000) {
        // One look for an answer, given up at once; the write then has to drive what the look began.
        let mut nothing = [0; 1];
        let mut looking = pin!(connection.read(&mut nothing));
        let look = poll_fn(|context| Poll::Ready(looking.as_mut().poll(context))).await;
        looked += usize::from(look.is_pending());
        let written = timeout(Duration::from_secs(20), connection.write_all(piece)).await;
        written.expect("the writer slept on").unwrap();
    }
    connection.flush().await.unwrap();
    assert_eq!(looked, body.len() / 10_000);
    let mut answer = String::new();
    let mut reader = BufReader::new(connection);
    reader.read_line(&mut answer).await.unwrap();
    assert_eq!(answer, expected_answer(&body));
    assert_eq!(reader.into_inner().info().renegotiations, 1);
}

#[tokio::test]
async fn a_download_survives_a_renegotiation_in_its_middle_also_with_cut_records() {
    for pieces in [false, true] {
        let pki = Pki::new();
        let server = RenegServer::start(&pki, "download");
        let tcp = if pieces {
            server.dial_in_pieces().await
        } else {
            server.dial().await
        };
        let mut connection = connect(&pki, tcp).await;
        connection.write_all(REQUEST).await.unwrap();
        connection.flush().await.unwrap();
        let mut body = vec![0; DOWNLOAD];
        connection.read_exact(&mut body).await.unwrap();
        assert!(body == pattern(DOWNLOAD), "the download differs");
        connection.write_all(b"ok").await.unwrap();
        connection.flush().await.unwrap();
        let mut answer = String::new();
        let mut reader = BufReader::new(connection);
        reader.read_line(&mut answer).await.unwrap();
        assert_eq!(answer, format!("{CLIENT}\n"));
        assert_eq!(reader.into_inner().info().renegotiations, 1);
    }
}

/// A session that was resumed would carry over whether the client was authenticated, and one that is resumed within
/// the renegotiation shows no certificate at all. keybond offers neither, to servers that would do both.
#[tokio::test]
async fn a_server_that_would_resume_gets_the_certificate_each_time() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "resumable");
    let (connector, identity) = (pki.connector(), pki.identity().await);
    for _ in 0..2 {
        let connection = connector
            .connect(
                server.dial().await,
                "localhost",
                Leg::OnDemand,
                Some(Arc::clone(&identity)),
            )
            .await
            .unwrap();
        let (reader, mut writer) = split(connection);
        let uploading = async {
            writer.write_all(REQUEST).await.unwrap();
            writer.write_all(&pattern(UPLOAD)).await.unwrap();
            writer.flush().await.unwrap();
        };
        let mut answer = String::new();
        let mut reader = BufReader::new(reader);
        let (read, ()) = tokio::join!(reader.read_line(&mut answer), uploading);
        read.unwrap();
        let expected = expected_answer(&pattern(UPLOAD));
        assert_eq!(answer, format!("{} full, full\n", expected.trim_end()));
        let info = reader.into_inner().unsplit(writer).info();
        assert_eq!(info.renegotiations, 1);
        assert_eq!(info.client_signature, Some(SignatureScheme::RsaPssSha256));
    }
}

/// The same server and a client that resumes: it does so, and shows no certificate.
#[test]
fn that_server_would_resume() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "resumable");
    let authority = pki.file("ca.pem", &pki.ca_pem);
    let session = authority.with_file_name("session.pem");
    let mut input = REQUEST.to_vec();
    input.extend(pattern(UPLOAD));
    let upload = authority.with_file_name("upload");
    std::fs::write(&upload, input).unwrap();
    let answers = ["-sess_out", "-sess_in"].map(|option| {
        let output = Command::new("openssl")
            .args(["s_client", "-quiet", "-tls1_2", "-connect"])
            .arg(server.address())
            .arg("-CAfile")
            .arg(&authority)
            .arg(option)
            .arg(&session)
            .stdin(File::open(&upload).unwrap())
            .output()
            .expect("this test needs the program `openssl` (Debian: apt-get install openssl)");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let sum = expected_answer(&pattern(UPLOAD)).replace(&format!("{CLIENT}\n"), "nobody");
    assert_eq!(
        answers,
        [
            format!("{sum} full, resumed\n"),
            format!("{sum} resumed, resumed\n")
        ]
    );
}

#[tokio::test]
async fn a_second_renegotiation_is_refused() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "twice");
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let identity = Some(pki.identity_of(key));
    let connection = pki
        .connector()
        .connect(server.dial().await, "localhost", Leg::OnDemand, identity)
        .await
        .unwrap();
    hand.set(Mood::Wait);
    let (mut reader, mut writer) = split(connection);
    let asking = async {
        writer.write_all(REQUEST).await.unwrap();
        writer.flush().await.unwrap();
        hand.signing().await;
        hand.set(Mood::Sign);
        writer.write_all(REQUEST).await.unwrap();
        writer.flush().await.unwrap();
    };
    let mut answer = vec![0; CLIENT.len() + 1];
    let (read, ()) = tokio::join!(reader.read_exact(&mut answer), asking);
    read.unwrap();
    let mut connection = reader.unsplit(writer);
    let error = connection.read_u8().await.unwrap_err();
    is_refused(&error, RenegotiationRefusal::Repeated);
    assert_eq!(connection.info().renegotiations, 1);
}

#[tokio::test]
async fn a_server_that_comes_back_as_another_is_refused() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "changed");
    let mut connection = connect(&pki, server.dial().await).await;
    connection.write_all(REQUEST).await.unwrap();
    connection.flush().await.unwrap();
    let error = connection.read_u8().await.unwrap_err();
    is_refused(&error, RenegotiationRefusal::ServerChanged);
    // Not one more byte goes to it.
    let error = connection.write_all(b"secret").await.unwrap_err();
    is_refused(&error, RenegotiationRefusal::ServerChanged);
    assert_eq!(connection.info().server_leaf, pki.server.der);
}

#[tokio::test]
async fn a_server_that_vanishes_during_a_renegotiation() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "vanish");
    let mut connection = connect(&pki, server.dial().await).await;
    connection.write_all(REQUEST).await.unwrap();
    connection.flush().await.unwrap();
    let error = connection.read_u8().await.unwrap_err();
    let error = TlsError::find(&error).unwrap();
    assert!(
        matches!(error.code(), "tls_connection_closed" | "tls_io_error") && error.retryable(),
        "{error}"
    );
    assert!(
        error.to_string().contains("during the renegotiation"),
        "{error}"
    );
}

#[tokio::test]
async fn a_renegotiation_has_a_deadline() {
    let pki = Pki::new();
    let server = RenegServer::start(&pki, "upload");
    let (key, hand) = handled_key(false, &SignatureScheme::ALL).await;
    let mut connection = pki
        .connector()
        .handshake_deadline(Duration::from_secs(1))
        .connect(
            server.dial().await,
            "localhost",
            Leg::OnDemand,
            Some(pki.identity_of(key)),
        )
        .await
        .unwrap();
    hand.set(Mood::Wait);
    connection.write_all(REQUEST).await.unwrap();
    connection.flush().await.unwrap();
    let error = connection.read_u8().await.unwrap_err();
    let error = TlsError::find(&error).unwrap();
    assert_eq!(error.code(), "tls_handshake_timed_out", "{error}");
    assert!(error.to_string().contains("renegotiation"), "{error}");
    hand.set(Mood::Sign);
}

fn is_refused(error: &std::io::Error, reason: RenegotiationRefusal) {
    let error = TlsError::find(error).unwrap();
    assert!(
        matches!(error, TlsError::RenegotiationRefused { reason: found, .. } if *found == reason),
        "{error}"
    );
}
