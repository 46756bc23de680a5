//! Rotation on demand: two slots, the new key proven before the old one is left.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use keybond_keys::{
    KeyEvent, KeyName, KeyProvider, KeyProviderBuilder, Reason, SignatureScheme, StateDir, StoreId,
};
use keybond_testkit::stores::{FileStore, Lie, Op, ScriptedStore};

fn on_disk(dir: &Path) -> KeyProviderBuilder {
    let state = StateDir::open(dir.join("state")).unwrap();
    let store = FileStore::new(StateDir::open(dir.join("store")).unwrap());
    KeyProvider::builder().store(store).state_dir(state)
}

#[tokio::test]
async fn a_rotated_key_is_found_by_others_and_the_old_one_still_signs() {
    let dir = tempfile::tempdir().unwrap();
    let provider = on_disk(dir.path()).build();
    let mut events = provider.events();
    let old = provider.get_or_create_key().await.unwrap();
    let new = provider.rotate_key().await.unwrap();
    assert_ne!(new.id(), old.id());
    assert_eq!(provider.cached().unwrap().id(), new.id());
    let elsewhere = on_disk(dir.path())
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(
        elsewhere.id(),
        new.id(),
        "another process finds the new key"
    );
    old.sign(SignatureScheme::RsaPssSha256, b"drained")
        .await
        .unwrap();

    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        if let KeyEvent::Rotated { from, to, .. } = event {
            seen.push((from, to));
            break;
        }
    }
    assert_eq!(seen, [(old.id(), new.id())]);
}

/// A rotation whose new key is in the store and not proven yet.
#[tokio::test]
async fn while_the_new_key_is_proven_the_old_one_is_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScriptedStore::new(StoreId::Tpm2);
    let over_the_store = || {
        let state = StateDir::open(dir.path().join("state")).unwrap();
        let builder = KeyProvider::builder().store(store.clone());
        builder.state_dir(state).build()
    };
    let provider = over_the_store();
    let old = provider.get_or_create_key().await.unwrap();
    let proof = store.hang(Op::Export);
    let rotation = tokio::spawn({
        let provider = provider.clone();
        async move { provider.rotate_key().await }
    });
    proof.reached().await;
    store.heal(Op::Export);
    assert_eq!(store.calls(Op::Create), 2, "the new key is there");
    assert_eq!(provider.cached().unwrap().id(), old.id());
    let elsewhere = over_the_store().get_or_create_key().await.unwrap();
    assert_eq!(elsewhere.id(), old.id());
    let sign = || old.sign(SignatureScheme::RsaPssSha256, b"in use");
    sign().await.unwrap();

    proof.open();
    let new = rotation.await.unwrap().unwrap();
    assert_ne!(new.id(), old.id());
    assert_eq!(provider.cached().unwrap().id(), new.id());
    // Whoever holds the old key signs with it for as long as it holds it, and the key is still where it was.
    for _ in 0..100 {
        sign().await.unwrap();
    }
    assert!(store.has(&KeyName::default()));
}

#[tokio::test]
async fn a_new_key_that_does_not_prove_itself_is_not_turned_to() {
    let dir = tempfile::tempdir().unwrap();
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = KeyProvider::builder()
        .store(store.clone())
        .state_dir(StateDir::open(dir.path().join("state")).unwrap())
        .build();
    let old = provider.get_or_create_key().await.unwrap();
    // It can be copied out: software strength, weaker than the one in use.
    store.lie(Some(Lie::Exports));
    provider.rotate_key().await.unwrap_err();
    assert_eq!(provider.cached().unwrap().id(), old.id());
    old.sign(SignatureScheme::RsaPssSha256, b"in use")
        .await
        .unwrap();
}

#[tokio::test]
async fn two_rotations_come_back_to_the_first_slot_with_a_third_key() {
    let dir = tempfile::tempdir().unwrap();
    let provider = on_disk(dir.path()).build();
    let first = provider.get_or_create_key().await.unwrap().id();
    let second = provider.rotate_key().await.unwrap().id();
    let third = provider.rotate_key().await.unwrap().id();
    assert!(first != second && second != third && first != third);
    let found = on_disk(dir.path())
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(found.id(), third);
    assert!(provider.delete_key().await.unwrap());
    assert_ne!(
        provider.get_or_create_key().await.unwrap().id(),
        second,
        "both slots are emptied"
    );
}

#[tokio::test]
async fn a_rotation_that_fails_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path().join("state")).unwrap();
    let store = std::sync::Arc::new(ScriptedStore::new(StoreId::Tpm2));
    let provider = KeyProvider::builder()
        .shared_store(store.clone())
        .state_dir(state)
        .build();
    let old = provider.get_or_create_key().await.unwrap();
    store.always(Op::Create, store.refusal(Reason::PermissionDenied));
    provider.rotate_key().await.unwrap_err();
    assert_eq!(provider.cached().unwrap().id(), old.id());
    store.heal_all();
    assert_ne!(provider.rotate_key().await.unwrap().id(), old.id());
}

#[tokio::test]
async fn a_slot_that_is_not_understood_is_an_error_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let provider = on_disk(dir.path()).build();
    provider.get_or_create_key().await.unwrap();
    let state = StateDir::open(dir.path().join("state")).unwrap();
    let keys = state.subdirectory("keys").unwrap();
    keys.write("default.slot", b"c\n").unwrap();
    let error = on_disk(dir.path())
        .build()
        .get_or_create_key()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("default.slot"), "{error}");
    assert_eq!(keys.read("default.slot").unwrap().unwrap(), b"c\n");
}

#[tokio::test]
async fn a_key_in_memory_rotates_in_its_process() {
    let provider = KeyProvider::in_memory();
    let old = provider.get_or_create_key().await.unwrap().id();
    assert_ne!(provider.rotate_key().await.unwrap().id(), old);
}

#[tokio::test]
async fn without_a_state_directory_a_lasting_key_is_not_rotated() {
    let provider = KeyProvider::builder()
        .store(ScriptedStore::new(StoreId::Tpm2))
        .build();
    let old = provider.get_or_create_key().await.unwrap().id();
    let error = provider.rotate_key().await.unwrap_err();
    assert_eq!(error.code(), "key_local_failure");
    assert_eq!(provider.cached().unwrap().id(), old);
}
