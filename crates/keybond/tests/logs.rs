//! What the log must not hold at any level, whatever goes wrong: tokens, certificate requests, attestations,
//! secrets of headers, values of the environment. One test, for its subscriber is that of the process.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, Error, Leg,
    ManagedIdentity, ResourceRule, tls,
};
use keybond_emulator::{Emulator, Fault, FaultKind, Leg as Emulated};
use serde_json::json;
use support::{
    Bench, CLIENT, NOW, RESOURCE, TestEnv,
    azure::Service,
    machine::Machine,
    server::{Asked, Handler, Reply, Server},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Everything that anybody logs in this process from now on, spans and `log` records included.
    fn of_everybody() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What must not be found, by name.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &str) {
        assert!(
            secret.len() >= 8,
            "{name} is too short to be told from prose"
        );
        self.0.push((name.to_owned(), secret.to_owned()));
    }

    /// A JWT: its claims and its signature each are worth protecting.
    fn add_jwt(&mut self, name: &str, jwt: &str) {
        self.add(name, jwt);
        for part in jwt.split('.').skip(1) {
            self.add(name, part);
        }
    }

    /// Text that may be cut anywhere.
    fn add_pieces(&mut self, name: &str, secret: &str) {
        for piece in secret
            .as_bytes()
            .chunks(40)
            .filter(|piece| piece.len() == 40)
        {
            self.add(name, std::str::from_utf8(piece).unwrap());
        }
    }

    /// Those that a text holds, in any usual encoding.
    fn found_in(&self, text: &str) -> Vec<String> {
        let hex =
            |secret: &str| -> String { secret.bytes().map(|byte| format!("{byte:02x}")).collect() };
        let lower = text.to_ascii_lowercase();
        let mut found = Vec::new();
        for (name, secret) in &self.0 {
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let base64 = BASE64_STANDARD.encode(secret);
            let forms = BTreeSet::from([
                secret.clone(),
                base64.trim_end_matches('=').to_owned(),
                BASE64_URL_SAFE_NO_PAD.encode(secret),
                encoded,
                secret.escape_debug().to_string(),
                format!("{:?}", secret.as_bytes()),
            ]);
            let forms = forms.into_iter().filter(|form| text.contains(form));
            found.extend(forms.map(|form| format!("{name}: {form}")));
            if lower.contains(&hex(secret)) {
                found.push(format!("{name}, in hexadecimal digits"));
            }
        }
        found
    }
}

/// Words as long as no prose has them: keys, certificates and tokens in whatever encoding, those that no list
/// of secrets can name among them.
fn long_words(text: &str) -> Vec<&str> {
    let of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '_');
    let mut words: Vec<_> = text
        .split(|c| !of_word(c))
        .filter(|word| word.len() > 64 && !word.contains("/src/"))
        .collect();
    // An array of bytes, as `Debug` prints it.
    let numbers = |line: &&str| line.split(", ").filter(|n| n.parse::<u8>().is_ok()).count() > 32;
    words.extend(text.lines().filter(numbers));
    words
}

struct Attester(String);

impl AttestationProvider for Attester {
    fn attest<'a>(
        &'a self,
        _: AttestationRequest<'a>,
    ) -> tls::BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        Box::pin(async { Ok(AttestationToken::new(self.0.clone())) })
    }
}

/// The bound way through scripted services, honest first, then each of them at its worst: it repeats what it was
/// sent.
async fn scripted(secrets: &mut Secrets) {
    let attestation =
        support::azure::jwt(&json!({"attested": "ATTESTATION-CLAIMS-OF-THIS-MACHINE"}));
    secrets.add_jwt("attestation", &attestation);
    let bench = Bench::new().await;
    let client = |bench: &Bench| {
        bench
            .builder()
            .attestation(Arc::new(Attester(attestation.clone())))
            .build()
            .unwrap()
    };
    let honest = client(&bench);
    let token = honest.token(RESOURCE).await.unwrap();
    secrets.add_jwt("bound token", token.secret());
    let called = honest.get(&bench.azure.url("/")).resource(RESOURCE);
    called.send().await.unwrap().bytes().await.unwrap();
    let issue: serde_json::Value =
        serde_json::from_slice(&bench.azure.asked(Service::Issue)[0].body).unwrap();
    let csr = issue["csr"].as_str().unwrap();
    secrets.add_pieces("certificate request", csr);
    let hex: String = BASE64_STANDARD
        .decode(csr)
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    secrets.add_pieces("certificate request", &hex);

    for service in [Service::Metadata, Service::Issue, Service::Token] {
        for status in [200, 400, 503] {
            let stolen = token.secret().to_owned();
            bench.azure.twist(move |which, asked, honest| {
                if which == service {
                    echo(status, asked, &stolen)
                } else {
                    honest
                }
            });
            // Each of the answers is an error; a 503 is one after its retries or the deadline.
            let short = bench
                .builder()
                .attestation(Arc::new(Attester(attestation.clone())))
                .deadline(Duration::from_millis(300))
                .build()
                .unwrap();
            let error = short.token(RESOURCE).await.unwrap_err();
            tracing::info!(%error, debug = ?error, remedy = error.remedy(), "what a program logs");
        }
    }
    // Honest but for one member, which is read when the others have been found good.
    for (service, member, value) in [
        (
            Service::Issue,
            "mtls_authentication_endpoint",
            format!("https://user:{0}@evil.example/{0}?{0}", token.secret()),
        ),
        (Service::Issue, "tenant_id", token.secret().to_owned()),
        (Service::Issue, "certificate", csr.to_owned()),
        (Service::Token, "token_type", token.secret().to_owned()),
        (
            Service::Token,
            "access_token",
            format!("{}\u{7f}", token.secret()),
        ),
        (
            Service::Token,
            "access_token",
            support::azure::jwt(&json!({"cnf": {"x5t#S256": token.secret()}})),
        ),
    ] {
        bench.azure.twist_one(service, move |honest| {
            honest.with_member(member, value.clone().into())
        });
        let error = client(&bench).token(RESOURCE).await.unwrap_err();
        tracing::info!(%error, debug = ?error, remedy = error.remedy(), "what a program logs");
    }
    bench.azure.twist_one(Service::Issue, |_| Reply::HangUp);
    let short = bench
        .builder()
        .deadline(Duration::from_millis(300))
        .build()
        .unwrap();
    short.token(RESOURCE).await.unwrap_err();
    // The new certificate request has the same key, and a salt of its own.
    for asked in bench.azure.asked(Service::Issue) {
        let issue: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        secrets.add_pieces("certificate request", issue["csr"].as_str().unwrap());
    }
}

/// An answer that holds everything that was sent, and a token where none belongs.
fn echo(status: u16, asked: &Asked, token: &str) -> Reply {
    let sent = format!(
        "{} {:?} {}",
        asked.target,
        asked.headers,
        String::from_utf8_lossy(&asked.body)
    );
    let body = json!({
        "error": sent,
        "error_description": format!("{sent} {token}"),
        "token_type": token,
        "access_token": format!("{token} {sent}"),
        "clientId": token,
        "client_id": token,
        "trace_id": token,
        "correlation_id": sent,
        "mtls_authentication_endpoint": format!("https://user:{token}@evil.example/{token}?{token}"),
    });
    Reply::status(status, body.to_string()).with_header("x-ms-request-id", token)
}

/// The bound way through the emulator, over real TLS, with faults.
async fn emulated(secrets: &mut Secrets) {
    let azure = Emulator::builder()
        .secret("mine", "the-secret-in-the-vault")
        .start()
        .await
        .unwrap();
    secrets.add("the vault's secret", "the-secret-in-the-vault");
    let env = Arc::new(TestEnv::default());
    let mut set = |name: &str, value: &str| {
        env.set(name, value);
        secrets.add(name, value);
    };
    set(
        "AZURE_POD_IDENTITY_AUTHORITY_HOST",
        &format!("{}/path-of-the-environment", azure.imds_url()),
    );
    set(
        "MSAL_MI_IMDSV2_ALLOWED_HOSTS",
        "host-of-the-environment.example,localhost",
    );
    set("MSAL_MI_DISABLE_IMDS_V2", "treu-not-true");
    let mut roots = tls::TrustRoots::empty();
    roots.add_pem(azure.ca_pem().as_bytes()).unwrap();
    let connector = tls::default_connector(&roots).unwrap();
    let client = || {
        ManagedIdentity::builder()
            .key_provider(keybond::KeyProvider::in_memory())
            .tls(Arc::clone(&connector))
            .environment(env.clone())
            .resource_rule(
                ResourceRule::new("localhost")
                    .resource(RESOURCE)
                    .token_bound_header(),
            )
            .build()
            .unwrap()
    };
    let honest = client();
    let token = honest.token(RESOURCE).await.unwrap();
    secrets.add_jwt("bound token", token.secret());
    secrets.add_jwt(
        "bearer token",
        honest.bearer_token(RESOURCE).await.unwrap().secret(),
    );
    let url = format!("{}/secrets/mine?api-version=7.4", azure.vault_url());
    let secret = honest.get(&url).send().await.unwrap();
    assert_eq!(secret.status(), 200);
    secret.bytes().await.unwrap();

    for (leg, fault) in [
        (Emulated::Metadata, FaultKind::Garbage),
        (Emulated::Issue, FaultKind::Reset),
        (Emulated::Issue, FaultKind::NotUtf8),
        (Emulated::Token, FaultKind::Reset),
        (Emulated::Token, FaultKind::Garbage),
        (
            Emulated::Token,
            FaultKind::Redirect {
                status: 307,
                location: None,
            },
        ),
        (Emulated::Vault, FaultKind::Reset),
    ] {
        azure.inject(Fault::new(leg, fault).times(9)).unwrap();
        let _ = client().get(&url).send().await;
        azure.clear_faults();
    }
    // The token without its certificate, and another's certificate.
    let thief = client();
    thief.renew().await.unwrap();
    azure.revoke_all();
    let _ = thief.token(RESOURCE).await;
}

/// Tokens in files: kept, found, and files in which the token stands where it does not belong.
async fn files(secrets: &mut Secrets) {
    let machine = Machine::new().await;
    let token = machine.token().await;
    secrets.add_jwt("kept token", token.secret());
    machine.token().await;
    assert_eq!(machine.bench.azure.count(Service::Token), 1, "it was found");
    let record = || {
        let mut files = machine.files_in("tokens");
        files.retain(|file| file.extension().is_some_and(|kind| kind == "json"));
        files.pop().unwrap()
    };
    let honest: serde_json::Value = serde_json::from_slice(&fs::read(record()).unwrap()).unwrap();
    let members = honest.as_object().unwrap();
    for name in members.keys().map(String::as_str).chain(["unknown"]) {
        let mut changed = honest.clone();
        changed[name] = token.secret().into();
        fs::write(record(), changed.to_string()).unwrap();
        machine.token().await;
        let text = honest.to_string();
        fs::write(record(), &text[..text.len() - 3]).unwrap();
        machine.token().await;
    }
    let path = record();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    machine.token().await;
    fs::remove_dir_all(machine.state().join("tokens")).unwrap();
    fs::write(machine.state().join("tokens"), token.secret()).unwrap();
    machine.token().await;
}

/// Every source of bearer tokens, honest and repeating its secret.
async fn sources(secrets: &mut Secrets) {
    for (source, variables) in [
        (
            "App Service",
            &[
                (
                    "IDENTITY_ENDPOINT",
                    "http://{}/msi/app-service-path?code=url-secret-1",
                ),
                ("IDENTITY_HEADER", "header-secret-of-app-service"),
            ][..],
        ),
        (
            "Machine Learning",
            &[
                ("MSI_ENDPOINT", "http://{}/msi/learning-path"),
                ("MSI_SECRET", "header-secret-of-learning"),
            ],
        ),
        (
            "Cloud Shell",
            &[(
                "MSI_ENDPOINT",
                "http://{}/msi/cloud-shell-path?code=url-secret-2",
            )],
        ),
        (
            "Service Fabric",
            &[
                ("IDENTITY_ENDPOINT", "https://{}/msi/fabric-path"),
                ("IDENTITY_HEADER", "8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c"),
                (
                    "IDENTITY_SERVER_THUMBPRINT",
                    "00112233445566778899AABBCCDDEEFF00112233",
                ),
            ],
        ),
        (
            "Azure Arc",
            &[
                ("IDENTITY_ENDPOINT", "http://{}/metadata/arc-path"),
                ("IMDS_ENDPOINT", "http://{}/arc-imds-path"),
            ],
        ),
    ] {
        let bench = Bench::new().await;
        let root = TempDir::new().unwrap();
        let folder = root.path().join("var/opt/azcmagent/tokens");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("one.key"), "content-of-the-arc-key-file").unwrap();
        secrets.add("Arc's key", "content-of-the-arc-key-file");
        let bearer = support::azure::jwt(&json!({"bearer": format!("CLAIMS FROM {source}")}));
        secrets.add_jwt("bearer token", &bearer);
        let evil = Arc::new(Mutex::new(None));
        let mood = Arc::clone(&evil);
        let told = bearer.clone();
        let arc = source == "Azure Arc";
        let handler: Handler = Arc::new(move |asked| {
            if arc && asked.header("authorization").is_none() {
                let challenge = "Basic realm=/var/opt/azcmagent/tokens/one.key";
                return Reply::status(401, "").with_header("www-authenticate", challenge);
            }
            match *mood.lock().unwrap() {
                Some(status) => echo(status, asked, &told),
                None => Reply::json(&json!({
                    "access_token": told, "token_type": "Bearer", "expires_on": NOW.as_secs() + 3600,
                })),
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, handler).await;
        for (name, value) in variables {
            let value = value.replace("{}", &server.address.to_string());
            bench.env.set(name, &value);
            secrets.add(name, &value);
            for part in [
                "app-service-path",
                "learning-path",
                "cloud-shell-path",
                "fabric-path",
                "arc-path",
                "arc-imds-path",
                "url-secret-1",
                "url-secret-2",
            ] {
                if value.contains(part) {
                    secrets.add(name, part);
                }
            }
        }
        let client = || {
            bench
                .placeless()
                .filesystem_root(root.path())
                .build()
                .unwrap()
        };
        for status in [None, Some(200), Some(400), Some(403)] {
            *evil.lock().unwrap() = status;
            let ended = client().bearer_token(RESOURCE).await;
            // The thumbprint of the Fabric server is not the one in the environment.
            let good = status.is_none() && source != "Service Fabric";
            assert_eq!(ended.is_ok(), good, "{source} {status:?} {ended:?}");
            if let Err(error) = &ended {
                tracing::info!(%error, debug = ?error, remedy = error.remedy(), "what a program logs");
            }
        }
        client().token(RESOURCE).await.unwrap_err();
        client().source_probe().await.unwrap();
        for (name, value) in [
            (
                "IDENTITY_ENDPOINT",
                "http://user:password-in-url@203.0.113.9/token",
            ),
            ("MSI_ENDPOINT", "not-a-url-but-a-secret"),
        ] {
            if variables.iter().any(|(known, _)| *known == name) {
                bench.env.set(name, value);
                secrets.add(name, value);
                let error = client().bearer_token(RESOURCE).await.unwrap_err();
                tracing::info!(%error, debug = ?error, "what a program logs");
            }
        }
    }
}

/// Settings that cannot be used.
fn settings(secrets: &mut Secrets, bench: &Bench) {
    for value in [
        "ftp://user:password-one@127.0.0.1/",
        "http://user:password-two@127.0.0.1/",
        "http://203.0.113.7/path-three",
        "no URL, four",
    ] {
        bench.env.set("AZURE_POD_IDENTITY_AUTHORITY_HOST", value);
        secrets.add("AZURE_POD_IDENTITY_AUTHORITY_HOST", value);
        let error: Error = bench.placeless().build().unwrap_err();
        tracing::info!(%error, debug = ?error, "what a program logs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_the_log_at_any_level() {
    let log = Log::of_everybody();
    let mut secrets = Secrets::default();
    scripted(&mut secrets).await;
    emulated(&mut secrets).await;
    files(&mut secrets).await;
    sources(&mut secrets).await;
    settings(&mut secrets, &Bench::new().await);

    let text = log.text();
    for leg in Leg::ALL {
        if leg != Leg::Probe {
            assert!(
                text.contains(&format!("leg{{leg={leg} ")),
                "nothing is told of the {leg} leg"
            );
        }
    }
    for told in [
        "stage=\"MIv2.STS.mTLS.Token\"",
        "correlation_id=",
        "outcome=\"ok\"",
        "outcome=\"token_type_mismatch\"",
        "status=400",
        "a kept token is not used",
        "tokens are not shared",
    ] {
        assert!(text.contains(told), "{told} is not told");
    }
    assert!(text.contains(CLIENT), "ids are no secrets");
    let found = secrets.found_in(&text);
    assert!(found.is_empty(), "{found:#?}");
    let found = long_words(&text);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_search_finds_what_is_there() {
    let mut secrets = Secrets::default();
    secrets.add("secret", "a/secret+value");
    for text in [
        "x a/secret+value y",
        "YS9zZWNyZXQrdmFsdWU=",
        "a%2Fsecret%2Bvalue",
        "612F7365637265742B76616C7565",
        "[97, 47, 115, 101, 99, 114, 101, 116, 43, 118, 97, 108, 117, 101]",
    ] {
        assert_eq!(secrets.found_in(text).len(), 1, "{text}");
    }
    assert!(secrets.found_in("a secret value").is_empty());
    assert_eq!(long_words(&"QUJD".repeat(17)).len(), 1);
    assert_eq!(long_words(&format!("{:?}", [7_u8; 40])).len(), 1);
    assert!(long_words("prose, and 8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c").is_empty());
}
