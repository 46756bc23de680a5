//! Stores that lie are caught by what their keys do, not by who they are.

use keybond_keys::{KeyName, Outcome, Reason, SignatureScheme, StoreId, Strength};
use keybond_testkit::stores::{Fault, Lie, Op, ScriptedStore};

use crate::{over, reason};

#[tokio::test]
async fn a_lie_about_protection_costs_the_tier() {
    for (store, lie) in [
        (StoreId::KeyGuard, Lie::NotIsolated),
        (StoreId::KeyGuard, Lie::OutlivesBoot),
        (StoreId::KeyGuard, Lie::Imported),
        (StoreId::KeyGuard, Lie::Exports),
        (StoreId::Tpm2, Lie::NotIsolated),
        (StoreId::Tpm2, Lie::Imported),
        (StoreId::Tpm2, Lie::Exports),
        (StoreId::Pkcs11, Lie::Exports),
        (StoreId::Tpm2, Lie::Changes),
        (StoreId::Tpm2, Lie::Bits(1024)),
        (StoreId::Tpm2, Lie::Bits(3072)),
    ] {
        let liar = ScriptedStore::lying(store, lie);
        let memory = ScriptedStore::new(StoreId::Memory);
        let key = over([&liar, &memory])
            .build()
            .get_or_create_key()
            .await
            .unwrap();
        assert_eq!(key.store(), StoreId::Memory, "{store} {lie:?}");
        assert_eq!(key.strength(), Strength::Software);
        assert_eq!(
            reason(key.decision(), store),
            Some(Reason::TooWeak),
            "{lie:?}"
        );
        assert!(!key.decision().provisional, "a lie does not pass");
        assert!(
            !liar.has(&KeyName::default()),
            "the rejected key lies about"
        );
    }
}

#[tokio::test]
async fn a_lie_is_caught_when_the_key_is_opened_too() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    over([&store]).build().get_or_create_key().await.unwrap();
    store.lie(Some(Lie::Exports));
    let error = over([&store])
        .build()
        .get_or_create_key()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("too_weak"), "{error}");
    assert_eq!(
        store.calls(Op::Create),
        1,
        "a weak key is not made again and again"
    );
    assert!(store.has(&KeyName::default()), "somebody's key was deleted");
}

#[tokio::test]
async fn a_key_of_another_size_is_made_anew() {
    for bits in [1024, 3072, 4096] {
        let store = ScriptedStore::lying(StoreId::Tpm2, Lie::Bits(bits));
        // Put the wrong key there as an older version or another program might have.
        drop(keybond_keys::KeyStore::create(&store, &KeyName::default()).unwrap());
        store.lie(None);
        let provider = over([&store]).build();
        let mut events = provider.events();
        let key = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.public_key().bits(), 2048);
        let cause = crate::event(&mut events, |event| match event {
            keybond_keys::KeyEvent::Replaced { cause, .. } => Some(cause),
            _ => None,
        })
        .await;
        assert!(cause.contains(&bits.to_string()), "{cause}");
    }
}

#[tokio::test]
async fn signatures_of_another_key_are_no_signatures() {
    let liar = ScriptedStore::lying(StoreId::Tpm2, Lie::AnotherKey);
    let memory = ScriptedStore::new(StoreId::Memory);
    let key = over([&liar, &memory])
        .build()
        .get_or_create_key()
        .await
        .unwrap();
    assert_eq!(key.store(), StoreId::Memory);
    assert_eq!(reason(key.decision(), StoreId::Tpm2), Some(Reason::Dead));
    assert!(!liar.has(&KeyName::default()), "the useless key lies about");
}

#[tokio::test]
async fn a_wrong_salt_costs_the_schemes() {
    let liar = ScriptedStore::lying(StoreId::Tpm2, Lie::WrongSalt);
    let key = over([&liar]).build().get_or_create_key().await.unwrap();
    assert!(key.schemes().iter().all(|scheme| !scheme.is_pss()));
    assert_eq!(key.schemes().len(), 3);
    let rejected: Vec<_> = key.evidence().rejected.iter().map(|r| r.scheme).collect();
    assert_eq!(rejected, SignatureScheme::ALL[..3]);
    let error = key
        .sign(SignatureScheme::RsaPssSha256, b"x")
        .await
        .unwrap_err();
    assert_eq!(error.code(), "signature_scheme_not_supported");
}

#[tokio::test]
async fn an_honest_key_shows_what_it_is() {
    for (store, strength) in [
        (StoreId::KeyGuard, Strength::KeyGuard),
        (StoreId::Platform, Strength::Hardware),
        (StoreId::Tpm2, Strength::Hardware),
        (StoreId::Pkcs11, Strength::Hardware),
        (StoreId::Memory, Strength::Software),
    ] {
        let key = over([&ScriptedStore::new(store)])
            .build()
            .get_or_create_key()
            .await
            .unwrap();
        assert_eq!((key.store(), key.strength()), (store, strength));
        assert_eq!(key.schemes(), SignatureScheme::ALL);
        assert_eq!(key.evidence().key_id, key.id());
        for scheme in SignatureScheme::ALL {
            let signature = key.sign(scheme, b"message").await.unwrap();
            assert!(key.public_key().verify(scheme, b"message", &signature));
            assert!(!key.public_key().verify(scheme, b"massage", &signature));
        }
        let chosen = &key.decision().chosen().unwrap().outcome;
        assert!(matches!(chosen, Outcome::Chosen { created: true, strength: s } if *s == strength));
    }
}

#[tokio::test]
async fn a_device_that_refuses_the_trial_keeps_its_key() {
    // None of these says that the key is lost, so none may cost it.
    for why in [
        Reason::PermissionDenied,
        Reason::NotPresent,
        Reason::Failed,
        Reason::Busy,
    ] {
        let store = ScriptedStore::new(StoreId::Tpm2);
        let first = over([&store]).build().get_or_create_key().await.unwrap();
        store.always(Op::Sign, store.refusal(why));
        let error = over([&store])
            .build()
            .get_or_create_key()
            .await
            .unwrap_err();
        assert!(error.to_string().contains(why.name()), "{why}: {error}");
        assert_eq!(store.calls(Op::Create), 1, "{why}");
        store.heal_all();
        let again = over([&store]).build().get_or_create_key().await.unwrap();
        assert_eq!(again.id(), first.id(), "{why}");
    }
}

#[tokio::test]
async fn one_scheme_that_fails_is_not_offered() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    store.next(1, Op::Sign, store.refusal(Reason::NotSupported));
    let key = over([&store]).build().get_or_create_key().await.unwrap();
    assert_eq!(key.schemes(), &SignatureScheme::ALL[1..]);
    assert_eq!(key.evidence().rejected[0].scheme, SignatureScheme::ALL[0]);
}

#[tokio::test]
async fn one_scheme_that_is_refused_does_not_cost_the_others() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    store.next(1, Op::Sign, store.refusal(Reason::PermissionDenied));
    let key = over([&store]).build().get_or_create_key().await.unwrap();
    assert_eq!(key.schemes(), &SignatureScheme::ALL[1..]);
}

#[tokio::test]
async fn a_busy_moment_costs_no_scheme() {
    let store = ScriptedStore::new(StoreId::Tpm2);
    store.next(1, Op::Sign, store.refusal(Reason::Busy));
    let provider = over([&store]).build();
    let error = provider.get_or_create_key().await.unwrap_err();
    assert!(error.retryable(), "{error}");
    let key = provider.get_or_create_key().await.unwrap();
    assert_eq!(key.schemes(), SignatureScheme::ALL);
}

#[tokio::test]
async fn a_key_is_not_used_without_its_properties() {
    for op in [Op::Properties, Op::PublicKey] {
        let store = ScriptedStore::new(StoreId::Tpm2);
        store.always(
            op,
            Fault::Refuse(keybond_keys::Unavailable::new(
                StoreId::Tpm2,
                Reason::Failed,
                "no answer",
            )),
        );
        let error = over([&store])
            .build()
            .get_or_create_key()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
    }
}
