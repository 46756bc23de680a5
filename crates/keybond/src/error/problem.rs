//! What can be wrong with a part of an answer, and with a certificate.

use std::fmt;

use crate::time::rfc3339;
use std::time::SystemTime;

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
