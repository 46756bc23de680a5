//! A software TPM on two neighbouring TCP ports, as libtss2 expects it.

use std::{
    io,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub(crate) struct Swtpm {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Swtpm {
    pub(crate) fn start() -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = two_free_ports()?;
        let tcp = |port: u16| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", dir.path().display())])
            .args(["--server", &tcp(port), "--ctrl", &tcp(port + 1)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let swtpm = Self { child, dir, port };
        let end = Instant::now() + Duration::from_secs(20);
        // It announces its ports by nothing but the ports.
        while let Err(error) = TcpStream::connect(("127.0.0.1", port)) {
            if Instant::now() > end {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(swtpm)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    pub(crate) fn tss_config(&self) -> String {
        format!("host=127.0.0.1,port={}", self.port)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn two_free_ports() -> io::Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        if let Some(next) = port.checked_add(1)
            && TcpListener::bind(("127.0.0.1", next)).is_ok()
        {
            return Ok(port);
        }
    }
    Err(io::Error::other("no two neighbouring ports are free"))
}
