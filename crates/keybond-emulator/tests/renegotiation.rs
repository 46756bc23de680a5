//! The vault that asks for the certificate by renegotiation, as OpenSSL, curl and rustls meet it.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, pin::Pin, process::Stdio, sync::Arc};

use keybond_emulator::Emulator;
use support::{Answer, Client, Credential, csr::ClientKey};
use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt, ReadBuf};
use tokio_rustls::rustls::{self, pki_types::ServerName};

const HEADER: &str = "x-ms-tokenboundauth: true";
const NO_CERTIFICATE: &str = "Client certificate required for using MTLS_POP token";

/// An emulator's client with a credential and a token.
struct Bench<'a> {
    client: Client<'a>,
    credential: Credential,
    token: String,
}

impl<'a> Bench<'a> {
    async fn new(azure: &'a Emulator) -> Self {
        let client = Client::new(azure);
        let credential = client.enrol("", &ClientKey::new()).await;
        let token = client.token(client.system(), &credential).await;
        Self {
            client,
            credential,
            token,
        }
    }

    fn port(&self) -> String {
        let url = self.client.azure.renegotiating_vault_url();
        url.rsplit_once(':').unwrap().1.to_owned()
    }

    async fn curl(
        &self,
        path: &str,
        credential: Option<&Credential>,
        arguments: &[&str],
    ) -> Result<Answer, i32> {
        let url = format!("{}{path}", self.client.azure.renegotiating_vault_url());
        let authorization = format!("Authorization: mtls_pop {}", self.token);
        let mut all = vec!["-H", &*authorization, "--tls-max", "1.2"];
        all.extend(arguments);
        self.client.tls(&url, credential, &all).await
    }

    fn request(&self, headers: &[&str]) -> String {
        let mut request = format!(
            "GET {SECRET} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: mtls_pop {}\r\n",
            self.token
        );
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request + "\r\n"
    }

    /// What `openssl s_client` says, on both streams.
    async fn s_client(&self, arguments: &[&str], input: &str, conf: Option<&Path>) -> String {
        let address = format!("localhost:{}", self.port());
        let ca = self.client.azure.ca_file();
        let mut command = tokio::process::Command::new("openssl");
        command
            .args([
                "s_client",
                "-connect",
                &address,
                "-ign_eof",
                "-verify_return_error",
            ])
            .args(["-servername", "localhost", "-CAfile", ca.to_str().unwrap()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(conf) = conf {
            command.env("OPENSSL_CONF", conf);
        }
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A client that was refused reads no more.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let (out, err) = (output.stdout, output.stderr);
        String::from_utf8_lossy(&[out, err].concat()).into_owned()
    }

    fn key_arguments(&self) -> [&str; 4] {
        [
            "-cert",
            self.credential.certificate.to_str().unwrap(),
            "-key",
            self.credential.key.to_str().unwrap(),
        ]
    }
}

const SECRET: &str = "/secrets/demo?api-version=7.4";

#[tokio::test]
async fn curl_opens_it_and_is_refused_in_the_words_of_the_other_vault() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let own = Some(&bench.credential);

    let opened = bench.curl(SECRET, own, &["-H", HEADER]).await.unwrap();
    assert_eq!(opened.status, 200, "{}", opened.json());
    assert_eq!(opened.json()["value"], "opened by a bound token");
    let id = opened.json()["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with(&azure.renegotiating_vault_url()), "{id}");
    assert_eq!(azure.counters().renegotiations, 1);

    let other = bench.client.enrol("", &ClientKey::new()).await;
    for (credential, header, text) in [
        (own, None, "MtlsMissingClientCertificate"),
        (None, Some(HEADER), NO_CERTIFICATE),
        (
            Some(&other),
            Some(HEADER),
            "[MtlsCnfClaimRequestDataValidationFailed]",
        ),
    ] {
        let arguments: Vec<&str> = header
            .into_iter()
            .flat_map(|header| ["-H", header])
            .collect();
        let refused = bench.curl(SECRET, credential, &arguments).await.unwrap();
        assert_eq!(refused.status, 401);
        assert!(
            refused.description().starts_with(text),
            "{}",
            refused.description()
        );
        // The vault that asks in the first handshake says the same.
        let url = format!("{}{SECRET}", azure.vault_url());
        let authorization = format!("Authorization: mtls_pop {}", bench.token);
        let mut all = vec!["-H", &*authorization];
        all.extend(&arguments);
        let same = bench.client.tls(&url, credential, &all).await.unwrap();
        assert_eq!(same.description(), refused.description());
    }
    let counters = azure.counters();
    assert_eq!((counters.renegotiations, counters.mixed_bindings), (3, 2));
}

#[tokio::test]
async fn one_connection_is_asked_once() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let url = format!("{}{SECRET}", azure.renegotiating_vault_url());
    // Three requests over one connection of curl.
    let answer = bench
        .curl(SECRET, Some(&bench.credential), &["-H", HEADER, &url, &url])
        .await
        .unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(text.matches("200 OK").count(), 2, "{text}");
    let counters = azure.counters();
    assert_eq!((counters.vault, counters.renegotiations), (3, 1));
}

#[tokio::test]
async fn an_upload_of_curl_under_way_when_the_vault_asks_arrives() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 5_000_000]).unwrap();
    let data = format!("@{}", file.display());
    // Without this header curl would wait until the vault has read the head and answered.
    let arguments = ["-H", HEADER, "-H", "Expect:", "--data-binary", &data];
    let answer = bench
        .curl(
            "/checksum?api-version=7.4",
            Some(&bench.credential),
            &arguments,
        )
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(answer.json()["bytes"], 5_000_000);
    assert_eq!(azure.counters().renegotiations, 1);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_alert() {
    let azure = Emulator::builder().start().await.unwrap();
    let elsewhere = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let strangers = Bench::new(&elsewhere).await;
    let said = bench
        .s_client(
            &[&["-tls1_2"], &strangers.key_arguments()[..]].concat(),
            &bench.request(&[HEADER]),
            None,
        )
        .await;
    assert!(said.contains("alert unknown ca"), "{said}");
}

#[tokio::test]
async fn openssl_renegotiates_with_every_suite_group_and_scheme() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let keys = bench.key_arguments();
    for (arguments, said) in [
        (
            &["-cipher", "ECDHE-RSA-AES128-GCM-SHA256"][..],
            "ECDHE-RSA-AES128-GCM-SHA256",
        ),
        (
            &["-cipher", "ECDHE-RSA-AES256-GCM-SHA384"],
            "ECDHE-RSA-AES256-GCM-SHA384",
        ),
        (&["-groups", "X25519"], "X25519"),
        (&["-groups", "P-256"], "prime256v1"),
        (
            &["-sigalgs", "RSA-PSS+SHA512:ECDSA+SHA256"],
            "Secure Renegotiation IS supported",
        ),
        (
            &["-sigalgs", "RSA+SHA256:ECDSA+SHA256"],
            "Secure Renegotiation IS supported",
        ),
        (
            &["-sigalgs", "RSA+SHA384:ECDSA+SHA256"],
            "Secure Renegotiation IS supported",
        ),
        (&["-alpn", "h2,http/1.1"], "ALPN protocol: http/1.1"),
        (
            &["-no_ticket", "-noservername"],
            "Extended master secret: yes",
        ),
    ] {
        let mut all = vec!["-tls1_2"];
        all.extend(keys);
        // `-servername` and `-noservername` exclude each other.
        all.extend(
            arguments
                .iter()
                .filter(|argument| **argument != "-noservername"),
        );
        let answer = bench.s_client(&all, &bench.request(&[HEADER]), None).await;
        assert!(
            answer.contains("HTTP/1.1 200 OK"),
            "{arguments:?}: {answer}"
        );
        assert!(answer.contains(said), "{arguments:?}: {answer}");
    }
    assert_eq!(azure.counters().renegotiations, 9);
}

#[tokio::test]
async fn gnutls_renegotiates_too() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let ca = azure.ca_file();
    let port = bench.port();
    for (priority, said) in [
        ("NORMAL", "*** Rehandshake was performed."),
        (
            "NORMAL:-VERS-ALL:+VERS-TLS1.2:-SIGN-ALL:+SIGN-RSA-SHA256:+SIGN-ECDSA-SHA256",
            "(RSA-SHA256)",
        ),
        (
            "NORMAL:-VERS-ALL:+VERS-TLS1.2:-GROUP-ALL:+GROUP-SECP256R1",
            "(ECDHE-SECP256R1)",
        ),
        (
            "NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM",
            "(AES-256-GCM)",
        ),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "Received alert [70]"),
    ] {
        let mut child = tokio::process::Command::new("gnutls-cli")
            .args(["--port", &port, "--x509cafile", ca.to_str().unwrap()])
            .arg("--x509certfile")
            .arg(&bench.credential.certificate)
            .arg("--x509keyfile")
            .arg(&bench.credential.key)
            .args(["--priority", priority, "localhost"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Kept open until the answer is there: at its end the client hangs up.
        let _ = stdin.write_all(bench.request(&[HEADER]).as_bytes()).await;
        let output = child.wait_with_output().await.unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains(said), "{priority}: {output}");
        if said != "Received alert [70]" {
            assert!(output.contains("HTTP/1.1 200 OK"), "{priority}: {output}");
        }
    }
    assert_eq!(azure.counters().renegotiations, 4);
}

#[tokio::test]
async fn without_the_extended_master_secret_it_works_too() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("openssl.cnf");
    std::fs::write(
        &conf,
        "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = defaults\n\
         [defaults]\nOptions = -ExtendedMasterSecret\n",
    )
    .unwrap();
    let keys = bench.key_arguments();
    let all = [&["-tls1_2"], &keys[..]].concat();
    let answer = bench
        .s_client(&all, &bench.request(&[HEADER]), Some(&conf))
        .await;
    assert!(answer.contains("Extended master secret: no"), "{answer}");
    assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn without_the_header_nothing_is_asked() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let all = [&["-tls1_2"], &bench.key_arguments()[..]].concat();
    let answer = bench.s_client(&all, &bench.request(&[]), None).await;
    assert!(answer.contains("MtlsMissingClientCertificate"), "{answer}");
    assert_eq!(azure.counters().renegotiations, 0);
}

#[tokio::test]
async fn whoever_cannot_speak_as_it_does_is_told_by_alert() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    for (arguments, alert) in [
        (&["-tls1_3"][..], "alert protocol version"),
        (
            &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            "alert protocol version",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"],
            "alert handshake failure",
        ),
        (&["-tls1_2", "-groups", "P-384"], "alert handshake failure"),
        (&["-tls1_2", "-alpn", "h2"], "alert no application protocol"),
    ] {
        let said = bench.s_client(arguments, "", None).await;
        assert!(said.contains(alert), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_client_that_will_not_renegotiate_goes_on_without_a_certificate() {
    let azure = Emulator::builder().start().await.unwrap();
    let bench = Bench::new(&azure).await;
    let mut roots = rustls::RootCertStore::empty();
    let pem = azure.ca_pem();
    let der = pem
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect::<String>();
    let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, der).unwrap();
    roots.add(der.into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", bench.port().parse().unwrap()))
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(name, tcp).await.unwrap();
    tls.write_all(bench.request(&[HEADER]).as_bytes())
        .await
        .unwrap();
    let (mut chunk, mut answer) = ([0; 4096], Vec::new());
    loop {
        let count = std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut chunk);
            let read = Pin::new(&mut tls).poll_read(cx, &mut buffer)?;
            // The refusal to renegotiate was made while reading and waits to be written.
            let _ = Pin::new(&mut tls).poll_flush(cx)?;
            read.map(|()| Ok::<_, std::io::Error>(buffer.filled().len()))
        });
        match count.await.unwrap() {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains(NO_CERTIFICATE), "{answer}");
    assert_eq!(azure.counters().renegotiations, 0);
}
