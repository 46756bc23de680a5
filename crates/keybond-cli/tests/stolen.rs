//! What a stolen token is worth to curl: nothing without a certificate, with another identity's, or with a renewed one
//! of the very key it was made for. `keybond call` is served by the same vaults.
//!
//! curl needs keys that it can read, which keybond never hands out. So the victims here keep theirs in files of the
//! test's own; one attempt with everything that belongs together shows that curl would be served if it had it all.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keybond::{Binding, Environment, Identity, ManagedIdentity};
use keybond_emulator::{Emulator, IdentityKind};
use keybond_keys::{KeyProvider, StateDir};
use keybond_testkit::stores::FileStore;
use keybond_tls::{TrustRoots, default_connector};
use serde_json::Value;

const RESOURCE: &str = "https://vault.azure.net";
const PATH: &str = "secrets/demo?api-version=7.4";
const ANNOUNCED: [&str; 2] = ["--header", "x-ms-tokenboundauth: true"];

const NOT_ASKED: &str = "MtlsMissingClientCertificate: ";
const NO_CERTIFICATE: &str = "Client certificate required for using MTLS_POP token";
const OTHER_CERTIFICATE: &str = "[MtlsCnfClaimRequestDataValidationFailed] ";

struct Env(Vec<(&'static str, String)>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    }
}

/// Somebody whose key lies in a file.
struct Victim {
    client: ManagedIdentity,
    dir: PathBuf,
}

impl Victim {
    fn new(azure: &Emulator, dir: &Path, identity: Identity) -> Self {
        let state = StateDir::open(dir.to_owned()).unwrap();
        let store = FileStore::new(state.clone());
        let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
        let client = ManagedIdentity::builder()
            .identity(identity)
            .key_provider(KeyProvider::builder().store(store).state_dir(state).build())
            .tls(default_connector(&roots).unwrap())
            .environment(Arc::new(Env(azure.env())))
            .build()
            .unwrap();
        Self {
            client,
            dir: dir.to_owned(),
        }
    }

    /// The victim's key, and this certificate for it, as options of curl.
    fn papers(&self, binding: &Binding) -> [String; 6] {
        let keys = std::fs::read_dir(&self.dir).unwrap();
        let key = keys
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|end| end == "p8"))
            .unwrap();
        let certificate = self.dir.join(format!("{}.pem", binding.version()));
        let pem: String = binding
            .client_identity()
            .chain()
            .iter()
            .map(|der| {
                let text = STANDARD.encode(der);
                format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
            })
            .collect();
        std::fs::write(&certificate, pem).unwrap();
        [
            "--cert".into(),
            certificate.display().to_string(),
            "--key-type".into(),
            "DER".into(),
            "--key".into(),
            key.display().to_string(),
        ]
    }
}

/// The status and the body that curl gets.
fn curl(ca: &Path, url: &str, token: &str, options: &[&str]) -> (u16, Value) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--http1.1", "--tls-max", "1.2"])
        .args(["--write-out", "\n%{http_code}", "--cacert"])
        .arg(ca)
        .args(["--header", &format!("Authorization: mtls_pop {token}")])
        .args(options)
        .arg(url)
        .output()
        .unwrap();
    let answer = ok(output);
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn keybond(azure: &Emulator, ca: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keybond"));
    command
        .args(arguments)
        .envs(azure.env())
        .env("KEYBOND_CA_FILE", ca)
        .env("KEYBOND_TPM", "off")
        .env_remove("KEYBOND_MIN_STRENGTH");
    command.output().unwrap()
}

fn ok(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_token_opens_nothing() {
    let azure = Emulator::builder().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, azure.ca_pem()).unwrap();

    let user_assigned = azure
        .identities()
        .iter()
        .find(|identity| identity.kind == IdentityKind::UserAssigned)
        .map(|identity| Identity::client_id(&identity.client_id).unwrap());
    let victim = Victim::new(&azure, &dir.path().join("victim"), Identity::SystemAssigned);
    let other = Victim::new(&azure, &dir.path().join("other"), user_assigned.unwrap());
    let token = victim.client.token(RESOURCE).await.unwrap();
    let bound = token.binding().unwrap();
    let foreign = other.client.credential().await.unwrap();
    let renewed = victim.client.renew().await.unwrap();
    assert_eq!(renewed.key().id(), bound.key().id(), "the same key");
    assert_ne!(renewed.x5t_s256(), bound.x5t_s256());
    let stolen_from_command = ok(keybond(&azure, &ca, &["token", RESOURCE]));

    let none: [String; 0] = [];
    let foreign = other.papers(&foreign);
    let renewed = victim.papers(&renewed);
    for vault in [
        azure.vault_url().to_owned(),
        azure.renegotiating_vault_url().to_owned(),
    ] {
        let url = format!("{}/{PATH}", vault.trim_end_matches('/'));
        let attempt = |token: &str, header: &[&str], papers: &[String]| {
            let papers = papers.iter().map(String::as_str);
            let options: Vec<&str> = header.iter().copied().chain(papers).collect();
            curl(&ca, &url, token.trim(), &options)
        };
        let refused = |(status, body): (u16, Value), text: &str| {
            assert_eq!(status, 401, "{body}");
            let message = body["error"]["message"].as_str().unwrap();
            assert!(message.starts_with(text), "{message}");
            assert!(body["value"].is_null(), "{body}");
        };
        for token in [token.secret(), &stolen_from_command] {
            refused(attempt(token, &[], &none), NOT_ASKED);
            refused(attempt(token, &ANNOUNCED, &none), NO_CERTIFICATE);
            refused(attempt(token, &ANNOUNCED, &foreign), OTHER_CERTIFICATE);
            refused(attempt(token, &ANNOUNCED, &renewed), OTHER_CERTIFICATE);
        }

        let (status, body) = attempt(token.secret(), &ANNOUNCED, &victim.papers(bound));
        assert_eq!(status, 200, "with everything that belongs together: {body}");
        assert!(body["value"].is_string(), "{body}");

        let call = ["call", &url, "--resource", RESOURCE, "--fail"];
        let called = ok(keybond(&azure, &ca, &call));
        assert!(called.contains("\"value\""), "{called}");
    }
}
