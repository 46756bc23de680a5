//! What an s2n error means to us.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use s2n_tls::{
    callbacks::VerifyHostNameCallback,
    connection::Connection,
    error::{Error, ErrorType},
};

use super::{records::NotTls, renegotiation::Control, signer::SignFailure};
use crate::{
    alert::Alert,
    error::{CertificateUse, Stage, TlsError},
    host::Host,
    seam::Leg,
};

/// The names in the server's certificate that were looked at and did not match.
pub(super) type SeenNames = Arc<Mutex<Vec<String>>>;

/// Compares the server's certificate with the host, and remembers what it saw.
pub(super) struct VerifyHost {
    pub(super) host: Host,
    pub(super) seen: SeenNames,
}

impl VerifyHostNameCallback for VerifyHost {
    fn verify_host_name(&self, name: &str) -> bool {
        let matches = self.host.matches(name);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A certificate may list any number of names; a message needs few.
        if !matches && seen.len() < 16 && !name.is_empty() {
            seen.push(name.to_owned());
        }
        matches
    }
}

/// Where something failed.
pub(super) struct Situation<'a> {
    pub(super) host: &'a Host,
    pub(super) seen: &'a SeenNames,
    pub(super) control: &'a Control,
    pub(super) stage: Stage,
    pub(super) certificate_requested: bool,
}

impl Situation<'_> {
    /// The error to report for `error`, whose cause on the socket was `socket`.
    pub(super) fn classify(
        &self,
        error: &Error,
        connection: &Connection,
        socket: Option<io::Error>,
    ) -> TlsError {
        let host = self.host.to_string();
        let stage = self.stage;
        if let Some(source) = socket {
            if source.get_ref().is_some_and(|inner| inner.is::<NotTls>()) {
                return TlsError::Protocol {
                    host,
                    stage,
                    problem: source.to_string(),
                };
            }
            return TlsError::Io {
                host,
                stage,
                source: Arc::new(source),
            };
        }
        match error.kind() {
            ErrorType::Application => self.signing(error),
            ErrorType::Alert => self.alert(Alert(connection.alert().unwrap_or_default())),
            ErrorType::ConnectionClosed => match self.control.refused() {
                Some(reason) => TlsError::RenegotiationRefused { host, reason },
                None => TlsError::Closed { host, stage },
            },
            _ => self.protocol(error),
        }
    }

    fn signing(&self, error: &Error) -> TlsError {
        let failure = error
            .application_error()
            .and_then(|cause| cause.downcast_ref::<SignFailure>());
        match failure {
            Some(SignFailure::Key(source)) => TlsError::Key {
                stage: self.stage,
                source: source.clone(),
            },
            Some(SignFailure::NoCommonScheme(problem)) => TlsError::NoCommonScheme {
                host: self.host.to_string(),
                problem: problem.clone(),
            },
            None => self.protocol(error),
        }
    }

    fn alert(&self, alert: Alert) -> TlsError {
        let host = self.host.to_string();
        if let Some(reason) = self.control.refused() {
            return TlsError::RenegotiationRefused { host, reason };
        }
        let certificate_sent = self.certificate_requested && self.control.has_identity();
        if self.stage == Stage::Handshake
            && self.control.leg() == Leg::OnDemand
            && alert == Alert::PROTOCOL_VERSION
        {
            return TlsError::OnDemandUnsupported { host, alert };
        }
        let about = alert.about_the_client(&host, self.certificate_requested, certificate_sent);
        about.unwrap_or(TlsError::Alert {
            host,
            alert,
            stage: self.stage,
            certificate: CertificateUse::of(self.certificate_requested, certificate_sent),
        })
    }

    fn protocol(&self, error: &Error) -> TlsError {
        let host = self.host.to_string();
        match error.name() {
            "S2N_ERR_CERT_UNTRUSTED"
            | "S2N_ERR_CERT_REVOKED"
            | "S2N_ERR_CERT_TYPE_UNSUPPORTED"
            | "S2N_ERR_CERT_INVALID"
            | "S2N_ERR_CERT_INTENT_INVALID"
            | "S2N_ERR_CERT_MAX_CHAIN_DEPTH_EXCEEDED"
            | "S2N_ERR_CERT_UNHANDLED_CRITICAL_EXTENSION"
            | "S2N_ERR_DECODE_CERTIFICATE" => TlsError::UntrustedServer {
                host,
                problem: error.message().to_owned(),
            },
            "S2N_ERR_CERT_INVALID_HOSTNAME" => TlsError::HostMismatch {
                host,
                names: self
                    .seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone(),
            },
            "S2N_ERR_CERT_EXPIRED" => TlsError::ServerCertificateExpired {
                host,
                not_yet: false,
            },
            "S2N_ERR_CERT_NOT_YET_VALID" => TlsError::ServerCertificateExpired {
                host,
                not_yet: true,
            },
            "S2N_ERR_NO_VALID_SIGNATURE_SCHEME" => TlsError::NoCommonScheme {
                host,
                problem: error.message().to_owned(),
            },
            name => TlsError::Protocol {
                host,
                stage: self.stage,
                problem: format!("{} ({name})", error.message()),
            },
        }
    }
}
