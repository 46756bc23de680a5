//! The legs of the way to a bound token, and what is told about each when it ends.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use keybond_tls::TlsInfo;
use tracing::{Instrument as _, field::Empty};

use crate::{error::Error, telemetry};

/// One leg of the way from nothing to a resource's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Leg {
    /// Finding out which metadata service is there.
    Probe,
    /// Platform metadata: who this machine is.
    Metadata,
    /// The held key.
    Key,
    /// The certificate request.
    Csr,
    /// The key's attestation.
    Attestation,
    /// The certificate.
    Issue,
    /// The token, over mTLS.
    Token,
    /// A token that is bound to nothing, where one was asked for knowingly.
    Bearer,
    /// The resource itself, over mTLS.
    Resource,
}

impl Leg {
    /// Every leg, in the order of the way.
    pub const ALL: [Self; 9] = [
        Self::Probe,
        Self::Metadata,
        Self::Key,
        Self::Csr,
        Self::Attestation,
        Self::Issue,
        Self::Token,
        Self::Bearer,
        Self::Resource,
    ];

    /// The leg's name in output, errors and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Metadata => "metadata",
            Self::Key => "key",
            Self::Csr => "csr",
            Self::Attestation => "attestation",
            Self::Issue => "issue",
            Self::Token => "token",
            Self::Bearer => "bearer",
            Self::Resource => "resource",
        }
    }

    /// The stage that published log triage calls by this name, where it has one.
    pub const fn stage(self) -> Option<&'static str> {
        match self {
            Self::Metadata => Some("MIv2.IMDS.GetPlatformMetadata"),
            Self::Issue => Some("MIv2.IMDS.IssueCredential"),
            Self::Token => Some("MIv2.STS.mTLS.Token"),
            _ => None,
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a leg ended. It holds no secrets and may be printed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LegReport {
    /// Which leg.
    pub leg: Leg,
    /// How long it took, retries included.
    pub elapsed: Duration,
    /// How it ended, in words.
    pub outcome: String,
    /// Whether it ended well.
    pub succeeded: bool,
    /// The code of the error it ended with.
    pub code: Option<&'static str>,
    /// The HTTP status of an answer that was an error.
    pub status: Option<u16>,
    /// The id of the whole way, which the services were told.
    pub correlation_id: Arc<str>,
    /// The id by which the service that refused finds the exchange in its logs.
    pub trace_id: Option<String>,
    /// Facts about the TLS connection, on legs that have one.
    pub tls: Option<TlsInfo>,
}

/// Who is told when a leg ends.
pub(crate) type OnLeg = Arc<dyn Fn(&LegReport) + Send + Sync>;

/// What a leg that ended well says about itself.
pub(crate) struct Done<T> {
    pub(crate) value: T,
    pub(crate) outcome: String,
    pub(crate) tls: Option<TlsInfo>,
}

impl<T> Done<T> {
    pub(crate) fn new(value: T, outcome: impl Into<String>) -> Self {
        Self {
            value,
            outcome: outcome.into(),
            tls: None,
        }
    }
}

/// Runs a leg in a span of its own, then tells the log, the metrics and the listener how it ended.
pub(crate) async fn run<T>(
    leg: Leg,
    correlation_id: &Arc<str>,
    listener: Option<&OnLeg>,
    work: impl Future<Output = Result<Done<T>, Error>>,
) -> Result<T, Error> {
    let span = tracing::info_span!(
        target: "keybond", "leg", %leg, stage = leg.stage(), %correlation_id,
        status = Empty, outcome = Empty, trace_id = Empty,
    );
    let started = Instant::now();
    let ended = work.instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let error = ended.as_ref().err();
    let code = error.map(Error::code);
    let status = error.and_then(Error::http_status);
    let trace_id = error.and_then(Error::trace_id).map(str::to_owned);
    span.record("outcome", code.unwrap_or("ok"));
    span.record("status", status);
    span.record("trace_id", trace_id.as_deref());
    telemetry::leg_ended(leg, elapsed, code);

    let (result, outcome, tls) = match ended {
        Ok(done) => (Ok(done.value), done.outcome, done.tls),
        Err(error) => {
            let outcome = error.to_string();
            (Err(error), outcome, None)
        }
    };
    span.in_scope(|| {
        tracing::debug!(target: "keybond", ?elapsed, %outcome, succeeded = code.is_none(), "leg ended");
    });
    if let Some(listener) = listener {
        listener(&LegReport {
            leg,
            elapsed,
            outcome,
            succeeded: code.is_none(),
            code,
            status,
            correlation_id: Arc::clone(correlation_id),
            trace_id,
            tls,
        });
    }
    result
}
