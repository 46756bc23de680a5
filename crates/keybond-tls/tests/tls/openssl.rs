//! `openssl s_server` as a peer.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::{net::TcpStream, sync::mpsc, time::timeout};

use crate::pki::Pki;

pub(crate) struct OpensslServer {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    pub(crate) address: SocketAddr,
}

impl OpensslServer {
    /// Starts the server with `options` and waits until it accepts connections.
    pub(crate) async fn start(pki: &Pki, options: &[&str]) -> Self {
        let certificate = pki.file("server.pem", &pki.server.pem);
        let key = pki.file("server.key", &pki.server.key.serialize_pem());
        let authority = pki.file("ca.pem", &pki.ca_pem);
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-verify_return_error"])
            .arg("-cert")
            .arg(certificate)
            .arg("-key")
            .arg(key)
            .arg("-verifyCAfile")
            .arg(authority)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need the program `openssl` (Debian: apt-get install openssl)");
        let (sender, lines) = mpsc::unbounded_channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for output in outputs {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
                }
            });
        }
        let mut server = Self {
            child,
            lines,
            address: ([127, 0, 0, 1], 0).into(),
        };
        let line = server.line_with("ACCEPT").await;
        server.address = line
            .trim_start_matches("ACCEPT ")
            .trim()
            .parse()
            .unwrap_or_else(|_| {
                panic!("`openssl s_server -accept 127.0.0.1:0` did not print its port: {line:?}")
            });
        server
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The next line that contains `text`.
    pub(crate) async fn line_with(&mut self, text: &str) -> String {
        self.lines_to(text).await.pop().unwrap()
    }

    /// What the server prints about a connection once its handshake is over.
    pub(crate) async fn report(&mut self) -> String {
        self.lines_to("Secure Renegotiation").await.join("\n")
    }

    async fn lines_to(&mut self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let line = timeout(Duration::from_secs(20), self.lines.recv()).await;
            let Ok(Some(line)) = line else {
                panic!(
                    "openssl s_server never printed {text:?}, but:\n{}",
                    seen.join("\n")
                );
            };
            let found = line.contains(text);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }

    /// Makes the server send a line.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
