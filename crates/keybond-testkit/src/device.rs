//! A character device in front of a TPM, for the device transport where the kernel has no TPM: a pseudo-terminal
//! in raw mode. Unlike /dev/tpmrm0 it neither separates users nor cleans up after them.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};

/// A device file. Dropping it makes it end for whoever has it open.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    _keep_open: OwnedFd,
}

impl Device {
    /// Makes a device in front of the TPM at the Unix socket `upstream`.
    ///
    /// # Errors
    /// If there are no pseudo-terminals.
    pub fn start(upstream: &Path) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let path = PathBuf::from(path.to_string_lossy().into_owned());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(&path, flags, Mode::empty())?;
        let mut mode = tcgetattr(&slave)?;
        mode.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &mode)?;
        let (mut master, upstream) = (File::from(master), upstream.to_path_buf());
        thread::spawn(move || {
            // Ends with an error when the last user of the other side is gone.
            while serve(&mut master, &upstream).is_ok() {}
        });
        Ok(Self {
            path,
            _keep_open: slave,
        })
    }

    /// The device file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The address in keybond's notation, `device:/…`.
    pub fn address(&self) -> String {
        format!("device:{}", self.path.display())
    }
}

/// Carries one command and its response.
fn serve(master: &mut File, upstream: &Path) -> io::Result<()> {
    let command = crate::shim::read_frame(master)?;
    let mut tpm = UnixStream::connect(upstream)?;
    tpm.write_all(&command)?;
    let response = crate::shim::read_frame(&mut tpm)?;
    master.write_all(&response)
}
