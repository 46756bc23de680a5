//! The tpm2 store through the provider, against a software TPM.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use keybond_keys::{
    KeyEvent, KeyProvider, KeyProviderBuilder, MemoryStore, Origin, Reason, SignatureScheme,
    StateDir, StoreId, Strength, Tpm2Store,
};
use keybond_testkit::{Action, Shim, Swtpm, old_pss, response_code};

fn builder(address: &str, state: &Path) -> KeyProviderBuilder {
    let state = StateDir::open(state).unwrap();
    let store = Tpm2Store::new(address.parse().unwrap(), &state).unwrap();
    KeyProvider::builder()
        .store(store)
        .store(MemoryStore)
        .state_dir(state)
}

fn files(state: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(state.join("keys"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_key_made_in_the_tpm_is_hardware_and_found_again() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let provider = builder(&tpm.address(), &state)
        .minimum_strength(Strength::Hardware)
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(
        (key.store(), key.strength()),
        (StoreId::Tpm2, Strength::Hardware)
    );
    assert_eq!(key.schemes(), SignatureScheme::ALL);
    assert_eq!(key.evidence().properties.origin, Origin::Device);
    assert_eq!(files(&state), ["default.json", "default.pem"]);
    let id = key.id();
    drop((provider, key));

    let again = builder(&tpm.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(again.id(), id);
    assert!(
        again.decision().to_string().contains("opened"),
        "{}",
        again.decision()
    );
}

#[tokio::test]
async fn openssl_signs_with_the_very_same_key_file() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let key = builder(&tpm.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    let public = key.public_key().clone();
    drop(key);
    std::fs::write(tpm.dir().join("message"), b"hello").unwrap();
    let signature = tpm.dir().join("signature");
    let output = Command::new("openssl")
        .args([
            "dgst",
            "-provider",
            "tpm2",
            "-provider",
            "default",
            "-propquery",
            "?provider=tpm2",
            "-sha256",
            "-sign",
        ])
        .arg(state.join("keys/default.pem"))
        .arg("-out")
        .arg(&signature)
        .arg(tpm.dir().join("message"))
        .env("TPM2OPENSSL_TCTI", tpm.tcti())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let signature = std::fs::read(signature).unwrap();
    assert!(public.verify(SignatureScheme::RsaPkcs1Sha256, b"hello", &signature));
}

#[tokio::test]
async fn a_chip_with_another_salt_still_offers_strict_pss() {
    let tpm = Swtpm::start().unwrap();
    let old = Shim::start(&tpm.socket(), old_pss).unwrap();
    let state = tpm.dir().join("keybond");
    let key = builder(&old.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(key.store(), StoreId::Tpm2);
    assert!(key.supports(SignatureScheme::RsaPssSha256));
    let details = &key.evidence().properties.details;
    assert!(
        details.contains(&("pss".into(), "synthesised".into())),
        "{details:?}"
    );
}

#[tokio::test]
async fn a_chip_that_cannot_sign_pss_at_all_is_skipped_with_that_reason() {
    let tpm = Swtpm::start().unwrap();
    let created = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&created);
    // Another salt, and no raw RSA.
    let chip = Shim::start(&tpm.socket(), move |command| {
        match (old_pss(command), command.get(6..10)) {
            (_, Some([0, 0, 1, 0x59])) => Action::Answer(response_code(0x143)),
            (other, Some([0, 0, 1, 0x53])) => {
                count.fetch_add(1, Ordering::SeqCst);
                other
            }
            (other, _) => other,
        }
    })
    .unwrap();
    let state = tpm.dir().join("keybond");
    for _ in 0..2 {
        let provider = builder(&chip.address(), &state).build();
        let key = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.store(), StoreId::Memory);
        assert!(!key.decision().provisional);
        let refusal = key.decision().refusals().next().unwrap().clone();
        assert_eq!(
            (refusal.store, refusal.reason),
            (StoreId::Tpm2, Reason::NotSupported)
        );
        assert!(refusal.detail.contains("cannot sign PSS"), "{refusal}");
        let probed = provider.probe().await.to_string();
        assert!(probed.contains("cannot sign PSS"), "{probed}");
    }
    // With and without raw RSA, and never again.
    assert_eq!(created.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_key_of_another_tpm_is_set_aside_and_replaced() {
    let (first, second) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
    let state = first.dir().join("keybond");
    let old = builder(&first.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap()
        .id();

    let provider = builder(&second.address(), &state).build();
    let mut events = provider.events();
    let new = provider.get_or_create_key().await.unwrap();
    assert_ne!(new.id(), old);
    assert_eq!(new.store(), StoreId::Tpm2);
    match events.next().await.unwrap() {
        KeyEvent::Replaced {
            store, to, cause, ..
        } => {
            assert_eq!((store, to), (StoreId::Tpm2, new.id()));
            assert!(cause.contains("another TPM"), "{cause}");
        }
        other => panic!("expected a replacement, not {other:?}"),
    }
    let kept: Vec<_> = files(&state)
        .into_iter()
        .filter(|name| name.ends_with(".replaced"))
        .collect();
    assert_eq!(
        kept.len(),
        2,
        "the old key and its record are kept: {kept:?}"
    );
}

#[tokio::test]
async fn a_damaged_key_file_is_set_aside_and_replaced() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let old = builder(&tpm.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap()
        .id();
    let file = state.join("keys/default.pem");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();

    let new = builder(&tpm.address(), &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_ne!(new.id(), old);
    assert_eq!(files(&state).len(), 4, "{:?}", files(&state));
}

#[tokio::test]
async fn without_a_tpm_a_key_file_is_left_alone() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    drop(
        builder(&tpm.address(), &state)
            .build()
            .get_or_create_key()
            .await
            .unwrap(),
    );
    let gone = format!("unix:{}", tpm.dir().join("no-socket").display());
    let key = builder(&gone, &state)
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(key.store(), StoreId::Memory);
    let refusals: Vec<_> = key
        .decision()
        .refusals()
        .map(|refusal| refusal.reason)
        .collect();
    assert_eq!(refusals, [Reason::NotPresent]);
    assert_eq!(files(&state), ["default.json", "default.pem"]);
}

#[tokio::test]
async fn two_providers_at_once_make_one_key() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let (one, two) = (
        builder(&tpm.address(), &state).build(),
        builder(&tpm.address(), &state).build(),
    );
    let (one, two) = tokio::join!(one.get_or_create_key(), two.get_or_create_key());
    assert_eq!(one.unwrap().id(), two.unwrap().id());
    assert_eq!(files(&state), ["default.json", "default.pem"]);
}

#[tokio::test]
async fn a_deleted_key_is_gone() {
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let provider = builder(&tpm.address(), &state).build();
    let first = provider.get_or_create_key().await.unwrap().id();
    assert!(provider.delete_key().await.unwrap());
    assert_eq!(files(&state), Vec::<String>::new());
    assert!(!provider.delete_key().await.unwrap());
    assert_ne!(provider.get_or_create_key().await.unwrap().id(), first);
}

#[tokio::test]
async fn whoever_holds_a_key_signs_with_it_after_its_rotation() {
    let tpm = Swtpm::start().unwrap();
    let provider = builder(&tpm.address(), &tpm.dir().join("keybond")).build();
    let old = provider.get_or_create_key().await.unwrap();
    let new = provider.rotate_key().await.unwrap();
    assert_ne!(new.id(), old.id());
    for key in [&old, &new, &old] {
        assert_eq!(key.store(), StoreId::Tpm2);
        let signed = key.sign(SignatureScheme::RsaPssSha256, b"in use").await;
        signed.unwrap();
    }
}
