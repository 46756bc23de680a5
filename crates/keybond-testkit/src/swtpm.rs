//! A software TPM 2.0 per test: a child process with its own state, on a Unix socket.

use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::shim::read_frame;

/// swtpm answers its first connection within some 50 ms; a loaded machine gets a lot more.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running (or stopped, or killed) software TPM. Dropping it kills the process and deletes its state.
///
/// swtpm serves one connection at a time: a client that keeps its connection makes others wait.
#[derive(Debug)]
pub struct Swtpm {
    dir: TempDir,
    child: Option<Child>,
}

impl Swtpm {
    /// Starts a TPM on an empty state, which it manufactures itself. It is started up and has no EK certificate.
    ///
    /// # Errors
    /// If swtpm is not installed or does not open its socket.
    pub fn start() -> io::Result<Self> {
        // The path of a Unix socket has at most 107 bytes, so it lies directly below the temporary directory.
        let dir = tempfile::Builder::new().prefix("swtpm-").tempdir()?;
        fs::create_dir(dir.path().join("state"))?;
        let mut tpm = Self { dir, child: None };
        tpm.restart()?;
        Ok(tpm)
    }

    /// The Unix socket that takes commands.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// The address in keybond's notation, `unix:/…`.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// The address in the notation of tpm2-tools and the tpm2 provider of OpenSSL.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket().display())
    }

    /// A directory that lives as long as this TPM, for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops the process with SIGSTOP: a TPM that hangs.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a stopped process go on.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process with SIGKILL: a TPM that loses power.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the process if it runs and starts it again on the same state: a power cycle.
    ///
    /// # Errors
    /// As [`Swtpm::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        let socket = self.socket();
        let control = self.dir.path().join("sock.ctrl");
        for stale in [&socket, &control] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", self.dir.path().join("state").display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .arg("--log")
            .arg(format!(
                "file={},level=1",
                self.dir.path().join("log").display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                let hint = "swtpm cannot be started (apt-get install swtpm)";
                io::Error::new(error.kind(), format!("{hint}: {error}"))
            })?;
        self.child = Some(child);
        self.wait_for_socket(&socket)
    }

    /// Clears the TPM (TPM2_Clear with the lockout hierarchy's empty password): whatever was made below its
    /// storage root is gone for good. The endorsement key stays what it is.
    ///
    /// # Errors
    /// If the TPM does not answer, or refuses.
    pub fn clear(&self) -> io::Result<()> {
        let mut clear = vec![0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x26];
        clear.extend_from_slice(&0x4000_000au32.to_be_bytes());
        // One password session: handle, no nonce, no attributes, an empty password.
        clear.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        let mut stream = UnixStream::connect(self.socket())?;
        stream.write_all(&clear)?;
        let answer = read_frame(&mut stream)?;
        match answer.get(6..10) {
            Some([0, 0, 0, 0]) => Ok(()),
            code => Err(io::Error::other(format!("TPM2_Clear: {code:02x?}"))),
        }
    }

    fn wait_for_socket(&mut self, socket: &Path) -> io::Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            match UnixStream::connect(socket) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().transpose()) {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!(
                    "swtpm ended, {:?}: {log}",
                    status?
                )));
            }
            // swtpm announces its socket by nothing but the socket.
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self
            .child
            .as_ref()
            .and_then(|child| Pid::from_raw(child.id().cast_signed()));
        // The child is ours and not yet waited for, so its process id cannot belong to anybody else.
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill();
    }
}
