//! A reboot, down to the certificates in the user's store: the key of KeyGuard and its certificates shared with
//! MSAL, over the fake `ncrypt.dll`, with processes of their own.
//!
//! Run by `cargo xtask windows`.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use keybond::{Identity, ManagedIdentity, MsalCertificates};
use keybond_cng::{CertStore, KeyLink, msal::FriendlyName, names};
use keybond_emulator::Emulator;
use keybond_keys::{KeyEvent, KeyGuardSharing, KeyGuardStore, KeyProvider, PublicKey};
use keybond_testkit::FakeNcrypt;
use keybond_tls::TrustRoots;

const NAME: &str = "a_reboot_leaves_one_new_key_and_only_the_dead_ones_certificates_go";

/// Set for the processes of the test.
const CHILD: &str = "KEYBOND_TEST_CHILD";
const CA: &str = "KEYBOND_CA_FILE";
const RESOURCE: &str = "KEYBOND_TEST_RESOURCE";

/// What a process got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    key: String,
    certificate: String,
    /// Why the key took another's place, if it did.
    cause: String,
}

fn spawn(emulator: &Emulator) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", NAME, "--nocapture"])
        .envs(emulator.env())
        .env(CHILD, "1")
        .env(CA, emulator.ca_file())
        .env(RESOURCE, emulator.vault_resource())
        .stdout(Stdio::piped());
    keybond_testkit::spawn(&mut command).unwrap()
}

fn told(child: Child) -> Told {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let line = text.lines().find_map(|line| line.split_once("TOLD "));
    let (_, line) = line.unwrap_or_else(|| panic!("{text}"));
    let mut parts = line.splitn(3, ' ').map(|part| part.trim().to_owned());
    Told {
        key: parts.next().unwrap(),
        certificate: parts.next().unwrap(),
        cause: parts.next().unwrap_or_default(),
    }
}

/// A process: asks for a token once, as a program does that has just started.
async fn tell_if_child() -> bool {
    if std::env::var_os(CHILD).is_none() {
        return false;
    }
    let keys = KeyProvider::builder()
        .store(KeyGuardStore::new(KeyGuardSharing::Msal))
        .build();
    let mut events = keys.events();
    let roots = TrustRoots::from_pem(std::fs::read(std::env::var_os(CA).unwrap()).unwrap());
    let identity = Identity::SystemAssigned;
    let client = ManagedIdentity::builder()
        .key_provider(keys)
        .tls(keybond_tls::default_connector(&roots.unwrap()).unwrap())
        .certificate_store(Arc::new(MsalCertificates::new(&identity, None)))
        .identity(identity)
        .build()
        .unwrap();
    let resource = std::env::var(RESOURCE).unwrap();
    let token = client.token(&resource).await.unwrap();
    let binding = token.binding().unwrap();
    let cause = match events.next().await {
        Some(KeyEvent::Replaced { cause, .. }) => cause,
        _ => String::new(),
    };
    println!(
        "\nTOLD {} {} {cause}",
        binding.key().id(),
        binding.x5t_s256()
    );
    true
}

/// The certificates at this emulator: friendly name, key.
fn shelf(emulator: &Emulator) -> Vec<(String, String)> {
    let store = CertStore::open_my().unwrap();
    let mut shelf = Vec::new();
    for certificate in store.certificates() {
        let name = certificate.friendly_name().unwrap().unwrap_or_default();
        let ours = name
            .parse::<FriendlyName>()
            .is_ok_and(|name| name.endpoint().starts_with(&emulator.sts_url()));
        if ours {
            let key = PublicKey::from_spki_der(certificate.public_key().unwrap()).unwrap();
            shelf.push((name, key.id().to_string()));
        }
    }
    shelf
}

/// A certificate of a key that nobody uses, named like those of the identity.
fn strangers_certificate(emulator: &Emulator) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
    let mut parameters = rcgen::CertificateParams::default();
    let mut subject = rcgen::DistinguishedName::new();
    let client_id = &emulator.identities()[0].client_id;
    subject.push(rcgen::DnType::CommonName, client_id.as_str());
    parameters.distinguished_name = subject;
    let certificate = parameters.self_signed(&key.unwrap()).unwrap();
    certificate.der().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
async fn a_reboot_leaves_one_new_key_and_only_the_dead_ones_certificates_go() {
    if tell_if_child().await {
        return;
    }
    // The key opens and does not sign; it does not open; another process has made the new one already.
    for (stale, early) in [
        ("sign", false),
        ("open", false),
        ("sign", true),
        ("open", true),
    ] {
        let variant = format!("stale={stale} early={early}");
        let machine = FakeNcrypt::new("vbs=on boot=1");
        let emulator = Emulator::builder().start().await.unwrap();
        let run = || async {
            let child = spawn(&emulator);
            tokio::task::spawn_blocking(|| told(child)).await.unwrap()
        };
        let before = run().await;
        // The next process of this boot finds key and certificate.
        assert_eq!(run().await, before, "{variant}");
        assert_eq!(emulator.counters().issue, 1, "{variant}");
        let [(name, key)] = <[_; 1]>::try_from(shelf(&emulator)).unwrap();
        assert_eq!(key, before.key);
        assert!(
            name.starts_with("MSAL|alias=system_assigned_managed_identity#att=0|ep="),
            "{name}"
        );

        // Another program's: the same friendly name, a key of its own.
        let theirs = strangers_certificate(&emulator);
        let link = KeyLink {
            key: "Somebody".into(),
            provider: names::SOFTWARE_PROVIDER.into(),
        };
        let store = CertStore::open_my().unwrap();
        store.add(&theirs, Some(&name), Some(&link)).unwrap();

        machine.forget_calls();
        machine.becomes(&format!("vbs=on boot=2 stale={stale}"));
        let mut answers = Vec::new();
        if early {
            answers.push(run().await);
        }
        let (one, two) = tokio::join!(run(), run());
        answers.extend([one, two]);

        // Exactly one new key; whoever made it says why; nobody's key was deleted.
        assert!(
            answers.iter().all(|told| told.key == answers[0].key),
            "{variant}: {answers:?}"
        );
        assert_ne!(answers[0].key, before.key, "{variant}");
        assert_eq!(machine.calls(), ["finalize KeyGuardRSAKey"], "{variant}");
        // (Two that saw the dead key at once may both say it.)
        let causes: Vec<_> = answers
            .iter()
            .map(|told| told.cause.as_str())
            .filter(|cause| !cause.is_empty())
            .collect();
        assert!(!causes.is_empty(), "{variant}: {answers:?}");
        assert!(
            causes.iter().all(|cause| cause.contains("per_boot")),
            "{variant}: {answers:?}"
        );

        // The dead key's certificates are gone, and no others.
        let left = shelf(&emulator);
        assert!(
            left.iter().all(|(_, key)| *key != before.key),
            "{variant}: {left:?}"
        );
        assert!(
            left.iter().any(|(_, key)| *key == answers[0].key),
            "{variant}: {left:?}"
        );
        let store = CertStore::open_my().unwrap();
        assert!(
            store.delete(&theirs).unwrap(),
            "{variant}: somebody's certificate is gone"
        );
        store
            .delete_where(|certificate| {
                let name = certificate.friendly_name().ok().flatten();
                name.is_some_and(|name| name.contains(&emulator.sts_url()))
            })
            .unwrap();
        emulator.shutdown().await;
    }
}
