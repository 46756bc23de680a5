//! Sharing certificates with MSAL, over a shelf made of a list: the decisions are the same on every system.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use keybond_cng::msal;
use keybond_keys::{KeyId, PublicKey};

use super::{
    CertificateSlot, CertificateStore, StoreAnswer, StoredCertificate,
    msal::{Entry, MsalCertificates, Shelf},
};
use crate::identity::Identity;

const CLIENT: &str = "0b5d6a6e-3a8c-4a0e-9d55-6f1c0f0c7a11";
const TENANT: &str = "7d3c5f5e-0a4b-4f7e-8b53-1a5a8b1f2c33";
const ENDPOINT: &str = "https://eastus.mtlsauth.microsoft.com";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What all programs of the user see.
#[derive(Clone, Default)]
struct List(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    entries: Vec<Entry>,
    mutexes: Vec<String>,
    taken: bool,
    shared_key: Option<KeyId>,
}

impl List {
    fn with<T>(&self, job: impl FnOnce(&mut Shared) -> T) -> T {
        job(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, identity: &Identity) -> MsalCertificates {
        MsalCertificates::over(Box::new(self.clone()), identity, None)
    }

    fn names(&self) -> Vec<String> {
        self.with(|shared| {
            let entries = shared.entries.iter();
            entries.map(|entry| entry.friendly_name.clone()).collect()
        })
    }
}

impl Shelf for List {
    fn all(&self) -> Result<Vec<Entry>, String> {
        Ok(self.with(|shared| shared.entries.clone()))
    }

    fn add(&self, der: &[u8], friendly_name: &str) -> Result<(), String> {
        let entry = Entry {
            friendly_name: friendly_name.to_owned(),
            der: der.to_vec(),
            of_shared_key: true,
        };
        self.with(|shared| shared.entries.push(entry));
        Ok(())
    }

    fn shared_key(&self) -> Option<KeyId> {
        self.with(|shared| shared.shared_key)
    }

    fn remove(&self, der: &[u8]) -> Result<bool, String> {
        Ok(self.with(|shared| {
            let before = shared.entries.len();
            shared.entries.retain(|entry| entry.der != der);
            shared.entries.len() < before
        }))
    }

    fn exclusively(
        &self,
        mutex: &str,
        wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, String> {
        assert_eq!(wait, Duration::from_millis(300));
        let taken = self.with(|shared| {
            shared.mutexes.push(mutex.to_owned());
            shared.taken
        });
        if !taken {
            job();
        }
        Ok(!taken)
    }
}

/// A key, and certificates of it that end after so many days.
struct Key(rcgen::KeyPair);

impl Key {
    fn new() -> Self {
        Self(
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
                .unwrap(),
        )
    }

    fn slot(&self, attested: bool) -> CertificateSlot {
        let spki = rcgen::PublicKeyData::subject_public_key_info(&self.0);
        CertificateSlot {
            source: "http://169.254.169.254/".into(),
            client_id: CLIENT.into(),
            attested,
            key: PublicKey::from_spki_der(&spki).unwrap().id(),
        }
    }

    fn certificate(&self, days: i64) -> StoredCertificate {
        let mut parameters = rcgen::CertificateParams::default();
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(rcgen::DnType::CommonName, CLIENT.to_ascii_uppercase());
        parameters.distinguished_name = subject;
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        let seconds = u64::try_from(days).unwrap() * DAY.as_secs();
        parameters.not_after = parameters.not_before + Duration::from_secs(seconds);
        let der = parameters.self_signed(&self.0).unwrap().der().to_vec();
        let not_before = SystemTime::from(parameters.not_before);
        StoredCertificate {
            x5t_s256: super::msal::x5t(&der),
            chain: vec![der],
            client_id: CLIENT.into(),
            tenant_id: TENANT.into(),
            token_endpoint: format!("{ENDPOINT}/{TENANT}/oauth2/v2.0/token"),
            attested: false,
            not_before,
            not_after: not_before + Duration::from_secs(seconds),
        }
    }
}

fn found(store: &MsalCertificates, slot: &CertificateSlot) -> Option<StoredCertificate> {
    match store.find(slot) {
        StoreAnswer::Certificate(found) => Some(*found),
        StoreAnswer::Absent => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_kept_is_named_as_msal_names_it_and_found_again() {
    let list = List::default();
    let key = Key::new();
    let (slot, certificate) = (key.slot(false), key.certificate(7));
    let store = list.store(&Identity::SystemAssigned);
    assert_eq!(found(&store, &slot), None);
    store
        .keep(&slot, &certificate, certificate.not_before)
        .unwrap();
    assert_eq!(
        list.names(),
        [format!(
            "MSAL|alias=system_assigned_managed_identity#att=0|ep={ENDPOINT}/{TENANT}"
        )]
    );
    let expected = msal::certificates_mutex("system_assigned_managed_identity#att=0");
    assert_eq!(list.with(|shared| shared.mutexes.clone()), [expected]);

    assert_eq!(found(&store, &slot), Some(certificate));
    let other = Identity::ClientId(CLIENT.into());
    let client_id = |identity| list.store(identity).client_id_of("", identity).unwrap();
    assert_eq!(
        client_id(&Identity::SystemAssigned).as_deref(),
        Some(CLIENT)
    );
    assert_eq!(client_id(&other), None);
    // Attested, named otherwise, or of another key: another certificate.
    assert_eq!(found(&store, &key.slot(true)), None);
    assert_eq!(found(&list.store(&other), &slot), None);
    assert_eq!(found(&store, &Key::new().slot(false)), None);
}

#[test]
fn only_the_certificates_of_the_dead_key_go() {
    let list = List::default();
    let (dead, alive) = (Key::new(), Key::new());
    let store = list.store(&Identity::SystemAssigned);
    let now = dead.certificate(7).not_before;
    for (key, days) in [(&dead, 7), (&dead, 9), (&alive, 7)] {
        let slot = key.slot(false);
        store.keep(&slot, &key.certificate(days), now).unwrap();
    }
    // The same issuer and subject, somebody else's program.
    list.add(&alive.certificate(3).chain[0], "My VPN").unwrap();
    assert_eq!(list.names().len(), 4);

    assert!(store.discard(&dead.slot(false), None).unwrap());
    assert_eq!(list.names().len(), 2);
    assert!(found(&store, &alive.slot(false)).is_some());
    assert!(!store.discard(&dead.slot(false), None).unwrap());
}

#[test]
fn what_the_shared_name_no_longer_stands_for_is_swept_and_nothing_else() {
    let list = List::default();
    let (dead, new) = (Key::new(), Key::new());
    let store = list.store(&Identity::SystemAssigned);
    let now = dead.certificate(7).not_before;
    let keep = |key: &Key, days| {
        store
            .keep(&key.slot(false), &key.certificate(days), now)
            .unwrap()
    };
    keep(&dead, 9);
    // Same name and issuer, and a key of its own.
    list.with(|shared| {
        let mut own = shared.entries[0].clone();
        own.der = Key::new().certificate(9).chain.remove(0);
        own.of_shared_key = false;
        shared.entries.push(own);
    });
    // As long as nobody can say which key the name stands for, nothing is an orphan.
    keep(&new, 7);
    assert_eq!(list.names().len(), 3);
    list.with(|shared| shared.shared_key = Some(new.slot(false).key));
    keep(&new, 8);
    assert!(found(&store, &dead.slot(false)).is_none());
    assert_eq!(list.names().len(), 3, "two of the new key, one of its own");
}

#[test]
fn a_rejected_certificate_goes_alone() {
    let list = List::default();
    let key = Key::new();
    let store = list.store(&Identity::SystemAssigned);
    let (slot, one, two) = (key.slot(false), key.certificate(7), key.certificate(9));
    for certificate in [&one, &two] {
        store.keep(&slot, certificate, one.not_before).unwrap();
    }
    assert_eq!(found(&store, &slot).unwrap().x5t_s256, two.x5t_s256);
    assert!(store.discard(&slot, Some(&two.x5t_s256)).unwrap());
    assert_eq!(found(&store, &slot).unwrap().x5t_s256, one.x5t_s256);
    assert!(!store.discard(&slot, Some(&two.x5t_s256)).unwrap());
}

#[test]
fn one_that_ends_earlier_is_not_added_and_ended_ones_are_swept() {
    let list = List::default();
    let key = Key::new();
    let store = list.store(&Identity::SystemAssigned);
    let (slot, long, short) = (key.slot(false), key.certificate(9), key.certificate(7));
    store.keep(&slot, &long, long.not_before).unwrap();
    store.keep(&slot, &short, long.not_before).unwrap();
    assert_eq!(list.names().len(), 1);
    // Once the longer one has ended it is no obstacle, and is removed.
    let next = key.certificate(20);
    store.keep(&slot, &next, long.not_after).unwrap();
    assert_eq!(list.names().len(), 1);
    assert_eq!(found(&store, &slot).unwrap().x5t_s256, next.x5t_s256);
}

#[test]
fn while_another_program_changes_the_store_nothing_is_changed() {
    let list = List::default();
    let key = Key::new();
    let store = list.store(&Identity::SystemAssigned);
    let (slot, certificate) = (key.slot(false), key.certificate(7));
    list.with(|shared| shared.taken = true);
    let error = store
        .keep(&slot, &certificate, certificate.not_before)
        .unwrap_err();
    assert!(error.to_string().contains("MSAL_MI_P_"), "{error}");
    assert!(store.discard(&slot, None).is_err());
    assert!(list.names().is_empty());
}
