//! Keys that are lost, reported or deleted.

use std::time::Duration;

use keybond_keys::{KeyEvent, KeyName, Reason, StoreId, Verdict};
use keybond_testkit::stores::{Fault, Lie, Op, ScriptedStore};

use crate::{event, over};

async fn replaced(
    events: &mut keybond_keys::KeyEvents,
) -> (Option<keybond_keys::KeyId>, keybond_keys::KeyId, String) {
    event(events, |event| match event {
        KeyEvent::Replaced {
            from, to, cause, ..
        } => Some((from, to, cause)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn what_is_lost_is_replaced_and_told() {
    for why in [Reason::Dead, Reason::Foreign, Reason::Corrupt] {
        let store = ScriptedStore::new(StoreId::Tpm2);
        let old = over([&store]).build().get_or_create_key().await.unwrap();
        store.spoil(why);
        let provider = over([&store]).build();
        let mut events = provider.events();
        let new = provider.get_or_create_key().await.unwrap();
        assert_ne!(old.id(), new.id());
        let (from, to, cause) = replaced(&mut events).await;
        assert_eq!((from, to), (None, new.id()));
        assert!(cause.contains(why.name()), "{cause}");
    }
}

#[tokio::test]
async fn what_is_only_out_of_reach_is_not_replaced() {
    for why in [
        Reason::PermissionDenied,
        Reason::Busy,
        Reason::TimedOut,
        Reason::NotPresent,
        Reason::Failed,
    ] {
        let store = ScriptedStore::new(StoreId::Tpm2);
        over([&store]).build().get_or_create_key().await.unwrap();
        store.spoil(why);
        over([&store])
            .build()
            .get_or_create_key()
            .await
            .unwrap_err();
        assert_eq!(store.calls(Op::Create), 1, "{why}");
    }
}

#[tokio::test]
async fn what_may_be_lost_only_for_a_moment_is_not_replaced() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    over([&store]).build().get_or_create_key().await.unwrap();
    let passing = keybond_keys::Unavailable::new(StoreId::Tpm2, Reason::Foreign, "starting up");
    store.always(Op::Open, Fault::Refuse(passing.with_retryable(true)));
    over([&store])
        .build()
        .get_or_create_key()
        .await
        .unwrap_err();
    assert_eq!(store.calls(Op::Create), 1);
}

#[tokio::test]
async fn a_key_that_opens_again_was_not_replaced() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let key = provider.get_or_create_key().await.unwrap();
    let mut events = provider.events();
    store.next(1, Op::Sign, store.refusal(Reason::Dead));
    let verdict = provider.report_failure(&key, "refused").await.unwrap();
    assert!(
        matches!(&verdict, Verdict::Replaced(new) if new.id() == key.id()),
        "{verdict:?}"
    );
    let first = events.next().await.unwrap();
    assert!(matches!(first, KeyEvent::Opened { .. }), "{first:?}");
}

#[tokio::test]
async fn a_key_that_no_longer_signs_is_replaced_when_opened() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let old = over([&store]).build().get_or_create_key().await.unwrap();
    store.next(6, Op::Sign, store.refusal(Reason::Dead));
    // Seen before the lock and with it, hence two trials of six schemes.
    store.next(12, Op::Sign, store.refusal(Reason::Dead));
    let provider = over([&store])
        .state_dir(
            keybond_keys::StateDir::open(tempfile::tempdir().unwrap().keep().join("s")).unwrap(),
        )
        .build();
    let mut events = provider.events();
    let new = provider.get_or_create_key().await.unwrap();
    let (from, to, _) = replaced(&mut events).await;
    assert_eq!((from, to), (Some(old.id()), new.id()));
}

#[tokio::test]
async fn a_report_about_a_key_that_signs_changes_nothing() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let key = provider.get_or_create_key().await.unwrap();
    let verdict = provider.report_failure(&key, "unknown_ca").await.unwrap();
    assert!(matches!(verdict, Verdict::Alive), "{verdict:?}");
    assert_eq!(provider.cached().unwrap().id(), key.id());
}

#[tokio::test]
async fn a_report_about_a_dead_key_replaces_it() {
    for id in [StoreId::Tpm2, StoreId::Memory] {
        let store = ScriptedStore::new(id);
        let provider = over([&store]).build();
        let key = provider.get_or_create_key().await.unwrap();
        let mut events = provider.events();
        store.kill();
        let verdict = provider
            .report_failure(&key, "handshake refused")
            .await
            .unwrap();
        let Verdict::Replaced(new) = verdict else {
            panic!("{verdict:?}");
        };
        assert_ne!(new.id(), key.id());
        let (from, to, cause) = replaced(&mut events).await;
        assert_eq!((from, to), (Some(key.id()), new.id()), "{id}");
        assert!(cause.contains("handshake refused"), "{cause}");
        assert_eq!(provider.cached().unwrap().id(), new.id());
    }
}

#[tokio::test]
async fn a_report_without_a_definite_answer_keeps_the_key() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store])
        .sign_deadline(Duration::from_millis(50))
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    let busy = store.refusal(Reason::Busy);
    let denied = store.refusal(Reason::PermissionDenied);
    let gone = store.refusal(Reason::NotPresent);
    for fault in [busy, denied, gone, Fault::Die] {
        store.next(1, Op::Sign, fault);
        let verdict = provider.report_failure(&key, "test").await.unwrap();
        assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
    }
    let gate = store.hang(Op::Sign);
    let verdict = provider.report_failure(&key, "test").await.unwrap();
    assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
    gate.open();
    assert_eq!(provider.cached().unwrap().id(), key.id());
    assert_eq!(store.calls(Op::Create), 1);
}

#[tokio::test]
async fn a_report_about_an_old_key_costs_nothing() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let old = provider.get_or_create_key().await.unwrap();
    assert!(provider.delete_key().await.unwrap());
    let new = provider.get_or_create_key().await.unwrap();
    let signatures = store.calls(Op::Sign);
    let Verdict::Replaced(current) = provider.report_failure(&old, "late").await.unwrap() else {
        panic!("the old key was taken for the current one");
    };
    assert_eq!(current.id(), new.id());
    assert_eq!(store.calls(Op::Sign), signatures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reports_make_one_replacement() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store]).build();
    let key = provider.get_or_create_key().await.unwrap();
    store.kill();
    let reports: Vec<_> = (0..16)
        .map(|_| {
            let (provider, key) = (provider.clone(), key.clone());
            tokio::spawn(async move { provider.report_failure(&key, "refused").await })
        })
        .collect();
    for report in reports {
        let verdict = report.await.unwrap().unwrap();
        assert!(matches!(verdict, Verdict::Replaced(_)), "{verdict:?}");
    }
    assert_eq!(store.calls(Op::Create), 2);
}

#[tokio::test]
async fn a_dead_key_is_not_handed_out_while_an_upgrade_is_under_way() {
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let memory = ScriptedStore::new(StoreId::Memory);
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory])
        .reconsider_after(Duration::ZERO)
        .build();
    let weak = provider.get_or_create_key().await.unwrap();
    let gate = tpm.hang(Op::Open);
    provider.cached().unwrap();
    gate.reached().await;
    memory.kill();
    let report = tokio::spawn({
        let (provider, weak) = (provider.clone(), weak.clone());
        async move { provider.report_failure(&weak, "refused").await }
    });
    while provider.cached().is_some() {
        tokio::task::yield_now().await;
    }
    tpm.refuse(Reason::Busy);
    gate.open();
    let Verdict::Replaced(new) = report.await.unwrap().unwrap() else {
        panic!("the key was dead");
    };
    assert_ne!(new.id(), weak.id(), "the dead key was handed out again");
}

#[tokio::test]
async fn delete_removes_the_key_everywhere_and_says_so() {
    let stores = [StoreId::Tpm2, StoreId::Pkcs11, StoreId::Memory].map(ScriptedStore::new);
    let [tpm, token, memory] = &stores;
    for store in [tpm, token] {
        over([store]).build().get_or_create_key().await.unwrap();
    }
    let provider = over([tpm, token, memory]).build();
    let old = provider.get_or_create_key().await.unwrap();
    assert!(provider.delete_key().await.unwrap());
    assert!(provider.cached().is_none());
    for store in [tpm, token] {
        assert!(!store.has(&KeyName::default()));
    }
    assert!(!provider.delete_key().await.unwrap(), "nothing is left");
    assert_ne!(provider.get_or_create_key().await.unwrap().id(), old.id());
}

#[tokio::test]
async fn delete_does_not_claim_success_over_a_store_that_cannot_be_asked() {
    let stores = [StoreId::Platform, StoreId::Tpm2, StoreId::Pkcs11].map(ScriptedStore::new);
    let [absent, busy, token] = &stores;
    over([busy]).build().get_or_create_key().await.unwrap();
    over([token]).build().get_or_create_key().await.unwrap();
    absent.refuse(Reason::NotPresent);
    busy.refuse(Reason::Busy);
    let provider = over([absent, busy, token]).build();
    let error = provider.delete_key().await.unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    assert!(
        !token.has(&KeyName::default()),
        "the other stores are not left out"
    );
    busy.heal_all();
    assert!(provider.delete_key().await.unwrap());
}

#[tokio::test]
async fn the_story_of_a_key_is_told_in_order() {
    let store = ScriptedStore::lying(StoreId::KeyGuard, Lie::NotIsolated);
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let provider = over([&store, &tpm]).build();
    let mut events = provider.events();
    let key = provider.get_or_create_key().await.unwrap();
    let first = events.next().await.unwrap();
    assert!(
        matches!(&first, KeyEvent::Refused(r) if r.reason == Reason::TooWeak),
        "{first:?}"
    );
    let second = events.next().await.unwrap();
    assert!(
        matches!(second, KeyEvent::Created { key: id, .. } if id == key.id()),
        "{second:?}"
    );
    let opened = over([&tpm]).build();
    let mut events = opened.events();
    opened.get_or_create_key().await.unwrap();
    let event = events.next().await.unwrap();
    assert!(
        matches!(event, KeyEvent::Opened { key: id, .. } if id == key.id()),
        "{event:?}"
    );
    let json = serde_json::to_value(&event).unwrap();
    assert_eq!(json["opened"]["store"], "tpm2");
    drop(opened);
    assert!(
        events.next().await.is_none(),
        "the stream ends with the provider"
    );
}
