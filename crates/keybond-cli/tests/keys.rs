//! Keys in a PKCS#11 token and proofs of possession, from the command line.
#![allow(clippy::unwrap_used)]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

fn keybond(arguments: &[&str], stdin: &[u8], environment: &[(&str, String)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_keybond"))
        .args(arguments)
        .env("KEYBOND_TPM", "off")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn ok(output: Output) -> Vec<u8> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A SoftHSM token of the test's own, and the environment that leads to it.
fn token() -> (TempDir, Vec<(&'static str, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let (conf, tokens) = (dir.path().join("softhsm2.conf"), dir.path().join("tokens"));
    std::fs::create_dir(&tokens).unwrap();
    std::fs::write(
        &conf,
        format!("directories.tokendir = {}\n", tokens.display()),
    )
    .unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "keybond",
            "--pin",
            "271828",
            "--so-pin",
            "314159",
        ])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let uri = "pkcs11:token=keybond?module-path=/usr/lib/softhsm/libsofthsm2.so".to_owned();
    let environment = vec![
        ("SOFTHSM2_CONF", conf.display().to_string()),
        ("KEYBOND_PKCS11", uri),
        ("KEYBOND_PKCS11_PIN", "271828".to_owned()),
        (
            "KEYBOND_STATE_DIR",
            dir.path().join("state").display().to_string(),
        ),
    ];
    (dir, environment)
}

#[test]
fn a_key_in_a_token_is_hardware_and_stays() {
    let (dir, environment) = token();
    let show = || -> Value {
        let shown = ok(keybond(
            &["key", "show", "--json", "--min-strength", "hardware"],
            b"",
            &environment,
        ));
        serde_json::from_slice(&shown).unwrap()
    };
    let key = show();
    assert_eq!(
        (&key["store"], &key["strength"]),
        (&"pkcs11".into(), &"hardware".into())
    );
    assert_eq!(
        show()["key_id"],
        key["key_id"],
        "another process finds the same key"
    );

    let rotated = ok(keybond(&["key", "rotate", "--json"], b"", &environment));
    let rotated: Value = serde_json::from_slice(&rotated).unwrap();
    assert_eq!(rotated["from"], key["key_id"]);
    assert_eq!(
        show()["key_id"],
        rotated["to"],
        "another process finds the new key"
    );

    let pem = dir.path().join("public.pem");
    std::fs::write(&pem, ok(keybond(&["key", "public"], b"", &environment))).unwrap();
    let signature = dir.path().join("signature");
    std::fs::write(
        &signature,
        ok(keybond(&["key", "sign", "RS256"], b"hello", &environment)),
    )
    .unwrap();
    let message = dir.path().join("message");
    std::fs::write(&message, b"hello").unwrap();
    let verified = Command::new("openssl")
        .args(["dgst", "-sha256", "-verify"])
        .arg(&pem)
        .arg("-signature")
        .args([&signature, &message])
        .output()
        .unwrap();
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );

    ok(keybond(&["key", "delete", "--yes"], b"", &environment));
    assert_ne!(show()["key_id"], key["key_id"]);
}

#[test]
fn a_wrong_pin_is_told_and_never_shown() {
    let (_dir, mut environment) = token();
    environment[2].1 = "99999999".into();
    let output = keybond(
        &["key", "show", "--min-strength", "hardware"],
        b"",
        &environment,
    );
    let shown = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{shown}");
    assert!(shown.contains("permission_denied"), "{shown}");
    assert!(!shown.contains("99999999"), "{shown}");
}

#[test]
fn the_demo_runs_with_keys_in_a_token() {
    let (_dir, environment) = token();
    let demo: Value =
        serde_json::from_slice(&ok(keybond(&["demo", "--json"], b"", &environment))).unwrap();
    assert_eq!(
        (&demo["ok"], &demo["key"]["store"]),
        (&true.into(), &"pkcs11".into()),
        "{demo:#}"
    );
}

#[test]
fn proofs_of_possession_take_the_token_from_standard_input() {
    let url = "https://resource.example/items";
    let shr = String::from_utf8(ok(keybond(
        &["pop", "shr", "GET", url],
        b"the-token\n",
        &[],
    )))
    .unwrap();
    assert_eq!(shr.trim_end().split('.').count(), 3, "{shr}");
    let dpop = ok(keybond(
        &[
            "pop",
            "dpop",
            "POST",
            url,
            "--scheme",
            "RS256",
            "--with-token",
        ],
        b"the-token",
        &[],
    ));
    assert_eq!(
        String::from_utf8(dpop)
            .unwrap()
            .trim_end()
            .split('.')
            .count(),
        3
    );
    for (arguments, stdin) in [
        (&["pop", "shr", "GET", url][..], &b""[..]),
        (&["pop", "dpop", "GET", "/no-host"], b""),
        (&["pop", "dpop", "GE T", url], b""),
    ] {
        assert_eq!(
            keybond(arguments, stdin, &[]).status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
}

#[test]
fn the_age_of_a_key_is_shown() {
    let shown = ok(keybond(&["key", "show"], b"", &[]));
    let shown = String::from_utf8(shown).unwrap();
    let age = shown.lines().find_map(|line| line.strip_prefix("age "));
    // Just made, on a slow machine.
    let age = age.unwrap().trim_start();
    assert!(age.contains(" second"), "{age}");
    assert!(age.contains(", made at 2"), "{age}");
}

#[test]
fn doctor_does_not_wait_for_a_metadata_service_that_never_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let output = keybond(
        &["doctor"],
        b"",
        &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", address)],
    );
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{shown}");
    assert!(shown.contains("not finished within 600ms"), "{shown}");
}

#[test]
fn every_verb_that_uses_a_key_heeds_the_floor() {
    let uuid = |digit: &str| format!("{0}-{1}-{1}-{1}-{0}{1}", digit.repeat(8), digit.repeat(4));
    let (client, tenant, vm) = (uuid("1"), uuid("2"), uuid("3"));
    let csr = [
        "csr",
        "--client-id",
        &client,
        "--tenant-id",
        &tenant,
        "--vm-id",
        &vm,
    ];
    let url = "https://a.vault.azure.net/";
    for verb in [
        &["key", "show"][..],
        &["key", "sign", "PS256"],
        &["key", "public"],
        &["key", "rotate"],
        &["pop", "shr", "GET", url],
        &["pop", "dpop", "GET", url],
        &csr,
        &["token", "https://vault.azure.net"],
        &["call", url],
        &["demo"],
    ] {
        // Nothing answers there: a floor is checked before anything leaves the machine.
        let nowhere = "http://127.0.0.1:1".to_owned();
        let environment = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", nowhere)];
        let flag = [verb, &["--min-strength", "keyguard"]].concat();
        let variable = [
            environment[0].clone(),
            ("KEYBOND_MIN_STRENGTH", "keyguard".to_owned()),
        ];
        for output in [
            keybond(&flag, b"token", &environment),
            keybond(verb, b"token", &variable),
        ] {
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{verb:?}: {told}");
            assert!(told.contains("min_strength_not_met"), "{verb:?}: {told}");
        }
    }
    // A typo never lowers it.
    let typo = [("KEYBOND_MIN_STRENGTH", "hardwear".to_owned())];
    assert_eq!(keybond(&["key", "show"], b"", &typo).status.code(), Some(2));
}

#[test]
fn a_store_that_configuration_turns_off_says_so() {
    for (stores, code, cause) in [
        (
            "-memory",
            3,
            "disabled_by_policy: turned off by configuration",
        ),
        (
            "tpm2",
            3,
            "disabled_by_policy: not among the stores that configuration allows",
        ),
        (
            "+tpm2",
            3,
            "disabled_by_policy: configuration requires the store tpm2",
        ),
        ("memry", 2, "`memry` is no key store"),
    ] {
        let output = keybond(&["key", "show"], b"", &[("KEYBOND_STORES", stores.into())]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stores}: {told}");
        assert!(told.contains(cause), "{stores}: {told}");
    }
}
