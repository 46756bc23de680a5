//! What the services refuse, and with which words.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use keybond_emulator::{Emulator, Identity};
use serde_json::json;
use support::{
    Client, ISSUE, METADATA, REQUEST_ID,
    csr::{ClientKey, Request, dc},
    curl,
};

const JSON: &str = "Content-Type: application/json";

#[tokio::test]
async fn a_probe_learns_that_the_service_is_there() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let v1 = "/metadata/identity/oauth2/token?api-version=2018-02-01";
    for path in [METADATA, v1] {
        let answer = client.get(path, &[REQUEST_ID]).await.unwrap();
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.json(),
            json!({
                "error": "invalid_request",
                "error_description": "Required metadata header not specified",
            })
        );
        assert!(answer.header("server").unwrap().starts_with("IMDS/"));
    }
    let counters = azure.counters();
    assert_eq!((counters.probe, counters.v1_probe), (1, 1));
    assert_eq!((counters.metadata, counters.v1_token), (0, 0));
}

#[tokio::test]
async fn imds_refuses_requests_that_the_real_one_refuses() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let good = ["Metadata: true", REQUEST_ID];
    let metadata = "/metadata/identity/getplatformmetadata";
    let v1 = "/metadata/identity/oauth2/token";
    let selector = format!("{METADATA}&msi_res_id=/x");
    let v1_selector = format!("{v1}?api-version=2018-02-01&resource=x&mi_res_id=/x");
    let cases: &[(&str, &[&str], u16, &str)] = &[
        (
            METADATA,
            &["Metadata: yes", REQUEST_ID],
            400,
            "Required metadata header not specified",
        ),
        (METADATA, &["Metadata: true"], 400, "x-ms-client-request-id"),
        (
            METADATA,
            &["Metadata: true", "x-ms-client-request-id: 7"],
            400,
            "not a GUID",
        ),
        (
            METADATA,
            &["Metadata: true", REQUEST_ID, "X-Forwarded-For: 10.0.0.1"],
            400,
            "X-Forwarded-For",
        ),
        (
            metadata,
            &good,
            400,
            "Required query variable 'cred-api-version' is missing",
        ),
        (
            &format!("{metadata}?cred-api-version=1.0"),
            &good,
            400,
            "'cred-api-version' must be one of: 2.0",
        ),
        (
            &format!("{metadata}?api-version=2.0"),
            &good,
            400,
            "Unsupported query variables: api-version",
        ),
        (
            &selector,
            &good,
            400,
            "Unsupported query variables: msi_res_id",
        ),
        (
            &format!("{METADATA}&client_id=a&object_id=b"),
            &good,
            400,
            "Only one of the identity's ids",
        ),
        (
            &format!("{METADATA}&client_id=a&client_id=a"),
            &good,
            400,
            "'client_id' is given twice",
        ),
        (
            &format!("{METADATA}&client_id=nobody"),
            &good,
            400,
            "Identity not found",
        ),
        ("/metadata/identity/credential", &good, 404, "Not found"),
        (
            &v1_selector,
            &good,
            400,
            "Unsupported query variables: mi_res_id",
        ),
        (
            &format!("{v1}?api-version=2018-02-01"),
            &good,
            400,
            "'resource' is missing",
        ),
        (
            &format!("{v1}?api-version=2017-01-01&resource=x"),
            &good,
            400,
            "'api-version' must be one of",
        ),
        (ISSUE, &good, 405, "allowed: POST"),
    ];
    for (path, headers, status, says) in cases {
        let answer = client.get(path, headers).await.unwrap();
        let said = answer.description();
        assert_eq!(answer.status, *status, "{path}: {said}");
        assert!(said.contains(says), "{path}: {said}");
    }
    let unassigned = client.metadata("&client_id=nobody").await.unwrap();
    assert_eq!(unassigned.json()["error"], "identity_not_found");
    let posted = client.post(METADATA, "", &good).await.unwrap();
    assert_eq!(posted.status, 405);
    assert_eq!(posted.header("allow"), Some("GET"));
}

#[tokio::test]
async fn issuecredential_refuses_what_is_not_exactly_right() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let good = ["Metadata: true", REQUEST_ID, JSON];
    let key = ClientKey::new();
    let request = client.request("").await;
    let csr = request.base64(&key);
    let mut lines = csr.clone();
    lines.insert(64, '\n');
    let pem = "-----BEGIN CERTIFICATE REQUEST-----";
    let body = |csr: &str| json!({ "csr": csr }).to_string();
    let cases = [
        (
            body(&csr),
            &good[..2],
            "Content-Type must be application/json",
        ),
        ("{".into(), &good, "The body is not as expected"),
        ("{}".into(), &good, "missing field `csr`"),
        (
            json!({ "csr": csr, "bypass_cache": true }).to_string(),
            &good,
            "unknown field `bypass_cache`",
        ),
        (body(pem), &good, "not PEM"),
        (
            body(&lines),
            &good,
            "standard base64 with padding in one line",
        ),
        (
            body(
                csr.trim_end_matches('=')
                    .trim_end_matches(char::is_alphanumeric),
            ),
            &good,
            "csr:",
        ),
        (body(""), &good, "csr: byte 0"),
    ];
    for (body, headers, says) in cases {
        let answer = client.post(ISSUE, &body, headers).await.unwrap();
        assert_eq!(answer.status, 400);
        assert!(answer.description().contains(says), "{}", answer.json());
    }
    let path = format!("{ISSUE}&bypass_cache=maybe");
    let answer = client.post(&path, &body(&csr), &good).await.unwrap();
    assert_eq!(answer.status, 400);
    let path = format!("{ISSUE}&bypass_cache=true");
    let answer = client.post(&path, &body(&csr), &good).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(azure.counters().issue_bypass_cache, 1);

    // A refused request says where: here, that the domain component has the wrong string type.
    let mut other = request.clone();
    other.names[0] = dc(0x13, azure.tenant_id());
    let der = other.sign(&key);
    let answer = client.issue("", &STANDARD.encode(&der)).await.unwrap();
    assert_eq!(answer.status, 400);
    let refused = answer.json();
    let offset = usize::try_from(refused["csr"]["offset"].as_u64().unwrap()).unwrap();
    assert_eq!(der[offset], 0x13);
    assert_eq!(refused["csr"]["found"], "0x13");
    assert_eq!(refused["csr"]["expected"], "0x16 (IA5String)");
    assert!(
        answer
            .description()
            .starts_with(&format!("csr: byte {offset}: subject, first name")),
        "{refused}"
    );

    // The request of one identity is no request of another.
    let selector = format!("&client_id={}", client.user().client_id);
    let answer = client.issue(&selector, &csr).await.unwrap();
    assert!(answer.description().contains("CN=<client id>"));
}

#[tokio::test]
async fn an_attestation_token_may_be_required() {
    let azure = Emulator::builder()
        .require_attestation(true)
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let csr = client.request("").await.base64(&ClientKey::new());
    let headers = ["Metadata: true", REQUEST_ID, JSON];
    for body in [
        json!({ "csr": csr }),
        json!({ "csr": csr, "attestation_token": "" }),
    ] {
        let answer = client
            .post(ISSUE, &body.to_string(), &headers)
            .await
            .unwrap();
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.description(),
            "Attestation Token is missing / empty in the issue credential request"
        );
    }
    let body = json!({ "csr": csr, "attestation_token": "a.b.c" });
    let answer = client
        .post(ISSUE, &body.to_string(), &headers)
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn bodies_are_read_within_bounds() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big");
    std::fs::write(&file, vec![b'x'; 200 * 1024]).unwrap();
    let body = format!("@{}", file.display());
    let answer = client
        .post(
            ISSUE,
            &body,
            &["Metadata: true", REQUEST_ID, JSON, "Expect:"],
        )
        .await
        .unwrap();
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn the_token_service_refuses_with_azures_numbers() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let own = client.enrol("", &key).await;
    let system = client.system();
    let scope = "https://vault.azure.net/.default";
    let good = client.form(system, scope, "mtls_pop");
    let no_type = good.replace("&token_type=mtls_pop", "");

    // A certificate in every respect right, but of somebody else's authority.
    let stranger = Emulator::builder().start().await.unwrap();
    let elsewhere = Client::new(&stranger).enrol("", &key).await;
    let foreign = client.credential(&key, elsewhere.der, elsewhere.issued);

    let form = |from: &str, to: &str| good.replace(from, to);
    let id = system.client_id.as_str();
    let cases = [
        (None, good.clone(), 401, "invalid_client", 392_200),
        (Some(&foreign), good.clone(), 401, "invalid_client", 700_027),
        (
            Some(&own),
            form(id, &client.user().client_id),
            401,
            "invalid_client",
            700_027,
        ),
        (
            Some(&own),
            form("client_credentials", "password"),
            400,
            "unsupported_grant_type",
            70003,
        ),
        (Some(&own), no_type, 400, "invalid_request", 900_144),
        (
            Some(&own),
            form("mtls_pop", "pop"),
            400,
            "invalid_request",
            90013,
        ),
        (
            Some(&own),
            form("/.default", ""),
            400,
            "invalid_scope",
            70011,
        ),
        (
            Some(&own),
            form("vault.azure.net", "management.azure.com"),
            400,
            "invalid_request",
            392_196,
        ),
        (
            Some(&own),
            format!("{good}&client_assertion=x"),
            400,
            "invalid_request",
            90013,
        ),
        (
            Some(&own),
            format!("{good}&scope=x"),
            400,
            "invalid_request",
            90013,
        ),
        (
            Some(&own),
            format!("{good}&claims=nothing"),
            400,
            "invalid_request",
            900_134,
        ),
    ];
    for (credential, form, status, error, code) in cases {
        let answer = client.ask_token(credential, &form, &[]).await.unwrap();
        let said = answer.json();
        assert_eq!(answer.status, status, "{said}");
        assert_eq!(said["error"], error, "{said}");
        assert_eq!(said["error_codes"], json!([code]), "{said}");
        assert!(answer.description().starts_with(&format!("AADSTS{code}: ")));
        for field in ["trace_id", "correlation_id", "timestamp"] {
            assert!(said[field].as_str().is_some_and(|text| text.len() > 19));
        }
    }
    let answer = client
        .ask_token(Some(&own), &good, &["-H", "Content-Type: application/json"])
        .await
        .unwrap();
    assert_eq!(answer.status, 400);
    let url = client
        .token_url()
        .replace(azure.tenant_id(), "a0000000-0000-4000-8000-000000000000");
    let answer = client
        .tls(&url, Some(&own), &["--data", &good])
        .await
        .unwrap();
    assert_eq!(answer.json()["error_codes"], json!([90002]));
    let answer = client.tls(&client.token_url(), None, &[]).await.unwrap();
    assert_eq!(answer.status, 405);

    let correlated = client
        .ask_token(None, &good, &["-H", "client-request-id: mine"])
        .await
        .unwrap();
    assert_eq!(correlated.json()["correlation_id"], "mine");
    assert_eq!(correlated.header("client-request-id"), Some("mine"));
}

#[tokio::test]
async fn certificates_live_and_die_by_the_emulators_clock() {
    let azure = Emulator::builder()
        .certificate_lifetime(Duration::from_secs(90))
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let system = client.system();
    let credential = client.enrol("", &ClientKey::new()).await;
    let token = client.token(system, &credential).await;
    azure.advance_clock(Duration::from_secs(100)).unwrap();
    let form = client.form(system, "https://vault.azure.net/.default", "mtls_pop");
    let answer = client
        .ask_token(Some(&credential), &form, &[])
        .await
        .unwrap();
    assert_eq!(answer.json()["error_codes"], json!([1_000_502]));
    let answer = client.secret(Some(&credential), &token, &[]).await.unwrap();
    assert_eq!(answer.status, 401);
    assert!(answer.description().contains("validity"));
    // A new certificate is valid now.
    let renewed = client.enrol("", &ClientKey::new()).await;
    client.token(system, &renewed).await;
}

#[tokio::test]
async fn capabilities_travel_into_the_token() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    let form = client.form(
        client.system(),
        "https://vault.azure.net/.default",
        "mtls_pop",
    ) + r#"&claims={"access_token":{"xms_cc":{"values":["cp1"]}}}"#;
    let answer = client
        .ask_token(Some(&credential), &form, &[])
        .await
        .unwrap();
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["xms_cc"], json!(["cp1"]));
}

/// Runs openssl and hands back what it said.
async fn openssl(arguments: &[&str]) -> String {
    let output = tokio::process::Command::new("openssl")
        .args(arguments)
        .output()
        .await
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// An emulator that accepts and makes things that only it understands would prove nothing.
#[tokio::test]
async fn openssl_agrees_with_what_is_accepted_and_issued() {
    let azure = Emulator::builder()
        .machine_ids(Some("vm-1".into()), Some("vmss-1".into()))
        .identities([Identity::user_assigned(
            "a0000000-0000-4000-8000-00000000c009",
            "a0000000-0000-4000-8000-00000000b009",
            "/r",
        )])
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let request: Request = client.request("").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("csr.der");
    std::fs::write(&file, request.sign(&key)).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let said = openssl(&[
        "req",
        "-verify",
        "-noout",
        "-text",
        "-inform",
        "DER",
        "-in",
        &path(&file),
    ])
    .await;
    assert!(said.contains("verify OK"), "{said}");
    assert!(said.contains("Salt Length: 0x20"), "{said}");
    assert!(said.contains("1.3.6.1.4.1.311.90.2.10"), "{said}");

    let credential = client.enrol("", &key).await;
    let ca = path(&azure.ca_file());
    let certificate = path(&credential.certificate);
    let said = openssl(&[
        "verify",
        "-x509_strict",
        "-purpose",
        "sslclient",
        "-CAfile",
        &ca,
        &certificate,
    ])
    .await;
    assert!(said.contains(": OK"), "{said}");
    let said = openssl(&["x509", "-noout", "-text", "-in", &certificate]).await;
    assert!(
        said.contains(&format!(
            "Subject: DC = {}, CN = {}",
            azure.tenant_id(),
            azure.identities()[0].client_id
        )),
        "{said}"
    );
    assert!(said.contains("TLS Web Client Authentication"), "{said}");
    let said = openssl(&["x509", "-noout", "-text", "-in", &ca]).await;
    assert!(said.contains("not Azure"), "{said}");
}

/// What openssl makes by default is nearly right; the refusal points where its own tool points.
#[tokio::test]
async fn a_request_made_by_openssl_is_refused_where_asn1parse_shows_it() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, csr) = (path("key.pem"), path("csr.der"));
    let subject = format!("/DC={}/CN={}", azure.tenant_id(), client.system().client_id);
    let make = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha256"];
    let pss = [
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sigopt",
        "rsa_pss_saltlen:32",
    ];
    let files = [
        "-keyout", &key, "-out", &csr, "-outform", "DER", "-subj", &subject,
    ];
    openssl(&[&make[..], &pss, &files].concat()).await;

    let der = std::fs::read(&csr).unwrap();
    let answer = client.issue("", &STANDARD.encode(&der)).await.unwrap();
    assert_eq!(answer.status, 400);
    let refused = answer.json();
    // Everything up to the attributes is right; these are empty.
    assert_eq!(
        refused["csr"]["field"],
        "attribute 1.3.6.1.4.1.311.90.2.10 (CUID)"
    );
    let offset = refused["csr"]["offset"].as_u64().unwrap();
    let parsed = openssl(&["asn1parse", "-inform", "DER", "-in", &csr]).await;
    let attributes = parsed
        .lines()
        .find(|line| line.contains("cont [ 0 ]"))
        .unwrap();
    let at: u64 = attributes
        .split(':')
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(offset, at + 2, "after the header of the empty attributes");
}

/// Old TPMs sign with the longest salt whatever they are asked for: saying 32 is not enough.
#[tokio::test]
async fn a_signature_with_another_salt_than_it_says_is_refused() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let request = client.request("").await;
    let files = client.credential(&key, Vec::new(), json!(null));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (info, signature) = (path("info"), path("signature"));
    std::fs::write(&info, request.info(&key)).unwrap();
    for (salt, status) in [("32", 200), ("222", 400), ("0", 400)] {
        let salt = format!("rsa_pss_saltlen:{salt}");
        openssl(&[
            "dgst",
            "-sha256",
            "-sign",
            files.key.to_str().unwrap(),
            "-sigopt",
            "rsa_padding_mode:pss",
            "-sigopt",
            &salt,
            "-out",
            &signature,
            &info,
        ])
        .await;
        let der = request.with_signature(&key, &std::fs::read(&signature).unwrap());
        let answer = client.issue("", &STANDARD.encode(&der)).await.unwrap();
        assert_eq!(answer.status, status, "{salt}: {}", answer.json());
        if status == 400 {
            assert_eq!(answer.json()["csr"]["field"], "signature");
            assert_eq!(answer.json()["csr"]["offset"], der.len() - 256);
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_the_server() {
    let first = Emulator::builder().start().await.unwrap();
    let port = first
        .vault_url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let refusal = Emulator::builder()
        .ports(0, port, 0)
        .start()
        .await
        .unwrap_err();
    assert_eq!(refusal.code(), "emulator_listen_failed");
    assert!(refusal.retryable());
    assert_eq!(
        refusal.to_string(),
        format!("sts: cannot listen on 127.0.0.1:{port}")
    );
}

#[tokio::test]
async fn the_servers_certificates_pass_strict_verification() {
    let azure = Emulator::builder().start().await.unwrap();
    let ca = azure.ca_file();
    for url in [azure.sts_url(), azure.vault_url()] {
        for host in ["localhost", "127.0.0.1"] {
            let connect = url
                .replace("https://", "")
                .replace("localhost", "127.0.0.1");
            let mut openssl = tokio::process::Command::new("openssl");
            openssl
                .args(["s_client", "-x509_strict", "-verify_return_error"])
                .args(["-connect", &connect, "-CAfile", ca.to_str().unwrap()])
                .args(match host {
                    "localhost" => ["-verify_hostname", host],
                    _ => ["-verify_ip", host],
                })
                .stdin(std::process::Stdio::null());
            let output = openssl.output().await.unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        }
        // Without the authority nobody trusts it: curl's code 60.
        assert_eq!(curl(&[&url]).await.err(), Some(60));
    }
}
