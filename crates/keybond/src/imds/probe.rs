//! The probe: the same requests without the `Metadata` header, which the service refuses with 400 if it has
//! the operation at all.

use std::{fmt, sync::Arc};

use ::http::header;

use super::{Imds, METADATA_PATH, V2, retry::Family};
use crate::{
    error::At,
    http::{Answer, Deadline},
    leg::Leg,
};

/// The version of the protocol that hands out tokens of its own.
const V1: (&str, &str) = ("api-version", "2018-02-01");
const V1_PATH: &str = "/metadata/identity/oauth2/token";

/// Which version of the metadata service is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbedVersion {
    /// Version 1: tokens that are bound to nothing.
    V1,
    /// Version 2: credentials.
    V2,
}

impl fmt::Display for ProbedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V1 => "IMDS v1",
            Self::V2 => "IMDS v2",
        })
    }
}

/// What a probe showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is there.
    Present,
    /// It is definitely not there.
    Absent,
    /// No definite answer: it may be there a little later.
    Uncertain,
    /// It was not looked for.
    NotAsked,
}

impl Imds {
    /// Looks for one version. Every answer is a finding, none an error.
    pub(crate) async fn probe(
        &self,
        version: ProbedVersion,
        correlation_id: &Arc<str>,
        deadline: Deadline,
    ) -> (Presence, String) {
        let at = At::new(Leg::Probe, correlation_id);
        let (path, parameter) = match version {
            ProbedVersion::V2 => (METADATA_PATH, V2),
            ProbedVersion::V1 => (V1_PATH, V1),
        };
        let answered = async {
            let ask = self.ask(path, parameter, correlation_id, false, None)?;
            self.persist(&ask, &at, deadline, Family::Probe).await
        };
        match answered.await {
            Ok((answer, _)) => match answer.status.as_u16() {
                // Whoever says it with a web page is a proxy or a portal.
                400 if is_html(&answer) => (Presence::Absent, "HTTP 400 with a web page".into()),
                400 => (Presence::Present, "HTTP 400, as it should".into()),
                status @ (408 | 410 | 429 | 500..=599) => (
                    Presence::Uncertain,
                    format!("HTTP {status}: busy or restarting"),
                ),
                status => (Presence::Absent, format!("HTTP {status}")),
            },
            Err(error) if error.retryable() => (Presence::Uncertain, error.to_string()),
            Err(error) => (Presence::Absent, error.to_string()),
        }
    }
}

fn is_html(answer: &Answer) -> bool {
    answer
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| {
            kind.as_bytes()
                .to_ascii_lowercase()
                .starts_with(b"text/html")
        })
}
