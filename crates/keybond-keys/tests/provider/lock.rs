//! The lock on the machine: taken for keys that others find, and told where it cannot be had.

use std::{fs, time::Duration};

use keybond_keys::{KeyProvider, MemoryStore, Outcome, Reason, StateDir, StoreId, Unavailable};
use keybond_testkit::stores::{Op, ScriptedStore};

fn state(home: &tempfile::TempDir) -> StateDir {
    StateDir::open(home.path().join("state")).unwrap()
}

/// A TPM before process memory, both over one state directory.
fn provider(tpm: &ScriptedStore, state: StateDir) -> KeyProvider {
    KeyProvider::builder()
        .store(tpm.clone())
        .store(MemoryStore)
        .state_dir(state)
        .retry_budget(Duration::ZERO)
        .build()
}

/// Why the TPM was passed over.
async fn passed_over(provider: &KeyProvider) -> Unavailable {
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Memory);
    match &key.decision().considered[0].outcome {
        Outcome::Skipped(refusal) => refusal.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_keys_that_outlive_the_process_are_locked() {
    let home = tempfile::tempdir().unwrap();
    let memory = KeyProvider::builder()
        .store(MemoryStore)
        .state_dir(state(&home))
        .build();
    memory.get_or_create_key().await.unwrap();
    let lock = state(&home).path().join("keys/default.lock");
    assert!(!lock.exists());

    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let key = provider(&tpm, state(&home)).get_or_create_key().await;
    assert_eq!(key.unwrap().store(), StoreId::Tpm2);
    assert!(lock.is_file());
}

#[tokio::test]
async fn a_lock_that_cannot_be_opened_may_be_had_later() {
    let home = tempfile::tempdir().unwrap();
    let keys = state(&home).subdirectory("keys").unwrap();
    fs::create_dir(keys.path().join("default.lock")).unwrap();
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let refusal = passed_over(&provider(&tpm, state(&home))).await;
    assert_eq!((refusal.reason, refusal.retryable), (Reason::Failed, true));
    assert!(refusal.detail.contains("default.lock"), "{refusal}");
    assert_eq!(tpm.calls(Op::Create), 0, "made without the lock");
}

#[cfg(unix)]
#[tokio::test]
async fn where_others_may_enter_no_key_is_made() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = tempfile::tempdir().unwrap();
    let keys = state(&home).subdirectory("keys").unwrap();
    fs::set_permissions(keys.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let error = provider(&tpm, state(&home)).get_or_create_key().await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("lets others in"), "{error}");
    assert_eq!(tpm.calls(Op::Create), 0);
}
