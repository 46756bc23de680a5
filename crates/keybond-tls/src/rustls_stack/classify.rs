//! What an error of rustls means to us.

use std::{io, net::IpAddr, sync::Arc};

use rustls::{CertificateError, Error};

use super::signer::{Handshake, Signature};
use crate::{
    alert::Alert,
    error::{CertificateUse, Stage, TlsError},
    host::Host,
};

/// Where something failed.
pub(super) struct Situation {
    pub(super) host: Host,
    pub(super) handshake: Arc<Handshake>,
    pub(super) stage: Stage,
}

impl Situation {
    /// The error to report for one of tokio-rustls.
    pub(super) fn classify(&self, error: io::Error) -> TlsError {
        let (host, stage) = (self.host.to_string(), self.stage);
        if stage == Stage::Handshake {
            match self.handshake.signature() {
                Some(Signature::Failed(source)) => return TlsError::Key { stage, source },
                Some(Signature::NoCommonScheme(problem)) => {
                    return TlsError::NoCommonScheme { host, problem };
                }
                Some(Signature::Made(_)) | None => {}
            }
        }
        let inner = error.get_ref();
        if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            return self.stack(error);
        }
        // rustls has no code of its own for an end without close_notify.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return TlsError::Closed { host, stage };
        }
        TlsError::Io {
            host,
            stage,
            source: Arc::new(error),
        }
    }

    fn stack(&self, error: &Error) -> TlsError {
        let (host, stage) = (self.host.to_string(), self.stage);
        match error {
            Error::AlertReceived(alert) => {
                let alert = Alert(u8::from(*alert));
                let requested = self.handshake.requested();
                let sent = self.handshake.signed().is_some();
                alert
                    .about_the_client(&host, requested, sent)
                    .unwrap_or(TlsError::Alert {
                        host,
                        alert,
                        stage,
                        certificate: CertificateUse::of(requested, sent),
                    })
            }
            Error::InvalidCertificate(problem) => self.certificate(problem),
            other => TlsError::Protocol {
                host,
                stage,
                problem: other.to_string(),
            },
        }
    }

    fn certificate(&self, problem: &CertificateError) -> TlsError {
        let host = self.host.to_string();
        match problem {
            CertificateError::NotValidForName => TlsError::HostMismatch {
                host,
                names: Vec::new(),
            },
            CertificateError::NotValidForNameContext { presented, .. } => TlsError::HostMismatch {
                host,
                names: presented.iter().map(|name| plain(name)).collect(),
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsError::ServerCertificateExpired {
                    host,
                    not_yet: false,
                }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsError::ServerCertificateExpired {
                    host,
                    not_yet: true,
                }
            }
            other => TlsError::UntrustedServer {
                host,
                problem: other.to_string(),
            },
        }
    }
}

/// A name without the kind that webpki prints around it (`DnsName("a.test")`, `IpAddress(0::1)`).
fn plain(name: &str) -> String {
    let inside = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let bare = inside.unwrap_or(name).trim_matches('"');
    // Addresses in their usual spelling.
    bare.parse::<IpAddr>()
        .map_or_else(|_| bare.to_owned(), |ip| ip.to_string())
}
