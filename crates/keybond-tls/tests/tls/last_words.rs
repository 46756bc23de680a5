//! A server that says why it closes, and is gone before the client has sent all: the client still hears it.
//!
//! Here the runtime stands still while the server says its last words and resets the connection. So the next send
//! fails at a moment when the runtime does not know yet that there is something to read.

use std::{
    io,
    net::SocketAddr,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use keybond_keys::SignatureScheme;
use keybond_tls::{Leg, TlsConnector as _, TlsError};
use rustls::{
    SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split},
    net::TcpStream,
    time::timeout,
};

use crate::{
    apache::Apache,
    http::Http,
    pki::Pki,
    rustls_server::RustlsServer,
    store::{Hand, Mood, handled_key},
};

/// A relay before a server, in a thread of its own. When the server has closed, what it said last is handed on and
/// the client's socket is reset: whatever the client sends from then on fails.
fn relayed(server: SocketAddr) -> (TcpStream, Receiver<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (client, _) = listener.accept().unwrap();
    let (gone, reset) = channel();
    in_a_thread(async move {
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client).unwrap();
        client.set_nodelay(true).unwrap();
        let (mut from_server, mut to_server) =
            TcpStream::connect(server).await.unwrap().into_split();
        let (mut from_client, mut to_client) = client.split();
        let upwards = async {
            let _ = copy(&mut from_client, &mut to_server).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = upwards => {}
            _ = copy(&mut from_server, &mut to_client) => {}
        }
        client.set_zero_linger().unwrap();
        drop(client);
        gone.send(()).unwrap();
    });
    near.set_nonblocking(true).unwrap();
    (TcpStream::from_std(near).unwrap(), reset)
}

fn in_a_thread(work: impl Future<Output = ()> + Send + 'static) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work);
    });
}

/// A rustls server in a thread of its own, which serves one connection with `serve`.
fn elsewhere<F: Future<Output = ()> + Send>(
    pki: Pki,
    version: &'static SupportedProtocolVersion,
    serve: impl FnOnce(RustlsServer) -> F + Send + 'static,
) -> SocketAddr {
    let (ready, address) = channel();
    in_a_thread(async move {
        let server = RustlsServer::start(&pki, version).await;
        ready.send(server.address).unwrap();
        serve(server).await;
    });
    address.recv().unwrap()
}

/// Lets the key sign when the server is gone. The key is of the kind that signs on the runtime itself.
fn sign_when_gone(hand: &Hand, reset: Receiver<()>) {
    let hand = hand.clone();
    hand.set(Mood::Wait);
    thread::spawn(move || {
        // The key may not even have been asked yet: it then signs at once.
        let gone = reset.recv_timeout(Duration::from_secs(60));
        hand.set(Mood::Sign);
        gone.unwrap();
    });
}

/// A server under TLS 1.2 judges the certificate while the client still signs.
#[tokio::test(flavor = "current_thread")]
async fn of_a_handshake() {
    let pki = Pki::new();
    let connector = pki.connector();
    let address = elsewhere(pki, &TLS12, async |server| {
        server.accept().await.unwrap_err();
    });
    let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
    let foreign = Pki::named("a stranger").identity_of(key);
    let (near, reset) = relayed(address);
    sign_when_gone(&hand, reset);
    let connected = connector
        .connect(near, "localhost", Leg::FirstHandshake, Some(foreign))
        .await;
    is_refused(&connected.map(drop).unwrap_err());
}

#[tokio::test(flavor = "current_thread")]
async fn of_a_renegotiation() {
    let pki = Pki::new();
    let apache = Apache::start(&pki, "TLSv1.2").await;
    let (key, hand) = handled_key(true, &SignatureScheme::ALL).await;
    let foreign = Pki::named("a stranger").identity_of(key);
    let (near, reset) = relayed(apache.address());
    let connection = pki
        .connector()
        .connect(near, "localhost", Leg::OnDemand, Some(foreign))
        .await
        .unwrap();
    let mut http = Http::over(connection).await;
    sign_when_gone(&hand, reset);
    is_refused(&http.get("/secure/secret").await.unwrap_err());
}

/// Under TLS 1.3 a server judges the certificate after the client's handshake is over.
#[tokio::test(flavor = "current_thread")]
async fn of_a_transfer() {
    for reads in [true, false] {
        let pki = Pki::new();
        let connector = pki.connector();
        let address = elsewhere(pki, &TLS13, async |server| {
            server.accept().await.unwrap_err();
        });
        let foreign = Pki::named("a stranger").identity().await;
        let (near, reset) = relayed(address);
        let mut connection = connector
            .connect(near, "localhost", Leg::FirstHandshake, Some(foreign))
            .await
            .unwrap();
        reset.recv().unwrap();
        let failing = async {
            // One who only writes learns it as well.
            while connection.write_all(&[7; 8000]).await.is_ok() && !reads {}
            if reads {
                connection.read_u8().await.unwrap_err()
            } else {
                connection.write_all(&[7; 8000]).await.unwrap_err()
            }
        };
        let error = timeout(Duration::from_secs(20), failing).await.unwrap();
        is_refused(TlsError::find(&error).unwrap());
    }
}

/// An answer that came before the end stays readable, and a writer beside a reader waits until it is read.
#[tokio::test(flavor = "current_thread")]
async fn of_a_server_that_answered() {
    for reader_waits in [true, false] {
        let pki = Pki::new();
        let (connector, identity) = (pki.connector(), pki.identity().await);
        let address = elsewhere(pki, &TLS13, async |server| {
            let mut accepted = server.accept().await.unwrap();
            accepted.write_all(b"413").await.unwrap();
            accepted.flush().await.unwrap();
            drop(accepted.into_inner().0);
        });
        let (near, reset) = relayed(address);
        let mut connection = connector
            .connect(near, "localhost", Leg::FirstHandshake, Some(identity))
            .await
            .unwrap();
        let mut answer = [0; 3];
        if reader_waits {
            let (mut reader, mut writer) = split(connection);
            let reading = tokio::spawn(async move {
                reader.read_exact(&mut answer).await.unwrap();
                (answer, reader.read_u8().await.unwrap_err())
            });
            tokio::task::yield_now().await;
            reset.recv().unwrap();
            let error = loop {
                if let Err(error) = writer.write_all(&[7; 8000]).await {
                    break error;
                }
            };
            is_lost(&error);
            let (answer, end) = reading.await.unwrap();
            assert_eq!(&answer, b"413");
            is_lost(&end);
            continue;
        }
        reset.recv().unwrap();
        let error = loop {
            if let Err(error) = connection.write_all(&[7; 8000]).await {
                break error;
            }
        };
        is_lost(&error);
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"413");
        is_lost(&connection.read_u8().await.unwrap_err());
    }
}

/// One who has read before and then only writes is not kept waiting for ever: by whom, nobody knows.
#[tokio::test(flavor = "current_thread")]
async fn of_a_server_whose_reader_stopped() {
    let limit = Duration::from_secs(3);
    let pki = Pki::new();
    let (connector, identity) = (pki.connector(), pki.identity().await);
    let address = elsewhere(pki, &TLS13, async |server| {
        let mut accepted = server.accept().await.unwrap();
        accepted.write_all(b"413").await.unwrap();
        accepted.flush().await.unwrap();
        drop(accepted.into_inner().0);
    });
    let (near, reset) = relayed(address);
    let mut connection = connector
        .handshake_deadline(limit)
        .connect(near, "localhost", Leg::FirstHandshake, Some(identity))
        .await
        .unwrap();
    assert_eq!(connection.read_u8().await.unwrap(), b'4');
    reset.recv().unwrap();
    let (mut reader, mut writer) = split(connection);
    let started = Instant::now();
    let mut failing = tokio::spawn(async move {
        loop {
            if let Err(error) = writer.write_all(&[7; 8000]).await {
                break error;
            }
        }
    });
    let early = timeout(limit / 3, &mut failing).await;
    assert!(early.is_err(), "a reader has its time");
    // One that takes a part has as much again, and one that stops then holds up nobody either.
    assert_eq!(reader.read_u8().await.unwrap(), b'1');
    let error = timeout(Duration::from_secs(20), failing).await;
    is_lost(&error.expect("the writer waits for ever").unwrap());
    assert!(started.elapsed() >= limit * 4 / 3);
    assert_eq!(reader.read_u8().await.unwrap(), b'3');
    is_lost(&reader.read_u8().await.unwrap_err());
}

fn is_refused(error: &TlsError) {
    assert_eq!(error.code(), "tls_client_certificate_refused", "{error}");
}

fn is_lost(error: &io::Error) {
    let error = TlsError::find(error).unwrap();
    assert_eq!(error.code(), "tls_io_error", "{error}");
    assert!(error.retryable());
}
