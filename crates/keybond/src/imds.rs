//! The metadata service, version 2: what is asked of it, and how its answers are checked.

pub(crate) mod issue;
pub(crate) mod metadata;
pub(crate) mod probe;
pub(crate) mod retry;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use bytes::Bytes;

use self::retry::Family;
use crate::{
    error::{At, Error, Malformation},
    hosts::ImdsEndpoint,
    http::{Answer, Ask, CONNECT_TIMEOUT, Deadline, Net, Via, header_value},
    identity::Identity,
};

/// The version of the protocol that issues credentials.
const V2: (&str, &str) = ("cred-api-version", "2.0");

const METADATA_PATH: &str = "/metadata/identity/getplatformmetadata";
const ISSUE_PATH: &str = "/metadata/identity/issuecredential";

/// The metadata service as one identity asks it.
#[derive(Clone)]
pub(crate) struct Imds {
    pub(crate) net: Net,
    pub(crate) endpoint: ImdsEndpoint,
    pub(crate) identity: Identity,
    /// How long the first connection may take: where no metadata service is, nobody should wait.
    pub(crate) first_contact: Duration,
    /// Whether anything at the address has answered yet.
    pub(crate) seen: Arc<AtomicBool>,
}

impl Imds {
    /// A request. Without `body` it is a GET, otherwise a POST of JSON; the probe alone goes without the
    /// `Metadata` header.
    fn ask(
        &self,
        path: &str,
        version: (&str, &str),
        correlation_id: &Arc<str>,
        metadata: bool,
        body: Option<Bytes>,
    ) -> Result<Ask, Error> {
        let mut headers = HeaderMap::new();
        if metadata {
            headers.insert(
                HeaderName::from_static("metadata"),
                HeaderValue::from_static("true"),
            );
        }
        headers.insert(
            HeaderName::from_static("x-ms-client-request-id"),
            header_value("x-ms-client-request-id", correlation_id)?,
        );
        let method = if body.is_some() {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json; charset=utf-8"),
            );
            Method::POST
        } else {
            Method::GET
        };
        Ok(Ask {
            method,
            url: self.endpoint.url(path, version, &self.identity),
            headers,
            body: body.unwrap_or_default(),
            via: self.via(),
        })
    }

    /// The way to the service. Until it was seen for the first time, silence is taken for its absence soon; a
    /// service that was there is given longer.
    pub(crate) fn via(&self) -> Via {
        let within = if self.seen.load(Ordering::Relaxed) {
            CONNECT_TIMEOUT
        } else {
            self.first_contact.min(CONNECT_TIMEOUT)
        };
        Via::LocalTcp { within }
    }

    /// [`Net::persist`], taking note of the first answer.
    pub(crate) async fn persist(
        &self,
        ask: &Ask,
        at: &At,
        deadline: Deadline,
        family: Family,
    ) -> Result<(Answer, u32), Error> {
        let family = match family {
            Family::Metadata if !self.seen.load(Ordering::Relaxed) => Family::FirstContact,
            family => family,
        };
        let answered = self.net.persist(ask, at, deadline, family).await;
        if answered.is_ok() {
            self.seen.store(true, Ordering::Relaxed);
        }
        answered
    }

    /// If the identity was named by its client id, the service must speak of the same one.
    fn check_asked_client(
        &self,
        at: &At,
        field: &'static str,
        answered: &str,
    ) -> Result<(), Error> {
        match &self.identity {
            Identity::ClientId(asked) if !asked.eq_ignore_ascii_case(answered) => {
                Err(at.mismatch(field, asked, answered))
            }
            _ => Ok(()),
        }
    }
}

/// The answer must come from the metadata service itself: something else on the way may answer, too.
fn check_server(headers: &HeaderMap, at: &At) -> Result<(), Error> {
    const FIELD: &str = "Server header";
    let server = headers
        .get(header::SERVER)
        .ok_or_else(|| at.malformed(FIELD, Malformation::Missing))?;
    let names_imds = server
        .to_str()
        .is_ok_and(|server| server.to_ascii_uppercase().contains("IMDS"));
    if names_imds {
        return Ok(());
    }
    Err(at.malformed(
        FIELD,
        Malformation::Unexpected {
            expected: "that of the metadata service (IMDS)",
        },
    ))
}

/// The service's refusal, with how long it asks to be left alone. That stands beyond this run only if the service
/// said so itself: a restart says nothing, and is over soon.
fn refusal(answer: &Answer, at: At, ask: &Ask) -> Error {
    let wait = match answer.status.as_u16() {
        429 | 500..=599 => retry::retry_after(&answer.headers).filter(|wait| !wait.is_zero()),
        _ => None,
    };
    answer.refusal(at, ask).after_waiting(wait)
}

/// Ids are compared without regard to case, which services do not agree on.
fn check_same(at: &At, field: &'static str, expected: &str, found: &str) -> Result<(), Error> {
    if expected.eq_ignore_ascii_case(found) {
        return Ok(());
    }
    Err(at.mismatch(field, expected, found))
}

/// How often was asked, if more than once.
fn attempts(attempts: u32) -> String {
    match attempts {
        1 => String::new(),
        more => format!(" (asked {more} times)"),
    }
}
