//! Test beds for keybond. Never published.
//!
//! [`Swtpm`] is a software TPM of a test's own. [`Shim`] sits between a client and a TPM and misbehaves on demand.
//! [`Tpmrm0`] is what the kernel's resource manager is, for many processes; [`Device`] a plain device file. A bed that cannot be had is an error with the command that installs it, never a skipped test.
//! On other systems than Linux this crate is empty.
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod device;
mod shim;
mod spaces;
mod swtpm;
mod tpmrm0;

pub use device::Device;
pub use shim::{Action, Shim, old_pss, response_code};
pub use swtpm::Swtpm;
pub use tpmrm0::Tpmrm0;
