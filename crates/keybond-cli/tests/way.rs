//! The whole way over process borders: `keybond emulate` in one process, the other verbs in others, and curl
//! and openssl as the independent witnesses.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;
use support::{Azure, KEYBOND, ok};

#[test]
fn token_and_call_in_processes_of_their_own() {
    let azure = Azure::start();
    let token: Value = serde_json::from_str(&ok(azure.keybond(&[
        "token",
        "https://vault.azure.net",
        "--json",
    ])))
    .unwrap();
    assert_eq!(token["token_type"], "mtls_pop");
    assert_eq!(token["strength"], "software");
    assert_eq!(
        token["access_token"].as_str().unwrap().split('.').count(),
        3
    );

    let answer: Value = serde_json::from_str(&ok(azure.keybond(&[
        "call",
        &azure.secret_url(),
        "--resource",
        "https://vault.azure.net",
    ])))
    .unwrap();
    assert!(answer["value"].is_string(), "{answer}");
}

#[test]
fn verbose_calls_show_the_legs_and_no_secret() {
    let azure = Azure::start();
    let resource = ["--resource", "https://vault.azure.net"];
    let output = azure.keybond(&[
        "call",
        "-v",
        "--log",
        "trace",
        &azure.secret_url(),
        resource[0],
        resource[1],
    ]);
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{shown}");
    for leg in [
        "metadata",
        "issue",
        "token",
        "resource",
        "client signed PS256",
    ] {
        assert!(shown.contains(leg), "no {leg} in:\n{shown}");
    }
    // Every JWT begins like this.
    assert!(!shown.contains("eyJ"), "a token in the log:\n{shown}");
}

#[test]
fn curl_with_a_stolen_token_is_refused() {
    let azure = Azure::start();
    let token = ok(azure.keybond(&["token", "https://vault.azure.net"]));
    let status = ok(Command::new("curl")
        .args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--cacert",
        ])
        .arg(&azure.env["KEYBOND_CA_FILE"])
        .args([
            "--header",
            &format!("Authorization: mtls_pop {}", token.trim()),
        ])
        .args(["--header", "x-ms-tokenboundauth: true", &azure.secret_url()])
        .output()
        .unwrap());
    assert_eq!(status, "401");
}

#[test]
fn openssl_verifies_the_request_in_every_form() {
    let csr = |form: &str| {
        let output = Command::new(KEYBOND)
            .args([
                "csr",
                "--client-id",
                "11111111-1111-1111-1111-111111111111",
                form,
            ])
            .args(["--tenant-id", "22222222-2222-2222-2222-222222222222"])
            .args(["--vm-id", "33333333-3333-3333-3333-333333333333"])
            .env("KEYBOND_TPM", "off")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let dir = tempfile::tempdir().unwrap();
    let verify = |file: &Path, form: &str| {
        let output = Command::new("openssl")
            .args(["req", "-verify", "-noout", "-text", "-inform", form, "-in"])
            .arg(file)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            output.status.success() && said.contains("verify OK"),
            "{said}"
        );
        assert!(said.contains("rsassaPss"), "{said}");
    };
    for (option, form) in [("--pem", "PEM"), ("--der", "DER")] {
        let file = dir.path().join(form);
        std::fs::write(&file, csr(option)).unwrap();
        verify(&file, form);
    }
    let line = String::from_utf8(csr("--base64")).unwrap();
    assert_eq!(line.trim_end_matches('\n').lines().count(), 1);
}

#[test]
fn the_demo_ends_well_and_says_so_in_json() {
    let output = Command::new(KEYBOND)
        .args(["demo", "--json"])
        .env("KEYBOND_TPM", "off")
        .output()
        .unwrap();
    let demo: Value = serde_json::from_str(&ok(output)).unwrap();
    assert_eq!(demo["ok"], true, "{demo:#}");
    let statuses: Vec<_> = demo["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [401, 401, 401, 200]);
    assert_eq!(demo["binding"]["certificate"], demo["binding"]["cnf"]);
}

#[test]
fn the_variable_of_the_log_tells_legs_with_one_id_and_no_secret() {
    let azure = Azure::start();
    let output = Command::new(KEYBOND)
        .args(["token", "https://vault.azure.net", "--json"])
        .envs(&azure.env)
        .env("KEYBOND_TPM", "off")
        .env("KEYBOND_LOG", "trace")
        .env("IDENTITY_HEADER", "a-header-secret")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    let token: Value = serde_json::from_str(&ok(output)).unwrap();
    let ids: BTreeSet<_> = log
        .split("correlation_id=")
        .skip(1)
        .map(|rest| &rest[..36])
        .collect();
    assert_eq!(ids.len(), 1, "{log}");
    assert!(log.contains("MIv2.STS.mTLS.Token"), "{log}");
    let mut secrets: Vec<_> = token["access_token"].as_str().unwrap().split('.').collect();
    secrets.extend(["a-header-secret", "eyJ", &azure.env["KEYBOND_CA_FILE"]]);
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

#[test]
fn nobody_there_is_exit_code_4() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let output = Command::new(KEYBOND)
        .args(["token", "https://vault.azure.net"])
        .env(
            "AZURE_POD_IDENTITY_AUTHORITY_HOST",
            format!("http://127.0.0.1:{port}"),
        )
        .env("KEYBOND_TPM", "off")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{shown}");
    assert!(shown.contains("to do:"), "{shown}");
}

#[test]
fn story_15_an_operator_switches_bound_tokens_off_with_a_file() {
    let azure = Azure::start();
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().to_str().unwrap();
    let keybond = |arguments: &[&str]| {
        let with_state = [arguments, &["--state-dir", directory, "--json"]].concat();
        azure.keybond(&with_state)
    };
    let found: Value = serde_json::from_str(&ok(keybond(&["capabilities"]))).unwrap();
    assert_eq!(found["bound_tokens"], true, "{found}");
    assert_eq!(found["strength_shown"], false, "{found}");
    assert_eq!(found["source"]["source"], "imds_v2");
    let found: Value = serde_json::from_str(&ok(keybond(&["capabilities", "--make-key"]))).unwrap();
    assert_eq!(
        (&found["strength_shown"], &found["strength"]),
        (&true.into(), &"software".into())
    );

    std::fs::write(state.path().join("disable-imds-v2"), "").unwrap();
    let code = "mtls_pop_administratively_disabled";
    let refused = keybond(&["token", "https://vault.azure.net"]);
    assert_eq!(refused.status.code(), Some(3));
    let shown: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(shown["error"]["code"], code, "{shown}");

    let found = keybond(&["capabilities"]);
    assert_eq!(found.status.code(), Some(3));
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["why_not"]["code"], code, "{found}");
    assert_eq!(found["bearer_tokens"], true, "{found}");
    let doctor: Value = serde_json::from_str(&ok(keybond(&["doctor"]))).unwrap();
    let reason = doctor["source"]["findings"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("administratively disabled"), "{doctor}");

    // Bound to nothing only for whoever says so, and it shows.
    let token = ok(keybond(&[
        "token",
        "https://vault.azure.net",
        "--allow-bearer",
    ]));
    let token: Value = serde_json::from_str(&token).unwrap();
    assert_eq!(token["token_type"], "Bearer");
    assert_eq!(token["downgraded"]["code"], code);
    assert_eq!(token["strength"], Value::Null);

    std::fs::remove_file(state.path().join("disable-imds-v2")).unwrap();
    let token = ok(keybond(&[
        "token",
        "https://vault.azure.net",
        "--allow-bearer",
    ]));
    let token: Value = serde_json::from_str(&token).unwrap();
    assert_eq!(token["token_type"], "mtls_pop");
    assert_eq!(token["downgraded"], Value::Null);
}

#[test]
fn story_06_capabilities_off_azure_are_none_at_once() {
    let started = std::time::Instant::now();
    let output = Command::new(KEYBOND)
        .args(["capabilities"])
        .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
        .env("KEYBOND_TPM", "off")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{shown}");
    assert!(shown.contains("bound tokens   no: "), "{shown}");
    // The process itself has to start, on a machine that may be busy.
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

/// The second process finds what the first one kept, and openssl reads the same file.
#[cfg(target_os = "linux")]
#[test]
fn a_certificate_is_kept_for_the_next_process() {
    let azure = Azure::start();
    let tpm = keybond_testkit::Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let (address, state) = (tpm.address(), state.to_string_lossy().into_owned());
    let cert = |verb: &str| -> Value {
        let place = ["--tpm", &address, "--state-dir", &state];
        let line = [&["cert", verb, "--json"], &place[..]].concat();
        serde_json::from_str(&ok(azure.keybond(&line))).unwrap()
    };
    let first = cert("show");
    let second = cert("show");
    assert_eq!(first["x5t#S256"], second["x5t#S256"]);
    assert_eq!(first["key_id"], second["key_id"]);

    let file = first["file"].as_str().unwrap();
    let line = [
        "x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253",
    ];
    let read = Command::new("openssl").args(line).output().unwrap();
    let subject = format!("subject={}", first["subject"].as_str().unwrap());
    assert_eq!(ok(read).trim().to_lowercase(), subject.to_lowercase());

    let renewed = cert("renew");
    assert_ne!(renewed["x5t#S256"], first["x5t#S256"]);
    assert_eq!(renewed["file"], first["file"]);
    assert_eq!(cert("show")["x5t#S256"], renewed["x5t#S256"]);

    let text = ok(azure.keybond(&["cert", "show", "--state-dir", &state]));
    assert!(text.contains("in this process alone"), "{text}");
}
