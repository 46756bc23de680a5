//! TLS alerts: number, name and what each one says (RFC 5246 §7.2, RFC 8446 §6).

use std::fmt;

use crate::error::TlsError;

/// An alert that the server sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

impl Alert {
    /// `handshake_failure`.
    pub const HANDSHAKE_FAILURE: Self = Self(40);
    /// `protocol_version`.
    pub const PROTOCOL_VERSION: Self = Self(70);
    /// `certificate_required`.
    pub const CERTIFICATE_REQUIRED: Self = Self(116);

    /// The name in the RFC, or `unknown`.
    pub const fn name(self) -> &'static str {
        self.describe().0
    }

    /// What the server says with it, as half a sentence.
    pub const fn meaning(self) -> &'static str {
        self.describe().1
    }

    /// Whether it judges a client certificate that was sent.
    pub const fn is_about_the_certificate(self) -> bool {
        matches!(self.0, 42..=46 | 48 | 49 | 51)
    }

    /// What the alert says about the client's certificate, if it does: the server asked for one or not, and one
    /// was sent or not.
    pub(crate) fn about_the_client(
        self,
        host: &str,
        requested: bool,
        sent: bool,
    ) -> Option<TlsError> {
        let (host, alert) = (host.to_owned(), self);
        if requested && sent && self.is_about_the_certificate() {
            return Some(TlsError::ClientCertificateRefused { host, alert });
        }
        // TLS 1.2 has no alert of its own for a missing certificate.
        let missing = self == Self::HANDSHAKE_FAILURE && requested && !sent;
        (self == Self::CERTIFICATE_REQUIRED || missing)
            .then_some(TlsError::ClientCertificateRequired { host, alert })
    }

    const fn describe(self) -> (&'static str, &'static str) {
        match self.0 {
            0 => ("close_notify", "the server ended the connection"),
            10 => ("unexpected_message", "a message came out of order"),
            20 => ("bad_record_mac", "a record was damaged on the way"),
            22 => ("record_overflow", "a record was too long"),
            40 => (
                "handshake_failure",
                "no set of parameters suits both sides, or a client certificate is missing",
            ),
            42 => (
                "bad_certificate",
                "the client certificate is damaged or its signature is wrong",
            ),
            43 => (
                "unsupported_certificate",
                "the client certificate is of a type not accepted",
            ),
            44 => ("certificate_revoked", "the client certificate was revoked"),
            45 => (
                "certificate_expired",
                "the client certificate has expired or is not yet valid",
            ),
            46 => (
                "certificate_unknown",
                "the client certificate is not acceptable",
            ),
            47 => (
                "illegal_parameter",
                "a field of the handshake is out of range",
            ),
            48 => (
                "unknown_ca",
                "the client certificate's issuer is not known to the server",
            ),
            49 => (
                "access_denied",
                "the client certificate is valid but not allowed",
            ),
            50 => ("decode_error", "a message could not be read"),
            51 => (
                "decrypt_error",
                "the client's signature or Finished message is wrong",
            ),
            70 => (
                "protocol_version",
                "the server does not speak the offered TLS version",
            ),
            71 => (
                "insufficient_security",
                "the server demands stronger ciphers",
            ),
            80 => ("internal_error", "the server failed"),
            86 => (
                "inappropriate_fallback",
                "the server speaks a newer version than was tried",
            ),
            90 => ("user_canceled", "the server gave up the handshake"),
            100 => ("no_renegotiation", "the server does not renegotiate"),
            109 => ("missing_extension", "a required extension is missing"),
            110 => ("unsupported_extension", "an extension was not expected"),
            112 => ("unrecognized_name", "the server has no such host name"),
            113 => (
                "bad_certificate_status_response",
                "a stapled OCSP answer is invalid",
            ),
            115 => (
                "unknown_psk_identity",
                "the server does not know the session",
            ),
            116 => (
                "certificate_required",
                "the server requires a client certificate",
            ),
            120 => (
                "no_application_protocol",
                "the server does not speak HTTP/1.1 here",
            ),
            _ => (
                "unknown",
                "the server gave a number without a registered meaning",
            ),
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name(), self.0, self.meaning())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_reads_as_name_number_and_meaning() {
        assert_eq!(
            Alert(48).to_string(),
            "unknown_ca (48): the client certificate's issuer is not known to the server"
        );
        assert_eq!(Alert(255).name(), "unknown");
        assert!(Alert(48).is_about_the_certificate());
        assert!(!Alert::PROTOCOL_VERSION.is_about_the_certificate());
    }
}
