//! TPM 2.0 in Rust: keys that are made in the chip, sign there and never leave it. No C library.
#![forbid(unsafe_code)]
#![cfg(unix)]

mod actor;
mod address;
mod commands;
mod connection;
mod der;
mod error;
mod files;
mod identity;
mod key;
mod keyfile;
mod owner;
mod pss;
mod public;
mod queue;
mod rc;
mod scheme;
mod templates;
mod tpm;
mod transport;
mod wire;

pub use address::{InvalidAddress, TpmAddress};
pub use error::{ErrorKind, TpmError};
pub use files::Existing;
pub use identity::{Belonging, TpmIdentity, TpmNames};
pub use key::{ExportAttempt, LoadedKey};
pub use keyfile::{KeyBlob, KeyFileError};
pub use public::{KeyAttributes, RsaPublic};
pub use rc::{ResponseCode, Subject};
pub use scheme::{Hash, PssMode, Scheme};
pub use tpm::{KeyRequest, Pin, Tpm, TpmOptions};
