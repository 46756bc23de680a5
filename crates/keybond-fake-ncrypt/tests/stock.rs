//! Wine as it comes: any provider opens, the flags for VBS are accepted and ignored, every key can be exported.
//! Whoever trusts requests instead of evidence takes a software key for KeyGuard here.
//!
//! Run by `cargo xtask windows`.
#![cfg(windows)]
#![allow(clippy::unwrap_used)]

use keybond_cng::{CertStore, ExportOutcome, Provider, names};
use keybond_keys::{
    KeyGuardSharing, KeyGuardStore, KeyName, KeyProvider, KeyStore as _, MemoryStore, Outcome,
    PlatformStore, Reason, StoreId, Strength,
};

#[tokio::test(flavor = "current_thread")]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
async fn no_keyguard_no_hardware_reasons_given_and_memory_used() {
    let provider = KeyProvider::builder()
        .store(KeyGuardStore::new(KeyGuardSharing::Own))
        .store(PlatformStore::new())
        .store(MemoryStore)
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(
        (key.store(), key.strength()),
        (StoreId::Memory, Strength::Software)
    );

    let decision = key.decision();
    let refusals: Vec<_> = decision
        .considered
        .iter()
        .filter_map(|considered| match &considered.outcome {
            Outcome::Skipped(refusal) => Some((considered.store, refusal)),
            _ => None,
        })
        .collect();
    let [(keyguard, no_keyguard), (platform, no_platform)] = refusals.as_slice() else {
        panic!("{decision}");
    };
    assert_eq!(
        (*keyguard, *platform),
        (StoreId::KeyGuard, StoreId::Platform)
    );
    assert!(!no_keyguard.detail.is_empty() && !no_platform.detail.is_empty());
    assert_eq!(no_platform.reason, Reason::NotSupported, "{no_platform}");
    for refusal in [no_keyguard, no_platform] {
        assert!(!refusal.remedy.is_empty(), "{refusal:?}");
        assert!(!refusal.retryable, "{refusal:?}");
    }
    assert!(!decision.provisional);
    println!("{decision}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
async fn a_probe_says_no_without_making_a_key() {
    for refusal in [
        KeyGuardStore::new(KeyGuardSharing::Own)
            .probe()
            .unwrap_err(),
        PlatformStore::new().probe().unwrap_err(),
    ] {
        assert_eq!(refusal.reason, Reason::NotSupported);
        assert!(
            refusal.detail.contains("does not say what implements it"),
            "{refusal}"
        );
    }
}

#[test]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
fn flags_that_are_ignored_make_no_keyguard_key() {
    let store = KeyGuardStore::new(KeyGuardSharing::Own);
    // The open before a create is refused, too: Wine opens no key by name.
    assert!(store.open(&KeyName::default()).is_err());

    // What Wine would have given: a key that signs, with the flags accepted, and comes out when asked.
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let flags = names::USE_VIRTUAL_ISOLATION | names::USE_PER_BOOT;
    let new = provider
        .begin_key(Some("keybond-test-ignored"), flags)
        .unwrap();
    new.set_length(2048).unwrap();
    new.set_export_policy(0).unwrap();
    let key = new.finalize().unwrap();
    assert!(key.property(names::VIRTUAL_ISOLATION).is_err());
    assert!(matches!(
        key.attempt_private_export(),
        ExportOutcome::Exported(_)
    ));
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
async fn a_key_in_memory_leaves_nothing_behind() {
    let before = CertStore::open_my().unwrap().certificates().len();
    let provider = KeyProvider::in_memory();
    let key = provider.get_or_create_key().await.unwrap();
    assert!(key.evidence().properties.file.is_none());
    assert_eq!(CertStore::open_my().unwrap().certificates().len(), before);
}
