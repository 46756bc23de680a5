//! Which source the environment names, before any is asked. The first match wins, in the published order:
//!
//! | variables | source |
//! |---|---|
//! | `IDENTITY_ENDPOINT`, `IDENTITY_HEADER`, `IDENTITY_SERVER_THUMBPRINT` | Service Fabric |
//! | `IDENTITY_ENDPOINT`, `IDENTITY_HEADER` | App Service |
//! | `MSI_ENDPOINT`, `MSI_SECRET` | Machine Learning |
//! | `MSI_ENDPOINT` | Cloud Shell |
//! | `IDENTITY_ENDPOINT`, `IMDS_ENDPOINT` | Azure Arc |
//! | none, but the Arc agent is installed | Azure Arc |
//! | none | the metadata service |

use std::{fmt, path::Path};

use url::{Host, Url};

use super::{Source, SourceProblem};
use crate::{
    environment::{Environment, non_empty},
    error::Error,
    hosts::is_local,
    leg::Leg,
};

const IDENTITY_ENDPOINT: &str = "IDENTITY_ENDPOINT";
const IDENTITY_HEADER: &str = "IDENTITY_HEADER";
const THUMBPRINT: &str = "IDENTITY_SERVER_THUMBPRINT";
const MSI_ENDPOINT: &str = "MSI_ENDPOINT";
const MSI_SECRET: &str = "MSI_SECRET";
const IMDS_ENDPOINT: &str = "IMDS_ENDPOINT";
/// Machine Learning names the client id of its default identity here.
const DEFAULT_CLIENT_ID: &str = "DEFAULT_IDENTITY_CLIENT_ID";

/// Where the agent of Azure Arc listens if no variable says so.
const ARC_ENDPOINT: &str = "http://127.0.0.1:40342/metadata/identity/oauth2/token";

/// A secret from the environment. It goes into one header and nowhere else.
pub(crate) struct EnvironmentSecret(String);

impl EnvironmentSecret {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EnvironmentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A source with what is needed to ask it.
#[derive(Debug)]
pub(crate) enum Place {
    ServiceFabric {
        endpoint: Url,
        secret: EnvironmentSecret,
        /// SHA-1 of the server's certificate, in capital hexadecimal digits.
        thumbprint: String,
    },
    AppService {
        endpoint: Url,
        secret: EnvironmentSecret,
    },
    MachineLearning {
        endpoint: Url,
        secret: EnvironmentSecret,
        default_client: Option<String>,
    },
    CloudShell {
        endpoint: Url,
    },
    AzureArc {
        endpoint: Url,
    },
}

impl Place {
    pub(crate) fn source(&self) -> Source {
        match self {
            Self::ServiceFabric { .. } => Source::ServiceFabric,
            Self::AppService { .. } => Source::AppService,
            Self::MachineLearning { .. } => Source::MachineLearning,
            Self::CloudShell { .. } => Source::CloudShell,
            Self::AzureArc { .. } => Source::AzureArc,
        }
    }

    /// The address that is asked, without its query: some platforms put secrets there.
    pub(crate) fn endpoint(&self) -> String {
        let (Self::ServiceFabric { endpoint, .. }
        | Self::AppService { endpoint, .. }
        | Self::MachineLearning { endpoint, .. }
        | Self::CloudShell { endpoint }
        | Self::AzureArc { endpoint }) = self;
        let mut shown = endpoint.clone();
        shown.set_query(None);
        shown.into()
    }
}

/// The source that the environment names, and by which sign; `None` leaves the metadata service. `root` is
/// where the file system begins.
pub(crate) fn detect(env: &dyn Environment, root: &Path) -> Option<(Source, &'static str)> {
    let has = |name| non_empty(env, name).is_some();
    if has(IDENTITY_ENDPOINT) && has(IDENTITY_HEADER) {
        return Some(if has(THUMBPRINT) {
            (
                Source::ServiceFabric,
                "IDENTITY_ENDPOINT, IDENTITY_HEADER and IDENTITY_SERVER_THUMBPRINT are set",
            )
        } else {
            (
                Source::AppService,
                "IDENTITY_ENDPOINT and IDENTITY_HEADER are set",
            )
        });
    }
    if has(MSI_ENDPOINT) {
        return Some(if has(MSI_SECRET) {
            (
                Source::MachineLearning,
                "MSI_ENDPOINT and MSI_SECRET are set",
            )
        } else {
            (Source::CloudShell, "MSI_ENDPOINT is set")
        });
    }
    if has(IDENTITY_ENDPOINT) && has(IMDS_ENDPOINT) {
        return Some((
            Source::AzureArc,
            "IDENTITY_ENDPOINT and IMDS_ENDPOINT are set",
        ));
    }
    arc_agent(env, root).then_some((Source::AzureArc, "the Azure Arc agent is installed"))
}

/// The source with everything that is needed to ask it.
///
/// # Errors
/// [`SourceProblem::Endpoint`] if a variable names no address that credentials may go to.
pub(crate) fn place(env: &dyn Environment, root: &Path) -> Result<Option<Place>, Error> {
    let Some((source, _)) = detect(env, root) else {
        return Ok(None);
    };
    let secret = |name| EnvironmentSecret(non_empty(env, name).unwrap_or_default());
    let at = |name| endpoint(source, name, env);
    Ok(Some(match source {
        Source::ServiceFabric => Place::ServiceFabric {
            endpoint: at(IDENTITY_ENDPOINT)?,
            secret: secret(IDENTITY_HEADER),
            thumbprint: non_empty(env, THUMBPRINT)
                .unwrap_or_default()
                .to_ascii_uppercase(),
        },
        Source::AppService => Place::AppService {
            endpoint: at(IDENTITY_ENDPOINT)?,
            secret: secret(IDENTITY_HEADER),
        },
        Source::MachineLearning => Place::MachineLearning {
            endpoint: at(MSI_ENDPOINT)?,
            secret: secret(MSI_SECRET),
            default_client: non_empty(env, DEFAULT_CLIENT_ID),
        },
        Source::CloudShell => Place::CloudShell {
            endpoint: at(MSI_ENDPOINT)?,
        },
        _ => Place::AzureArc {
            endpoint: at(IDENTITY_ENDPOINT)?,
        },
    }))
}

/// The address in a variable. In clear, secrets go to this machine, its link and private networks only.
fn endpoint(source: Source, name: &'static str, env: &dyn Environment) -> Result<Url, Error> {
    let refuse = |problem: &str| Error::Source {
        leg: Leg::Bearer,
        place: source,
        problem: SourceProblem::Endpoint {
            variable: name,
            problem: problem.into(),
        },
    };
    let text = non_empty(env, name).unwrap_or_else(|| ARC_ENDPOINT.into());
    // The value is not repeated: it may hold a secret.
    let url = Url::parse(&text).map_err(|error| refuse(&format!("is no URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("contains a user name or password"));
    }
    let near = match url.host() {
        Some(Host::Ipv4(ip)) => is_local(ip.into()) || ip.is_private(),
        Some(Host::Ipv6(ip)) => is_local(ip.into()),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match (source, url.scheme()) {
        (Source::ServiceFabric, "https") => Ok(url),
        (Source::ServiceFabric, _) => Err(refuse("is not https, which Service Fabric speaks")),
        (_, "https") => Ok(url),
        (_, "http") if near => Ok(url),
        (_, "http") => Err(refuse(
            "is http to another machine, and secrets go nowhere else in clear",
        )),
        _ => Err(refuse("is neither http nor https")),
    }
}

/// Whether the agent of Azure Arc is installed.
fn arc_agent(env: &dyn Environment, root: &Path) -> bool {
    let linux = root.join("opt/azcmagent/bin/himds");
    let windows = cfg!(windows)
        .then(|| non_empty(env, "ProgramFiles"))
        .flatten();
    linux.is_file()
        || windows.is_some_and(|programs| {
            Path::new(&programs)
                .join("AzureConnectedMachineAgent")
                .join("himds.exe")
                .is_file()
        })
}
