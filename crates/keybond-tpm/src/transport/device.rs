//! The kernel's character device. One write is a command, one read is a response (drivers/char/tpm).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Instant,
};

use rustix::{event::PollFlags, fs::OFlags, process::geteuid};

use super::{Fault, Transport, claimed_length, wait};
use crate::{
    error::TpmError,
    wire::{HEADER, MAX_FRAME},
};

/// An open device. In non-blocking mode a write only hands the command over, and poll tells when the answer is
/// there (Linux 5.0 and later); older kernels block in the write, and then only the caller's own deadline helps.
pub(super) struct Device(File);

impl Device {
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        // No NOFOLLOW: udev may make the device's name a link.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Ok(Self(file))
    }
}

impl Transport for Device {
    fn send(&mut self, command: &[u8], deadline: Instant) -> Result<(), Fault> {
        loop {
            match self.0.write(command) {
                Ok(written) if written == command.len() => return Ok(()),
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.0, PollFlags::OUT, deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, Fault> {
        let mut response = vec![0; MAX_FRAME];
        let mut filled = 0;
        loop {
            wait(&self.0, PollFlags::IN, deadline)?;
            match self.0.read(&mut response[filled..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                // In one piece, as a rule; the kernel allows reading in several (Linux 4.20).
                Ok(read) => filled += read,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(error) => return Err(error.into()),
            }
            if filled >= HEADER {
                match claimed_length(&response)? {
                    claimed if claimed == filled => {
                        response.truncate(filled);
                        return Ok(response);
                    }
                    claimed if claimed < filled => return Err(Fault::Length(claimed as u64)),
                    _ => {}
                }
            }
        }
    }
}

/// Says who may open `path`.
pub(super) fn permission_denied(path: &Path) -> TpmError {
    let (owner, group, mode) = match fs::metadata(path) {
        Ok(meta) => (
            name("/etc/passwd", meta.uid()),
            name("/etc/group", meta.gid()),
            meta.mode() & 0o7777,
        ),
        Err(_) => ("?".into(), "?".into(), 0),
    };
    TpmError::PermissionDenied {
        path: path.to_path_buf(),
        user: name("/etc/passwd", geteuid().as_raw()),
        owner,
        group,
        mode,
    }
}

/// The name that a file in the format of passwd(5) or group(5) gives to an id, or the id.
fn name(file: &str, id: u32) -> String {
    let table = fs::read_to_string(file).unwrap_or_default();
    let found = table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id.to_string()).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| id.to_string())
}

/// Whether the kernel knows a TPM, and it is a 1.2: then there is no /dev/tpmrm0.
pub(super) fn kernel_has_tpm12(class: &Path) -> bool {
    let Ok(entries) = fs::read_dir(class) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let version = fs::read_to_string(entry.path().join("tpm_version_major"));
        // Kernels before 5.5 have no such file, but only a 1.2 has these capabilities.
        let caps = fs::read_to_string(entry.path().join("caps"))
            .or_else(|_| fs::read_to_string(entry.path().join("device/caps")));
        match (version, caps) {
            (Ok(version), _) => version.trim() == "1",
            (Err(_), Ok(caps)) => caps.contains("TCG version: 1.2"),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_1_2_is_recognised_by_what_the_kernel_says() {
        let class = tempfile::tempdir().unwrap();
        assert!(!kernel_has_tpm12(class.path()));
        assert!(!kernel_has_tpm12(&class.path().join("absent")));
        let tpm0 = class.path().join("tpm0");
        fs::create_dir(&tpm0).unwrap();
        assert!(!kernel_has_tpm12(class.path()));
        fs::write(tpm0.join("tpm_version_major"), "2\n").unwrap();
        assert!(!kernel_has_tpm12(class.path()));
        fs::write(tpm0.join("tpm_version_major"), "1\n").unwrap();
        assert!(kernel_has_tpm12(class.path()));
    }

    #[test]
    fn ids_become_names_where_a_name_is_known() {
        assert_eq!(name("/etc/passwd", 0), "root");
        assert_eq!(name("/etc/passwd", 4_294_900_000), "4294900000");
        assert_eq!(name("/nonexistent", 7), "7");
    }
}
