//! Apache httpd as a peer: a client certificate is asked for once the request is known, by renegotiation.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{net::TcpStream, sync::mpsc, time::timeout};

use crate::pki::Pki;

const PROGRAM: &str = "/usr/sbin/apache2";

pub(crate) struct Apache {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Apache {
    /// Starts Apache with one host that speaks `protocol` (`TLSv1.2`) and waits until it serves.
    pub(crate) async fn start(pki: &Pki, protocol: &str) -> Self {
        // Apache cannot choose a port; one that was free may be taken in between.
        for _ in 0..10 {
            if let Some(apache) = Self::try_start(pki, protocol).await {
                return apache;
            }
        }
        panic!("Apache found no free port ten times");
    }

    async fn try_start(pki: &Pki, protocol: &str) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = tempfile::tempdir().unwrap();
        let config = write_site(dir.path(), pki, protocol, port);
        let mut child = Command::new(PROGRAM)
            .args(["-D", "FOREGROUND", "-f"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("these tests need {PROGRAM} (Debian: apt-get install apache2-bin): {error}")
            });
        let (sender, mut lines) = mpsc::unbounded_channel();
        let stderr = child.stderr.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let apache = Self {
            child,
            port,
            _dir: dir,
        };
        let mut seen = Vec::new();
        loop {
            match timeout(Duration::from_secs(20), lines.recv()).await {
                Ok(Some(line)) if line.contains("resuming normal operations") => {
                    // The rest must be read on, or Apache stops at a full pipe.
                    tokio::spawn(async move { while lines.recv().await.is_some() {} });
                    return Some(apache);
                }
                Ok(Some(line)) if line.contains("Address already in use") => return None,
                Ok(Some(line)) => seen.push(line),
                _ => panic!("Apache did not start:\n{}", seen.join("\n")),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // Its children only end when asked politely.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

fn write_site(dir: &Path, pki: &Pki, protocol: &str, port: u16) -> std::path::PathBuf {
    // The workers run as another user when the tests run as root.
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(dir.join("htdocs/secure")).unwrap();
    fs::write(dir.join("htdocs/open"), "open\n").unwrap();
    fs::write(dir.join("htdocs/secure/secret"), "secret\n").unwrap();
    fs::create_dir_all(dir.join("cgi/secure")).unwrap();
    let script = dir.join("cgi/secure/sum");
    fs::write(
        &script,
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec sha256sum\n",
    )
    .unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("server.pem"), &pki.server.pem).unwrap();
    fs::write(dir.join("server.key"), pki.server.key.serialize_pem()).unwrap();
    fs::write(dir.join("ca.pem"), &pki.ca_pem).unwrap();
    let config = CONFIG
        .replace("@DIR@", dir.to_str().unwrap())
        .replace("@PROTOCOL@", protocol)
        .replace("@PORT@", &port.to_string());
    let path = dir.join("httpd.conf");
    fs::write(&path, config).unwrap();
    path
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
