//! What can go wrong on the way to a TLS connection and on it.

/// An error of the TLS layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Certificate and key do not make a client identity.
    #[error("the client identity cannot be used: {problem}")]
    Identity {
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl TlsError {
    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "tls_client_identity_invalid",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Identity { .. } => false,
        }
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Identity { .. } => "Have the key certified again.".into(),
        }
    }
}
