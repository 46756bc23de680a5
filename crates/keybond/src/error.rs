//! What can go wrong, leg by leg.

mod ids;
mod problem;

use std::{borrow::Cow, sync::Arc, time::Duration};

use keybond_keys::KeyError;
use keybond_tls::TlsError;

pub use self::{
    ids::ServiceIds,
    problem::{CertificateProblem, Malformation, NoAnswer, SourceProblem},
};
use crate::{csr::CsrError, leg::Leg, printable::printable, source::Source};

/// The part that a server's certificate is held against when it was named beforehand.
pub(crate) const THUMBPRINT: &str = "server certificate thumbprint";

/// Where an error happened, for support and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct At {
    /// The leg.
    pub leg: Leg,
    /// The HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// The id under which the services logged the request.
    pub correlation_id: Arc<str>,
    /// What the service itself calls the exchange, if it said so.
    pub service: Option<Arc<ServiceIds>>,
}

impl At {
    pub(crate) fn new(leg: Leg, correlation_id: &Arc<str>) -> Self {
        Self {
            leg,
            status: None,
            correlation_id: Arc::clone(correlation_id),
            service: None,
        }
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn malformed(
        &self,
        field: impl Into<Cow<'static, str>>,
        problem: Malformation,
    ) -> Error {
        Error::Malformed {
            at: self.clone(),
            field: field.into(),
            problem,
        }
    }

    pub(crate) fn mismatch(
        &self,
        field: impl Into<Cow<'static, str>>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Mismatch {
            at: self.clone(),
            field: field.into(),
            expected: expected.into(),
            found: printable(&found.into(), &[]),
        }
    }
}

/// An error on the way to a bound token or with it. Cheap to clone; never contains a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting or an argument cannot be used. Nothing was sent.
    #[error("configuration: {field}: {problem}")]
    Configuration {
        /// The setting, argument or variable.
        field: Cow<'static, str>,
        /// What is wrong with it.
        problem: String,
    },
    /// An administrator switched bound tokens off.
    #[error("{leg} leg: mtls_pop is administratively disabled ({switch} is set)")]
    Disabled {
        /// The leg that was not begun.
        leg: Leg,
        /// The switch that says so.
        switch: &'static str,
    },
    /// The source of tokens here cannot give what was asked for.
    #[error("{leg} leg: {place}: {problem}")]
    Source {
        /// The leg that was not begun.
        leg: Leg,
        /// The source.
        place: Source,
        /// Why not.
        problem: SourceProblem,
    },
    /// No key, or none strong enough.
    #[error("key leg: {}", first_line(cause))]
    Key {
        /// What the key layer said.
        #[source]
        cause: KeyError,
        /// The acquisition's correlation id.
        correlation_id: Arc<str>,
    },
    /// The certificate request could not be made.
    #[error("csr leg: {}", first_line(cause))]
    Csr {
        /// Why not.
        #[source]
        cause: CsrError,
        /// The acquisition's correlation id.
        correlation_id: Arc<str>,
    },
    /// The key could not be attested.
    #[error("attestation leg: {detail}")]
    Attestation {
        /// What the attestation provider said.
        detail: String,
        /// Whether the same request may succeed a little later.
        retryable: bool,
        /// The acquisition's correlation id.
        correlation_id: Arc<str>,
    },
    /// No connection, or it broke.
    #[error("{} leg: {address} cannot be reached: {cause}", at.leg)]
    Unreachable {
        /// Where.
        at: At,
        /// Host and port.
        address: String,
        /// Why.
        cause: String,
        /// How far it got.
        how: NoAnswer,
    },
    /// The request's body failed, or would have to be sent again and cannot be.
    #[error("{} leg: the request's body: {cause}", at.leg)]
    RequestBody {
        /// Where.
        at: At,
        /// Why.
        cause: String,
    },
    /// The TLS layer refused.
    #[error("{} leg: TLS with {host}: {cause}", at.leg)]
    Tls {
        /// Where.
        at: At,
        /// The server.
        host: String,
        /// Why.
        #[source]
        cause: Arc<TlsError>,
    },
    /// The time given for the whole way was over.
    #[error("{leg} leg: not finished within {after:?}")]
    DeadlineExceeded {
        /// The leg that was under way.
        leg: Leg,
        /// The time that was given.
        after: Duration,
        /// The acquisition's correlation id.
        correlation_id: Arc<str>,
    },
    /// The service answered with an error of its own.
    #[error("{} leg: HTTP {}: {error}{}{description}{}", at.leg, at.status.unwrap_or(0), if description.is_empty() { "" } else { ": " }, in_spite_of(*new_certificates))]
    Refused {
        /// Where.
        at: At,
        /// The service's error code (`invalid_client`, …), or `no error code`.
        error: String,
        /// The service's words.
        description: String,
        /// The token service's numeric codes (the digits of `AADSTS…`).
        error_codes: Vec<u64>,
        /// How many new certificates were tried for this request, and refused like the first.
        new_certificates: u32,
        /// How long the service asks not to be asked the same again.
        retry_after: Option<Duration>,
    },
    /// This machine has the first metadata service only, which issues no certificates.
    #[error("{} leg: the metadata service here has no platform metadata (HTTP 404): it is IMDS v1 or none", at.leg)]
    V1Only {
        /// Where.
        at: At,
    },
    /// The service tried to send the request elsewhere. It was not followed.
    #[error("{} leg: HTTP {} redirects to another address, which is never followed", at.leg, at.status.unwrap_or(0))]
    Redirected {
        /// Where.
        at: At,
    },
    /// The answer is longer than an honest one can be.
    #[error("{} leg: the body of the answer is longer than {limit} bytes", at.leg)]
    TooLarge {
        /// Where.
        at: At,
        /// Bytes that are read at most.
        limit: usize,
    },
    /// A part of the answer is not as agreed.
    #[error("{} leg: {field} {problem}", at.leg)]
    Malformed {
        /// Where.
        at: At,
        /// The part.
        field: Cow<'static, str>,
        /// What is wrong with it.
        problem: Malformation,
    },
    /// A part of the answer contradicts what is known.
    #[error("{} leg: {field} is `{found}`, expected `{expected}`", at.leg)]
    Mismatch {
        /// Where.
        at: At,
        /// The part.
        field: Cow<'static, str>,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The answer names a host that must not get credentials. Nothing was sent there.
    #[error("{} leg: {field} names `{address}`: {problem}", at.leg)]
    Host {
        /// Where.
        at: At,
        /// The part.
        field: Cow<'static, str>,
        /// The address.
        address: String,
        /// Why not.
        problem: &'static str,
    },
    /// The certificate that was issued cannot be used.
    #[error("{} leg: certificate {problem}", at.leg)]
    Certificate {
        /// Where.
        at: At,
        /// What is wrong with it.
        problem: CertificateProblem,
    },
    /// The work panicked, and panicked again when it was tried once more: a fault of this library, or of a part that
    /// the program gave it (an attestation provider, a key store, a clock).
    #[error("the work panicked twice and was given up")]
    Died,
}

impl Error {
    /// The leg on which it happened; `None` for a configuration that never got that far.
    pub fn leg(&self) -> Option<Leg> {
        match self {
            Self::Configuration { .. } => None,
            Self::Key { .. } => Some(Leg::Key),
            Self::Csr { .. } => Some(Leg::Csr),
            Self::Attestation { .. } => Some(Leg::Attestation),
            Self::Disabled { leg, .. }
            | Self::Source { leg, .. }
            | Self::DeadlineExceeded { leg, .. } => Some(*leg),
            _ => self.at().map(|at| at.leg),
        }
    }

    /// The part of the answer, or the setting, that is to blame.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Configuration { field, .. }
            | Self::Malformed { field, .. }
            | Self::Mismatch { field, .. }
            | Self::Host { field, .. } => Some(field),
            Self::Certificate { problem, .. } => Some(problem.field()),
            Self::Csr { cause, .. } => cause.field(),
            Self::Disabled { switch, .. } => Some(switch),
            Self::Source { problem, .. } => problem.field(),
            Self::Redirected { .. } | Self::V1Only { .. } => Some("status"),
            Self::Refused { .. } => Some("error"),
            Self::TooLarge { .. } | Self::RequestBody { .. } => Some("body"),
            _ => None,
        }
    }

    /// A stable name for programs and runbooks; MSAL's published code where one exists.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "invalid_configuration",
            Self::Disabled { .. } => "mtls_pop_administratively_disabled",
            Self::Source { problem, .. } => problem.code(),
            Self::Key { cause, .. } => cause.code(),
            Self::Csr { cause, .. } => cause.code(),
            Self::Attestation { .. } => "attestation_failed",
            Self::Unreachable { at, how, .. } => match (at.leg, how) {
                (Leg::Probe | Leg::Metadata | Leg::Issue | Leg::Bearer, _) => {
                    "managed_identity_unreachable_network"
                }
                (_, NoAnswer::NoConnection | NoAnswer::Silence) => "request_timeout",
                (_, NoAnswer::Refused | NoAnswer::Broken) => "service_unreachable",
            },
            Self::Tls { cause, .. } => cause.code(),
            Self::RequestBody { .. } => "request_body_failed",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::Refused { at, error, .. } => match at.leg {
                Leg::Token if error == "invalid_client" => "invalid_client",
                Leg::Token => "token_request_refused",
                _ => "managed_identity_request_failed",
            },
            Self::V1Only { .. } => "mtls_pop_token_not_supported_in_imds_v1",
            Self::Redirected { .. } => "redirect_refused",
            Self::TooLarge { .. } => "response_too_large",
            Self::Malformed { field, problem, .. } => match (&**field, problem) {
                ("token_type", Malformation::Missing | Malformation::Empty) => "token_type_missing",
                ("certificate", Malformation::Unexpected { .. }) => "invalid_certificate",
                ("Server header", _) => "server_header_invalid",
                _ => problem.code(),
            },
            Self::Mismatch { field, .. } => match &**field {
                "token_type" => "token_type_mismatch",
                "access_token cnf.x5t#S256" => "token_not_bound_to_certificate",
                THUMBPRINT => "tls_server_host_mismatch",
                _ => "identity_mismatch",
            },
            Self::Host { .. } => "host_not_allowed",
            Self::Certificate { problem, .. } => problem.code(),
            Self::Died => "panicked",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Source { problem, .. } => {
                matches!(problem, SourceProblem::Unavailable { certain: false, .. })
            }
            Self::Key { cause, .. } => cause.retryable(),
            Self::Csr { cause, .. } => cause.retryable(),
            Self::Attestation { retryable, .. } => *retryable,
            Self::Unreachable { how, .. } => *how != NoAnswer::Refused,
            Self::Tls { cause, .. } => cause.retryable(),
            Self::DeadlineExceeded { .. } => true,
            Self::Refused { at, .. } => {
                matches!(at.status, Some(404 | 408 | 410 | 429 | 500..=599))
            }
            _ => false,
        }
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        let text = match self {
            Self::Key { cause, .. } => return cause.remedy(),
            Self::Csr { cause, .. } => return cause.remedy(),
            Self::Tls { cause, .. } => return cause.remedy(),
            Self::Certificate { problem, .. } => problem.remedy(),
            Self::Source { problem, .. } => problem.remedy(),
            Self::Configuration { .. } => "Correct the setting that is named.",
            Self::Disabled { switch, .. } => {
                return format!("Ask the operator of this machine to unset {switch}.");
            }
            Self::Attestation { .. } => {
                "Check that the attestation service can be reached and that the host passes its policy."
            }
            Self::Unreachable { at, .. } => match at.leg {
                Leg::Probe | Leg::Metadata | Leg::Issue | Leg::Bearer => {
                    "Run this on an Azure virtual machine, or point AZURE_POD_IDENTITY_AUTHORITY_HOST to an emulator on loopback."
                }
                _ => "Check the network, the firewall and the name of the host.",
            },
            Self::RequestBody { .. } => {
                "Look at what the body is read from; give it as a whole if the request is to be repeated."
            }
            Self::DeadlineExceeded { .. } => {
                "Try again; if it stays, look at the times of the legs to see who is slow."
            }
            Self::Refused {
                at, error_codes, ..
            } => return refused(at, error_codes),
            Self::V1Only { .. } => {
                "Use a machine whose metadata service issues credentials (IMDS v2), or ask for a bearer token knowingly."
            }
            Self::Redirected { .. } => {
                "Find out what stands between this machine and the service: an honest one does not redirect."
            }
            Self::TooLarge { at, .. } if at.leg == Leg::Resource => {
                "Raise the response limit if the resource really answers that much."
            }
            Self::TooLarge { .. } | Self::Malformed { .. } => {
                "Find out what answers at this address: it is not the service that was expected."
            }
            Self::Mismatch { .. } => {
                "Do not use the answer; check which identity is assigned to this machine and who answers for the service."
            }
            Self::Died => {
                "Look at the panic's own message on standard error, and report it to whoever wrote the code that it names."
            }
            Self::Host { .. } => {
                "If this host is really your token service, name it in MSAL_MI_IMDSV2_ALLOWED_HOSTS."
            }
        };
        text.into()
    }

    /// The HTTP status of the answer, if there was one.
    pub fn http_status(&self) -> Option<u16> {
        self.at().and_then(|at| at.status)
    }

    /// The id of the whole way, under which the services logged its requests and which the spans of the log
    /// carry. `None` for what was refused before there was a way: nothing was sent.
    pub fn correlation_id(&self) -> Option<&str> {
        match self {
            Self::Key { correlation_id, .. }
            | Self::Csr { correlation_id, .. }
            | Self::Attestation { correlation_id, .. }
            | Self::DeadlineExceeded { correlation_id, .. } => Some(correlation_id),
            _ => self.at().map(|at| &*at.correlation_id),
        }
    }

    /// The id by which the service itself finds this one exchange in its logs (`trace_id`, or the header
    /// `x-ms-request-id`), if it named one.
    pub fn trace_id(&self) -> Option<&str> {
        self.at()?.service.as_ref()?.trace_id()
    }

    /// The correlation id that the service used, if it named one. It differs from
    /// [`Error::correlation_id`] only where something on the way replaced that one.
    pub fn service_correlation_id(&self) -> Option<&str> {
        self.at()?.service.as_ref()?.correlation_id()
    }

    /// How long the service asks not to be asked the same again. Until then the same request fails with the same
    /// error, and nothing is sent.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn after_waiting(mut self, wait: Option<Duration>) -> Self {
        if let Self::Refused { retry_after, .. } = &mut self {
            *retry_after = wait;
        }
        self
    }

    /// The refusal, with how many new certificates did not help.
    pub(crate) fn after_certificates(mut self, tried: u32) -> Self {
        if let Self::Refused {
            new_certificates, ..
        } = &mut self
        {
            *new_certificates = tried;
        }
        self
    }

    pub(crate) fn configuration(
        field: impl Into<Cow<'static, str>>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Configuration {
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn at(&self) -> Option<&At> {
        match self {
            Self::Unreachable { at, .. }
            | Self::RequestBody { at, .. }
            | Self::Tls { at, .. }
            | Self::Refused { at, .. }
            | Self::V1Only { at }
            | Self::Redirected { at }
            | Self::TooLarge { at, .. }
            | Self::Malformed { at, .. }
            | Self::Mismatch { at, .. }
            | Self::Host { at, .. }
            | Self::Certificate { at, .. } => Some(at),
            _ => None,
        }
    }
}

/// What a refusal adds if new certificates did not help.
fn in_spite_of(new_certificates: u32) -> String {
    match new_certificates {
        0 => String::new(),
        1 => " (a new certificate was refused, too)".into(),
        more => format!(" ({more} new certificates were refused, too)"),
    }
}

/// An error of the key layer goes on with its decision record, which stays in reach as the source.
fn first_line(error: &impl ToString) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// What the codes of the token service and the statuses of the metadata service ask for.
fn refused(at: &At, error_codes: &[u64]) -> String {
    let text = match (at.leg, at.status) {
        _ if error_codes.contains(&392_196) => {
            "This resource takes no bound tokens; use another resource or a bearer token knowingly."
        }
        _ if error_codes.contains(&3_921_996) => {
            "Have the tenant admitted to bound tokens; no client setting helps."
        }
        _ if error_codes.contains(&392_200) => {
            "The certificate was lost on the way: take out what ends TLS before the token service; a new certificate does not help."
        }
        (Leg::Token, _) => {
            "Renew the certificate; if it stays, give the token service's operator the correlation id."
        }
        (_, Some(400)) => "Check that the identity is assigned to this machine.",
        (_, Some(408 | 410 | 429 | 500..=599)) => "Try again in a minute: the service is busy.",
        _ => "Give the service's operator the correlation id.",
    };
    text.into()
}
