//! The certificate request as OpenSSL, an independent reader, sees it.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keybond::{Csr, CsrSubject, CuId, build_csr, keys::KeyProvider};

async fn csr() -> Csr {
    let key = KeyProvider::in_memory().get_or_create_key().await.unwrap();
    let subject = CsrSubject {
        client_id: "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01".into(),
        tenant_id: "72f988bf-86f1-41af-91ab-2d7cd011db47".into(),
        cu_id: CuId {
            vm_id: Some("d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10".into()),
            vmss_id: Some("scale-set".into()),
        },
    };
    build_csr(&key, &subject).await.unwrap()
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text
}

#[tokio::test]
async fn openssl_verifies_the_signature_and_reads_the_same_content() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.pem");
    std::fs::write(&file, csr().await.to_pem()).unwrap();
    let text = openssl(&[
        "req",
        "-verify",
        "-noout",
        "-text",
        "-in",
        file.to_str().unwrap(),
    ]);
    for line in [
        "verify OK",
        "Version: 1 (0x0)",
        "Subject: DC = 72f988bf-86f1-41af-91ab-2d7cd011db47, CN = 0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01",
        "Public-Key: (2048 bit)",
        r#"1.3.6.1.4.1.311.90.2.10  :{"vmId":"d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10","vmssId":"scale-set"}"#,
        "Signature Algorithm: rsassaPss",
        "Hash Algorithm: sha256",
        "Mask Algorithm: mgf1 with sha256",
        "Salt Length: 0x20",
        "Trailer Field: 0x01 (default)",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&text).contains(&squeezed(line)), "{line}\n{text}");
    }
}

/// Types, order and absent parts: what `openssl req` does not show.
#[tokio::test]
async fn every_tag_is_as_the_service_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("request.der");
    let csr = csr().await;
    std::fs::write(&file, csr.der()).unwrap();
    let text = openssl(&["asn1parse", "-inform", "DER", "-in", file.to_str().unwrap()]);
    let found: Vec<String> = text
        .lines()
        .map(|line| {
            let depth = line.split("d=").nth(1).unwrap().split(' ').next().unwrap();
            let kind = line.split(": ").nth(1).unwrap();
            let kind = kind.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{depth} {}", kind.split('[').next().unwrap().trim_end())
        })
        .collect();
    let expected = "\
0 SEQUENCE
1 SEQUENCE
2 INTEGER :00
2 SEQUENCE
3 SET
4 SEQUENCE
5 OBJECT :domainComponent
5 IA5STRING :72f988bf-86f1-41af-91ab-2d7cd011db47
3 SET
4 SEQUENCE
5 OBJECT :commonName
5 PRINTABLESTRING :0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01
2 SEQUENCE
3 SEQUENCE
4 OBJECT :rsaEncryption
4 NULL
3 BIT STRING
2 cont
3 SEQUENCE
4 OBJECT :1.3.6.1.4.1.311.90.2.10
4 SET
5 UTF8STRING :{\"vmId\":\"d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10\",\"vmssId\":\"scale-set\"}
1 SEQUENCE
2 OBJECT :rsassaPss
2 SEQUENCE
3 cont
4 SEQUENCE
5 OBJECT :sha256
3 cont
4 SEQUENCE
5 OBJECT :mgf1
5 SEQUENCE
6 OBJECT :sha256
3 cont
4 INTEGER :20
1 BIT STRING";
    assert_eq!(found.join("\n"), expected, "{text}");
}

/// The golden file that the unit tests compare with is OpenSSL's, not ours.
#[test]
fn openssl_writes_the_golden_file() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made.der");
    let source = data.join("request-info.cnf");
    openssl(&[
        "asn1parse",
        "-genconf",
        source.to_str().unwrap(),
        "-noout",
        "-out",
        made.to_str().unwrap(),
    ]);
    let golden = std::fs::read(data.join("request-info.der")).unwrap();
    assert_eq!(std::fs::read(made).unwrap(), golden);
}

#[tokio::test]
async fn base64_is_one_line_of_the_same_bytes() {
    let csr = csr().await;
    let line = csr.to_base64();
    assert!(!line.contains(char::is_whitespace));
    assert_eq!(BASE64_STANDARD.decode(&line).unwrap(), csr.der());
    let pem = csr.to_pem();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(body, line);
    assert!(pem.lines().all(|line| line.len() <= 64));
}
