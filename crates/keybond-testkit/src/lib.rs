//! Test beds for keybond. Never published.
//!
//! [`stores`] are key stores that do as a test says: refuse, lie, hang, die. On Linux there are devices, too:
//! `Swtpm` is a software TPM of a test's own, `Shim` sits between a client and a TPM and misbehaves on demand,
//! `Tpmrm0` is what the kernel's resource manager is, for many processes, `Device` a plain device file, and
//! `Apache` a server that asks for client certificates late. On Windows `FakeNcrypt` is the machine behind the
//! fake `ncrypt.dll`. A bed that cannot be had is an error with the command that installs it, never a skipped
//! test.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod stores;

use std::io::Write as _;

/// Says past the test runner, which keeps what passing tests print to itself, that something was not tested here.
pub fn skipped(what: &str, why: &dyn std::fmt::Display) {
    // Nothing else can be told if this cannot.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}

#[cfg(target_os = "linux")]
mod apache;
#[cfg(target_os = "linux")]
mod device;
#[cfg(windows)]
mod fake_ncrypt;
#[cfg(target_os = "linux")]
mod shim;
#[cfg(target_os = "linux")]
mod spaces;
#[cfg(target_os = "linux")]
mod swtpm;
#[cfg(target_os = "linux")]
mod tpmrm0;

#[cfg(target_os = "linux")]
pub use apache::{Apache, Site};
#[cfg(target_os = "linux")]
pub use device::Device;
#[cfg(windows)]
pub use fake_ncrypt::{FakeNcrypt, spawn};
#[cfg(target_os = "linux")]
pub use shim::{Action, Shim, old_pss, response_code};
#[cfg(target_os = "linux")]
pub use swtpm::Swtpm;
#[cfg(target_os = "linux")]
pub use tpmrm0::Tpmrm0;
