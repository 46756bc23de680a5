//! An HTTP/1.1 server on raw TCP that says what it is told to say and remembers what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

/// What is said in return.
#[derive(Clone, Debug)]
pub enum Reply {
    Whole {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    /// Announces 1 GiB and sends it as long as the client listens.
    Gigabyte,
    /// Sends without announcing how much, as long as the client listens.
    Endless,
    /// Sends half of what it announces, then nothing.
    Stalled,
    /// Closes the connection without a word.
    HangUp,
    /// Says it when the gate has a permit.
    Gated(Arc<Semaphore>, Box<Reply>),
    /// Says it after a while.
    Late(Duration, Box<Reply>),
}

impl Reply {
    pub fn json(value: &serde_json::Value) -> Self {
        Self::status(200, value.to_string())
    }

    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Whole {
            status,
            headers: vec![("server", "IMDS/150.870.65.1854".into())],
            body: body.into(),
        }
    }

    pub fn with_header(mut self, name: &'static str, text: &str) -> Self {
        if let Self::Whole { headers, .. } = &mut self {
            headers.retain(|(known, _)| *known != name);
            headers.push((name, text.into()));
        }
        self
    }

    pub fn without_header(mut self, name: &str) -> Self {
        if let Self::Whole { headers, .. } = &mut self {
            headers.retain(|(known, _)| *known != name);
        }
        self
    }

    /// The same answer with one member of its JSON changed, or removed by null.
    pub fn with_member(mut self, name: &str, value: serde_json::Value) -> Self {
        if let Self::Whole { body, .. } = &mut self {
            let mut json: serde_json::Value = serde_json::from_slice(body).unwrap();
            let members = json.as_object_mut().unwrap();
            match value {
                serde_json::Value::Null => members.remove(name),
                value => members.insert(name.into(), value),
            };
            *body = json.to_string().into_bytes();
        }
        self
    }
}

impl Reply {
    /// The same answer with one text in its JSON changed.
    pub fn map_member(self, name: &str, change: impl FnOnce(&str) -> serde_json::Value) -> Self {
        let Self::Whole { body, .. } = &self else {
            return self;
        };
        let json: serde_json::Value = serde_json::from_slice(body).unwrap();
        let changed = change(json[name].as_str().unwrap());
        self.with_member(name, changed)
    }
}

pub type Handler = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub async fn start(listener: TcpListener, handler: Handler) -> Self {
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let kept = Arc::clone(&log);
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&kept));
                tokio::spawn(async move {
                    // A client that goes away ends the conversation.
                    let _ = converse(tcp, &handler, &log).await;
                });
            }
        });
        Self {
            address,
            log,
            accepting,
        }
    }

    pub fn log(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

async fn converse(
    mut tcp: TcpStream,
    handler: &Handler,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(asked) = read(&mut tcp, &mut buffer).await? else {
            return Ok(());
        };
        log.lock().unwrap().push(asked.clone());
        let mut reply = handler(&asked);
        loop {
            reply = match reply {
                Reply::Gated(gate, then) => {
                    gate.acquire().await.unwrap().forget();
                    *then
                }
                Reply::Late(wait, then) => {
                    tokio::time::sleep(wait).await;
                    *then
                }
                ready => {
                    reply = ready;
                    break;
                }
            };
        }
        match reply {
            Reply::HangUp | Reply::Gated(..) | Reply::Late(..) => return Ok(()),
            Reply::Whole {
                status,
                headers,
                body,
            } => {
                let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                head.push_str("\r\n");
                tcp.write_all(&[head.as_bytes(), &body].concat()).await?;
            }
            Reply::Stalled => {
                tcp.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 8\r\n\r\nhalf")
                    .await?;
                std::future::pending::<()>().await;
            }
            Reply::Gigabyte => {
                let head =
                    b"HTTP/1.1 200 X\r\nserver: IMDS/1\r\ncontent-length: 1073741824\r\n\r\n";
                tcp.write_all(head).await?;
                loop {
                    tcp.write_all(&[b' '; 65536]).await?;
                }
            }
            Reply::Endless => {
                let head =
                    b"HTTP/1.1 200 X\r\nserver: IMDS/1\r\ntransfer-encoding: chunked\r\n\r\n";
                tcp.write_all(head).await?;
                let chunk = [&b"10000\r\n"[..], &[b' '; 65536], b"\r\n"].concat();
                loop {
                    tcp.write_all(&chunk).await?;
                }
            }
        }
    }
}

async fn read(tcp: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if tcp.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap(), first.next().unwrap());
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, length)| length.parse().unwrap());
    while buffer.len() < end + 4 + length {
        if tcp.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let asked = Asked {
        method: method.into(),
        target: target.into(),
        headers,
        body: buffer[end + 4..end + 4 + length].to_vec(),
    };
    buffer.drain(..end + 4 + length);
    Ok(Some(asked))
}
