//! The Windows tiers over the fake `ncrypt.dll`: the whole way down to the binary interface, with other
//! processes.
//!
//! Run by `cargo xtask windows`, which puts the library beside this program and sets `KEYBOND_FAKE_NCRYPT`.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use keybond_cng::{CertStore, ClaimKind, ErrorKind, KeyLink, Provider, claims_exported, names};
use keybond_keys::{
    KeyEvent, KeyGuardSharing, KeyGuardStore, KeyName, KeyProvider, KeyStore as _, MemoryStore,
    Outcome, PlatformStore, PublicKey, Reason, SignatureScheme, StoreId, Strength,
};
use keybond_testkit::FakeNcrypt;

fn provider() -> KeyProvider {
    shared(KeyGuardSharing::Own)
}

/// With patience: a file that another process has open is busy for as long as that process is slow.
fn shared(sharing: KeyGuardSharing) -> KeyProvider {
    with_budget(sharing, Duration::from_secs(30))
}

fn with_budget(sharing: KeyGuardSharing, budget: Duration) -> KeyProvider {
    KeyProvider::builder()
        .store(KeyGuardStore::new(sharing))
        .store(PlatformStore::new())
        .store(MemoryStore)
        .retry_budget(budget)
        .build()
}

/// Set for a process that only tells which key it gets.
const CHILD: &str = "KEYBOND_TEST_CHILD";
/// When the children begin, as a file that appears.
const START: &str = "KEYBOND_TEST_START";

/// Another process that finds or makes the key, and tells which: `<store> <key id>`. Waits for `start` to
/// appear, if given.
fn spawn(sharing: &str, start: Option<&Path>) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--ignored",
            "--exact",
            "other_processes_open_the_same_key",
            "--nocapture",
        ])
        .env(CHILD, sharing)
        .stdout(Stdio::piped());
    if let Some(start) = start {
        child.env(START, start);
    }
    keybond_testkit::spawn(&mut child).unwrap()
}

fn told(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("KEY "));
    line.unwrap_or_else(|| panic!("{text}")).1.trim().to_owned()
}

/// What the other processes of the tests below do instead of testing.
async fn tell_if_child() -> bool {
    let Ok(sharing) = std::env::var(CHILD) else {
        return false;
    };
    let sharing = match sharing.as_str() {
        "msal" => KeyGuardSharing::Msal,
        _ => KeyGuardSharing::Own,
    };
    if let Some(start) = std::env::var_os(START) {
        let start = PathBuf::from(start);
        let give_up = Instant::now() + Duration::from_secs(30);
        while !start.exists() && Instant::now() < give_up {
            std::thread::yield_now();
        }
    }
    let key = shared(sharing).get_or_create_key().await.unwrap();
    eprintln!("{}", key.decision());
    println!("\nKEY {} {}", key.store(), key.id());
    true
}

async fn get() -> (String, std::sync::Arc<keybond_keys::HeldKey>) {
    let key = provider().get_or_create_key().await.unwrap();
    (format!("{} {}", key.store(), key.id()), key)
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn keyguard_then_the_tpm_then_memory() {
    let machine = FakeNcrypt::new("vbs=on tpm=on");
    let expected = [
        ("vbs=on tpm=on", StoreId::KeyGuard, Strength::KeyGuard),
        ("vbs=off tpm=on", StoreId::Platform, Strength::Hardware),
        ("vbs=off tpm=off", StoreId::Memory, Strength::Software),
    ];
    for (at, (config, store, strength)) in expected.into_iter().enumerate() {
        machine.becomes(config);
        let (_, key) = get().await;
        assert_eq!(
            (key.store(), key.strength()),
            (store, strength),
            "{}",
            key.decision()
        );
        assert_eq!(key.schemes(), SignatureScheme::ALL);
        let skipped = key.decision().considered[..at].iter();
        for above in skipped {
            let Outcome::Skipped(refusal) = &above.outcome else {
                panic!("{above:?}");
            };
            assert!(
                refusal.native.is_some() && !refusal.remedy.is_empty(),
                "{refusal:?}"
            );
        }
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn evidence_is_read_back_and_a_lie_about_isolation_is_seen() {
    let machine = FakeNcrypt::new("vbs=on");
    let (_, key) = get().await;
    let evidence = key.evidence();
    assert_eq!(evidence.properties.exportable, Some(false));
    let export = format!("{:?}", evidence.export);
    assert!(
        export.contains("PKCS8_PRIVATEKEY") && export.contains("NTE_NOT_SUPPORTED"),
        "{export}"
    );

    let machine = {
        drop(machine);
        FakeNcrypt::new("vbs=on virtual-iso=0")
    };
    let (_, key) = get().await;
    assert_eq!(key.store(), StoreId::Memory, "{}", key.decision());
    // Made, seen to be none, and not left about.
    assert_eq!(
        machine.calls(),
        ["finalize keybond-default", "delete keybond-default"]
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn other_processes_open_the_same_key() {
    if tell_if_child().await {
        return;
    }
    for config in ["vbs=on", "tpm=on"] {
        let machine = FakeNcrypt::new(config);
        let (first, _) = get().await;
        assert_eq!(told(spawn("own", None)), first);
        assert_eq!(machine.calls(), ["finalize keybond-default"]);
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn many_processes_at_once_make_one_key() {
    for sharing in ["own", "msal"] {
        let machine = FakeNcrypt::new("vbs=on");
        let start = machine.directory().join("start");
        let children: Vec<_> = (0..4).map(|_| spawn(sharing, Some(&start))).collect();
        fs::write(&start, "").unwrap();
        let mut answers: Vec<_> = children.into_iter().map(told).collect();
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!(answers[0].starts_with("keyguard "), "{answers:?}");
        assert_eq!(machine.calls().len(), 1, "{:?}", machine.calls());
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn after_a_reboot_two_processes_agree_on_one_new_key() {
    // The key opens and does not sign; or it does not open any more. Shared with MSAL, or our own.
    for stale in ["sign", "open"] {
        for (sharing, name) in [("own", "keybond-default"), ("msal", "KeyGuardRSAKey")] {
            let machine = FakeNcrypt::new("vbs=on boot=1");
            let before = told(spawn(sharing, None));
            // Somebody else's per-boot key, of this boot or not, is none of our business.
            let others = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
            let flags = names::USE_VIRTUAL_ISOLATION | names::USE_PER_BOOT;
            others
                .begin_key(Some("Somebody"), flags)
                .unwrap()
                .finalize()
                .unwrap();
            machine.forget_calls();

            machine.becomes(&format!("vbs=on boot=2 stale={stale}"));
            let children = [spawn(sharing, None), spawn(sharing, None)];
            let [one, two] = children.map(told);
            assert_eq!(one, two, "{stale} {sharing}");
            assert_ne!(one, before, "{stale} {sharing}");
            assert!(one.starts_with("keyguard "), "{one}");
            assert_eq!(
                machine.calls(),
                [format!("finalize {name}")],
                "{stale} {sharing}"
            );
            machine.becomes("vbs=on boot=1");
            assert!(others.open_key("Somebody").is_ok());
        }
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn a_long_lived_process_is_told_that_its_key_died_and_gets_the_new_one() {
    let machine = FakeNcrypt::new("vbs=on boot=1");
    let provider = provider();
    let key = provider.get_or_create_key().await.unwrap();
    let mut events = provider.events();
    // A resumed machine: the process lives, the enclave's keys do not.
    machine.becomes("vbs=on boot=2");
    let other = told(spawn("own", None));
    let verdict = provider
        .report_failure(&key, "the handshake failed")
        .await
        .unwrap();
    let keybond_keys::Verdict::Replaced(new) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(format!("{} {}", new.store(), new.id()), other);
    let event = events.next().await.unwrap();
    let KeyEvent::Replaced {
        from, to, cause, ..
    } = &event
    else {
        panic!("{event:?}");
    };
    assert_eq!((*from, *to), (Some(key.id()), new.id()));
    assert!(cause.contains("per_boot"), "{cause}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn refusals_never_cost_a_key() {
    // Access denied, service down, sharing violation, silent context, no profile, no memory.
    let codes = [
        "80090010", "80070005", "800706ba", "80070426", "80070020", "80090022", "80070003",
        "8009000e",
    ];
    for call in ["NCryptOpenKey", "NCryptSignHash"] {
        for code in codes {
            let machine = FakeNcrypt::new("vbs=on");
            let (first, _) = get().await;
            machine.becomes(&format!("vbs=on fail.{call}={code}"));
            let impatient = with_budget(KeyGuardSharing::Own, Duration::ZERO);
            let meanwhile = impatient.get_or_create_key().await.unwrap();
            assert_eq!(meanwhile.store(), StoreId::Memory, "{call} {code}");
            let decision = meanwhile.decision();
            assert!(
                decision.to_string().to_lowercase().contains(code),
                "{call} {code}: {decision}"
            );
            machine.becomes("vbs=on");
            assert_eq!(get().await.0, first, "{call} {code}");
            assert_eq!(
                machine.calls(),
                ["finalize keybond-default"],
                "{call} {code}"
            );
        }
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn a_sharing_violation_that_passes_is_waited_out() {
    let machine = FakeNcrypt::new("vbs=on");
    let (first, _) = get().await;
    machine.becomes("vbs=on fail.NCryptOpenKey=80070020*2");
    let (again, key) = get().await;
    assert_eq!(again, first);
    assert!(key.decision().considered[0].attempts > 1);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn an_old_chip_signs_pkcs1_only() {
    let machine = FakeNcrypt::new("tpm=on salt=1");
    let (_, key) = get().await;
    assert_eq!(key.store(), StoreId::Platform);
    assert!(!key.supports(SignatureScheme::RsaPssSha256));
    assert!(key.supports(SignatureScheme::RsaPkcs1Sha256));

    // The same chip that says nothing of its salt: the strict trial finds it out.
    machine.becomes("tpm=on salt=1 salt-told=off");
    let (_, key) = get().await;
    assert!(!key.supports(SignatureScheme::RsaPssSha256));
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn names_are_taken_once_and_deleted_keys_are_gone() {
    let machine = FakeNcrypt::new("vbs=on");
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let make = |flags| {
        let new = provider.begin_key(Some("Taken ü"), flags)?;
        new.set_length(2048)?;
        new.finalize()
    };
    let first = make(0).unwrap().public_key().unwrap();
    assert_eq!(make(0).err().unwrap().kind(), ErrorKind::Exists);
    assert_eq!(
        provider.open_key("Taken ü").unwrap().public_key().unwrap(),
        first
    );
    let second = make(names::OVERWRITE).unwrap().public_key().unwrap();
    assert_ne!(first, second);
    // Begun and given up: it never existed.
    drop(provider.begin_key(Some("Begun"), 0).unwrap());
    assert_eq!(
        provider.open_key("Begun").err().unwrap().kind(),
        ErrorKind::NotFound
    );

    provider.open_key("Taken ü").unwrap().delete().unwrap();
    assert_eq!(
        provider.open_key("Taken ü").err().unwrap().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(machine.calls().last().unwrap(), "delete Taken ü");
    assert!(Provider::open("No Such Provider").is_err());
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn probes_make_no_key() {
    let machine = FakeNcrypt::new("vbs=on tpm=on");
    let keyguard = KeyGuardStore::new(KeyGuardSharing::Own);
    let platform = PlatformStore::new();
    keyguard.probe().unwrap();
    platform.probe().unwrap();
    machine.becomes("");
    for refusal in [keyguard.probe().unwrap_err(), platform.probe().unwrap_err()] {
        assert!(
            matches!(refusal.reason, Reason::NotSupported | Reason::NotPresent),
            "{refusal}"
        );
        assert!(!refusal.remedy.is_empty());
    }
    assert!(machine.calls().is_empty());
    assert!(keyguard.open(&KeyName::default()).unwrap().is_none());
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn a_claim_is_given_for_an_isolated_key_only() {
    let _machine = FakeNcrypt::new("vbs=on");
    assert!(claims_exported());
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let isolated = provider
        .begin_key(None, names::USE_VIRTUAL_ISOLATION)
        .unwrap()
        .finalize()
        .unwrap();
    assert!(!isolated.create_claim(ClaimKind::Vbs).unwrap().is_empty());
    let plain = provider.begin_key(None, 0).unwrap().finalize().unwrap();
    assert_eq!(
        plain.create_claim(ClaimKind::Vbs).err().unwrap().kind(),
        ErrorKind::NotSupported
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn our_own_key_is_deleted_once_and_msals_never() {
    let machine = FakeNcrypt::new("vbs=on");
    let provider = provider();
    provider.get_or_create_key().await.unwrap();
    assert!(provider.delete_key().await.unwrap());
    assert!(!provider.delete_key().await.unwrap());
    let msal = shared(KeyGuardSharing::Msal);
    msal.get_or_create_key().await.unwrap();
    assert!(msal.delete_key().await.is_err());
    assert!(
        !machine
            .calls()
            .contains(&"delete KeyGuardRSAKey".to_owned())
    );
}

/// A certificate for `key`, signed by somebody.
fn certificate(subject: &str, key: &[u8]) -> Vec<u8> {
    let issuer = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::new(rcgen::CertificateParams::default(), issuer);
    let mut parameters = rcgen::CertificateParams::default();
    let mut name = rcgen::DistinguishedName::new();
    name.push(
        rcgen::DnType::CommonName,
        format!("{subject} {}", std::process::id()),
    );
    parameters.distinguished_name = name;
    let key = rcgen::SubjectPublicKeyInfo::from_der(key).unwrap();
    parameters.signed_by(&key, &issuer).unwrap().der().to_vec()
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn only_the_certificates_of_the_key_that_died_go() {
    let machine = FakeNcrypt::new("vbs=on boot=1");
    let (_, dead) = get().await;
    let alive = KeyProvider::in_memory().get_or_create_key().await.unwrap();
    let of_dead = certificate("of the dead key", dead.public_key().spki_der());
    let of_alive = certificate("of another key", alive.public_key().spki_der());
    let store = CertStore::open_my().unwrap();
    let link = KeyLink {
        key: KeyGuardStore::new(KeyGuardSharing::Own).container(&KeyName::default()),
        provider: names::SOFTWARE_PROVIDER.into(),
    };
    for der in [&of_dead, &of_alive] {
        store.add(der, Some("keybond test"), Some(&link)).unwrap();
    }

    machine.becomes("vbs=on boot=2");
    let provider = provider();
    let mut events = provider.events();
    provider.get_or_create_key().await.unwrap();
    let Some(KeyEvent::Replaced {
        from: Some(from), ..
    }) = events.next().await
    else {
        panic!("the key was not replaced");
    };
    assert_eq!(from, dead.id());

    let store = CertStore::open_my().unwrap();
    let gone = store.delete_where(|certificate| {
        let key = certificate.public_key().map(PublicKey::from_spki_der);
        matches!(key, Some(Ok(key)) if key.id() == from)
    });
    assert_eq!(gone.unwrap(), 1);
    let left = CertStore::open_my().unwrap().certificates();
    assert!(left.iter().all(|left| left.der() != of_dead));
    assert!(left.iter().any(|left| left.der() == of_alive));
    drop(left);
    assert!(CertStore::open_my().unwrap().delete(&of_alive).unwrap());
}
