//! One creation, whoever comes, goes or dies.

use std::{sync::Arc, time::Duration};

use keybond_keys::{KeyProvider, Reason, StoreId};
use keybond_testkit::stores::{Fault, Op, ScriptedStore};
use tokio::task::JoinSet;

use crate::{cancel_after_first_poll, over};

async fn all_at_once(provider: &KeyProvider, callers: usize) -> usize {
    let barrier = Arc::new(tokio::sync::Barrier::new(callers));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (provider, barrier) = (provider.clone(), Arc::clone(&barrier));
        tasks.spawn(async move {
            barrier.wait().await;
            provider.get_or_create_key().await.map(|key| key.id())
        });
    }
    let mut ids = Vec::new();
    while let Some(id) = tasks.join_next().await {
        ids.push(id.unwrap().unwrap());
    }
    ids.sort();
    ids.dedup();
    ids.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_first_callers_make_one_key() {
    for callers in [64, 1_000] {
        let store = ScriptedStore::new(StoreId::Tpm2);
        let provider = over([&store]).build();
        assert_eq!(all_at_once(&provider, callers).await, 1);
        assert_eq!((store.calls(Op::Create), store.calls(Op::Open)), (1, 2));
    }
}

#[tokio::test]
async fn any_number_of_threads_reads_the_key() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let key = provider.get_or_create_key().await.unwrap();
    // Each thread is a new reader, and there are far fewer handles than threads.
    for _ in 0..400 {
        let provider = provider.clone();
        let read = std::thread::spawn(move || provider.cached().map(|key| key.id()));
        assert_eq!(read.join().unwrap(), Some(key.id()));
    }
}

#[tokio::test]
async fn a_cached_key_is_answered_while_the_store_hangs() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    assert!(provider.cached().is_none());
    let key = provider.get_or_create_key().await.unwrap();
    let gates: Vec<_> = Op::ALL.map(|op| store.hang(op)).into();
    let before: usize = Op::ALL.iter().map(|op| store.calls(*op)).sum();
    for _ in 0..100 {
        let again = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.id(), again.id());
    }
    assert_eq!(
        Op::ALL.iter().map(|op| store.calls(*op)).sum::<usize>(),
        before
    );
    gates.iter().for_each(|gate| gate.open());
}

#[tokio::test]
async fn the_creating_caller_can_leave() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let gate = store.hang(Op::Create);
    cancel_after_first_poll(provider.get_or_create_key()).await;
    gate.reached().await;
    let waiter = tokio::spawn({
        let provider = provider.clone();
        async move { provider.get_or_create_key().await }
    });
    gate.open();
    waiter.await.unwrap().unwrap();
    assert_eq!(store.calls(Op::Create), 1);
}

#[test]
fn a_caller_whose_runtime_stands_still_holds_up_nobody() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let stalled = runtime();
    stalled.block_on(cancel_after_first_poll(provider.get_or_create_key()));
    // `stalled` lives, but nobody drives it any more.
    runtime().block_on(async {
        tokio::time::timeout(Duration::from_secs(20), provider.get_or_create_key())
            .await
            .expect("others go on")
            .unwrap();
    });
    drop(stalled);
    assert_eq!(store.calls(Op::Create), 1);
}

#[test]
fn a_caller_whose_runtime_ends_holds_up_nobody() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let gate = store.hang(Op::Create);
    let ends = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    ends.block_on(async {
        cancel_after_first_poll(provider.get_or_create_key()).await;
        gate.reached().await;
    });
    drop(ends);
    gate.open();
    let next = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    next.block_on(provider.get_or_create_key()).unwrap();
    assert_eq!(store.calls(Op::Create), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_creator_wakes_everybody_with_the_reason() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let gate = store.hang(Op::Open);
    let provider = over([&store]).build();
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let provider = provider.clone();
        tasks.spawn(async move { provider.get_or_create_key().await });
    }
    gate.reached().await;
    store.always(Op::Create, store.refusal(Reason::PermissionDenied));
    gate.open();
    while let Some(answer) = tasks.join_next().await {
        let error = answer.unwrap().unwrap_err();
        assert!(error.to_string().contains("permission_denied"), "{error}");
    }
    // The failure is not remembered.
    store.heal_all();
    provider.get_or_create_key().await.unwrap();
}

#[tokio::test]
async fn a_device_that_claims_to_be_quick_does_not_block_the_runtime() {
    // A store of the hardware tier that claims to sign as quickly as memory, and then hangs.
    let store = ScriptedStore::lying(StoreId::Tpm2, keybond_testkit::stores::Lie::Quick);
    let provider = over([&store])
        .sign_deadline(Duration::from_millis(50))
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    let gate = store.hang(Op::Sign);
    let error = key.sign(key.schemes()[0], b"x").await.unwrap_err();
    assert_eq!(error.code(), "key_deadline_exceeded");
    gate.open();
}

#[tokio::test]
async fn delete_waits_for_a_creation_and_leaves_nothing_behind() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let gate = store.hang(Op::Create);
    let creation = tokio::spawn({
        let provider = provider.clone();
        async move { provider.get_or_create_key().await }
    });
    gate.reached().await;
    let deletion = tokio::spawn({
        let provider = provider.clone();
        async move { provider.delete_key().await }
    });
    tokio::task::yield_now().await;
    gate.open();
    creation.await.unwrap().unwrap();
    assert!(deletion.await.unwrap().unwrap(), "there was a key");
    assert!(provider.cached().is_none(), "a deleted key is in the cache");
    assert!(!store.has(&keybond_keys::KeyName::default()));
}

#[tokio::test]
async fn slow_is_not_dead() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    for op in [Op::Open, Op::Create, Op::Sign] {
        store.always(op, Fault::Slow(Duration::from_millis(20)));
    }
    let key = over([&store]).build().get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Tpm2);
    assert!(key.decision().considered[0].elapsed >= Duration::from_millis(60));
}
