//! Test beds for keybond. Never published.
//!
//! [`Swtpm`] is a software TPM of a test's own; [`Shim`] sits between a client and a TPM and misbehaves on
//! demand. A bed that cannot be had is an error with the command that installs it, never a skipped test.
#![forbid(unsafe_code)]
#![cfg(unix)]

mod device;
mod shim;
mod swtpm;

pub use device::Device;
pub use shim::{Action, Shim, old_pss, response_code};
pub use swtpm::Swtpm;
