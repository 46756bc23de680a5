//! A small OpenSSL server of our own that renegotiates at the worst moments: `reneg_server.c`.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::pki::Pki;

pub(crate) struct RenegServer {
    child: Child,
    port: u16,
}

impl RenegServer {
    pub(crate) fn start(pki: &Pki, mode: &str) -> Self {
        let other = pki.server_with(|_| {});
        let folder = pki
            .file("server.pem", &pki.server.pem)
            .parent()
            .unwrap()
            .to_owned();
        pki.file("server.key", &pki.server.key.serialize_pem());
        pki.file("other.pem", &other.pem);
        pki.file("other.key", &other.key.serialize_pem());
        pki.file("ca.pem", &pki.ca_pem);
        let mut child = Command::new(program())
            .arg(mode)
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().parse().expect("the server printed no port");
        Self { child, port }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// A connection on which everything from the server arrives in small pieces, so that records are cut.
    pub(crate) async fn dial_in_pieces(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (relay, _) = listener.accept().await.unwrap();
        relay.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = relay.into_split();
        let (mut from_server, mut to_server) = self.dial().await.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        tokio::spawn(async move {
            let mut piece = [0; 977];
            while let Ok(count @ 1..) = from_server.read(&mut piece).await {
                if to_client.write_all(&piece[..count]).await.is_err() {
                    return;
                }
                // On one thread, the client now sees just this piece.
                tokio::task::yield_now().await;
            }
        });
        near
    }
}

impl Drop for RenegServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_dir, program) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("reneg_server");
        let built = Command::new("cc")
            .args([
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-deprecated-declarations",
                "-o",
            ])
            .arg(&program)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/tls/reneg_server.c"
            ))
            .args(["-lssl", "-lcrypto"])
            .status()
            .expect("these tests need a C compiler (Debian: apt-get install gcc)");
        assert!(
            built.success(),
            "these tests need OpenSSL's headers (Debian: apt-get install libssl-dev)"
        );
        (dir, program)
    });
    program.clone()
}
