//! TPM 2.0 in Rust: keys that are made in the chip, sign there and never leave it. No C library.
//!
//! A [`Tpm`] is a handle to one TPM, shared by all who use it. It makes keys ([`Tpm::create_key`]), which are kept
//! outside as [`KeyBlob`]s (files in TSS2 PEM that only this TPM can read, and that OpenSSL's tpm2 provider uses as
//! well) and loads them ([`Tpm::load`]) for signing ([`LoadedKey::sign_digest`]).
//!
//! ```
//! use keybond_tpm::{Existing, Hash, KeyBlob, KeyRequest, Scheme, Tpm, TpmOptions};
//!
//! # let swtpm = keybond_testkit::Swtpm::start()?;
//! # let (address, file) = (swtpm.address(), swtpm.dir().join("key.pem"));
//! // address: "device:/dev/tpmrm0"
//! let tpm = Tpm::open(&address.parse()?, &TpmOptions::default())?;
//! let blob = tpm.create_key(&KeyRequest::default())?;
//! blob.save(&file, Existing::Keep)?;
//!
//! let key = tpm.load(&KeyBlob::load(&file)?)?;
//! let scheme = Scheme::Pss(Hash::Sha256);
//! let signature = key.sign_digest(scheme, &scheme.hash().digest(b"message"))?;
//! assert_eq!(signature.len(), 256);
//! println!("{} signs in {}: {}", key.public().attributes(), tpm.identity(), scheme);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What can be relied on
//! - Every call has a deadline, and returns by it even if the TPM hangs. Making a key has one of its own.
//! - One thread owns the connection. A connection on which anything went wrong is never used again.
//! - At most the storage root key and two keys are loaded; what was lost to a reset is loaded again.
//! - When the last [`Tpm`] and [`LoadedKey`] are dropped, nothing stays loaded.
//! - A definite "no" (no device, no permission, TPM 1.2, failure mode) is final within milliseconds.
//! - What the TPM sends is read with every length checked; what it says about a key is compared with the file.
//! - PINs are wiped from memory, but cross the bus to the chip in the clear.
//!
//! # What to know about chips
//! - PSS: some chips sign with another salt length than TLS 1.3 and JWT demand, some not at all. The first PSS
//!   signature is preceded by a test ([`LoadedKey::pss_mode`]); a key made with [`KeyRequest::raw_rsa`] works on
//!   these chips too.
//! - A key of another TPM, of the same TPM before it was cleared, and a damaged key all give
//!   `TPM_RC_INTEGRITY`. Record [`Tpm::names`] with the key and compare ([`TpmNames::compare`]).
//! - swtpm serves one connection at a time, so on sockets the connection is given back when idle
//!   ([`TpmOptions::idle_release`]).
//!
//! On other systems than Linux this crate is empty; on Windows the operating system owns the TPM.
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod actor;
mod address;
mod commands;
mod connection;
mod der;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
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
pub use key::{Certification, ExportAttempt, LoadedKey};
pub use keyfile::{KeyBlob, KeyFileError};
pub use public::{KeyAttributes, RsaPublic};
pub use rc::{ResponseCode, Subject};
pub use scheme::{Hash, PssMode, Scheme};
pub use tpm::{KeyRequest, Pin, Tpm, TpmOptions};
