//! Alerts (RFC 5246, 7.2), and failures that become one.

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alert {
    CloseNotify = 0,
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    HandshakeFailure = 40,
    BadCertificate = 42,
    UnsupportedCertificate = 43,
    IllegalParameter = 47,
    UnknownCa = 48,
    DecodeError = 50,
    DecryptError = 51,
    ProtocolVersion = 70,
    InternalError = 80,
    NoRenegotiation = 100,
    NoApplicationProtocol = 120,
}

/// A failure that ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// This side found fault and says so with an alert.
    #[error("{what}: alert {alert:?} sent")]
    Sent {
        /// The alert.
        alert: Alert,
        /// What was wrong.
        what: &'static str,
    },
    /// The other side gave up.
    #[error("the client sent alert {description}")]
    Received {
        /// The alert's number.
        description: u8,
    },
}

impl Alert {
    /// Makes it the end of the connection.
    pub(crate) const fn because(self, what: &'static str) -> Failure {
        Failure::Sent { alert: self, what }
    }
}
