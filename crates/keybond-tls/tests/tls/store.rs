//! A key store whose signatures a test can hold up, refuse or break.

use std::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use keybond_keys::{
    ExportAttempt, HeldKey, KeyName, KeyProperties, KeyProvider, KeyStore, MemoryStore, Reason,
    SignatureScheme, StoreId, StoredKey, Unavailable,
};

/// What a signature does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Sign,
    Wait,
    Refuse,
    Panic,
}

/// The test's hand on the key.
#[derive(Clone)]
pub(crate) struct Hand(Arc<Shared>);

struct Shared {
    mood: Mutex<Mood>,
    changed: Condvar,
    entered: AtomicUsize,
    signing: tokio::sync::Notify,
    quick: bool,
    schemes: Vec<SignatureScheme>,
}

impl Hand {
    pub(crate) fn set(&self, mood: Mood) {
        *self.0.mood.lock().unwrap() = mood;
        self.0.changed.notify_all();
    }

    /// How many signatures were begun since the key was proven.
    pub(crate) fn entered(&self) -> usize {
        self.0.entered.load(SeqCst)
    }

    /// Waits until a signature has begun.
    pub(crate) async fn signing(&self) {
        self.0.signing.notified().await;
    }
}

/// A key of a device (`quick`: in memory), and the hand on it.
pub(crate) async fn handled_key(quick: bool, schemes: &[SignatureScheme]) -> (Arc<HeldKey>, Hand) {
    let hand = Hand(Arc::new(Shared {
        mood: Mutex::new(Mood::Sign),
        changed: Condvar::new(),
        entered: AtomicUsize::new(0),
        signing: tokio::sync::Notify::new(),
        quick,
        schemes: schemes.to_vec(),
    }));
    let provider = KeyProvider::builder()
        .store(HandledStore(hand.clone()))
        .build();
    let key = provider.get_or_create_key().await.unwrap();
    hand.0.entered.store(0, SeqCst);
    (key, hand)
}

struct HandledStore(Hand);

impl KeyStore for HandledStore {
    fn id(&self) -> StoreId {
        StoreId::Memory
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn open(&self, _: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        Ok(None)
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        Ok(Box::new(Handled {
            key: MemoryStore.create(name)?,
            hand: self.0.clone(),
        }))
    }

    fn delete(&self, _: &KeyName) -> Result<bool, Unavailable> {
        Ok(false)
    }

    fn outlives_process(&self) -> bool {
        false
    }
}

struct Handled {
    key: Box<dyn StoredKey>,
    hand: Hand,
}

impl StoredKey for Handled {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.key.public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.hand.0.schemes.clone()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let shared = &*self.hand.0;
        shared.entered.fetch_add(1, SeqCst);
        let mood = {
            let mut mood = shared.mood.lock().unwrap();
            if *mood == Mood::Wait {
                shared.signing.notify_one();
            }
            while *mood == Mood::Wait {
                mood = shared.changed.wait(mood).unwrap();
            }
            *mood
        };
        match mood {
            Mood::Refuse => Err(Unavailable::new(
                StoreId::Memory,
                Reason::PermissionDenied,
                "the device is locked",
            )
            .with_remedy("Unlock the device.")),
            Mood::Panic => panic!("the store is broken"),
            Mood::Sign | Mood::Wait => self.key.sign_digest(scheme, digest),
        }
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.key.properties()
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.key.attempt_export()
    }

    fn is_quick(&self) -> bool {
        self.hand.0.quick
    }
}
