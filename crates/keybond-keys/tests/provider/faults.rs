//! Stores that hang or die.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keybond_keys::{KeyName, KeyProvider, Reason, StateDir, StoreId};
use keybond_testkit::stores::{Fault, Op, ScriptedStore};

use crate::{over, reason};

const SHORT: Duration = Duration::from_millis(50);
/// Long enough for a key in memory to be proven, on a busy machine.
const ENOUGH: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_hanging_store_costs_its_deadline_and_the_next_tier_answers() {
    for op in [Op::Open, Op::Create, Op::Sign, Op::Properties] {
        let tpm = ScriptedStore::new(StoreId::Tpm2).stocked();
        let memory = ScriptedStore::new(StoreId::Memory).stocked();
        let gate = tpm.hang(op);
        let started = Instant::now();
        let key = over([&tpm, &memory])
            .open_deadline(ENOUGH)
            .create_deadline(ENOUGH)
            .retry_budget(LONG)
            .build()
            .get_or_create_key()
            .await
            .unwrap();
        assert!(
            started.elapsed() < LONG / 2,
            "{op:?}: a deadline was waited for again and again"
        );
        assert_eq!(key.store(), StoreId::Memory, "{op:?}");
        assert_eq!(
            reason(key.decision(), StoreId::Tpm2),
            Some(Reason::TimedOut)
        );
        assert!(key.decision().provisional, "{op:?}");
        gate.open();
    }
}

#[tokio::test]
async fn a_hanging_store_is_upgraded_to_when_it_wakes() {
    let tpm = ScriptedStore::new(StoreId::Tpm2).stocked();
    let memory = ScriptedStore::new(StoreId::Memory).stocked();
    let gate = tpm.hang(Op::Create);
    let provider = over([&tpm, &memory])
        .create_deadline(ENOUGH)
        .reconsider_after(Duration::ZERO)
        .build();
    let weak = provider.get_or_create_key().await.unwrap();
    assert_eq!(weak.store(), StoreId::Memory);
    gate.open();
    let woken = async {
        while provider.get_or_create_key().await.unwrap().store() != StoreId::Tpm2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, woken).await.unwrap();
}

#[tokio::test]
async fn a_creation_that_hangs_is_not_started_twice() {
    let tpm = ScriptedStore::new(StoreId::Tpm2).stocked();
    let gate = tpm.hang(Op::Create);
    let provider = over([&tpm]).create_deadline(SHORT).build();
    for _ in 0..3 {
        let error = provider.get_or_create_key().await.unwrap_err();
        assert!(error.retryable(), "{error}");
        assert!(error.to_string().contains("timed_out"), "{error}");
    }
    assert_eq!(
        tpm.calls(Op::Create),
        1,
        "a second creation beside the hung one"
    );
    gate.open();
    let mut key = provider.get_or_create_key().await;
    let give_up = Instant::now() + LONG;
    while key.is_err() && Instant::now() < give_up {
        key = provider.get_or_create_key().await;
    }
    key.unwrap();
    assert_eq!(tpm.calls(Op::Create), 1, "the late key was not found");
}

#[tokio::test]
async fn a_creation_that_hangs_keeps_the_lock_of_the_machine() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path().join("state")).unwrap();
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let gate = tpm.hang(Op::Create);
    let one = over([&tpm]).create_deadline(SHORT).state_dir(state.clone());
    one.build().get_or_create_key().await.unwrap_err();
    let other = over([&tpm]).create_deadline(SHORT).state_dir(state);
    let error = other.build().get_or_create_key().await.unwrap_err();
    assert!(error.to_string().contains("lock"), "{error}");
    assert_eq!(
        tpm.calls(Op::Create),
        1,
        "a second creation beside the hung one"
    );
    gate.open();
}

#[tokio::test]
async fn a_hanging_store_does_not_hold_up_the_others() {
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&tpm]).build();
    let key = provider.get_or_create_key().await.unwrap();
    let gate = tpm.hang(Op::Sign);
    let signing: Vec<_> = (0..40)
        .map(|_| {
            let key = Arc::clone(&key);
            tokio::spawn(async move { key.sign(key.schemes()[0], b"x").await })
        })
        .collect();
    gate.reached().await;
    let memory = KeyProvider::in_memory();
    let mine = memory.get_or_create_key().await.unwrap();
    mine.sign(mine.schemes()[0], b"x").await.unwrap();
    assert!(provider.cached().is_some());
    gate.open();
    for task in signing {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_signature_that_hangs_costs_the_deadline() {
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&tpm]).sign_deadline(SHORT).build();
    let key = provider.get_or_create_key().await.unwrap();
    let gate = tpm.hang(Op::Sign);
    let error = key.sign(key.schemes()[0], b"x").await.unwrap_err();
    assert_eq!(error.code(), "key_deadline_exceeded");
    assert!(error.retryable());
    gate.open();
    tpm.heal_all();
    key.sign(key.schemes()[0], b"x").await.unwrap();
}

#[tokio::test]
async fn a_store_that_dies_is_a_refusal_that_may_pass() {
    for op in [
        Op::Open,
        Op::Create,
        Op::AfterCreate,
        Op::Sign,
        Op::PublicKey,
        Op::Properties,
    ] {
        let tpm = ScriptedStore::new(StoreId::Tpm2);
        let memory = ScriptedStore::new(StoreId::Memory);
        tpm.always(op, Fault::Die);
        let provider = over([&tpm, &memory]).build();
        let key = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.store(), StoreId::Memory, "{op:?}");
        assert_eq!(reason(key.decision(), StoreId::Tpm2), Some(Reason::Failed));
        assert!(
            key.decision().provisional,
            "{op:?}: nobody knows whether it stays dead"
        );
    }
}

#[tokio::test]
async fn a_creation_that_dies_half_way_leaves_a_key_that_is_opened() {
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    tpm.next(1, Op::AfterCreate, Fault::Die);
    let provider = over([&tpm]).build();
    provider.get_or_create_key().await.unwrap_err();
    assert!(tpm.has(&KeyName::default()));
    provider.get_or_create_key().await.unwrap();
    assert_eq!(tpm.calls(Op::Create), 1);
}

#[tokio::test]
async fn a_signature_that_dies_is_an_error_of_its_own() {
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let key = over([&tpm]).build().get_or_create_key().await.unwrap();
    tpm.next(1, Op::Sign, Fault::Die);
    let error = key.sign(key.schemes()[0], b"x").await.unwrap_err();
    assert_eq!(error.code(), "key_local_failure");
    key.sign(key.schemes()[0], b"x").await.unwrap();
}

#[tokio::test]
async fn a_decision_that_dies_is_an_error_and_not_a_loop() {
    let provider = KeyProvider::builder()
        .store(ScriptedStore::new(StoreId::Memory))
        .clock(|| std::panic::resume_unwind(Box::new("the clock dies")))
        .build();
    let answer = tokio::time::timeout(LONG, provider.get_or_create_key()).await;
    assert_eq!(
        answer.expect("it ends").unwrap_err().code(),
        "key_local_failure"
    );
}
