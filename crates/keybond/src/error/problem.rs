//! What can be wrong with a part of an answer, and with a certificate.

use std::fmt;

use crate::time::rfc3339;
use std::time::SystemTime;

/// How an exchange ended that brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NoAnswer {
    /// The connection was refused, or there is no way to the address or no such name: a definite answer.
    Refused,
    /// No connection within the time given: nobody is there, or something drops packets.
    NoConnection,
    /// A connection, but no answer within the time given.
    Silence,
    /// The connection broke before the answer was whole.
    Broken,
}

/// What is wrong with a part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformation {
    /// The bytes are not UTF-8.
    NotUtf8,
    /// The text is not a JSON object.
    NotJson {
        /// What the parser said.
        detail: String,
    },
    /// It is not there.
    Missing,
    /// It is there and empty.
    Empty,
    /// It is not what was agreed.
    Unexpected {
        /// What was agreed.
        expected: &'static str,
    },
}

impl Malformation {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8 => "response_not_utf8",
            Self::NotJson { .. } => "managed_identity_response_parse_failure",
            Self::Missing => "response_field_missing",
            Self::Empty => "response_field_empty",
            Self::Unexpected { .. } => "response_field_invalid",
        }
    }
}

impl fmt::Display for Malformation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("is not UTF-8"),
            Self::NotJson { detail } => write!(f, "is not a JSON object: {detail}"),
            Self::Missing => f.write_str("is missing"),
            Self::Empty => f.write_str("is empty"),
            Self::Unexpected { expected } => write!(f, "is not {expected}"),
        }
    }
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// It certifies another key.
    AnotherKey,
    /// Its subject names another client.
    AnotherClient {
        /// The client id that it should name.
        expected: String,
        /// What it names.
        found: String,
    },
    /// Its subject names another tenant.
    AnotherTenant {
        /// The tenant id that it should name.
        expected: String,
        /// What it names.
        found: String,
    },
    /// Its time is over.
    Expired {
        /// When it ended.
        not_after: SystemTime,
        /// The time by this machine's clock.
        now: SystemTime,
    },
    /// Its time has not come.
    NotYetValid {
        /// When it begins.
        not_before: SystemTime,
        /// The time by this machine's clock.
        now: SystemTime,
    },
    /// It may not be used to authenticate a client.
    NotForClients {
        /// The extension that says so.
        extension: &'static str,
    },
}

impl CertificateProblem {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::AnotherKey => "certificate_for_another_key",
            Self::AnotherClient { .. } => "certificate_for_another_client",
            Self::AnotherTenant { .. } => "certificate_for_another_tenant",
            Self::Expired { .. } => "certificate_expired",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::NotForClients { .. } => "certificate_not_for_clients",
        }
    }

    pub(crate) const fn field(&self) -> &'static str {
        match self {
            Self::AnotherKey => "certificate subjectPublicKeyInfo",
            Self::AnotherClient { .. } => "certificate subject CN",
            Self::AnotherTenant { .. } => "certificate subject DC",
            Self::Expired { .. } => "certificate notAfter",
            Self::NotYetValid { .. } => "certificate notBefore",
            Self::NotForClients { extension } => extension,
        }
    }

    pub(crate) const fn remedy(&self) -> &'static str {
        match self {
            Self::Expired { .. } | Self::NotYetValid { .. } => {
                "Check this machine's clock, then the issuer's."
            }
            _ => "Do not use the certificate; find out what answers as the metadata service.",
        }
    }
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnotherKey => f.write_str("certifies another key than the one in the request"),
            Self::AnotherClient { expected, found } => {
                write!(f, "is for client `{found}`, expected `{expected}`")
            }
            Self::AnotherTenant { expected, found } => {
                write!(f, "is for tenant `{found}`, expected `{expected}`")
            }
            Self::Expired { not_after, now } => {
                write!(
                    f,
                    "expired at {}, now is {}",
                    rfc3339(*not_after),
                    rfc3339(*now)
                )
            }
            Self::NotYetValid { not_before, now } => {
                write!(
                    f,
                    "is valid from {} on, now is {}",
                    rfc3339(*not_before),
                    rfc3339(*now)
                )
            }
            Self::NotForClients { extension } => {
                write!(f, "is not for TLS clients: see its {extension}")
            }
        }
    }
}

/// Why a source of tokens cannot give what was asked for. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceProblem {
    /// It gives bearer tokens only.
    PopNotSupported,
    /// It knows the identity of the machine only.
    UserAssignedNotSupported,
    /// The deployment decides which identity it is; only this kind of id can be asked for.
    NotConfigurable {
        /// The kind of id.
        accepted: &'static str,
    },
    /// Only this kind of id can be asked for.
    IdType {
        /// The kind of id.
        accepted: &'static str,
    },
    /// A variable names an address that cannot be the source's.
    Endpoint {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No source was found.
    Unavailable {
        /// What was looked for, and what was found.
        findings: String,
        /// Whether every answer was definite.
        certain: bool,
    },
}

impl SourceProblem {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::PopNotSupported => "mtls_pop_not_supported_for_environment",
            Self::UserAssignedNotSupported => "user_assigned_managed_identity_not_supported",
            Self::NotConfigurable { .. } => {
                "user_assigned_managed_identity_not_configurable_at_runtime"
            }
            Self::IdType { .. } => "invalid_managed_identity_id_type",
            Self::Endpoint { .. } => "invalid_managed_identity_endpoint",
            Self::Unavailable { .. } => "managed_identity_all_sources_unavailable",
        }
    }

    pub(crate) const fn field(&self) -> Option<&'static str> {
        match self {
            Self::PopNotSupported | Self::Unavailable { .. } => None,
            Self::UserAssignedNotSupported | Self::NotConfigurable { .. } | Self::IdType { .. } => {
                Some("identity")
            }
            Self::Endpoint { variable, .. } => Some(variable),
        }
    }

    pub(crate) const fn remedy(&self) -> &'static str {
        match self {
            Self::PopNotSupported => {
                "Run on a machine whose metadata service issues credentials, or ask for a bearer token knowingly."
            }
            Self::UserAssignedNotSupported => "Leave the id of the identity out.",
            Self::NotConfigurable { .. } => {
                "Name the identity's object id, or bind it to the service in the application's manifest."
            }
            Self::IdType { .. } => "Name the identity by the kind of id that is accepted here.",
            Self::Endpoint { .. } => "Correct or unset the variable that is named.",
            Self::Unavailable { .. } => {
                "Run this on an Azure virtual machine, or point AZURE_POD_IDENTITY_AUTHORITY_HOST to an emulator on loopback."
            }
        }
    }
}

impl fmt::Display for SourceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PopNotSupported => f.write_str("it gives bearer tokens only, no bound ones"),
            Self::UserAssignedNotSupported => f.write_str("it knows no user-assigned identities"),
            Self::NotConfigurable { accepted } => {
                write!(
                    f,
                    "the deployment decides which identity it is; only {accepted} can be asked for"
                )
            }
            Self::IdType { accepted } => {
                write!(
                    f,
                    "a user-assigned identity is asked for by its {accepted} only"
                )
            }
            Self::Endpoint { variable, problem } => write!(f, "{variable} {problem}"),
            Self::Unavailable { findings, .. } => write!(f, "nothing found: {findings}"),
        }
    }
}
