//! The PKCS#11 store on SoftHSM, behind a module that fails on command.
#![cfg(all(feature = "pkcs11", target_os = "linux"))]
#![allow(clippy::unwrap_used, missing_docs)]
#![forbid(unsafe_code)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::UserType,
    types::AuthPin,
};
use keybond_keys::{
    ExportAttempt, Isolation, KeyEvent, KeyName, KeyProvider, KeyProviderBuilder, KeyStore, Origin,
    PinSource, Pkcs11Store, Reason, StateDir, StoreId, Strength, Unavailable, Verdict,
};
use keybond_testkit::{
    conformance::{Subject, examine},
    stores::{ModuleFault, SoftHsm},
};

fn store(hsm: &SoftHsm) -> Pkcs11Store {
    Pkcs11Store::new(hsm.uri("keybond").parse().unwrap())
}

fn provider(hsm: &SoftHsm) -> KeyProviderBuilder {
    KeyProvider::builder()
        .store(store(hsm))
        .state_dir(StateDir::open(hsm.home().join("state")).unwrap())
        .retry_budget(Duration::ZERO)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

fn refusal<T>(answer: Result<T, Unavailable>) -> Unavailable {
    answer.err().expect("it is refused")
}

#[test]
fn conformance() {
    SoftHsm::scenario("conformance", |hsm| {
        let report = examine(&Subject::new("pkcs11", || Box::new(store(hsm))));
        println!("{report}");
        assert!(report.is_green(), "{report}");
    });
}

#[test]
fn evidence_is_read_from_the_token() {
    SoftHsm::scenario("evidence_is_read_from_the_token", |hsm| {
        let key = block_on(provider(hsm).build().get_or_create_key()).unwrap();
        assert_eq!(
            (key.store(), key.strength()),
            (StoreId::Pkcs11, Strength::Hardware)
        );
        let properties = &key.evidence().properties;
        assert_eq!(properties.isolation, Isolation::Device);
        assert_eq!(properties.origin, Origin::Device);
        assert_eq!(properties.exportable, Some(false));
        let told = format!("{:?}", key.evidence().export);
        assert!(told.contains("KeyUnextractable"), "{told}");
        assert!(properties.details.iter().any(|(name, _)| name == "serial"));
    });
}

#[test]
fn an_imported_or_extractable_key_is_too_weak() {
    SoftHsm::scenario("an_imported_or_extractable_key_is_too_weak", |hsm| {
        let pem = hsm.home().join("key.pem");
        let made = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-out"])
            .arg(&pem)
            .status();
        assert!(made.unwrap().success());
        let imported = Command::new("softhsm2-util")
            .args([
                "--token", "keybond", "--pin", "271828", "--label", "keybond",
            ])
            .args(["--id", "01", "--import"])
            .arg(&pem)
            .output()
            .unwrap();
        assert!(imported.status.success(), "{imported:?}");
        let error = block_on(provider(hsm).build().get_or_create_key()).unwrap_err();
        assert!(error.to_string().contains("too_weak"), "{error}");
        let left = store(hsm).open(&KeyName::default()).unwrap();
        assert!(left.is_some(), "somebody's key was deleted");
    });
}

/// Makes a key in the token as another program would, with what that program says of its protection.
fn plant(hsm: &SoftHsm, label: &str, sensitive: bool, extractable: bool) {
    let module = Pkcs11::new(hsm.home().join("shim.so")).unwrap();
    module
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_rw_session(slot).unwrap();
    session
        .login(UserType::User, Some(&AuthPin::new("271828".into())))
        .unwrap();
    let public = [
        Attribute::Token(true),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Label(label.into()),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Sensitive(sensitive),
        Attribute::Extractable(extractable),
        Attribute::Sign(true),
        Attribute::Label(label.into()),
    ];
    session
        .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)
        .unwrap();
    drop(session);
    module.finalize().unwrap();
}

#[test]
fn a_key_that_comes_out_is_found_out_whatever_is_said_of_it() {
    SoftHsm::scenario(
        "a_key_that_comes_out_is_found_out_whatever_is_said_of_it",
        |hsm| {
            let keys = [
                ("readable", false, true),
                ("wrappable", true, true),
                ("open", false, false),
                ("closed", true, false),
            ];
            // Before the store has the module open in this process.
            for (label, sensitive, extractable) in keys {
                plant(hsm, label, sensitive, extractable);
            }
            for (label, sensitive, extractable) in keys {
                let token = format!("token=keybond;object={label}");
                let uri = hsm.uri("keybond").replace("token=keybond", &token);
                let store = Pkcs11Store::new(uri.parse().unwrap());
                let key = store.open(&KeyName::default()).unwrap().unwrap();
                let export = key.attempt_export().unwrap();
                let properties = key.properties().unwrap();
                assert_eq!(export == ExportAttempt::Exported, extractable, "{label}");
                assert_eq!(properties.exportable, Some(extractable), "{label}");
                assert_eq!(properties.origin, Origin::Device, "{label}");
                // What may be read in the clear is not isolated, though this token does not show it.
                let isolated = properties.isolation == Isolation::Device;
                assert_eq!(isolated, sensitive && !extractable, "{label}");
            }
        },
    );
}

#[test]
fn an_export_that_could_not_be_tried_is_no_refusal() {
    SoftHsm::scenario("an_export_that_could_not_be_tried_is_no_refusal", |hsm| {
        let store = store(hsm);
        let key = store.create(&KeyName::default()).unwrap();
        hsm.fault(ModuleFault::Removed);
        let refusal = refusal(key.attempt_export());
        assert_eq!(refusal.reason, Reason::NotPresent);
        hsm.fault(ModuleFault::None);
        assert!(matches!(
            key.attempt_export().unwrap(),
            ExportAttempt::Refused(_)
        ));
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    SoftHsm::scenario("a_wrong_pin_is_tried_once", |hsm| {
        hsm.set_pin("000000");
        let store = store(hsm);
        let first = refusal(store.open(&KeyName::default()));
        assert_eq!(first.reason, Reason::PermissionDenied);
        assert_eq!(first.native.as_ref().unwrap().code, 0xa0);
        assert!(first.remedy.contains("pin-source"), "{first:?}");
        for _ in 0..5 {
            let again = refusal(store.open(&KeyName::default()));
            assert_eq!(again.reason, Reason::PermissionDenied);
            assert!(again.detail.contains("not tried again"), "{again}");
        }
        assert!(!format!("{first:?}").contains("000000"), "the PIN is told");
        hsm.restore_pin();
        assert!(store.open(&KeyName::default()).unwrap().is_none());
    });
}

#[test]
fn pins_come_from_elsewhere_too() {
    SoftHsm::scenario("pins_come_from_elsewhere_too", |hsm| {
        let uri = hsm.uri("keybond");
        let uri = || uri.split("&pin-source").next().unwrap().parse().unwrap();
        let none = refusal(Pkcs11Store::new(uri()).probe());
        assert_eq!(none.reason, Reason::PermissionDenied);
        let unset = PinSource::Environment("KEYBOND_TEST_NO_SUCH_PIN".into());
        let unset = refusal(Pkcs11Store::with_pin(uri(), Some(unset)).open(&KeyName::default()));
        assert!(unset.detail.contains("KEYBOND_TEST_NO_SUCH_PIN"), "{unset}");
        let ask = || Ok(keybond_keys::Pin::new("271828".into()));
        let asked = PinSource::Prompt(std::sync::Arc::new(ask));
        let store = Pkcs11Store::with_pin(uri(), Some(asked));
        assert!(store.open(&KeyName::default()).unwrap().is_none());
    });
}

#[test]
fn a_locked_token_is_told() {
    SoftHsm::scenario("a_locked_token_is_told", |hsm| {
        hsm.fault(ModuleFault::PinLocked);
        let locked = refusal(store(hsm).open(&KeyName::default()));
        assert_eq!(locked.reason, Reason::PermissionDenied);
        assert_eq!(locked.native.as_ref().unwrap().code, 0xa4);
        assert!(locked.remedy.contains("Unlock"), "{locked:?}");
        assert!(!locked.retryable);
    });
}

#[test]
fn absent_is_definite() {
    SoftHsm::scenario("absent_is_definite", |hsm| {
        let started = Instant::now();
        let other = hsm.uri("nobody").parse().unwrap();
        let absent = refusal(Pkcs11Store::new(other).probe());
        assert_eq!(absent.reason, Reason::NotPresent);
        let uri = "pkcs11:token=a?module-path=/nowhere/module.so";
        let absent = refusal(Pkcs11Store::new(uri.parse().unwrap()).probe());
        assert_eq!(absent.reason, Reason::NotPresent);
        let uri = "pkcs11:token=a?module-path=/etc/hostname";
        let broken = refusal(Pkcs11Store::new(uri.parse().unwrap()).probe());
        assert_eq!(broken.reason, Reason::Failed);
        assert!(started.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn two_tokens_of_one_name_are_an_error() {
    SoftHsm::scenario("two_tokens_of_one_name_are_an_error", |hsm| {
        hsm.add_token("keybond");
        let twins = refusal(store(hsm).probe());
        assert_eq!(twins.reason, Reason::Failed);
        assert!(twins.remedy.contains("serial"), "{twins:?}");
    });
}

#[test]
fn a_removed_token_is_missed_and_welcomed_back() {
    SoftHsm::scenario("a_removed_token_is_missed_and_welcomed_back", |hsm| {
        let provider = provider(hsm).build();
        let key = block_on(provider.get_or_create_key()).unwrap();
        hsm.fault(ModuleFault::Removed);
        let error = block_on(key.sign(key.schemes()[0], b"x")).unwrap_err();
        assert!(error.to_string().contains("not_present"), "{error}");
        let verdict = block_on(provider.report_failure(&key, "sign")).unwrap();
        assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
        assert_eq!(refusal(store(hsm).probe()).reason, Reason::NotPresent);
        hsm.fault(ModuleFault::None);
        let signature = block_on(key.sign(key.schemes()[0], b"x")).unwrap();
        assert!(key.public_key().verify(key.schemes()[0], b"x", &signature));
    });
}

#[test]
fn a_module_that_hangs_costs_the_deadline() {
    SoftHsm::scenario("a_module_that_hangs_costs_the_deadline", |hsm| {
        let provider = provider(hsm).sign_deadline(Duration::from_secs(1)).build();
        let key = block_on(provider.get_or_create_key()).unwrap();
        hsm.fault(ModuleFault::HangSign);
        let error = block_on(key.sign(key.schemes()[0], b"x")).unwrap_err();
        assert_eq!(error.code(), "key_deadline_exceeded");
        hsm.fault(ModuleFault::None);
        block_on(key.sign(key.schemes()[0], b"x")).unwrap();

        hsm.fault(ModuleFault::HangAll);
        let started = Instant::now();
        let weaker = KeyProvider::builder()
            .store(store(hsm))
            .store(keybond_keys::MemoryStore)
            .open_deadline(Duration::from_secs(1))
            .build();
        let key = block_on(weaker.get_or_create_key()).unwrap();
        assert_eq!(key.store(), StoreId::Memory);
        assert!(key.decision().provisional);
        assert!(started.elapsed() < Duration::from_secs(20));
        // It hangs to the end: SoftHSM crashes if the process ends while a call is inside it.
    });
}

#[test]
fn a_token_without_sessions_is_busy() {
    SoftHsm::scenario("a_token_without_sessions_is_busy", |hsm| {
        hsm.fault(ModuleFault::Busy);
        let busy = refusal(store(hsm).open(&KeyName::default()));
        assert_eq!((busy.reason, busy.retryable), (Reason::Busy, true));
    });
}

#[test]
fn a_token_that_refuses_pss_offers_none() {
    SoftHsm::scenario("a_token_that_refuses_pss_offers_none", |hsm| {
        hsm.fault(ModuleFault::NoPss);
        let key = block_on(provider(hsm).build().get_or_create_key()).unwrap();
        assert_eq!(key.schemes().len(), 3);
        assert!(key.schemes().iter().all(|scheme| !scheme.is_pss()));
        assert_eq!(key.evidence().rejected.len(), 3);
    });
}

#[test]
fn a_key_deleted_behind_our_back_is_dead_and_replaced() {
    SoftHsm::scenario(
        "a_key_deleted_behind_our_back_is_dead_and_replaced",
        |hsm| {
            let provider = provider(hsm).build();
            let mut events = provider.events();
            let key = block_on(provider.get_or_create_key()).unwrap();
            assert!(store(hsm).delete(&KeyName::default()).unwrap());
            let verdict = block_on(provider.report_failure(&key, "sign")).unwrap();
            assert!(matches!(verdict, Verdict::Replaced(_)), "{verdict:?}");
            block_on(events.next()).unwrap();
            let event = block_on(events.next()).unwrap();
            assert!(matches!(event, KeyEvent::Replaced { .. }), "{event:?}");
        },
    );
}

#[test]
fn processes_share_one_key() {
    SoftHsm::scenario("processes_share_one_key", |hsm| {
        const CHILD: &str = "KEYBOND_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            // SoftHSM answers "general error" while another process writes.
            let provider = provider(hsm).retry_budget(Duration::from_secs(20)).build();
            let key = block_on(provider.get_or_create_key()).unwrap();
            println!("held key {}", key.id());
            return;
        }
        let children: Vec<_> = (0..4)
            .map(|_| hsm.spawn("processes_share_one_key", &[(CHILD, "1")]))
            .collect();
        let mut keys: Vec<_> = children
            .into_iter()
            .map(|child| {
                let output = child.wait_with_output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let told = String::from_utf8_lossy(&output.stderr);
                let key = text.lines().find_map(|line| line.split_once("held key "));
                key.unwrap_or_else(|| panic!("{text}\n{told}")).1.to_owned()
            })
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 1, "{keys:?}");
    });
}

#[test]
fn whoever_holds_a_key_signs_with_it_after_its_rotation() {
    SoftHsm::scenario(
        "whoever_holds_a_key_signs_with_it_after_its_rotation",
        |hsm| {
            block_on(async {
                let provider = provider(hsm).build();
                let old = provider.get_or_create_key().await.unwrap();
                let new = provider.rotate_key().await.unwrap();
                assert_ne!(new.id(), old.id());
                for key in [&old, &new, &old] {
                    assert_eq!(key.store(), StoreId::Pkcs11);
                    key.sign(key.schemes()[0], b"in use").await.unwrap();
                }
            });
        },
    );
}
