//! Apache httpd as a server: a client certificate is asked for once the request is known, by renegotiation.

use std::{
    fs::{self, Permissions},
    io::{self, BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use tempfile::TempDir;

const PROGRAM: &str = "/usr/sbin/apache2";

/// What a server is, all in PEM.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// `TLSv1.2` or `TLSv1.3`.
    pub protocol: &'a str,
    /// The server's certificate, for `localhost`.
    pub certificate: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Who issues client certificates.
    pub client_authority: &'a str,
    /// Whom the server names instead, when it hints at issuers; the authority itself if not given.
    pub hinted_authority: Option<&'a str>,
}

/// A running server with `/open`, which asks for a certificate only if the header `x-ms-tokenboundauth` is `true`,
/// `/secure/secret`, which always asks, and `/cgi/secure/sum`, which answers with the SHA-256 of the body. Answers
/// say in `X-Client` whose certificate was seen.
#[derive(Debug)]
pub struct Apache {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Apache {
    /// Starts the server and waits until it serves.
    ///
    /// # Errors
    /// If Apache is not installed or does not start; the error holds its words.
    pub fn start(site: Site<'_>) -> io::Result<Self> {
        // Apache cannot choose a port; one that was free may be taken in between.
        for _ in 0..10 {
            if let Some(apache) = Self::try_start(site)? {
                return Ok(apache);
            }
        }
        Err(io::Error::other("Apache found no free port ten times"))
    }

    fn try_start(site: Site<'_>) -> io::Result<Option<Self>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = tempfile::tempdir()?;
        let config = write_site(dir.path(), site, port)?;
        let mut child = Command::new(PROGRAM)
            .args(["-D", "FOREGROUND", "-f"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                let text = format!("{PROGRAM} (Debian: apt-get install apache2-bin): {error}");
                io::Error::new(error.kind(), text)
            })?;
        let lines = lines_of(child.stderr.take());
        let apache = Self { child, port, dir };
        let mut seen = Vec::new();
        loop {
            match lines.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if line.contains("resuming normal operations") => return Ok(Some(apache)),
                Ok(line) if line.contains("Address already in use") => return Ok(None),
                Ok(line) => seen.push(line),
                Err(_) => {
                    let text = format!("Apache did not start:\n{}", seen.join("\n"));
                    return Err(io::Error::other(text));
                }
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// The directory whose files are served under `/`; those in `secure` need a certificate.
    pub fn documents(&self) -> PathBuf {
        self.dir.path().join("htdocs")
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // Its children only end when asked politely.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}

/// The lines of a stream, read to its end: Apache stops at a full pipe.
fn lines_of(stream: Option<impl io::Read + Send + 'static>) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        let lines = stream
            .into_iter()
            .flat_map(|stream| BufReader::new(stream).lines());
        for line in lines.map_while(Result::ok) {
            // Read on, though nobody may listen any more.
            let _ = sender.send(line);
        }
    });
    lines
}

fn write_site(dir: &Path, site: Site<'_>, port: u16) -> io::Result<PathBuf> {
    // The workers run as another user when the tests run as root.
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    fs::create_dir_all(dir.join("htdocs/secure"))?;
    fs::write(dir.join("htdocs/open"), "open\n")?;
    fs::write(dir.join("htdocs/secure/secret"), "secret\n")?;
    fs::create_dir_all(dir.join("cgi/secure"))?;
    let script = dir.join("cgi/secure/sum");
    fs::write(
        &script,
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec sha256sum\n",
    )?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    fs::write(dir.join("server.pem"), site.certificate)?;
    fs::write(dir.join("server.key"), site.key)?;
    fs::write(dir.join("ca.pem"), site.client_authority)?;
    let mut hints = String::new();
    if let Some(hinted) = site.hinted_authority {
        fs::write(dir.join("hinted.pem"), hinted)?;
        hints = format!("SSLCADNRequestFile {}/hinted.pem", dir.display());
    }
    let config = CONFIG
        .replace("@DIR@", &dir.display().to_string())
        .replace("@PROTOCOL@", site.protocol)
        .replace("@HINTS@", &hints)
        .replace("@PORT@", &port.to_string());
    let path = dir.join("httpd.conf");
    fs::write(&path, config)?;
    Ok(path)
}

const CONFIG: &str = r#"
ServerRoot @DIR@
DefaultRuntimeDir @DIR@
PidFile @DIR@/httpd.pid
ServerName localhost
User nobody
Group nogroup
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
LoadModule cgid_module /usr/lib/apache2/modules/mod_cgid.so
StartServers 1
ServerLimit 1
ThreadsPerChild 16
ThreadLimit 16
MinSpareThreads 1
MaxSpareThreads 16
MaxRequestWorkers 16
KeepAlive On
KeepAliveTimeout 30
ErrorLog /dev/stderr
LogLevel notice
DocumentRoot @DIR@/htdocs
ScriptAlias /cgi/ @DIR@/cgi/
ScriptSock @DIR@/cgisock
Header always set X-Client "%{SSL_CLIENT_S_DN}s"
Listen 127.0.0.1:@PORT@
SSLEngine on
SSLProtocol -all +@PROTOCOL@
SSLCertificateFile @DIR@/server.pem
SSLCertificateKeyFile @DIR@/server.key
SSLCACertificateFile @DIR@/ca.pem
SSLVerifyDepth 3
@HINTS@
<Directory />
 Require all granted
</Directory>
<Location /secure>
 SSLVerifyClient require
</Location>
<Location /cgi/secure>
 SSLVerifyClient require
 # Apache reads the request's body before it asks for the certificate.
 SSLRenegBufferSize 10000000
</Location>
<Location /open>
 <If "req('x-ms-tokenboundauth') == 'true'">
  SSLVerifyClient require
 </If>
</Location>
"#;
