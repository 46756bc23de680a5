//! What can go wrong with the emulator itself; what it answers to its clients is not an error.

use std::{borrow::Cow, io, net::SocketAddr, path::PathBuf};

/// An error of starting, keeping or steering an emulator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// A server could not listen.
    #[error("{server}: cannot listen on {address}")]
    Listen {
        /// `imds`, `sts` or `vault`.
        server: &'static str,
        /// Where it should have listened.
        address: SocketAddr,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A file or folder of the state could not be read or written.
    #[error("state: {}: {what}", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// A file of the state is there but is not what it should be. It is left as it is.
    #[error("state: {}: expected {expected}", path.display())]
    CorruptState {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A setting, fault or instruction makes no sense.
    #[error("{field}: expected {expected}, not {given}")]
    Invalid {
        /// The setting or field.
        field: Cow<'static, str>,
        /// What it should be.
        expected: String,
        /// What it was.
        given: String,
    },
    /// A cryptographic operation failed.
    #[error("{what} failed")]
    Crypto {
        /// What was tried.
        what: &'static str,
    },
    /// The TLS stack refused the emulator's own certificate or key.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

impl EmulatorError {
    pub(crate) fn crypto(what: &'static str) -> Self {
        Self::Crypto { what }
    }

    pub(crate) fn invalid(
        field: impl Into<Cow<'static, str>>,
        expected: impl Into<String>,
        given: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            field: field.into(),
            expected: expected.into(),
            given: given.into(),
        }
    }

    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "emulator_listen_failed",
            Self::State { .. } => "emulator_state_failed",
            Self::CorruptState { .. } => "emulator_state_corrupt",
            Self::Invalid { .. } => "emulator_invalid_setting",
            Self::Crypto { .. } => "emulator_crypto_failed",
            Self::Tls(_) => "emulator_tls_failed",
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Listen { .. } => true,
            // Another emulator that holds the folder may end.
            Self::State { cause, .. } => cause.kind() == io::ErrorKind::WouldBlock,
            _ => false,
        }
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Listen { .. } => {
                "Use port 0 for one that is free, or end the program that holds this one."
            }
            Self::State { .. } => {
                "Give a folder that this user may write to, with files only it may read."
            }
            Self::CorruptState { .. } => {
                "Move the file away; the emulator makes a new one and its clients must trust it anew."
            }
            Self::Invalid { .. } => "Correct the value; the documentation of the field says how.",
            Self::Crypto { .. } | Self::Tls(_) => {
                "Report this: the emulator's own keys and certificates should always work."
            }
        }
    }
}
