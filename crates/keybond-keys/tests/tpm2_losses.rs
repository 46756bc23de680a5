//! Keys of a TPM that are lost, damaged or half made: each loss is told by its name, what is left of the key is
//! kept, and the next call has a key.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use keybond_keys::{
    HeldKey, KeyError, KeyEvent, KeyProvider, KeyProviderBuilder, Reason, SignatureScheme,
    StateDir, Tpm2Store, Verdict,
};
use keybond_testkit::{Action, Shim, Swtpm, response_code};

/// A provider over nothing but the TPM.
fn builder(address: &str, state: &Path) -> KeyProviderBuilder {
    let state = StateDir::open(state).unwrap();
    let store = Tpm2Store::new(address.parse().unwrap(), &state).unwrap();
    KeyProvider::builder().store(store).state_dir(state)
}

/// A TPM, and a state directory with a key in it.
struct Bed {
    tpm: Swtpm,
    state: PathBuf,
    pem: String,
    key: Arc<HeldKey>,
}

impl Bed {
    async fn new() -> Self {
        let tpm = Swtpm::start().unwrap();
        let state = tpm.dir().join("keybond");
        let key = builder(&tpm.address(), &state).build();
        let key = key.get_or_create_key().await.unwrap();
        let pem = fs::read_to_string(state.join("keys/default.pem")).unwrap();
        Self {
            tpm,
            state,
            pem,
            key,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.join("keys").join(name)
    }

    /// What a provider in another process gets, and the cause of the replacement if there was one.
    async fn next(&self, address: &str) -> (Arc<HeldKey>, Option<String>) {
        let provider = builder(address, &self.state).build();
        let mut events = provider.events();
        let key = provider.get_or_create_key().await.unwrap();
        match events.next().await.unwrap() {
            KeyEvent::Replaced { to, cause, .. } => {
                assert_eq!(to, key.id());
                (key, Some(cause))
            }
            KeyEvent::Opened { .. } => (key, None),
            other => panic!("neither opened nor replaced: {other:?}"),
        }
    }

    /// The next key replaces this one for a cause of this name, and what is left of this one is kept.
    async fn assert_replaced(&self, address: &str, name: &str) {
        let old = fs::read(self.file("default.pem")).unwrap();
        let (key, cause) = self.next(address).await;
        let cause = cause.expect("the old key was opened");
        assert!(cause.contains(name), "{cause}");
        assert_ne!(key.id(), self.key.id());
        assert!(signs(&key).await);
        let kept = fs::read_dir(self.state.join("keys"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().ends_with(".replaced"))
            .any(|path| fs::read(path).unwrap() == old);
        assert!(kept, "the old key file is gone");
    }

    /// Writes the key file anew with other content in one of its fields, as OpenSSL's tools see it.
    fn rewrite(&self, change: impl Fn(&mut Vec<u8>)) {
        let mut der = openssl(&self.tpm, &["base64", "-d"], strip(&self.pem).as_bytes());
        change(&mut der);
        let text = openssl(&self.tpm, &["base64"], &der);
        let pem = format!(
            "-----BEGIN TSS2 PRIVATE KEY-----\n{}-----END TSS2 PRIVATE KEY-----\n",
            String::from_utf8(text).unwrap()
        );
        fs::write(self.file("default.pem"), pem).unwrap();
    }
}

fn strip(pem: &str) -> String {
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    lines.map(|line| format!("{line}\n")).collect()
}

fn openssl(tpm: &Swtpm, args: &[&str], input: &[u8]) -> Vec<u8> {
    let file = tpm.dir().join("openssl-input");
    fs::write(&file, input).unwrap();
    let mut command = Command::new("openssl");
    let output = command.args(args).arg("-in").arg(&file).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

async fn signs(key: &HeldKey) -> bool {
    let scheme = SignatureScheme::RsaPssSha256;
    let signature = key.sign(scheme, b"message").await.unwrap();
    key.public_key().verify(scheme, b"message", &signature)
}

#[tokio::test]
async fn a_cleared_tpm_is_told_and_its_key_replaced() {
    let bed = Bed::new().await;
    bed.tpm.clear().unwrap();
    bed.assert_replaced(&bed.tpm.address(), "tpm_cleared").await;
}

#[tokio::test]
async fn a_tpm_cleared_under_a_key_in_use_is_told_by_the_key() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let provider = builder(&tpm.address(), &state).build();
    let old = provider.get_or_create_key().await.unwrap();
    tpm.clear().unwrap();
    let scheme = SignatureScheme::RsaPssSha256;
    match old.sign(scheme, b"message").await.unwrap_err() {
        KeyError::Refused(refusal) => {
            assert_eq!(refusal.reason, Reason::Foreign, "{refusal}");
            assert!(refusal.detail.starts_with("tpm_cleared"), "{refusal}");
        }
        other => panic!("expected a refusal, not {other}"),
    }
    let mut events = provider.events();
    match provider.report_failure(&old, "a handshake failed").await {
        Ok(Verdict::Replaced(new)) => assert!(signs(&new).await),
        other => panic!("expected a replacement, not {other:?}"),
    }
    match events.next().await.unwrap() {
        KeyEvent::Replaced { from, cause, .. } => {
            assert_eq!(from, Some(old.id()));
            assert!(cause.contains("tpm_cleared"), "{cause}");
        }
        other => panic!("expected a replacement, not {other:?}"),
    }
}

#[tokio::test]
async fn another_tpm_is_told() {
    let bed = Bed::new().await;
    let other = Swtpm::start().unwrap();
    bed.assert_replaced(&other.address(), "another_tpm").await;
}

#[tokio::test]
async fn a_damaged_private_part_is_told() {
    let bed = Bed::new().await;
    // The private part is the last field.
    bed.rewrite(|der| *der.last_mut().unwrap() ^= 1);
    bed.assert_replaced(&bed.tpm.address(), "damaged_file")
        .await;
}

#[tokio::test]
async fn a_key_file_that_is_no_key_file_is_told() {
    let bed = Bed::new().await;
    fs::write(bed.file("default.pem"), &bed.pem[..bed.pem.len() / 2]).unwrap();
    bed.assert_replaced(&bed.tpm.address(), "corrupt").await;
}

#[tokio::test]
async fn another_key_as_the_parent_is_told() {
    let bed = Bed::new().await;
    // A primary of another shape, made persistent, takes the place of the parent that the file names.
    tpm2(
        &bed.tpm,
        "tpm2_createprimary -Q -C o -G ecc384 -c parent.ctx",
    );
    tpm2(
        &bed.tpm,
        "tpm2_evictcontrol -Q -C o -c parent.ctx 0x81000007",
    );
    tpm2(&bed.tpm, "tpm2_flushcontext -t");
    bed.rewrite(name_parent_7);
    bed.assert_replaced(&bed.tpm.address(), "wrong_parent")
        .await;
}

#[tokio::test]
async fn a_key_whose_parent_is_missing_is_left_alone() {
    let bed = Bed::new().await;
    bed.rewrite(name_parent_7);
    let provider = builder(&bed.tpm.address(), &bed.state).build();
    let KeyError::NoStore { decision } = provider.get_or_create_key().await.unwrap_err() else {
        panic!("a key without its parent");
    };
    let shown = decision.to_string();
    assert!(shown.contains("parent_missing"), "{shown}");
    assert!(shown.contains("tpm2_evictcontrol"), "{shown}");
    // Put right, it is the same key again.
    fs::write(bed.file("default.pem"), &bed.pem).unwrap();
    let (key, replaced) = bed.next(&bed.tpm.address()).await;
    assert_eq!((key.id(), replaced), (bed.key.id(), None));
}

/// INTEGER 0x40000001 becomes 0x81000007, one byte longer.
fn name_parent_7(der: &mut Vec<u8>) {
    let at = der
        .windows(6)
        .position(|bytes| bytes == [2, 4, 0x40, 0, 0, 1])
        .unwrap();
    der.splice(at..at + 6, [2, 5, 0, 0x81, 0, 0, 7]);
    // SEQUENCE, a length of two bytes.
    assert_eq!(der[..2], [0x30, 0x82]);
    let length = u16::from_be_bytes([der[2], der[3]]) + 1;
    der[2..4].copy_from_slice(&length.to_be_bytes());
}

fn tpm2(tpm: &Swtpm, line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(tpm.dir())
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
}

#[tokio::test]
async fn killed_between_key_and_record_the_key_is_found_and_recorded_again() {
    let bed = Bed::new().await;
    let before = fs::read(bed.file("default.json")).unwrap();
    fs::remove_file(bed.file("default.json")).unwrap();
    let (key, replaced) = bed.next(&bed.tpm.address()).await;
    assert_eq!((key.id(), replaced), (bed.key.id(), None));
    // As before but for the time.
    let again = fs::read(bed.file("default.json")).unwrap();
    let of = |json: &[u8]| {
        let mut json: serde_json::Value = serde_json::from_slice(json).unwrap();
        json.as_object_mut().unwrap().remove("created").unwrap();
        json
    };
    assert_eq!(of(&again), of(&before));
}

#[tokio::test]
async fn killed_before_the_key_a_record_alone_is_set_aside() {
    let bed = Bed::new().await;
    fs::remove_file(bed.file("default.pem")).unwrap();
    let provider = builder(&bed.tpm.address(), &bed.state).build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_ne!(key.id(), bed.key.id());
    let (again, replaced) = bed.next(&bed.tpm.address()).await;
    assert_eq!((again.id(), replaced), (key.id(), None));
}

#[tokio::test]
async fn a_record_that_is_another_keys_or_nonsense_costs_no_key() {
    let bed = Bed::new().await;
    let record = fs::read_to_string(bed.file("default.json")).unwrap();
    let own = bed.key.id().to_string();
    for bad in [
        record.replace(&own, &"0".repeat(64)),
        "{".into(),
        String::new(),
    ] {
        fs::write(bed.file("default.json"), bad).unwrap();
        let (key, replaced) = bed.next(&bed.tpm.address()).await;
        assert_eq!((key.id(), replaced), (bed.key.id(), None));
        let record = fs::read_to_string(bed.file("default.json")).unwrap();
        assert!(record.contains(&own), "{record}");
    }
}

#[tokio::test]
async fn a_record_with_an_old_pss_mode_is_not_believed() {
    let bed = Bed::new().await;
    let record = fs::read_to_string(bed.file("default.json")).unwrap();
    assert!(record.contains("\"native\""), "{record}");
    let stale = record.replace("\"native\"", "\"unavailable\"");
    fs::write(bed.file("default.json"), stale).unwrap();
    let (key, _) = bed.next(&bed.tpm.address()).await;
    assert!(key.supports(SignatureScheme::RsaPssSha256));
    let mended = fs::read_to_string(bed.file("default.json")).unwrap();
    assert!(mended.contains("\"native\""), "{mended}");
}

/// TPM2_Duplicate that is not answered, or only with "later", has shown nothing.
#[tokio::test]
async fn an_export_that_could_not_be_tried_is_no_refusal() {
    let tpm = Swtpm::start().unwrap();
    let busy = Arc::new(AtomicBool::new(true));
    let is_busy = Arc::clone(&busy);
    let shim = Shim::start(&tpm.socket(), move |command| {
        let duplicate = command.get(6..10) == Some(&[0, 0, 1, 0x4b]);
        match duplicate && is_busy.load(Ordering::SeqCst) {
            true => Action::Answer(response_code(0x905)),
            false => Action::Forward,
        }
    })
    .unwrap();
    let state = tpm.dir().join("keybond");
    let provider = builder(&shim.address(), &state)
        .retry_budget(std::time::Duration::ZERO)
        .build();
    let KeyError::NoStore { decision } = provider.get_or_create_key().await.unwrap_err() else {
        panic!("a key whose export was never refused");
    };
    let refusal = decision.refusals().next().unwrap();
    assert_eq!((refusal.reason, refusal.retryable), (Reason::Busy, true));
    busy.store(false, Ordering::SeqCst);
    let key = provider.get_or_create_key().await.unwrap();
    assert!(key.decision().to_string().contains("opened"));
}
