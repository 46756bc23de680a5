//! The decisions of the Windows tiers, over a machine made of a map: they are the same on every system.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use keybond_cng::{CngError, Hresult, RsaPublic, msal, names};

use super::{
    ExportAttempt, KeyName, KeyStore, MemoryStore, StoredKey,
    cng::{Backend, CngKey},
    keyguard::{KeyGuardSharing, KeyGuardStore},
    platform::PlatformStore,
};
use crate::{
    key::HeldKey,
    provider::KeyProvider,
    public_key::PublicKey,
    refusal::{Reason, Unavailable},
    scheme::SignatureScheme,
    strength::Strength,
};

const NOT_FOUND: u32 = 0x8009_0016;
const EXISTS: u32 = 0x8009_000f;
const NOT_SUPPORTED: u32 = 0x8009_0029;
const INVALID_PARAMETER: u32 = 0x8009_0027;
const UNDECRYPTABLE: u32 = 0x8009_003a;
const BAD_KEY_STATE: u32 = 0x8009_000b;
const ACCESS_DENIED: u32 = 0x8009_0010;

/// What says nothing about whether a key lives.
const HARMLESS: &[u32] = &[
    ACCESS_DENIED,
    0x8007_0005,
    0x8007_0020,
    0x8007_0021,
    0x8007_06ba,
    0x8007_0426,
    0x8007_0002,
    0x8009_0022,
    0x8009_0024,
    0x8009_000e,
    0x8009_0026,
    0x8009_0027,
    0x8009_0030,
    0x8028_4008,
    0x8028_0921,
];

/// A Windows machine, shared by everything that runs on it.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: HashMap<String, Arc<FakeKey>>,
    /// Codes for the next calls: call, code, how often.
    failures: Vec<(&'static str, u32, u32)>,
    /// What was done to keys, in order.
    done: Vec<String>,
    /// Per-boot keys of other boots do not sign.
    boot: u32,
    /// … and do not even open.
    fails_at_open: bool,
    implementation: Option<u32>,
    /// The flags are accepted and ignored, as by Wine.
    ignores_flags: bool,
    /// Another process finalises a key of the same name right after we did.
    rival: bool,
    /// The mutex is held by somebody else.
    mutex_taken: bool,
    mutexes: Vec<String>,
    salt: Option<u32>,
}

struct FakeKey {
    pair: Box<dyn StoredKey>,
    isolated: bool,
    boot: u32,
    tpm: bool,
    half_size: bool,
}

struct Handle {
    machine: Machine,
    name: String,
    key: Arc<FakeKey>,
}

struct FakeBackend {
    machine: Machine,
    tpm: bool,
}

fn error(code: u32) -> CngError {
    CngError::new("fake", Hresult::from_bits(code))
}

impl Machine {
    fn with_vbs() -> Self {
        let machine = Self::default();
        machine.0.lock().unwrap().implementation =
            Some(names::IMPL_SOFTWARE | names::IMPL_VIRTUAL_ISOLATION);
        machine
    }

    fn with_tpm() -> Self {
        let machine = Self::default();
        machine.0.lock().unwrap().implementation = Some(names::IMPL_HARDWARE);
        machine
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> &Self {
        change(&mut self.0.lock().unwrap());
        self
    }

    fn fail(&self, call: &'static str, code: u32, times: u32) -> &Self {
        self.change(|state| state.failures.push((call, code, times)))
    }

    fn keyguard(&self) -> KeyGuardStore {
        self.shared(KeyGuardSharing::Own)
    }

    fn shared(&self, sharing: KeyGuardSharing) -> KeyGuardStore {
        let machine = self.clone();
        let backend = FakeBackend {
            machine,
            tpm: false,
        };
        KeyGuardStore::over(Box::new(backend), sharing)
    }

    fn platform(&self) -> PlatformStore {
        let machine = self.clone();
        PlatformStore::over(Box::new(FakeBackend { machine, tpm: true }))
    }

    fn done(&self) -> Vec<String> {
        self.0.lock().unwrap().done.clone()
    }

    /// A living isolated key of RSA-1024.
    fn plant_small(&self, name: &str) {
        let key = FakeKey {
            half_size: true,
            ..Arc::into_inner(new_key(true, 0, false)).unwrap()
        };
        self.change(|state| drop(state.keys.insert(name.to_owned(), Arc::new(key))));
    }

    fn plant(&self, name: &str, isolated: bool, boot: u32, tpm: bool) {
        let key = new_key(isolated, boot, tpm);
        self.change(|state| drop(state.keys.insert(name.to_owned(), key)));
    }

    fn injected(&self, call: &str) -> Result<(), CngError> {
        let mut state = self.0.lock().unwrap();
        let hit = state
            .failures
            .iter_mut()
            .find(|(name, _, left)| *name == call && *left > 0);
        match hit {
            Some((_, code, left)) => {
                *left -= 1;
                Err(error(*code))
            }
            None => Ok(()),
        }
    }
}

fn new_key(isolated: bool, boot: u32, tpm: bool) -> Arc<FakeKey> {
    Arc::new(FakeKey {
        pair: MemoryStore.create(&KeyName::default()).unwrap(),
        isolated,
        boot,
        tpm,
        half_size: false,
    })
}

impl Backend for FakeBackend {
    fn implementation(&self) -> Result<u32, CngError> {
        let implementation = self.machine.0.lock().unwrap().implementation;
        implementation.ok_or(error(INVALID_PARAMETER))
    }

    fn rehearse(&self, name: &str) -> Result<(), CngError> {
        self.machine.injected("create")?;
        let state = self.machine.0.lock().unwrap();
        if state.keys.contains_key(name) {
            return Err(error(EXISTS));
        }
        Ok(())
    }

    fn open(&self, name: &str) -> Result<Box<dyn CngKey>, CngError> {
        self.machine.injected("open")?;
        let state = self.machine.0.lock().unwrap();
        let key = Arc::clone(state.keys.get(name).ok_or(error(NOT_FOUND))?);
        if state.fails_at_open && key.isolated && key.boot != state.boot {
            return Err(error(UNDECRYPTABLE));
        }
        Ok(Box::new(Handle {
            machine: self.machine.clone(),
            name: name.to_owned(),
            key,
        }))
    }

    fn create(&self, name: &str, overwrite: bool) -> Result<Box<dyn CngKey>, CngError> {
        self.machine.injected("create")?;
        let mut state = self.machine.0.lock().unwrap();
        if state.keys.contains_key(name) && !overwrite {
            return Err(error(EXISTS));
        }
        let verb = if state.keys.contains_key(name) {
            "replace"
        } else {
            "make"
        };
        state.done.push(format!("{verb} {name}"));
        let isolated = !self.tpm && !state.ignores_flags;
        let key = new_key(isolated, state.boot, self.tpm);
        let kept = if state.rival {
            new_key(isolated, state.boot, self.tpm)
        } else {
            Arc::clone(&key)
        };
        state.keys.insert(name.to_owned(), kept);
        drop(state);
        Ok(Box::new(Handle {
            machine: self.machine.clone(),
            name: name.to_owned(),
            key,
        }))
    }

    fn exclusively(
        &self,
        mutex: &str,
        _wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, CngError> {
        let taken = {
            let mut state = self.machine.0.lock().unwrap();
            state.mutexes.push(mutex.to_owned());
            state.mutex_taken
        };
        if !taken {
            job();
        }
        Ok(!taken)
    }
}

impl CngKey for Handle {
    fn public_key(&self) -> Result<RsaPublic, CngError> {
        let spki = self.key.pair.public_key().unwrap();
        let key = PublicKey::from_spki_der(&spki).unwrap();
        let mut modulus = key.modulus().to_vec();
        if self.key.half_size {
            modulus.truncate(128);
        }
        Ok(RsaPublic {
            modulus,
            exponent: key.exponent().to_vec(),
        })
    }

    fn sign(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, CngError> {
        self.machine.injected("sign")?;
        let boot = self.machine.0.lock().unwrap().boot;
        if self.key.isolated && self.key.boot != boot {
            return Err(error(BAD_KEY_STATE));
        }
        Ok(self.key.pair.sign_digest(scheme, digest).unwrap())
    }

    fn property(&self, name: &str) -> Result<u32, CngError> {
        self.machine.injected("property")?;
        let salt = self.machine.0.lock().unwrap().salt;
        match name {
            names::EXPORT_POLICY => Ok(0),
            names::VIRTUAL_ISOLATION | names::PER_BOOT if self.key.isolated => Ok(1),
            names::PSS_SALT_SIZE if self.key.tpm => salt.ok_or(error(NOT_SUPPORTED)),
            _ => Err(error(INVALID_PARAMETER)),
        }
    }

    fn attempt_export(&self) -> ExportAttempt {
        if self.key.isolated || self.key.tpm {
            ExportAttempt::Refused("fake".into())
        } else {
            ExportAttempt::Exported
        }
    }

    /// By name, as Windows does it.
    fn delete(self: Box<Self>) -> Result<(), CngError> {
        self.machine.injected("delete")?;
        let mut state = self.machine.0.lock().unwrap();
        state
            .keys
            .remove(&self.name)
            .map(drop)
            .ok_or(error(NOT_FOUND))?;
        state.done.push(format!("delete {}", self.name));
        Ok(())
    }
}

const OURS: &str = "keybond-default";

fn default() -> KeyName {
    KeyName::default()
}

/// Finds or makes a key as a process does that has just started.
async fn process(store: impl KeyStore) -> Result<Arc<HeldKey>, Unavailable> {
    let provider = KeyProvider::builder()
        .store(store)
        .retry_budget(Duration::ZERO)
        .build();
    provider
        .get_or_create_key()
        .await
        .map_err(|error| refused(&error))
}

fn refused(error: &crate::KeyError) -> Unavailable {
    use crate::{KeyError, Outcome};
    let KeyError::NoStore { decision } = error else {
        panic!("{error}");
    };
    match &decision.considered[0].outcome {
        Outcome::Skipped(refusal) => refusal.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_key_is_made_once_and_found_by_every_process_of_this_boot() {
    let machine = Machine::with_vbs();
    let first = process(machine.keyguard()).await.unwrap();
    assert_eq!(first.strength(), Strength::KeyGuard);
    let second = process(machine.keyguard()).await.unwrap();
    assert_eq!(first.id(), second.id());
    assert_eq!(machine.done(), [format!("make {OURS}")]);
}

#[tokio::test]
async fn after_a_reboot_the_dead_key_is_replaced_once() {
    for fails_at_open in [false, true] {
        let machine = Machine::with_vbs();
        let before = process(machine.keyguard()).await.unwrap();
        machine.change(|state| (state.boot, state.fails_at_open) = (1, fails_at_open));
        let after = process(machine.keyguard()).await.unwrap();
        assert_ne!(after.id(), before.id());
        let other = process(machine.keyguard()).await.unwrap();
        assert_eq!(
            other.id(),
            after.id(),
            "the second process uses the same key"
        );
        let (made, replaced) = (format!("make {OURS}"), format!("replace {OURS}"));
        assert_eq!(machine.done(), [made, replaced]);
    }
}

#[tokio::test]
async fn nothing_that_may_pass_or_forbids_ever_replaces_or_deletes_a_key() {
    for code in HARMLESS {
        for call in ["open", "sign"] {
            let machine = Machine::with_vbs();
            let key = process(machine.keyguard()).await.unwrap();
            machine.fail(call, *code, u32::MAX);
            let refusal = process(machine.keyguard()).await.unwrap_err();
            assert_ne!(refusal.reason, Reason::Dead, "{code:#x} at {call}");
            assert_eq!(refusal.native.unwrap().code, i64::from(*code));
            // Not even when a create is forced.
            assert!(machine.keyguard().create(&default()).is_err());
            machine.change(|state| state.failures.clear());
            let again = process(machine.keyguard()).await.unwrap();
            assert_eq!(again.id(), key.id(), "{code:#x} at {call}");
            assert_eq!(
                machine.done(),
                [format!("make {OURS}")],
                "{code:#x} at {call}"
            );
        }
    }
}

#[tokio::test]
async fn a_key_in_use_that_dies_is_reported_replaced_and_a_hiccup_is_not() {
    use crate::Verdict;
    let machine = Machine::with_vbs();
    let provider = KeyProvider::builder().store(machine.keyguard()).build();
    let key = provider.get_or_create_key().await.unwrap();
    let digest = key.schemes()[0].hash().digest(b"message");
    machine.fail("sign", BAD_KEY_STATE, 1);
    key.sign_digest(key.schemes()[0], &digest).await.unwrap();

    machine.change(|state| state.boot = 1);
    let verdict = provider.report_failure(&key, "as the test says").await;
    let Ok(Verdict::Replaced(new)) = verdict else {
        panic!("{verdict:?}");
    };
    assert_ne!(new.id(), key.id());
    // The old handle never signs with the new key that has its name.
    assert!(key.sign_digest(key.schemes()[0], &digest).await.is_err());
    assert_eq!(machine.done().len(), 2);
}

#[tokio::test]
async fn one_failed_signature_is_not_a_dead_key() {
    let machine = Machine::with_vbs();
    let key = process(machine.keyguard()).await.unwrap();
    machine.fail("sign", BAD_KEY_STATE, 1);
    assert_eq!(process(machine.keyguard()).await.unwrap().id(), key.id());
    assert_eq!(machine.done().len(), 1);
}

#[tokio::test]
async fn without_vbs_the_refusal_says_how_to_get_it() {
    for code in [NOT_SUPPORTED, 0x8089_0014, 0x8009_0009, INVALID_PARAMETER] {
        let machine = Machine::with_vbs();
        machine.fail("create", code, u32::MAX);
        for refusal in [
            machine.keyguard().probe().unwrap_err(),
            process(machine.keyguard()).await.unwrap_err(),
        ] {
            assert_eq!(refusal.reason, Reason::NotSupported);
            assert!(refusal.remedy.contains("virtualization-based security"));
            assert!(!refusal.retryable);
        }
        assert!(machine.done().is_empty());
    }
}

#[tokio::test]
async fn a_service_account_without_profile_is_told_so() {
    for code in [0x8007_0003, 0x8009_0024] {
        let machine = Machine::with_vbs();
        machine.fail("create", code, u32::MAX);
        let refusal = process(machine.keyguard()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::NotPresent);
        assert!(refusal.remedy.contains("profile"), "{refusal:?}");
    }
}

#[tokio::test]
async fn flags_that_are_accepted_and_ignored_make_no_keyguard_key_and_leave_none() {
    let machine = Machine::with_vbs();
    machine.change(|state| state.ignores_flags = true);
    let refusal = process(machine.keyguard()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::TooWeak);
    assert!(refusal.detail.contains("Virtual Iso"), "{refusal}");
    let (made, deleted) = (format!("make {OURS}"), format!("delete {OURS}"));
    assert_eq!(machine.done(), [made, deleted]);
}

#[tokio::test]
async fn a_living_key_of_our_name_that_is_weaker_is_left_alone() {
    let machine = Machine::with_vbs();
    machine.plant(OURS, false, 0, false);
    let refusal = process(machine.keyguard()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::TooWeak);
    assert!(refusal.remedy.contains("certutil"), "{refusal:?}");
    assert!(machine.keyguard().create(&default()).is_err());
    assert!(machine.done().is_empty());
}

#[tokio::test]
async fn a_key_of_another_size_is_made_anew_if_ours_and_refused_if_shared() {
    let machine = Machine::with_vbs();
    machine.plant_small(OURS);
    let key = process(machine.keyguard()).await.unwrap();
    assert_eq!(key.public_key().bits(), 2048);
    assert_eq!(machine.done(), [format!("replace {OURS}")]);

    let machine = Machine::with_vbs();
    machine.plant_small("KeyGuardRSAKey");
    let refusal = process(machine.shared(KeyGuardSharing::Msal))
        .await
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::TooWeak);
    assert!(refusal.detail.contains("1024 bits"), "{refusal}");
    assert!(refusal.remedy.contains("certutil"));
    assert!(machine.done().is_empty());
}

#[tokio::test]
async fn the_event_says_that_a_boot_ended_the_key() {
    use crate::KeyEvent;
    for fails_at_open in [false, true] {
        let machine = Machine::with_vbs();
        let before = process(machine.keyguard()).await.unwrap();
        machine.change(|state| (state.boot, state.fails_at_open) = (1, fails_at_open));
        let provider = KeyProvider::builder().store(machine.keyguard()).build();
        let mut events = provider.events();
        let after = provider.get_or_create_key().await.unwrap();
        let Some(KeyEvent::Replaced {
            from, to, cause, ..
        }) = events.next().await
        else {
            panic!("it was not replaced");
        };
        // A key that does not open cannot be told.
        assert_eq!(from, (!fails_at_open).then(|| before.id()));
        assert_eq!(to, after.id());
        assert!(cause.contains("per_boot"), "{cause}");
    }
}

#[tokio::test]
async fn who_finalises_last_wins_and_everybody_uses_that_key() {
    let machine = Machine::with_vbs();
    machine.change(|state| state.rival = true);
    let ours = process(machine.keyguard()).await.unwrap();
    machine.change(|state| state.rival = false);
    let theirs = process(machine.keyguard()).await.unwrap();
    assert_eq!(ours.id(), theirs.id());
    assert_eq!(machine.done(), [format!("make {OURS}")]);
}

#[tokio::test]
async fn a_rejected_key_is_not_deleted_when_its_name_is_a_rivals_by_now() {
    let machine = Machine::with_vbs();
    machine.change(|state| (state.ignores_flags, state.rival) = (true, true));
    assert!(process(machine.keyguard()).await.is_err());
    let done = machine.done();
    assert!(
        !done.iter().any(|what| what.starts_with("delete")),
        "{done:?}"
    );
}

#[tokio::test]
async fn a_mutex_that_is_not_released_costs_a_wait_and_no_key() {
    let machine = Machine::with_vbs();
    machine.change(|state| state.mutex_taken = true);
    let refusal = process(machine.keyguard()).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.retryable), (Reason::Busy, true));
    assert!(machine.done().is_empty());
}

#[tokio::test]
async fn shared_with_msal_by_name_and_mutex_and_never_deleted() {
    let machine = Machine::with_vbs();
    let store = || machine.shared(KeyGuardSharing::Msal);
    // Made by MSAL.
    machine.plant("KeyGuardRSAKey", true, 0, false);
    let key = process(store()).await.unwrap();
    assert_eq!(key.strength(), Strength::KeyGuard);
    machine.change(|state| state.boot += 1);
    assert_ne!(process(store()).await.unwrap().id(), key.id());
    let mutexes = machine.0.lock().unwrap().mutexes.clone();
    assert_eq!(mutexes, [msal::key_mutex("KeyGuardRSAKey")]);

    let refusal = store().delete(&default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::DisabledByPolicy);
    assert_eq!(machine.done(), ["replace KeyGuardRSAKey"]);
}

#[test]
fn our_own_key_can_be_deleted() {
    let machine = Machine::with_vbs();
    let store = machine.keyguard();
    store.create(&default()).unwrap();
    assert!(store.delete(&default()).unwrap());
    assert!(!store.delete(&default()).unwrap());
    machine.fail("open", ACCESS_DENIED, 1);
    assert_eq!(
        store.delete(&default()).unwrap_err().reason,
        Reason::PermissionDenied
    );
}

#[tokio::test]
async fn a_provider_that_does_not_say_hardware_is_no_tpm() {
    for implementation in [None, Some(names::IMPL_SOFTWARE)] {
        let machine = Machine::with_tpm();
        machine.change(|state| state.implementation = implementation);
        for refusal in [
            machine.platform().probe().unwrap_err(),
            process(machine.platform()).await.unwrap_err(),
        ] {
            assert_eq!(refusal.reason, Reason::NotSupported);
            assert!(refusal.remedy.contains("TPM"), "{refusal:?}");
        }
        assert!(machine.done().is_empty());
    }
}

#[tokio::test]
async fn a_tpm_key_is_hardware_with_the_pss_its_chip_can_make() {
    let machine = Machine::with_tpm();
    machine.change(|state| state.salt = Some(names::SALT_HASH_SIZE));
    let key = process(machine.platform()).await.unwrap();
    assert_eq!(key.strength(), Strength::Hardware);
    assert!(key.supports(SignatureScheme::RsaPssSha256));

    machine.change(|state| state.salt = Some(names::SALT_MAXIMUM));
    let old = process(machine.platform()).await.unwrap();
    assert_eq!(old.id(), key.id());
    assert!(!old.schemes().iter().any(|scheme| scheme.is_pss()));
    assert!(old.supports(SignatureScheme::RsaPkcs1Sha256));
}

#[tokio::test]
async fn a_cleared_tpm_leaves_keys_that_exist_but_cannot_be_found() {
    let machine = Machine::with_tpm();
    machine.plant(OURS, false, 0, true);
    // Each look fails, while the create says that there is one.
    machine.fail("open", NOT_FOUND, 4);
    let key = process(machine.platform()).await.unwrap();
    assert_eq!(key.strength(), Strength::Hardware);
    assert_eq!(machine.done(), [format!("replace {OURS}")]);
}

#[test]
fn what_is_deleted_by_others_meanwhile_was_not_ours_and_what_cannot_be_stays() {
    let machine = Machine::with_vbs();
    machine.plant(OURS, true, 0, false);
    let store = machine.keyguard();
    machine.fail("delete", NOT_FOUND, 1);
    assert!(!store.delete(&default()).unwrap());
    machine.fail("delete", ACCESS_DENIED, 1);
    let refusal = store.delete(&default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::PermissionDenied);
    assert!(machine.done().is_empty());
    assert!(store.delete(&default()).unwrap());
}

#[test]
fn a_key_of_the_name_shows_that_such_keys_can_be_made() {
    let machine = Machine::with_vbs();
    machine.plant(OURS, true, 0, false);
    machine.keyguard().probe().unwrap();
    machine.fail("create", ACCESS_DENIED, 1);
    let refusal = machine.keyguard().probe().unwrap_err();
    assert_eq!(refusal.reason, Reason::PermissionDenied);
}

#[test]
fn a_key_is_made_under_our_mutex_and_not_where_windows_forbids_it() {
    let machine = Machine::with_vbs();
    machine.fail("create", ACCESS_DENIED, 1);
    let refusal = machine.keyguard().create(&default()).err().unwrap();
    assert_eq!(refusal.reason, Reason::PermissionDenied);
    machine.fail("create", NOT_FOUND, 1);
    let refusal = machine.keyguard().create(&default()).err().unwrap();
    assert_eq!(refusal.reason, Reason::NotPresent);
    assert!(refusal.remedy.contains("profile"), "{refusal:?}");
    assert!(machine.done().is_empty(), "nothing was tried by force");

    machine.keyguard().create(&default()).unwrap();
    let mutexes = machine.0.lock().unwrap().mutexes.clone();
    assert_eq!(mutexes, ["keybond_K_keybond-default"; 3]);
}

#[test]
fn what_windows_says_is_told_by_its_kind() {
    for (call, code, reason, retryable) in [
        ("open", NOT_SUPPORTED, Reason::NotSupported, false),
        ("open", ACCESS_DENIED, Reason::PermissionDenied, false),
        ("open", 0x8007_0020, Reason::Busy, true),
        ("open", EXISTS, Reason::Busy, false),
        ("open", 0x8007_0426, Reason::NotPresent, true),
        ("open", 0x8009_0013, Reason::NotPresent, false),
        ("open", BAD_KEY_STATE, Reason::Failed, false),
        // A key that signs in no scheme of this system is not dead.
        ("sign", NOT_SUPPORTED, Reason::NotSupported, false),
    ] {
        let machine = Machine::with_vbs();
        machine.plant(OURS, true, 0, false);
        machine.fail(call, code, 9);
        let refusal = machine.keyguard().open(&default()).err().unwrap();
        assert_eq!(
            (refusal.reason, refusal.retryable),
            (reason, retryable),
            "{call} {code:#x}: {refusal:?}"
        );
        assert_eq!(refusal.native.as_ref().unwrap().code, i64::from(code));
        let tier = refusal.detail.contains("Windows opens no such keys here");
        assert_eq!(tier, (call, code) == ("open", NOT_SUPPORTED));
        assert_eq!(
            tier,
            refusal.remedy.contains("virtualization-based security"),
            "{refusal:?}"
        );
    }
    let machine = Machine::with_vbs();
    machine.fail("open", UNDECRYPTABLE, 1);
    let refusal = machine.keyguard().delete(&default()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Dead);
}

#[tokio::test]
async fn what_a_key_says_of_itself_is_shown_and_what_it_does_not_say_is_not_invented() {
    let machine = Machine::with_vbs();
    let key = process(machine.keyguard()).await.unwrap();
    let detail = |key: &HeldKey, name: &str| {
        let details = key.evidence().properties.details.clone();
        details
            .into_iter()
            .find(|(known, _)| known == name)
            .unwrap()
            .1
    };
    assert_eq!(detail(&key, "virtual_iso"), "0x1");
    assert_eq!(detail(&key, "container"), OURS);

    let machine = Machine::with_tpm();
    let key = process(machine.platform()).await.unwrap();
    assert_eq!(detail(&key, "pss"), "not told");
    assert_eq!(detail(&key, "export_policy"), "0x0");
    machine.change(|state| state.salt = Some(names::SALT_HASH_SIZE));
    // One property that cannot be read now: the schemes ask for the first, the description for the next.
    machine.fail("property", ACCESS_DENIED, 2);
    let refusal = process(machine.platform()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::PermissionDenied);
}
