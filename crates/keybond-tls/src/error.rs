//! What can go wrong on the way to a TLS connection and on it.

use std::{borrow::Cow, error::Error, fmt, io, sync::Arc, time::Duration};

use keybond_keys::KeyError;

use crate::{alert::Alert, seam::TlsVersion};

/// An error of the TLS layer.
///
/// Once a connection stands, its reads and writes fail with an [`io::Error`] that carries one of these:
/// [`TlsError::find`] gets it out again, also from below an HTTP library's error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Certificate and key do not make a client identity.
    #[error("the client identity cannot be used: {problem}")]
    Identity {
        /// What is wrong with it.
        problem: Cow<'static, str>,
    },
    /// The host is neither a DNS name nor an IP address.
    #[error("invalid host {host:?}: {problem}")]
    InvalidHost {
        /// The host as given.
        host: String,
        /// What was expected.
        problem: &'static str,
    },
    /// Trust roots cannot be read.
    #[error("cannot use the trust roots in {place}: {problem}")]
    TrustRoots {
        /// The file, or where else they come from.
        place: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The TLS stack refused its configuration.
    #[error("the TLS stack cannot be set up: {problem}")]
    Setup {
        /// What it said.
        problem: String,
    },
    /// No trust root vouches for the server's certificate.
    #[error("the certificate of {host} is not trusted: {problem}")]
    UntrustedServer {
        /// The server.
        host: String,
        /// What the TLS stack said.
        problem: String,
    },
    /// The server's certificate is for other names.
    #[error("the certificate of {host} is for another host: {}", list(names))]
    HostMismatch {
        /// The host that was asked for.
        host: String,
        /// The names in the certificate.
        names: Vec<String>,
    },
    /// The server's certificate is outside its validity.
    #[error("the certificate of {host} {}", if *not_yet { "is not valid yet" } else { "has expired" })]
    ServerCertificateExpired {
        /// The server.
        host: String,
        /// Whether its validity lies in the future.
        not_yet: bool,
    },
    /// The server wants a client certificate and got none.
    #[error("{host} requires a client certificate and got none; alert {alert}")]
    ClientCertificateRequired {
        /// The server.
        host: String,
        /// How it said so.
        alert: Alert,
    },
    /// The handshake ended, and the server had not asked for the client certificate that it must see there. Whoever
    /// connects and needs that closes the connection unused and says so with this.
    #[error(
        "{host} asked for no client certificate in the first handshake, {}; nothing was sent",
        tried(versions, *refused)
    )]
    CertificateNotRequested {
        /// The server.
        host: String,
        /// The versions under which it did not ask, as they were tried.
        versions: Vec<TlsVersion>,
        /// A version that was tried, too, and how the server refused it.
        refused: Option<(TlsVersion, Alert)>,
    },
    /// The server got the client certificate and does not accept it.
    #[error("{host} refused the client certificate; alert {alert}")]
    ClientCertificateRefused {
        /// The server.
        host: String,
        /// How it said so.
        alert: Alert,
    },
    /// The server ended the connection with an alert.
    #[error("{host} ended the {stage} with alert {alert}; {certificate}")]
    Alert {
        /// The server.
        host: String,
        /// The alert.
        alert: Alert,
        /// When.
        stage: Stage,
        /// What had become of the client certificate by then.
        certificate: CertificateUse,
    },
    /// The handshake took too long.
    #[error("the {stage} with {host} did not end within {after:?}")]
    TimedOut {
        /// The server.
        host: String,
        /// Which handshake.
        stage: Stage,
        /// How long was waited.
        after: Duration,
    },
    /// The held key did not sign.
    #[error("the held key did not sign the {stage}: {source}")]
    Key {
        /// Which handshake.
        stage: Stage,
        /// The key's answer.
        source: KeyError,
    },
    /// The server accepts no signature scheme that the key makes.
    #[error("{host} accepts no signature scheme of the held key: {problem}")]
    NoCommonScheme {
        /// The server.
        host: String,
        /// What was left to choose.
        problem: String,
    },
    /// A renegotiation was not allowed.
    #[error("refused to renegotiate with {host}: {reason}")]
    RenegotiationRefused {
        /// The server.
        host: String,
        /// Why.
        reason: RenegotiationRefusal,
    },
    /// The server cannot ask for a certificate on demand in a way that this stack knows.
    #[error(
        "{host} does not speak TLS 1.2; asking for a certificate later is post-handshake authentication under TLS 1.3, \
         which this TLS stack does not have; alert {alert}"
    )]
    OnDemandUnsupported {
        /// The server.
        host: String,
        /// How it refused TLS 1.2.
        alert: Alert,
    },
    /// This build's TLS stack cannot show a certificate after the first handshake.
    #[error(
        "{host} may ask for the client certificate after the handshake, and the TLS stack of this build (rustls) cannot \
         renegotiate"
    )]
    OnDemandUnavailable {
        /// The server.
        host: String,
    },
    /// The server went away without saying so.
    #[error("{host} closed the connection during the {stage}")]
    Closed {
        /// The server.
        host: String,
        /// When.
        stage: Stage,
    },
    /// The server broke the protocol, or speaks another.
    #[error("{host} broke the TLS protocol during the {stage}: {problem}")]
    Protocol {
        /// The server.
        host: String,
        /// When.
        stage: Stage,
        /// What the TLS stack said.
        problem: String,
    },
    /// The socket failed.
    #[error("the connection to {host} failed during the {stage}: {source}")]
    Io {
        /// The server.
        host: String,
        /// When.
        stage: Stage,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
}

impl TlsError {
    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "tls_client_identity_invalid",
            Self::InvalidHost { .. } => "tls_host_invalid",
            Self::TrustRoots { .. } => "tls_trust_roots_invalid",
            Self::Setup { .. } => "tls_setup_failed",
            Self::UntrustedServer { .. } => "tls_server_untrusted",
            Self::HostMismatch { .. } => "tls_server_host_mismatch",
            Self::ServerCertificateExpired { .. } => "tls_server_certificate_expired",
            Self::ClientCertificateRequired { .. } => "tls_client_certificate_required",
            Self::CertificateNotRequested { .. } => "tls_client_certificate_not_requested",
            Self::ClientCertificateRefused { .. } => "tls_client_certificate_refused",
            Self::Alert { .. } => "tls_alert_received",
            Self::TimedOut { .. } => "tls_handshake_timed_out",
            Self::Key { .. } => "tls_key_failed",
            Self::NoCommonScheme { .. } => "tls_no_common_signature_scheme",
            Self::RenegotiationRefused { .. } => "tls_renegotiation_refused",
            Self::OnDemandUnsupported { .. } | Self::OnDemandUnavailable { .. } => {
                "tls_on_demand_unsupported"
            }
            Self::Closed { .. } => "tls_connection_closed",
            Self::Protocol { .. } => "tls_protocol_error",
            Self::Io { .. } => "tls_io_error",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Closed { .. } => true,
            // internal_error is the server's own trouble.
            Self::Alert { alert, .. } => alert.0 == 80,
            Self::Key { source, .. } => source.retryable(),
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        }
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        let remedy = match self {
            Self::Identity { .. } => "Have the key certified again.",
            Self::InvalidHost { .. } => {
                "Give a DNS name (internationalised names in their xn-- form) or an IP address, without port."
            }
            Self::TrustRoots { .. } => {
                "Point KEYBOND_CA_FILE to a readable PEM file that holds CA certificates."
            }
            Self::Setup { .. } => {
                "This is a defect or a lack of memory; report it with the message."
            }
            Self::UntrustedServer { .. } => {
                "If the server's issuer is to be trusted, add its certificate (PEM) with KEYBOND_CA_FILE; \
                 otherwise somebody stands between."
            }
            Self::HostMismatch { .. } => "Call the server by a name in its certificate.",
            Self::ServerCertificateExpired { .. } => {
                "Check this machine's clock; if it is right, the server needs a new certificate."
            }
            Self::ClientCertificateRequired { .. } => {
                "Connect with a client identity, on a leg that may send it."
            }
            Self::CertificateNotRequested { .. } => {
                "Take out of the way what ends TLS before the server; one that asks only after the request needs the \
                 on-demand leg, any other must be made to ask."
            }
            Self::ClientCertificateRefused { alert, .. } => match alert.0 {
                44 | 45 => "Have the key certified again.",
                48 => "Check that the certificate was issued for this cloud and environment.",
                _ => {
                    "Have the key certified again; if it stays, the server does not accept its issuer."
                }
            },
            Self::Alert { .. } => "Look up the alert in the server's log of the same time.",
            Self::TimedOut { .. } => {
                "Check the network path, and with `keybond doctor` that the key's device answers."
            }
            Self::Key { source, .. } => return source.remedy(),
            Self::NoCommonScheme { .. } => {
                "Use a key that signs RSASSA-PSS with SHA-256, or allow PKCS#1 v1.5 on the server."
            }
            Self::RenegotiationRefused { reason, .. } => reason.remedy(),
            Self::OnDemandUnsupported { .. } => {
                "Allow TLS 1.2 on the server, or let it ask for the certificate in the first handshake."
            }
            Self::OnDemandUnavailable { .. } => {
                "Use a build for x86_64-pc-windows-gnu, or a resource that asks in the first handshake."
            }
            Self::Closed { .. } => "Try again; if it stays, look into the server's log.",
            Self::Protocol { .. } => "Check that host and port are those of a TLS server.",
            Self::Io { .. } => "Check the network path to the server and try again.",
        };
        remedy.to_owned()
    }

    /// Finds the TLS error in an error or its causes.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // An io::Error names as its source the source of what it carries, not what it carries.
            if let Some(inner) = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                && let Some(found) = Self::find(inner)
            {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match &error {
            TlsError::Io { source, .. } => source.kind(),
            TlsError::Closed { .. } => io::ErrorKind::UnexpectedEof,
            TlsError::TimedOut { .. } => io::ErrorKind::TimedOut,
            TlsError::Alert { .. }
            | TlsError::ClientCertificateRequired { .. }
            | TlsError::ClientCertificateRefused { .. } => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// The part of a connection's life in which something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The first handshake.
    Handshake,
    /// A renegotiation.
    Renegotiation,
    /// Application data.
    Transfer,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Handshake => "handshake",
            Self::Renegotiation => "renegotiation",
            Self::Transfer => "transfer",
        })
    }
}

/// What became of the client certificate on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateUse {
    /// The server did not ask for one.
    NotRequested,
    /// The server asked, and there was none to send.
    NotSent,
    /// The server asked and got it.
    Sent,
}

impl CertificateUse {
    pub(crate) const fn of(requested: bool, sent: bool) -> Self {
        match (requested, sent) {
            (false, _) => Self::NotRequested,
            (true, false) => Self::NotSent,
            (true, true) => Self::Sent,
        }
    }
}

impl fmt::Display for CertificateUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotRequested => "no client certificate was asked for",
            Self::NotSent => "a client certificate was asked for, and none was sent",
            Self::Sent => "the client certificate was sent",
        })
    }
}

/// Why a renegotiation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RenegotiationRefusal {
    /// The connection's leg does not allow it.
    Leg,
    /// There is no client identity that could be asked for.
    NoIdentity,
    /// It was done once already.
    Repeated,
    /// It exists only in TLS 1.2.
    Version,
    /// The server came back with another certificate.
    ServerChanged,
}

impl RenegotiationRefusal {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Leg => "Connect to this host on the on-demand leg.",
            Self::NoIdentity => "Connect with a client identity.",
            Self::Repeated => {
                "Use a new connection for the next request that needs the certificate."
            }
            Self::Version => "The server broke TLS 1.3; report it to its operator.",
            Self::ServerChanged => {
                "Connect again; if it stays, the host's servers have different certificates behind one connection."
            }
        }
    }
}

impl fmt::Display for RenegotiationRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leg => "this leg does not renegotiate",
            Self::NoIdentity => "there is no client identity to show",
            Self::Repeated => "this connection has renegotiated already",
            Self::Version => "only TLS 1.2 renegotiates",
            Self::ServerChanged => "the server's certificate changed",
        })
    }
}

fn tried(versions: &[TlsVersion], refused: Option<(TlsVersion, Alert)>) -> String {
    let names: Vec<String> = versions.iter().map(TlsVersion::to_string).collect();
    let under = format!("under {}", names.join(" and "));
    match refused {
        Some((version, alert)) => {
            format!("{under}, and it refused {version} (alert {})", alert.name())
        }
        None => under,
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "it names none".into();
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_below_io_and_other_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("http")]
        struct Http(#[source] io::Error);

        let closed = TlsError::Closed {
            host: "vault.test".into(),
            stage: Stage::Transfer,
        };
        let io = io::Error::from(closed);
        assert_eq!(io.kind(), io::ErrorKind::UnexpectedEof);
        let http = Http(io);
        assert_eq!(
            TlsError::find(&http).map(TlsError::code),
            Some("tls_connection_closed")
        );
        assert!(TlsError::find(&io::Error::other("else")).is_none());
    }

    #[test]
    fn a_key_failure_speaks_with_the_keys_voice() {
        let key = KeyError::DeadlineExceeded {
            after: Duration::from_secs(1),
        };
        let error = TlsError::Key {
            stage: Stage::Handshake,
            source: key.clone(),
        };
        assert!(error.retryable());
        assert_eq!(error.remedy(), key.remedy());
    }
}
