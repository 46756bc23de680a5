//! The floor: on the provider and for one call.

use std::time::Duration;

use keybond_keys::{KeyError, KeyProvider, Reason, StoreId, Strength};
use keybond_testkit::stores::{Op, ScriptedStore};

use crate::{over, reason};

fn have(error: &KeyError) -> (Option<Strength>, Strength) {
    match error {
        KeyError::MinStrengthNotMet { have, need, .. } => (*have, *need),
        other => panic!("expected min_strength_not_met, got {other}"),
    }
}

fn two() -> [ScriptedStore; 2] {
    [StoreId::Tpm2, StoreId::Memory].map(ScriptedStore::new)
}

async fn ask(provider: &KeyProvider, per_call: bool) -> KeyError {
    if per_call {
        provider.get_key_of_strength(Strength::Hardware).await
    } else {
        provider.get_or_create_key().await
    }
    .unwrap_err()
}

#[tokio::test]
async fn no_store_below_the_floor_makes_a_key() {
    for per_call in [false, true] {
        let [tpm, memory] = two();
        tpm.refuse(Reason::NotPresent);
        let mut builder = over([&tpm, &memory]);
        if !per_call {
            builder = builder.minimum_strength(Strength::Hardware);
        }
        let provider = builder.build();
        let error = ask(&provider, per_call).await;
        assert_eq!(error.code(), "min_strength_not_met");
        assert_eq!(have(&error), (Some(Strength::Software), Strength::Hardware));
        assert!(error.to_string().contains("not_present"), "{error}");
        assert_eq!(memory.calls(Op::Create), 0, "per call: {per_call}");
        assert!(provider.cached().is_none());
    }
}

#[tokio::test]
async fn have_is_what_could_be_had() {
    for per_call in [false, true] {
        let [tpm, memory] = two();
        tpm.refuse(Reason::NotPresent);
        memory.refuse(Reason::Failed);
        let floor = if per_call {
            Strength::Software
        } else {
            Strength::Hardware
        };
        let provider = over([&tpm, &memory]).minimum_strength(floor).build();
        assert_eq!(have(&ask(&provider, per_call).await).0, None);
    }
    // A store that is turned off offers nothing.
    let [tpm, memory] = two();
    tpm.refuse(Reason::NotPresent);
    let provider = over([&tpm, &memory])
        .policy("-memory".parse().unwrap())
        .build();
    assert_eq!(have(&ask(&provider, true).await).0, None);
}

#[tokio::test]
async fn have_is_the_strongest_that_could_be_had() {
    let [tpm, memory] = two();
    let keyguard = ScriptedStore::new(StoreId::KeyGuard);
    keyguard.refuse(Reason::NotSupported);
    let provider = over([&keyguard, &tpm, &memory])
        .minimum_strength(Strength::KeyGuard)
        .build();
    let error = provider.get_or_create_key().await.unwrap_err();
    assert_eq!(have(&error), (Some(Strength::Hardware), Strength::KeyGuard));
}

#[tokio::test]
async fn have_counts_the_key_in_use() {
    let [tpm, memory] = two();
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory]).build();
    provider.get_or_create_key().await.unwrap();
    memory.refuse(Reason::Failed);
    assert_eq!(
        have(&ask(&provider, true).await).0,
        Some(Strength::Software)
    );
}

#[tokio::test]
async fn a_cached_weaker_key_does_not_slip_through() {
    let [tpm, memory] = two();
    tpm.refuse(Reason::NotPresent);
    let provider = over([&tpm, &memory]).build();
    let weak = provider.get_or_create_key().await.unwrap();
    assert_eq!(weak.strength(), Strength::Software);
    let asked = tpm.calls(Op::Open);
    let error = ask(&provider, true).await;
    assert_eq!(have(&error), (Some(Strength::Software), Strength::Hardware));
    assert_eq!(
        tpm.calls(Op::Open),
        asked,
        "a definite answer is not asked for again"
    );
    assert_eq!(provider.get_or_create_key().await.unwrap().id(), weak.id());
}

#[tokio::test]
async fn a_call_with_a_floor_asks_again_what_may_have_passed() {
    let [tpm, memory] = two();
    tpm.refuse(Reason::Busy);
    let provider = over([&tpm, &memory])
        .reconsider_after(Duration::from_secs(3600))
        .build();
    let weak = provider.get_or_create_key().await.unwrap();
    let error = ask(&provider, true).await;
    assert!(error.retryable(), "{error}");
    assert_eq!(have(&error).0, Some(Strength::Software));
    tpm.heal_all();
    let strong = provider
        .get_key_of_strength(Strength::Hardware)
        .await
        .unwrap();
    assert_ne!(strong.id(), weak.id());
    assert_eq!(provider.cached().unwrap().id(), strong.id());
}

#[tokio::test]
async fn a_call_with_a_floor_does_not_fail_those_without() {
    let [tpm, memory] = two();
    let gate = tpm.hang(Op::Open);
    let provider = over([&tpm, &memory]).build();
    let strict = tokio::spawn({
        let provider = provider.clone();
        async move { provider.get_key_of_strength(Strength::Hardware).await }
    });
    gate.reached().await;
    let lenient = tokio::spawn({
        let provider = provider.clone();
        async move { provider.get_or_create_key().await }
    });
    tokio::task::yield_now().await;
    tpm.refuse(Reason::NotPresent);
    tpm.always(Op::Create, tpm.refusal(Reason::NotPresent));
    gate.open();
    assert_eq!(
        strict.await.unwrap().unwrap_err().code(),
        "min_strength_not_met"
    );
    assert_eq!(lenient.await.unwrap().unwrap().store(), StoreId::Memory);
}

#[tokio::test]
async fn a_call_cannot_lower_the_floor() {
    let [tpm, memory] = two();
    tpm.refuse(Reason::NotPresent);
    let provider = over([&tpm, &memory])
        .minimum_strength(Strength::Hardware)
        .build();
    let error = provider
        .get_key_of_strength(Strength::Software)
        .await
        .unwrap_err();
    assert_eq!(have(&error).1, Strength::Hardware);
    assert_eq!(memory.calls(Op::Create), 0);
}

#[tokio::test]
async fn a_liar_does_not_reach_the_floor() {
    use keybond_testkit::stores::Lie;
    let keyguard = ScriptedStore::lying(StoreId::KeyGuard, Lie::NotIsolated);
    let provider = over([&keyguard])
        .minimum_strength(Strength::KeyGuard)
        .build();
    let error = provider.get_or_create_key().await.unwrap_err();
    let KeyError::MinStrengthNotMet { have, decision, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*have, None, "the store offers no key at all");
    assert_eq!(reason(decision, StoreId::KeyGuard), Some(Reason::TooWeak));
}
