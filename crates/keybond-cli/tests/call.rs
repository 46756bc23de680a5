//! `keybond call` as people use it: bodies from files and pipes, answers into files, what `-v` shows.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use support::{Azure, ok};

const RESOURCE: [&str; 2] = ["--resource", "https://vault.azure.net"];

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn bodies_come_from_pipes_and_files_and_answers_go_to_files() {
    let azure = Azure::start();
    let dir = tempfile::tempdir().unwrap();
    let (body, answer) = (dir.path().join("body.json"), dir.path().join("answer.json"));
    let json = [
        "-H",
        "Content-Type: application/json",
        "-X",
        "PUT",
        "--fail",
    ];
    for vault in [
        "KEYBOND_DEMO_VAULT_URL",
        "KEYBOND_DEMO_RENEGOTIATING_VAULT_URL",
    ] {
        let url = format!("{}/secrets/piped?api-version=7.4", azure.env[vault]);
        // More than a server keeps while it asks for the certificate.
        let value = "p".repeat(20_000);
        let input = format!("{{\"value\":\"{value}\"}}");
        let mut command = azure.command(&["call", &url, "-d", "@-"]);
        command.args(RESOURCE).args(json);
        ok(with_input(command, input.as_bytes()));

        std::fs::write(&body, format!("{{\"value\":\"{}\"}}", "f".repeat(20_000))).unwrap();
        let file = format!("@{}", body.display());
        let mut command = azure.command(&["call", &url, "-d", &file]);
        ok(command.args(RESOURCE).args(json).output().unwrap());

        let mut command = azure.command(&["call", &url, "-o", answer.to_str().unwrap()]);
        let shown = ok(command.args(RESOURCE).arg("--fail").output().unwrap());
        assert_eq!(shown, "");
        let got = std::fs::read_to_string(&answer).unwrap();
        assert!(got.contains(&"f".repeat(20_000)), "{got}");
    }
}

#[test]
fn what_v_shows_names_the_certificate_and_no_secret() {
    let azure = Azure::start();
    let url = format!("{}&sig=do-not-show", azure.secret_url());
    let mut command = azure.command(&["call", "-v", &url, "-H", "X-Key: do-not-show"]);
    let output = command.args(RESOURCE).output().unwrap();
    let shown = String::from_utf8(output.stderr).unwrap();
    for part in [
        "> GET localhost/secrets/demo",
        "* certificate x5t#S256 ",
        ", shown; key ",
        "* resource ",
        "TLS 1.2",
        "client signed PS256",
        "< 400",
    ] {
        assert!(shown.contains(part), "no {part} in:\n{shown}");
    }
    assert!(
        !shown.contains("do-not-show") && !shown.contains("eyJ"),
        "{shown}"
    );
}

#[test]
fn a_refusal_is_a_failure_only_if_it_is_to_be() {
    let azure = Azure::start();
    let url = format!(
        "{}/secrets/none?api-version=7.4",
        azure.env["KEYBOND_DEMO_VAULT_URL"]
    );
    let plain = azure
        .command(&["call", &url])
        .args(RESOURCE)
        .output()
        .unwrap();
    assert!(ok(plain).contains("SecretNotFound"));
    let failing = azure
        .command(&["call", &url, "--fail"])
        .args(RESOURCE)
        .output()
        .unwrap();
    assert_eq!(failing.status.code(), Some(1));
    let said = String::from_utf8(failing.stderr).unwrap();
    assert!(
        said.contains("SecretNotFound") && said.contains("http_status"),
        "{said}"
    );
    assert!(failing.stdout.is_empty());
}
