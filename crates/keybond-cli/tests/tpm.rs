//! The command with its key in a TPM: it says so, and openssl works with the very same key file.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use keybond_testkit::{Shim, Swtpm, old_pss};
use serde_json::Value;

/// A TPM, the way to it, and a state directory.
struct Bed {
    tpm: Swtpm,
    address: String,
    _shim: Option<Shim>,
}

impl Bed {
    fn new() -> Self {
        let tpm = Swtpm::start().unwrap();
        Self {
            address: tpm.address(),
            tpm,
            _shim: None,
        }
    }

    /// A chip that signs PSS with a salt of 222 bytes.
    fn old() -> Self {
        let tpm = Swtpm::start().unwrap();
        let shim = Shim::start(&tpm.socket(), old_pss).unwrap();
        Self {
            tpm,
            address: shim.address(),
            _shim: Some(shim),
        }
    }

    fn state(&self) -> PathBuf {
        self.tpm.dir().join("keybond")
    }

    fn keybond(&self, line: &str) -> Vec<u8> {
        let output = Command::new(env!("CARGO_BIN_EXE_keybond"))
            .args(line.split(' '))
            .args(["--tpm", &self.address, "--min-strength", "hardware"])
            .env("KEYBOND_STATE_DIR", self.state())
            .output()
            .unwrap();
        ok(line, output)
    }

    fn key(&self) -> Value {
        serde_json::from_slice(&self.keybond("key show --json")).unwrap()
    }

    /// Runs openssl in the directory of the TPM, which it can use as well.
    fn openssl(&self, line: &str) -> Vec<u8> {
        let output = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(self.tpm.dir())
            .env("TPM2OPENSSL_TCTI", self.tpm.tcti())
            .output()
            .unwrap();
        ok(line, output)
    }
}

/// What a program said, on both streams if it matters; it must succeed.
fn ok(line: &str, output: Output) -> Vec<u8> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
    output.stdout
}

fn detail<'a>(key: &'a Value, name: &str) -> &'a str {
    let details = key["evidence"]["properties"]["details"].as_array().unwrap();
    let found = details.iter().find(|pair| pair[0] == name);
    found.unwrap()[1].as_str().unwrap()
}

const TPM2: &str = "-provider tpm2 -provider default -propquery ?provider=tpm2";

#[test]
fn openssl_signs_with_the_very_same_key_file() {
    let bed = Bed::new();
    let key = bed.key();
    assert_eq!(
        (&key["store"], &key["strength"]),
        (&"tpm2".into(), &"hardware".into())
    );
    let file = bed.state().join("keys/default.pem");
    assert_eq!(
        key["evidence"]["properties"]["file"],
        file.to_str().unwrap()
    );

    let public = bed.keybond("key public");
    fs::write(bed.tpm.dir().join("public.pem"), &public).unwrap();
    fs::write(bed.tpm.dir().join("message"), b"hello").unwrap();
    let file = file.display();
    let theirs = bed.openssl(&format!(
        "pkey -provider tpm2 -provider default -in {file} -pubout"
    ));
    assert_eq!(theirs, public);

    // dgst: PKCS#1; pkeyutl: PSS with a salt as long as the hash. Openssl's own code verifies both.
    bed.openssl(&format!(
        "dgst {TPM2} -sha256 -sign {file} -out pkcs1 message"
    ));
    bed.openssl("dgst -sha256 -verify public.pem -signature pkcs1 message");
    bed.openssl(&format!(
        "pkeyutl {TPM2} -sign -inkey {file} -rawin -digest sha256 -pkeyopt rsa_padding_mode:pss -in message -out pss"
    ));
    bed.openssl(
        "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 -verify public.pem -signature pss message",
    );
}

#[test]
fn openssl_verifies_the_request_of_an_old_chip() {
    let bed = Bed::old();
    let key = bed.key();
    assert_eq!(key["store"], "tpm2");
    assert_eq!(detail(&key, "pss"), "synthesised");
    // The first invocation made the key, the second opens it.
    let csr = bed.keybond(
        "csr --pem --client-id 11111111-1111-1111-1111-111111111111 --tenant-id \
         22222222-2222-2222-2222-222222222222 --vm-id 33333333-3333-3333-3333-333333333333",
    );
    fs::write(bed.tpm.dir().join("request.pem"), csr).unwrap();
    let said = bed.openssl("req -verify -noout -text -in request.pem");
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("rsassaPss"), "{said}");
    assert!(said.contains("Salt Length: 0x20"), "{said}");
    let public = bed.openssl("req -noout -pubkey -in request.pem");
    assert_eq!(public, bed.keybond("key public"));
}

#[test]
fn doctor_shows_the_tpm_and_how_its_key_signs() {
    for (bed, pss) in [(Bed::new(), "native"), (Bed::old(), "synthesised")] {
        // There is no key yet, and doctor makes none.
        let before = doctor(&bed);
        let names = |details: &[Value]| -> Vec<String> {
            let name = |pair: &Value| pair[0].as_str().unwrap().to_owned();
            details.iter().map(name).collect()
        };
        assert_eq!(names(&before), ["tpm", "address"]);
        assert!(before[0][1].as_str().unwrap().contains("SW   TPM"));
        bed.key();
        let after = doctor(&bed);
        assert_eq!(names(&after), ["tpm", "address", "pss"]);
        assert_eq!(after[2][1], pss);
    }
}

/// What doctor says about the store tpm2. Its exit code is about Azure, too.
fn doctor(bed: &Bed) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_keybond"))
        .args(["doctor", "--json", "--tpm", &bed.address])
        .env("KEYBOND_STATE_DIR", bed.state())
        // Nobody is there, which is known at once.
        .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stores = said["stores"].as_array().unwrap();
    let store = stores
        .iter()
        .find(|store| store["store"] == "tpm2")
        .unwrap();
    assert_eq!(store["outcome"], "available", "{store:#}");
    store["details"].as_array().unwrap().clone()
}

#[test]
fn the_demo_goes_the_whole_way_with_a_key_in_the_tpm() {
    for (bed, pss) in [(Bed::new(), "native"), (Bed::old(), "synthesised")] {
        let kept = bed.tpm.dir().join("kept");
        let line = format!("demo --json --keep {}", kept.display());
        let demo: Value = serde_json::from_slice(&bed.keybond(&line)).unwrap();
        assert_eq!(demo["ok"], true, "{demo:#}");
        assert_eq!(demo["key"]["store"], "tpm2", "{pss}");
        assert_eq!(demo["key"]["strength"], "hardware", "{pss}");
        // In both versions of TLS, with a salt that the other side is strict about.
        let signed: Vec<_> = demo["legs"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|leg| leg["client_signature"] == "PS256")
            .map(|leg| leg["tls"].as_str().unwrap())
            .collect();
        assert_eq!(signed, ["TLS 1.3", "TLS 1.2"], "{demo:#}");

        // Openssl, with its own way to the same TPM, signs with the very key of the demo.
        let file = kept.join("keys/demo-honest.pem");
        let file = file.display();
        fs::write(bed.tpm.dir().join("message"), b"hello").unwrap();
        let public = bed.openssl(&format!("pkey {TPM2} -in {file} -pubout -outform DER"));
        fs::write(bed.tpm.dir().join("public.der"), &public).unwrap();
        let id = bed.openssl("dgst -sha256 -r public.der");
        let id = String::from_utf8(id).unwrap();
        assert_eq!(demo["key"]["id"], id.split(' ').next().unwrap());
        bed.openssl(&format!(
            "dgst {TPM2} -sha256 -sign {file} -out signature message"
        ));
        bed.openssl("dgst -sha256 -keyform DER -verify public.der -signature signature message");
    }
}
