//! Windows' key stores (CNG), the user's certificate store, named mutexes, data protection (DPAPI) and access
//! lists, safe on the outside.
//!
//! The calls exist on Windows only: `Provider`, `NewKey`, `Key`, `CertStore`, `NamedMutex`, `protect`, `acl`. What needs no
//! Windows is everywhere, so that the decisions built on it are tested everywhere: error codes with their
//! meaning ([`Hresult`], [`CngError`]), the layout of key blobs ([`RsaPublic`]), fixed names ([`names`]) and
//! the conventions shared with MSAL ([`msal`]).
//!
//! ```
//! use keybond_cng::{CngError, ErrorKind, Hresult};
//!
//! let error = CngError::new("NCryptOpenKey", Hresult::from_bits(0x8009_0016));
//! assert_eq!(error.kind(), ErrorKind::NotFound);
//! assert_eq!(error.to_string(), "NCryptOpenKey: 0x80090016 NTE_BAD_KEYSET (no such key)");
//! ```
//!
//! # What holds by construction
//!
//! 1. A handle has one owner, is freed once, and a key keeps its provider alive.
//! 2. Every string given to Windows ends with NUL and holds no other; a name with a NUL is refused.
//! 3. Every buffer is as large as its call can fill, and what comes back is cut to what was written.
//! 4. No call can show a dialogue: keys are opened, finalised and used silently.
//! 5. Private material that an export attempt yields is wiped before the attempt returns.
//! 6. Certificates are collected before any is deleted, and every change is committed.
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(windows), forbid(unsafe_code))]

mod blob;
mod codes;
#[cfg(any(windows, test))]
mod der;
mod error;
pub mod msal;
pub mod names;

#[cfg(windows)]
pub mod acl;
#[cfg(windows)]
mod certificates;
#[cfg(windows)]
mod claim;
#[cfg(windows)]
mod dpapi;
#[cfg(windows)]
mod key;
#[cfg(windows)]
mod mutex;
#[cfg(windows)]
mod property;
#[cfg(windows)]
mod provider;
#[cfg(windows)]
mod wide;

pub use blob::{InvalidBlob, RsaPublic};
pub use codes::Hresult;
pub use error::{CngError, ErrorKind};

#[cfg(windows)]
pub use certificates::{CertStore, Certificate, KeyLink};
#[cfg(windows)]
pub use claim::{ClaimKind, claims_exported};
#[cfg(windows)]
pub use dpapi::{protect, unprotect};
#[cfg(windows)]
pub use key::{ExportOutcome, Hash, Key, NewKey, Padding};
#[cfg(windows)]
pub use mutex::{MutexGuard, NamedMutex};
#[cfg(windows)]
pub use provider::Provider;
