//! Order of the tiers, fallbacks with their reasons, policy, retries and provisional keys.

use std::time::{Duration, Instant};

use keybond_keys::{KeyEvent, Outcome, Reason, StoreId, StorePolicy, Strength};
use keybond_testkit::stores::{Op, ScriptedStore};

use crate::{event, over, reason};

fn three() -> [ScriptedStore; 3] {
    [StoreId::KeyGuard, StoreId::Tpm2, StoreId::Memory].map(ScriptedStore::new)
}

#[tokio::test]
async fn the_strongest_tier_wins_whatever_the_order_of_registration() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for order in orders {
        let stores = three();
        let provider = over(order.map(|index| &stores[index])).build();
        let key = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.store(), StoreId::KeyGuard, "{order:?}");
        let asked: Vec<_> = key.decision().considered.iter().map(|c| c.store).collect();
        assert_eq!(asked, [StoreId::KeyGuard, StoreId::Tpm2, StoreId::Memory]);
        assert_eq!(stores[1].calls(Op::Open) + stores[2].calls(Op::Create), 0);
    }
}

#[tokio::test]
async fn within_a_tier_the_first_registered_wins() {
    for (first, second) in [
        (StoreId::Tpm2, StoreId::Pkcs11),
        (StoreId::Pkcs11, StoreId::Tpm2),
    ] {
        let stores = [first, second].map(ScriptedStore::new);
        let key = over([&stores[0], &stores[1]])
            .build()
            .get_or_create_key()
            .await
            .unwrap();
        assert_eq!(key.store(), first);
    }
}

#[tokio::test]
async fn every_reason_leads_to_the_next_tier_and_is_told() {
    for why in [
        Reason::NotSupported,
        Reason::NotPresent,
        Reason::PermissionDenied,
        Reason::Busy,
        Reason::TimedOut,
        Reason::TooWeak,
        Reason::Failed,
    ] {
        let [keyguard, tpm, memory] = three();
        keyguard.refuse(Reason::NotPresent);
        tpm.refuse(why);
        let key = over([&keyguard, &tpm, &memory])
            .build()
            .get_or_create_key()
            .await
            .unwrap();
        let decision = key.decision();
        assert_eq!(key.strength(), Strength::Software);
        assert_eq!(
            reason(decision, StoreId::KeyGuard),
            Some(Reason::NotPresent)
        );
        assert_eq!(reason(decision, StoreId::Tpm2), Some(why));
        assert!(decision.to_string().contains(why.name()), "{decision}");
        let passes = matches!(why, Reason::Busy | Reason::TimedOut);
        assert_eq!(decision.provisional, passes, "{why}");
        let json = serde_json::to_value(&**decision).unwrap();
        assert_eq!(
            json["considered"][1]["outcome"]["skipped"]["reason"],
            why.name()
        );
    }
}

#[tokio::test]
async fn a_store_that_opens_is_not_asked_to_create() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    let first = over([&store]).build().get_or_create_key().await.unwrap();
    let again = over([&store]).build().get_or_create_key().await.unwrap();
    assert_eq!(first.id(), again.id());
    assert_eq!(store.calls(Op::Create), 1);
    let chosen = &again.decision().chosen().unwrap().outcome;
    assert!(matches!(chosen, Outcome::Chosen { created: false, .. }));
}

#[tokio::test]
async fn policy_turns_stores_off_without_touching_them() {
    let [keyguard, tpm, memory] = three();
    let provider = over([&keyguard, &tpm, &memory])
        .policy("tpm2,memory".parse().unwrap())
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Tpm2);
    assert_eq!(
        reason(key.decision(), StoreId::KeyGuard),
        Some(Reason::DisabledByPolicy)
    );
    provider.delete_key().await.unwrap();
    provider.probe().await;
    for op in Op::ALL {
        assert_eq!(
            keyguard.calls(op),
            0,
            "{op:?} on a store that is turned off"
        );
    }
}

#[tokio::test]
async fn a_required_store_that_refuses_is_an_error_and_nothing_weaker_is_asked() {
    let [_, tpm, memory] = three();
    tpm.refuse(Reason::NotPresent);
    let provider = over([&tpm, &memory])
        .policy(StorePolicy::any().require(StoreId::Tpm2))
        .build();
    let error = provider.get_or_create_key().await.unwrap_err();
    assert_eq!(error.code(), "no_key_store");
    assert!(error.to_string().contains("disabled_by_policy"), "{error}");
    assert_eq!(memory.calls(Op::Create), 0);
}

#[tokio::test]
async fn no_store_at_all_is_an_error() {
    let error = over([]).build().get_or_create_key().await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("no_key_store", false));
}

#[tokio::test]
async fn a_busy_store_is_asked_again_within_the_budget() {
    let [_, tpm, memory] = three();
    tpm.next(2, Op::Open, tpm.refusal(Reason::Busy));
    let provider = over([&tpm, &memory])
        .retry_budget(Duration::from_secs(5))
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Tpm2);
    assert!(!key.decision().provisional);
    assert_eq!(key.decision().considered[0].attempts, 3);
}

#[tokio::test]
async fn the_budget_is_one_for_all_and_counts_the_time_of_the_answers() {
    let stores = [StoreId::Platform, StoreId::Tpm2, StoreId::Memory].map(ScriptedStore::new);
    let [platform, tpm, memory] = &stores;
    for store in [platform, tpm] {
        store.always(Op::Probe, store.refusal(Reason::Busy));
        store.always(Op::Create, store.refusal(Reason::Busy));
        store.always(
            Op::Open,
            keybond_testkit::stores::Fault::Slow(Duration::from_millis(60)),
        );
    }
    let provider = over([platform, tpm, memory])
        .retry_budget(Duration::from_millis(150))
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Memory);
    let attempts: u32 = key.decision().considered.iter().map(|c| c.attempts).sum();
    // Two opens of 60 ms a time and a pause of 50 ms: 170 ms, so one retry at most uses up the budget.
    assert!(attempts <= 4, "{}", key.decision());
}

#[tokio::test]
async fn a_provisional_key_is_upgraded_when_the_stronger_store_answers() {
    let [_, tpm, memory] = three();
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory])
        .reconsider_after(Duration::ZERO)
        .build();
    let mut events = provider.events();
    let weak = provider.get_or_create_key().await.unwrap();
    assert!(weak.decision().provisional);
    assert_eq!(weak.decision().considered[0].store, StoreId::Tpm2);
    let id = event(&mut events, |event| match event {
        KeyEvent::Provisional { store, key } => {
            assert_eq!(store, StoreId::Memory);
            Some(key)
        }
        _ => None,
    })
    .await;
    assert_eq!(id, weak.id());

    // Still busy: the key stays and nobody waits.
    assert_eq!(provider.cached().unwrap().id(), weak.id());
    event(&mut events, |event| {
        matches!(event, KeyEvent::Refused(refusal) if refusal.store == StoreId::Tpm2).then_some(())
    })
    .await;

    tpm.heal_all();
    let upgraded = async {
        loop {
            // Each use of a provisional key that is due has the stronger store asked again.
            let key = provider.get_or_create_key().await.unwrap();
            if key.store() == StoreId::Tpm2 {
                return key;
            }
            tokio::task::yield_now().await;
        }
    };
    let strong = tokio::time::timeout(Duration::from_secs(10), upgraded)
        .await
        .unwrap();
    assert_eq!(strong.strength(), Strength::Hardware);
    assert!(!strong.decision().provisional);
    let told: Vec<_> = strong
        .decision()
        .considered
        .iter()
        .map(|c| c.store)
        .collect();
    assert_eq!(
        told,
        [StoreId::Tpm2, StoreId::Memory],
        "the whole hierarchy"
    );
    let (from, to) = event(&mut events, |event| match event {
        KeyEvent::Upgraded { from, to, .. } => Some((from, to)),
        _ => None,
    })
    .await;
    assert_eq!((from, to), (weak.id(), strong.id()));
}

#[tokio::test]
async fn a_store_that_is_still_busy_is_left_alone_for_a_while() {
    const AFTER: Duration = Duration::from_secs(1);
    let [_, tpm, memory] = three();
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory]).reconsider_after(AFTER).build();
    let began = Instant::now();
    provider.get_or_create_key().await.unwrap();
    let mut asked = tpm.calls(Op::Open);
    for round in 0..10 {
        while tpm.calls(Op::Open) == asked {
            provider.cached().unwrap();
            tokio::task::yield_now().await;
        }
        assert!(round > 0 || began.elapsed() >= AFTER, "it is asked at once");
        // It is being asked; from when the answer is there, the pause runs.
        asked += 1;
        let began = Instant::now();
        while began.elapsed() < AFTER / 2 {
            provider.cached().unwrap();
            tokio::task::yield_now().await;
        }
        let again = tpm.calls(Op::Open);
        // On a machine that stood still meanwhile this says nothing.
        if began.elapsed() < AFTER {
            assert_eq!(again, asked, "it is asked all the time");
            return;
        }
        asked = again;
    }
}

#[tokio::test]
async fn a_definite_refusal_ends_the_reconsideration() {
    let [_, tpm, memory] = three();
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory])
        .reconsider_after(Duration::ZERO)
        .build();
    let mut events = provider.events();
    let key = provider.get_or_create_key().await.unwrap();
    tpm.refuse(Reason::NotPresent);
    let told = async {
        while provider.cached().is_none() || tpm.calls(Op::Open) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told)
        .await
        .unwrap();
    event(&mut events, |event| {
        matches!(event, KeyEvent::Refused(refusal) if refusal.reason == Reason::NotPresent)
            .then_some(())
    })
    .await;
    // A definite "no" is asked for once; the key is the same.
    let settled = async {
        loop {
            let before = tpm.calls(Op::Open);
            for _ in 0..100 {
                provider.cached();
                tokio::task::yield_now().await;
            }
            if tpm.calls(Op::Open) == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled)
        .await
        .unwrap();
    assert_eq!(provider.cached().unwrap().id(), key.id());
}

#[tokio::test]
async fn a_busy_neighbour_in_the_same_tier_makes_no_key_provisional() {
    let stores = [StoreId::Tpm2, StoreId::Pkcs11].map(ScriptedStore::new);
    stores[0].refuse(Reason::Busy);
    let key = over([&stores[0], &stores[1]])
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(key.store(), StoreId::Pkcs11);
    assert!(
        !key.decision().provisional,
        "the key is as strong as can be had"
    );
}

#[tokio::test]
async fn a_probe_asks_everybody_and_makes_nothing() {
    let [keyguard, tpm, memory] = three();
    keyguard.refuse(Reason::NotSupported);
    let decision = over([&keyguard, &tpm, &memory]).build().probe().await;
    let text = decision.to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("not_supported") && text.contains("available"),
        "{text}"
    );
    for store in [&keyguard, &tpm, &memory] {
        assert_eq!(store.calls(Op::Create) + store.calls(Op::Open), 0);
    }
}
