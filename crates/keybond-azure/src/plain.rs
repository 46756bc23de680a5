//! A transport for the SDK over keybond's own TLS: no second TLS stack, no redirects, no proxies.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use azure_core::{
    error::{Error, ErrorKind, ResultExt as _},
    http::{AsyncRawResponse, HttpClient, Request, Transport},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use keybond::tls::{Leg, TlsConnector};
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};

use crate::convert::{self, BODY_LIMIT, too_large};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// An HTTP client of the Azure SDK for requests over TLS without a client certificate: for
/// [`BearerCredential`](crate::BearerCredential), and wherever a client sends no credentials. One connection per
/// request; redirects are answers, not followed.
#[derive(Clone)]
pub struct PlainTransport(Arc<dyn TlsConnector>);

impl PlainTransport {
    /// A transport over these connections.
    pub fn new(tls: Arc<dyn TlsConnector>) -> Self {
        Self(tls)
    }

    /// What a client takes as `ClientOptions::transport`.
    pub fn transport(&self) -> Transport {
        Transport::new(Arc::new(self.clone()))
    }
}

impl fmt::Debug for PlainTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainTransport")
    }
}

#[async_trait]
impl HttpClient for PlainTransport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let url = request.url();
        let host = match (url.scheme(), url.host_str()) {
            ("https", Some(host)) => host.trim_matches(['[', ']']),
            _ => {
                return Err(Error::with_message(
                    ErrorKind::Other,
                    "only https URLs are requested",
                ));
            }
        };
        let port = url.port_or_known_default().unwrap_or(443);
        let connecting = async {
            let tcp = TcpStream::connect((host, port))
                .await
                .with_context(ErrorKind::Connection, "no connection")?;
            self.0
                .connect(tcp, host, Leg::Plain, None)
                .await
                .map_err(|error| {
                    let kind = if error.retryable() {
                        ErrorKind::Connection
                    } else {
                        ErrorKind::Other
                    };
                    let text = format!("{}: {error}. {}", error.code(), error.remedy());
                    Error::with_error(kind, error, text)
                })
        };
        let tls = timeout(CONNECT, connecting)
            .await
            .with_context(ErrorKind::Connection, "no connection in time")??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls))
            .await
            .with_context(ErrorKind::Connection, "no HTTP connection")?;
        // Its error reaches the sender or the body, too; dropping this future closes the connection.
        let _driver = Driver(tokio::spawn(async { drop(connection.await) }).abort_handle());
        let asked = outgoing(request).await?;
        let exchange = async {
            let answer = sender
                .send_request(asked)
                .await
                .with_context(ErrorKind::Io, "no answer")?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| {
                    if error.is::<LengthLimitError>() {
                        too_large("answer")
                    } else {
                        Error::with_error(ErrorKind::Io, error, "the answer broke off")
                    }
                })?;
            Ok(convert::answer(head.status, &head.headers, body.to_bytes()))
        };
        timeout(ANSWER, exchange)
            .await
            .with_context(ErrorKind::Io, "no answer in time")?
    }
}

/// Ends the connection's task.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn outgoing(request: &Request) -> azure_core::Result<hyper::Request<Full<bytes::Bytes>>> {
    const UNFIT: &str = "a header cannot be sent";
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers().iter() {
        let name = HeaderName::from_bytes(name.as_str().as_bytes())
            .with_context(ErrorKind::DataConversion, UNFIT)?;
        let mut sent =
            HeaderValue::from_str(value.as_str()).with_context(ErrorKind::DataConversion, UNFIT)?;
        sent.set_sensitive(name == header::AUTHORIZATION);
        // The connection's own headers follow from the body.
        if ![
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
        ]
        .contains(&name)
        {
            headers.insert(name, sent);
        }
    }
    let url = request.url();
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let host = HeaderValue::from_str(&authority).with_context(ErrorKind::DataConversion, UNFIT)?;
    headers.insert(header::HOST, host);
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut asked = hyper::Request::builder()
        .method(convert::method(request)?)
        .uri(target)
        .body(Full::new(convert::body(request).await?))
        .with_context(ErrorKind::DataConversion, "the request cannot be sent")?;
    *asked.headers_mut() = headers;
    Ok(asked)
}
