//! A certificate store that does not answer, or whose lock nobody gives back: it costs some time and a request, and
//! no token.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use keybond::{
    CertificateSlot, CertificateStore, CertificateStoreError, HeldKey, Identity, KeyProvider,
    MemoryCertificates, MintLock, StoreAnswer, StoredCertificate,
    keys::{StoreId, Verdict},
};
use keybond_testkit::stores::ScriptedStore;
use support::{Bench, CLIENT, RESOURCE, azure::Service};
use tokio::{sync::RwLock, time::timeout};

/// Long enough for a busy machine, and far from what a token takes.
const LONG: Duration = Duration::from_secs(30);

/// As files on a server: nothing is answered while it is `gone`, and others may have the lock.
#[derive(Default)]
struct Remote {
    kept: MemoryCertificates,
    gone: RwLock<()>,
    asked: AtomicUsize,
    locked_elsewhere: bool,
}

impl Remote {
    fn answer(&self) -> &MemoryCertificates {
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.gone.blocking_read());
        &self.kept
    }
}

impl CertificateStore for Remote {
    fn describe(&self) -> String {
        "a file server".into()
    }

    fn takes(&self, _: &HeldKey) -> bool {
        true
    }

    fn find(&self, slot: &CertificateSlot) -> StoreAnswer {
        self.answer().find(slot)
    }

    fn keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), CertificateStoreError> {
        self.answer().keep(slot, certificate, now)
    }

    fn discard(
        &self,
        slot: &CertificateSlot,
        x5t_s256: Option<&str>,
    ) -> Result<bool, CertificateStoreError> {
        self.answer().discard(slot, x5t_s256)
    }

    fn client_id_of(
        &self,
        source: &str,
        identity: &Identity,
    ) -> Result<Option<String>, CertificateStoreError> {
        self.answer().client_id_of(source, identity)
    }

    fn learn(
        &self,
        source: &str,
        identity: &Identity,
        client_id: &str,
    ) -> Result<(), CertificateStoreError> {
        self.answer().learn(source, identity, client_id)
    }

    fn try_lock(&self, name: &str) -> Result<Option<MintLock>, CertificateStoreError> {
        let store = self.answer();
        if self.locked_elsewhere {
            return Ok(None);
        }
        store.try_lock(name)
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_asked_once_in_a_run_and_done_without() {
    let bench = Bench::new().await;
    let remote = Arc::new(Remote::default());
    let client = bench
        .builder()
        .certificate_store(remote.clone())
        .deadline(LONG)
        .build()
        .unwrap();
    let gone = remote.gone.write().await;
    client.token(RESOURCE).await.unwrap();
    assert_eq!(remote.asked.load(Ordering::SeqCst), 1);

    // When it is back, the next certificate is kept.
    drop(gone);
    client.renew().await.unwrap();
    let other = bench.builder().certificate_store(remote).build().unwrap();
    other.credential().await.unwrap();
    assert_eq!(bench.azure.count(Service::Issue), 2);
}

#[tokio::test]
async fn a_turn_that_is_never_given_back_is_not_waited_for_to_the_end() {
    let bench = Bench::new().await;
    let remote = Remote {
        locked_elsewhere: true,
        ..Remote::default()
    };
    let client = bench
        .builder()
        .certificate_store(Arc::new(remote))
        .identity(Identity::client_id(CLIENT).unwrap())
        .deadline(Duration::from_secs(10))
        .build()
        .unwrap();
    client.token(RESOURCE).await.unwrap();
}

#[tokio::test]
async fn the_death_of_a_key_is_heard_of_while_the_store_does_not_answer() {
    let device = ScriptedStore::new(StoreId::Tpm2).stocked();
    let keys = KeyProvider::builder().store(device.clone()).build();
    let bench = Bench::new().await;
    let remote = Arc::new(Remote::default());
    let client = bench
        .builder()
        .certificate_store(remote.clone())
        .key_provider(keys.clone())
        .deadline(LONG)
        .build()
        .unwrap();
    let _gone = remote.gone.write().await;
    for _ in 0..2 {
        let token = client.token(RESOURCE).await.unwrap();
        let dead = token.binding().unwrap().key().clone();
        device.kill();
        let verdict = keys.report_failure(&dead, "a signature failed").await;
        assert!(matches!(verdict, Ok(Verdict::Replaced(_))), "{verdict:?}");
        let replaced = async {
            loop {
                let token = client.token(RESOURCE).await.unwrap();
                if token.binding().unwrap().key().id() != dead.id() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, replaced).await.unwrap();
    }
}
