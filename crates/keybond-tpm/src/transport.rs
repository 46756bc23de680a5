//! The way to a TPM: one command out, one response back, never longer than the deadline.

mod device;
mod stream;
mod tcp;
mod unix;

use std::{io, os::fd::AsFd, path::Path, time::Instant};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{address::TpmAddress, error::TpmError, wire::MAX_FRAME};

/// A connection to a TPM that carries frames. After any error it is good for nothing: a late answer would be
/// taken for the answer to the next command.
pub(crate) trait Transport: Send {
    /// Sends a whole command.
    fn send(&mut self, command: &[u8], deadline: Instant) -> Result<(), Fault>;

    /// Receives a whole response; its length is that of its header and at most [`MAX_FRAME`].
    fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, Fault>;
}

/// Why a frame did not get through.
#[derive(Debug)]
pub(crate) enum Fault {
    Io(io::Error),
    TimedOut,
    /// The length in the response's header.
    Length(u64),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Connects to the TPM at `address`.
///
/// # Errors
/// A definite answer at once (no device, no permission, somebody else's), or [`TpmError::DeadlineExceeded`].
pub(crate) fn connect(
    address: &TpmAddress,
    deadline: Instant,
) -> Result<Box<dyn Transport>, TpmError> {
    let started = Instant::now();
    let (fault, path) = match address {
        TpmAddress::Off => return Err(TpmError::Off),
        TpmAddress::Device(path) => match device::Device::open(path) {
            Ok(device) => return Ok(Box::new(device)),
            Err(fault) => (fault, Some(path)),
        },
        TpmAddress::Unix(path) => match unix::connect(path, deadline) {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(fault) => (fault, Some(path)),
        },
        TpmAddress::Tcp { host, port } => match tcp::connect(host, *port, deadline) {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(fault) => (fault, None),
        },
    };
    Err(explain(address, path.map(AsRef::as_ref), fault, started))
}

fn explain(address: &TpmAddress, path: Option<&Path>, fault: Fault, started: Instant) -> TpmError {
    let cause = match fault {
        Fault::Io(cause) => cause,
        Fault::TimedOut | Fault::Length(_) => {
            return TpmError::DeadlineExceeded {
                command: "connect",
                after: started.elapsed(),
            };
        }
    };
    match (Errno::from_io_error(&cause), path) {
        (Some(Errno::ACCESS | Errno::PERM), Some(path)) => device::permission_denied(path),
        (Some(Errno::BUSY), _) => TpmError::DeviceBusy {
            address: address.to_string(),
        },
        (Some(Errno::NOENT), Some(_))
            if matches!(address, TpmAddress::Device(_))
                && device::kernel_has_tpm12(Path::new("/sys/class/tpm")) =>
        {
            TpmError::Tpm12 {
                address: address.to_string(),
            }
        }
        _ => TpmError::NoDevice {
            address: address.to_string(),
            cause: cause.into(),
        },
    }
}

/// Waits until `fd` is ready for `flags` or in error.
fn wait(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> Result<(), Fault> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::TimedOut);
        }
        let timeout = Timespec::try_from(left).map_err(|_| Fault::TimedOut)?;
        match poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The length that a response's header claims, if it can be.
fn claimed_length(header: &[u8]) -> Result<usize, Fault> {
    let length = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
    match usize::try_from(length) {
        Ok(size) if (crate::wire::HEADER..=MAX_FRAME).contains(&size) => Ok(size),
        _ => Err(Fault::Length(length.into())),
    }
}
