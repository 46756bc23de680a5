//! Where am I: which metadata service answers here, and how that is known.

pub(crate) mod cache;
pub(crate) mod options;
pub(crate) mod places;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

use crate::{
    acquisition::Acquisition,
    client::Shared,
    error::{Error, SourceProblem},
    imds::probe::{Presence, ProbedVersion},
    leg::{Done, Leg},
};

/// A source of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The metadata service, version 2: it issues credentials, so tokens can be bound.
    ImdsV2,
    /// The metadata service, version 1: tokens that are bound to nothing.
    ImdsV1,
    /// The agent of an Azure Arc machine: bearer tokens.
    AzureArc,
    /// Azure App Service, Functions and Container Apps: bearer tokens.
    AppService,
    /// Service Fabric: bearer tokens.
    ServiceFabric,
    /// Azure Machine Learning: bearer tokens.
    MachineLearning,
    /// Azure Cloud Shell: bearer tokens.
    CloudShell,
    /// None was found.
    None,
}

impl Source {
    /// The name in output and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ImdsV2 => "imds_v2",
            Self::ImdsV1 => "imds_v1",
            Self::AzureArc => "azure_arc",
            Self::AppService => "app_service",
            Self::ServiceFabric => "service_fabric",
            Self::MachineLearning => "machine_learning",
            Self::CloudShell => "cloud_shell",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Which source was found, and why it is that one.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SourceReport {
    /// The source.
    pub source: Source,
    /// Whether every answer was definite; if not, another source may answer a little later.
    pub certain: bool,
    /// The address that was asked.
    pub endpoint: String,
    /// What was looked for, in order.
    pub findings: Vec<Finding>,
}

/// What one probe showed.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked for: `IMDS v2`, `IMDS v1`.
    pub sought: String,
    /// Whether it is there; `None` if that is not certain.
    pub present: Option<bool>,
    /// Why.
    pub reason: String,
    /// How long it took (milliseconds in JSON).
    #[serde(rename = "elapsed_ms", serialize_with = "milliseconds")]
    pub elapsed: Duration,
}

impl fmt::Display for SourceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.source, self.endpoint)?;
        for finding in &self.findings {
            let verdict = match finding.present {
                Some(true) => "present",
                Some(false) => "absent",
                None => "uncertain",
            };
            write!(
                f,
                "\n  {}: {verdict} ({}; {} ms)",
                finding.sought,
                finding.reason,
                finding.elapsed.as_millis()
            )?;
        }
        Ok(())
    }
}

impl SourceReport {
    /// The findings without line ends, for an error.
    pub(crate) fn in_one_line(&self) -> String {
        let findings = self.findings.iter();
        findings
            .map(|finding| format!("{}: {}", finding.sought, finding.reason))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// Looks for version 2, then for version 1: the latter answers its probe on hosts of the former, too.
pub(crate) async fn find(shared: &Arc<Shared>, way: &Acquisition) -> Result<SourceReport, Error> {
    let probing = async {
        let started = Instant::now();
        if let Some((source, sign)) = shared.detected() {
            return Ok(named(source, sign, started.elapsed(), shared));
        }
        let mut findings = Vec::new();
        let mut source = Source::None;
        let mut certain = true;
        for (version, means) in [
            (ProbedVersion::V2, Source::ImdsV2),
            (ProbedVersion::V1, Source::ImdsV1),
        ] {
            let started = Instant::now();
            let thrown = match version {
                ProbedVersion::V2 => shared.surroundings.switch.thrown(&*shared.environment),
                ProbedVersion::V1 => None,
            };
            let (presence, reason) = match thrown {
                Some(switch) => {
                    let reason = format!("administratively disabled: {switch} is set");
                    (Presence::NotAsked, reason)
                }
                None => shared.imds.probe(version, &way.id, way.deadline).await,
            };
            findings.push(Finding {
                sought: version.to_string(),
                present: match presence {
                    Presence::Present => Some(true),
                    Presence::Absent | Presence::NotAsked => Some(false),
                    Presence::Uncertain => None,
                },
                reason,
                elapsed: started.elapsed(),
            });
            certain &= presence != Presence::Uncertain;
            if presence == Presence::Present {
                source = means;
                break;
            }
        }
        let report = SourceReport {
            source,
            certain,
            endpoint: shared.imds.endpoint.as_str().to_owned(),
            findings,
        };
        let outcome = format!("source {source}");
        Ok(Done::new(report, outcome))
    };
    way.leg(Leg::Probe, probing).await
}

/// The report on a source that the environment names. It is not probed: asking is what tokens are for.
fn named(
    source: Source,
    sign: &'static str,
    elapsed: Duration,
    shared: &Shared,
) -> Done<SourceReport> {
    // An address that cannot be used is told by whoever asks for a token.
    let endpoint = match shared.place() {
        Ok(Some(place)) => place.endpoint(),
        Ok(None) => String::new(),
        Err(error) => error.to_string(),
    };
    let report = SourceReport {
        source,
        certain: true,
        endpoint,
        findings: vec![Finding {
            sought: source.name().to_owned(),
            present: Some(true),
            reason: sign.to_owned(),
            elapsed,
        }],
    };
    Done::new(report, format!("source {source}"))
}

fn milliseconds<S: Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(elapsed.as_secs_f64() * 1000.0)
}
