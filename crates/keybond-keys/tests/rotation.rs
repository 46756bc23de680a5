//! Rotation on demand: two slots, the new key proven before the old one is left.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use keybond_keys::{
    KeyEvent, KeyProvider, KeyProviderBuilder, Reason, SignatureScheme, StateDir, StoreId,
};
use keybond_testkit::stores::{FileStore, Op, ScriptedStore};

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
