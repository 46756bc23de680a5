//! Application data: nothing lost, nothing twice, in order, both ways at once.

use std::time::Duration;

use keybond_tls::{Leg, TlsConn, TlsConnector as _, TlsError};
use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use crate::{pki::Pki, rustls_server::RustlsServer};

const BIG: usize = 8 * 1024 * 1024;

/// Bytes that repeat only after a long time, so that any shift shows.
fn stream_of(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

async fn pair(
    pki: &Pki,
    server: &RustlsServer,
    tcp: TcpStream,
) -> (Box<dyn TlsConn>, TlsStream<TcpStream>) {
    let connector = pki.connector();
    let identity = pki.identity().await;
    let (client, server) = tokio::join!(
        connector.connect(tcp, "localhost", Leg::FirstHandshake, Some(identity)),
        server.accept(),
    );
    (client.unwrap(), server.unwrap())
}

/// Both sides send and receive `BIG` at the same time, in pieces of odd sizes.
async fn exchange(client: Box<dyn TlsConn>, server: TlsStream<TcpStream>) {
    let (up, down) = (stream_of(1, BIG), stream_of(2, BIG));
    let (mut client_read, mut client_write) = split(client);
    let (mut server_read, mut server_write) = split(server);
    let sending = {
        let up = up.clone();
        tokio::spawn(async move {
            let sizes = [1, 7, 8000, 3, 8001, 40_000, 99, 16_385, 2];
            let mut rest = up.as_slice();
            for size in sizes.iter().cycle() {
                let (piece, tail) = rest.split_at(rest.len().min(*size));
                client_write.write_all(piece).await.unwrap();
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            client_write.flush().await.unwrap();
            client_write
        })
    };
    let answering = {
        let down = down.clone();
        tokio::spawn(async move {
            for piece in down.chunks(10_007) {
                server_write.write_all(piece).await.unwrap();
            }
            server_write.flush().await.unwrap();
        })
    };
    let receiving = tokio::spawn(async move {
        let mut received = vec![0; BIG];
        server_read.read_exact(&mut received).await.unwrap();
        received
    });
    let mut received = vec![0; BIG];
    client_read.read_exact(&mut received).await.unwrap();
    assert!(received == down, "the download differs");
    assert!(receiving.await.unwrap() == up, "the upload differs");
    answering.await.unwrap();
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn eight_mebibytes_each_way_at_once_on_one_thread() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let server = RustlsServer::start(&pki, version).await;
        let tcp = server.dial().await;
        let (client, server) = pair(&pki, &server, tcp).await;
        exchange(client, server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_mebibytes_each_way_at_once_on_two_threads_over_a_narrow_socket() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let server = RustlsServer::start(&pki, version).await;
        let tcp = server.dial_narrow().await;
        let (client, server) = pair(&pki, &server, tcp).await;
        exchange(client, server).await;
    }
}

#[tokio::test]
async fn a_write_that_its_caller_gave_up_has_sent_nothing_and_others_may_follow() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let server = RustlsServer::start(&pki, version).await;
        let tcp = server.dial_narrow().await;
        let (mut client, mut server) = pair(&pki, &server, tcp).await;
        let reading = tokio::spawn(async move {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            received
        });
        let source = stream_of(3, 2 * 1024 * 1024);
        let (mut accepted, mut given_up) = (Vec::new(), 0);
        for (turn, piece) in source.chunks(5_003).enumerate() {
            // Another length each time: s2n itself would demand the same bytes again.
            let piece = &piece[..piece.len() - turn % 50];
            tokio::select! {
                biased;
                written = client.write(piece) => accepted.extend_from_slice(&piece[..written.unwrap()]),
                () = tokio::task::yield_now() => given_up += 1,
            }
        }
        client.shutdown().await.unwrap();
        let received = reading.await.unwrap();
        assert!(given_up > 0, "no write ever had to wait");
        assert!(
            received == accepted,
            "what arrived is not what was accepted"
        );
    }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open_under_tls_1_3() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS13).await;
    let tcp = server.dial().await;
    let (mut client, mut server) = pair(&pki, &server, tcp).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(client.write_all(b"more").await.is_err());

    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn the_end_of_one_direction_is_the_end_of_both_under_tls_1_2() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS12).await;
    let tcp = server.dial().await;
    let (mut client, mut server) = pair(&pki, &server, tcp).await;
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_servers_close_notify_is_the_end_and_its_absence_is_an_error() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let peer = RustlsServer::start(&pki, version).await;

        let (mut client, mut server) = pair(&pki, &peer, peer.dial().await).await;
        server.write_all(b"all").await.unwrap();
        server.shutdown().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"all");

        let (mut client, mut server) = pair(&pki, &peer, peer.dial().await).await;
        server.write_all(b"half of i").await.unwrap();
        server.flush().await.unwrap();
        drop(server.into_inner().0);
        let mut received = Vec::new();
        let error = client.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(received, b"half of i");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        let error = TlsError::find(&error).unwrap();
        assert_eq!(error.code(), "tls_connection_closed");
        assert!(error.retryable());
    }
}

#[tokio::test]
async fn a_reader_waits_while_a_writer_works() {
    let pki = Pki::new();
    let peer = RustlsServer::start(&pki, &TLS13).await;
    let (client, server) = pair(&pki, &peer, peer.dial_narrow().await).await;
    let (mut client_read, mut client_write) = split(client);
    let waiting = tokio::spawn(async move {
        let mut answer = [0; 4];
        client_read.read_exact(&mut answer).await.unwrap();
        answer
    });
    let (mut server_read, mut server_write) = split(server);
    let draining = tokio::spawn(async move {
        copy(&mut server_read, &mut tokio::io::sink())
            .await
            .unwrap()
    });
    client_write.write_all(&stream_of(4, BIG)).await.unwrap();
    client_write.flush().await.unwrap();
    server_write.write_all(b"done").await.unwrap();
    server_write.flush().await.unwrap();
    let answer = timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(&answer.expect("the reader slept on").unwrap(), b"done");
    client_write.shutdown().await.unwrap();
    assert_eq!(draining.await.unwrap(), BIG as u64);
}
