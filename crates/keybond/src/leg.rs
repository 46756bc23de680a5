//! The legs of the way to a bound token, and what is told about each when it ends.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use keybond_tls::TlsInfo;

use crate::error::Error;

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

/// Runs a leg, then tells the log and the listener how it ended.
pub(crate) async fn run<T>(
    leg: Leg,
    correlation_id: &str,
    listener: Option<&OnLeg>,
    work: impl Future<Output = Result<Done<T>, Error>>,
) -> Result<T, Error> {
    let started = Instant::now();
    let ended = work.await;
    let elapsed = started.elapsed();
    let (result, outcome, tls) = match ended {
        Ok(done) => (Ok(done.value), done.outcome, done.tls),
        Err(error) => {
            let outcome = error.to_string();
            (Err(error), outcome, None)
        }
    };
    tracing::debug!(
        target: "keybond", %leg, correlation_id, ?elapsed, %outcome, succeeded = result.is_ok(),
        "leg ended"
    );
    if let Some(listener) = listener {
        listener(&LegReport {
            leg,
            elapsed,
            outcome,
            succeeded: result.is_ok(),
            tls,
        });
    }
    result
}
