//! One request, one answer, over a connection of its own. No redirect is followed, no proxy is asked, every
//! wait is bounded and so is every body.

pub(crate) mod body;
pub(crate) mod connection;
mod persist;
mod secured;
pub(crate) mod shared;

use std::{sync::Arc, time::Duration};

use ::http::{HeaderMap, Method, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use keybond_tls::{ClientIdentity, Leg as TlsLeg, TlsConnector, TlsInfo, TlsVersion};
use tokio::time::Instant;
use url::Url;

use self::connection::Connection;
pub(crate) use self::secured::OlderOnly;
use crate::{
    error::{At, Error, ServiceIds},
    json::Stated,
    leg::Leg,
    lifecycle::pace::Turnstile,
    printable::secrets_in,
    time,
};

/// Bytes of an answer that a protocol leg reads at most.
const PROTOCOL_BODY_LIMIT: usize = 1 << 20;

/// How long a connection may take to be made.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one attempt at an exchange may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes connections.
#[derive(Clone)]
pub(crate) struct Net {
    pub(crate) tls: Arc<dyn TlsConnector>,
    /// What was learnt of TLS servers.
    pub(crate) older_only: Arc<OlderOnly>,
    /// Before every request to the metadata service, retries included.
    pub(crate) imds_pace: Arc<Turnstile>,
}

/// A request.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) via: Via,
}

/// How the server is reached.
#[derive(Clone)]
pub(crate) enum Via {
    /// In clear, to addresses of this machine and its link only.
    LocalTcp {
        /// How long the connection may take to be made.
        within: Duration,
    },
    /// In clear, to addresses of this machine, its link and private networks only.
    PrivateTcp,
    /// Over TLS without a client certificate.
    ServerTls {
        /// SHA-1 of the server's certificate in capital hexadecimal digits, if it was named beforehand. It is
        /// held against the certificate beside all other checks, before anything is sent.
        thumbprint: Option<String>,
    },
    /// Over TLS with a client certificate. One that belongs into the first handshake was asked for there.
    Tls(TlsLeg, Arc<ClientIdentity>),
    /// To a resource, as it wants to be called; otherwise as with [`Via::Tls`].
    Resource {
        leg: TlsLeg,
        /// The newest version that is offered.
        newest: TlsVersion,
        identity: Arc<ClientIdentity>,
    },
}

/// The time by which everything must be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    total: Duration,
}

impl Deadline {
    pub(crate) fn after(total: Duration) -> Self {
        Self {
            at: time::after(Instant::now(), total),
            total,
        }
    }

    pub(crate) fn exceeded(&self, leg: Leg, correlation_id: &Arc<str>) -> Error {
        Error::DeadlineExceeded {
            leg,
            after: self.total,
            correlation_id: Arc::clone(correlation_id),
        }
    }

    /// Waits for `work`, but no longer than the deadline.
    pub(crate) async fn bound<T>(
        &self,
        leg: Leg,
        correlation_id: &Arc<str>,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        tokio::time::timeout_at(self.at, work)
            .await
            .map_err(|_| self.exceeded(leg, correlation_id))
    }
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) tls: Option<TlsInfo>,
}

impl Answer {
    /// Where this answer came from: its status, and what the service calls the exchange.
    pub(crate) fn place(&self, at: At, ask: &Ask) -> At {
        let mut at = at.with_status(self.status.as_u16());
        at.service = ServiceIds::of(
            &self.headers,
            &self.body,
            &secrets_in(&ask.headers, &ask.url),
        );
        at
    }

    /// The service's refusal of what was asked, from a status that is not the expected one.
    pub(crate) fn refusal(&self, at: At, ask: &Ask) -> Error {
        let stated = Stated::parse(&self.body, &secrets_in(&ask.headers, &ask.url));
        Error::Refused {
            at,
            error: stated.error,
            description: stated.description,
            error_codes: stated.codes,
            new_certificates: 0,
            retry_after: None,
        }
    }
}

/// An answer whose body is still to come.
pub(crate) struct Opened {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    connection: Connection,
}

impl Opened {
    /// Facts about the TLS connection as of now.
    pub(crate) fn tls(&self) -> Option<TlsInfo> {
        self.connection.tls()
    }

    /// Reads the body, at most `limit` bytes; `idle` bounds the wait for each part.
    pub(crate) async fn read(
        &mut self,
        limit: usize,
        idle: Duration,
        at: &At,
    ) -> Result<Bytes, Error> {
        let too_large = || Error::TooLarge {
            at: at.clone(),
            limit,
        };
        // An announced length is believed only to refuse.
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(idle, self.body.frame())
                .await
                .map_err(|_| self.connection.silent(at, idle))?;
            let Some(frame) = frame else {
                return Ok(body.freeze());
            };
            let frame = frame.map_err(|error| self.connection.broken(at, &error))?;
            if let Some(data) = frame.data_ref() {
                if data.len() > limit - body.len() {
                    return Err(too_large());
                }
                body.extend_from_slice(data);
            }
        }
    }
}

impl Net {
    /// Sends a request and reads the answer's head. Redirects are errors.
    pub(crate) async fn open(&self, ask: &Ask, at: &At) -> Result<Opened, Error> {
        let mut connection = Connection::open(self, &ask.url, &ask.via, at).await?;
        let (head, body) = connection.send(ask, at).await?.into_parts();
        if is_redirect(head.status) {
            return Err(Error::Redirected {
                at: at.clone().with_status(head.status.as_u16()),
            });
        }
        Ok(Opened {
            status: head.status,
            headers: head.headers,
            body,
            connection,
        })
    }

    /// One attempt at a protocol exchange, bounded in time and size.
    async fn exchange(&self, ask: &Ask, at: &At, deadline: Deadline) -> Result<Answer, Error> {
        if matches!(ask.via, Via::LocalTcp { .. }) {
            let turn = self.imds_pace.turn(deadline.at);
            let turn = turn.ok_or_else(|| deadline.exceeded(at.leg, &at.correlation_id))?;
            if turn > Instant::now() {
                let wait = tokio::time::sleep_until(turn);
                deadline.bound(at.leg, &at.correlation_id, wait).await?;
            }
        }
        let attempt = async {
            let mut opened = self.open(ask, at).await?;
            let at = at.clone().with_status(opened.status.as_u16());
            let body = opened
                .read(PROTOCOL_BODY_LIMIT, ATTEMPT_TIMEOUT, &at)
                .await?;
            Ok(Answer {
                status: opened.status,
                tls: opened.tls(),
                headers: opened.headers,
                body,
            })
        };
        let until = deadline.at.min(Instant::now() + ATTEMPT_TIMEOUT);
        match tokio::time::timeout_at(until, attempt).await {
            Ok(result) => result,
            Err(_) if Instant::now() >= deadline.at => {
                Err(deadline.exceeded(at.leg, &at.correlation_id))
            }
            Err(_) => Err(connection::silent(at, &ask.url, ATTEMPT_TIMEOUT)),
        }
    }
}

/// Statuses that send the client elsewhere with its request (RFC 9110 §15.4).
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A header value that is known to be valid, or an error that names the header.
pub(crate) fn header_value(name: &'static str, value: &str) -> Result<header::HeaderValue, Error> {
    header::HeaderValue::from_str(value)
        .map_err(|_| Error::configuration(name, "contains characters that no header may have"))
}
