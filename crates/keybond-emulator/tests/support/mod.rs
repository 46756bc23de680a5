//! Clients made of other people's tools: curl for HTTP and TLS, and a hand-written signing request.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code, missing_docs)]

pub mod csr;

use std::{path::PathBuf, process::Stdio};

use base64::{Engine, engine::general_purpose::STANDARD};
use csr::{ClientKey, Request};
use keybond_emulator::{Emulator, Identity};
use serde_json::{Value, json};

pub const REQUEST_ID: &str = "x-ms-client-request-id: 11111111-2222-4333-8444-555555555555";
pub const METADATA: &str = "/metadata/identity/getplatformmetadata?cred-api-version=2.0";
pub const ISSUE: &str = "/metadata/identity/issuecredential?cred-api-version=2.0";

/// What curl received.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The description of an error of IMDS or of the token service.
    pub fn description(&self) -> String {
        let json = self.json();
        json["error_description"]
            .as_str()
            .or(json["error"]["message"].as_str())
            .unwrap_or_else(|| panic!("no description in {json}"))
            .to_owned()
    }
}

/// Runs curl; its exit code if it fails.
pub async fn curl(arguments: &[&str]) -> Result<Answer, i32> {
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--include", "--max-time", "60", "--http1.1"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    if !output.status.success() {
        return Err(output.status.code().unwrap());
    }
    let end = output
        .stdout
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(output.stdout[..end].to_vec()).unwrap();
    Ok(Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: output.stdout[end + 4..].to_vec(),
    })
}

/// A key, its certificate, and both as files for curl.
pub struct Credential {
    pub key: PathBuf,
    pub certificate: PathBuf,
    pub der: Vec<u8>,
    pub issued: Value,
}

/// A client of one emulator.
pub struct Client<'a> {
    pub azure: &'a Emulator,
    folder: tempfile::TempDir,
}

impl<'a> Client<'a> {
    pub fn new(azure: &'a Emulator) -> Self {
        Self {
            azure,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The system-assigned identity.
    pub fn system(&self) -> &'a Identity {
        &self.azure.identities()[0]
    }

    /// The user-assigned identity.
    pub fn user(&self) -> &'a Identity {
        &self.azure.identities()[1]
    }

    pub async fn get(&self, path: &str, headers: &[&str]) -> Result<Answer, i32> {
        let url = format!("{}{path}", self.azure.imds_url());
        let mut arguments = vec![url.as_str()];
        for header in headers {
            arguments.extend(["-H", *header]);
        }
        curl(&arguments).await
    }

    pub async fn metadata(&self, selector: &str) -> Result<Answer, i32> {
        let path = format!("{METADATA}{selector}");
        self.get(&path, &["Metadata: true", REQUEST_ID]).await
    }

    /// The signing request that the metadata of an identity asks for.
    pub async fn request(&self, selector: &str) -> Request {
        let metadata = self.metadata(selector).await.unwrap().json();
        Request::new(
            metadata["clientId"].as_str().unwrap(),
            metadata["tenantId"].as_str().unwrap(),
            &metadata["cuId"].to_string(),
        )
    }

    pub async fn post(&self, path: &str, body: &str, headers: &[&str]) -> Result<Answer, i32> {
        let url = format!("{}{path}", self.azure.imds_url());
        let mut arguments = vec![url.as_str(), "--data-binary", body];
        for header in headers {
            arguments.extend(["-H", *header]);
        }
        curl(&arguments).await
    }

    pub async fn issue(&self, selector: &str, csr: &str) -> Result<Answer, i32> {
        self.post(
            &format!("{ISSUE}{selector}"),
            &json!({ "csr": csr }).to_string(),
            &[
                "Metadata: true",
                REQUEST_ID,
                "Content-Type: application/json; charset=utf-8",
            ],
        )
        .await
    }

    /// Gets a certificate for a key.
    pub async fn enrol(&self, selector: &str, key: &ClientKey) -> Credential {
        let csr = self.request(selector).await.base64(key);
        let answer = self.issue(selector, &csr).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.json());
        let issued = answer.json();
        let der = STANDARD
            .decode(issued["certificate"].as_str().unwrap())
            .unwrap();
        self.credential(key, der, issued)
    }

    pub fn credential(&self, key: &ClientKey, der: Vec<u8>, issued: Value) -> Credential {
        let write = |label: &str, der: &[u8]| {
            let body = STANDARD.encode(der);
            let lines: Vec<&str> = body
                .as_bytes()
                .chunks(64)
                .map(|line| std::str::from_utf8(line).unwrap())
                .collect();
            let count = std::fs::read_dir(self.folder.path()).unwrap().count();
            let path = self.folder.path().join(format!("{count}.pem"));
            let pem = format!(
                "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
                lines.join("\n")
            );
            std::fs::write(&path, pem).unwrap();
            path
        };
        Credential {
            key: write("PRIVATE KEY", &key.pkcs8()),
            certificate: write("CERTIFICATE", &der),
            der,
            issued,
        }
    }

    /// Asks a TLS server, with or without a client certificate.
    pub async fn tls(
        &self,
        url: &str,
        credential: Option<&Credential>,
        arguments: &[&str],
    ) -> Result<Answer, i32> {
        let ca = self.azure.ca_file();
        let mut all = vec![url, "--cacert", ca.to_str().unwrap()];
        if let Some(credential) = credential {
            all.extend([
                "--cert",
                credential.certificate.to_str().unwrap(),
                "--key",
                credential.key.to_str().unwrap(),
            ]);
        }
        all.extend(arguments);
        curl(&all).await
    }

    pub fn token_url(&self) -> String {
        format!(
            "{}/{}/oauth2/v2.0/token",
            self.azure.sts_url(),
            self.azure.tenant_id()
        )
    }

    pub fn form(&self, identity: &Identity, scope: &str, token_type: &str) -> String {
        format!(
            "grant_type=client_credentials&client_id={}&scope={scope}&token_type={token_type}",
            identity.client_id
        )
    }

    pub async fn ask_token(
        &self,
        credential: Option<&Credential>,
        form: &str,
        arguments: &[&str],
    ) -> Result<Answer, i32> {
        let mut all = vec!["--data", form];
        all.extend(arguments);
        self.tls(&self.token_url(), credential, &all).await
    }

    /// Asks the token service of the Service Fabric cluster, with its secret.
    pub async fn fabric(&self, query: &str, arguments: &[&str]) -> Result<Answer, i32> {
        let [(_, endpoint), (_, secret), _] = &self.azure.service_fabric_env()[..] else {
            panic!("three variables lead to a cluster");
        };
        let url = format!("{endpoint}?api-version=2020-05-01&{query}");
        let secret = format!("secret: {secret}");
        let mut all = vec!["-H", secret.as_str()];
        all.extend(arguments);
        self.tls(&url, None, &all).await
    }

    /// A bound token for the vault.
    pub async fn token(&self, identity: &Identity, credential: &Credential) -> String {
        let form = self.form(identity, "https://vault.azure.net/.default", "mtls_pop");
        let answer = self.ask_token(Some(credential), &form, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    pub async fn secret(
        &self,
        credential: Option<&Credential>,
        token: &str,
        arguments: &[&str],
    ) -> Result<Answer, i32> {
        let url = format!("{}/secrets/demo?api-version=7.4", self.azure.vault_url());
        let authorization = format!("Authorization: mtls_pop {token}");
        let mut all = vec!["-H", &*authorization, "-H", "x-ms-tokenboundauth: true"];
        all.extend(arguments);
        self.tls(&url, credential, &all).await
    }
}
