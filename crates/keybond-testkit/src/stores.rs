//! Stores that do as they are told: refuse, hang, lie, die half-way.
//!
//! A [`ScriptedStore`] is honest until told otherwise: its keys are software keys with the properties that
//! its tier demands, so that a provider takes them for the real thing. Clones share keys, faults and counts;
//! a test keeps one clone and gives the other to the provider.

mod fault;
mod file;
mod keys;
mod softhsm;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use fault::{Fault, Gate, Op};
pub use file::FileStore;
use keybond_keys::{
    ExportAttempt, Isolation, KeyName, KeyProperties, KeyStore, Origin, Reason, SignatureScheme,
    StoreId, StoredKey, Tier, Unavailable,
};
pub use keys::Lie;
pub use softhsm::{ModuleFault, SoftHsm};

/// A store under a test's control.
#[derive(Clone)]
pub struct ScriptedStore {
    id: StoreId,
    outlives_process: bool,
    state: Arc<State>,
}

struct State {
    faults: fault::Plan,
    lie: Mutex<Option<Lie>>,
    shelf: Mutex<HashMap<String, Kept>>,
    stock: Mutex<Vec<Arc<dyn StoredKey>>>,
    /// How often everything was killed; keys handed out before are dead.
    kills: AtomicUsize,
}

/// What the store has under a name.
#[derive(Clone)]
enum Kept {
    Key(Arc<dyn StoredKey>),
    /// Something that opens with this refusal.
    Spoilt(Reason),
}

impl ScriptedStore {
    /// An honest store that answers at once.
    pub fn new(id: StoreId) -> Self {
        Self {
            id,
            outlives_process: id != StoreId::Memory,
            state: Arc::new(State {
                faults: fault::Plan::default(),
                lie: Mutex::default(),
                shelf: Mutex::default(),
                stock: Mutex::default(),
                kills: AtomicUsize::new(0),
            }),
        }
    }

    /// A store whose new keys are not what it says they are.
    pub fn lying(id: StoreId, lie: Lie) -> Self {
        let store = Self::new(id);
        store.lie(Some(lie));
        store
    }

    /// Makes a key now, so that the next creation takes no time.
    #[must_use]
    pub fn stocked(self) -> Self {
        let key = keys::make(*lock(&self.state.lie));
        lock(&self.state.stock).push(key);
        self
    }

    /// Changes what new keys lie about.
    pub fn lie(&self, lie: Option<Lie>) {
        *lock(&self.state.lie) = lie;
    }

    /// Lets `op` fail from now on, until [`ScriptedStore::heal`].
    pub fn always(&self, op: Op, fault: Fault) {
        self.state.faults.set(op, fault, None);
    }

    /// Lets `op` fail the next `times` times.
    pub fn next(&self, times: usize, op: Op, fault: Fault) {
        self.state.faults.set(op, fault, Some(times));
    }

    /// Refuses to open or make keys for `reason`, until [`ScriptedStore::heal`].
    pub fn refuse(&self, reason: Reason) {
        for op in [Op::Probe, Op::Open, Op::Create] {
            self.always(op, self.refusal(reason));
        }
    }

    /// The fault "refuses for this reason".
    pub fn refusal(&self, reason: Reason) -> Fault {
        Fault::Refuse(Unavailable::new(self.id, reason, "as the test demands"))
    }

    /// Lets `op` hang until the returned gate opens.
    pub fn hang(&self, op: Op) -> Gate {
        let gate = Gate::new();
        self.always(op, Fault::Hang(gate.clone()));
        gate
    }

    /// Ends every fault that was set for `op`.
    pub fn heal(&self, op: Op) {
        self.state.faults.clear(op);
    }

    /// Ends every fault.
    pub fn heal_all(&self) {
        for op in Op::ALL {
            self.heal(op);
        }
    }

    /// Spoils every key in the store: opening one is refused for `reason` from now on.
    pub fn spoil(&self, reason: Reason) {
        for kept in lock(&self.state.shelf).values_mut() {
            *kept = Kept::Spoilt(reason);
        }
    }

    /// Kills every key the store has made so far, as clearing a TPM does: none opens or signs again.
    pub fn kill(&self) {
        self.spoil(Reason::Dead);
        self.state.kills.fetch_add(1, Ordering::SeqCst);
    }

    /// How often `op` was called.
    pub fn calls(&self, op: Op) -> usize {
        self.state.faults.calls(op)
    }

    /// Whether the store has something under `name`.
    pub fn has(&self, name: &KeyName) -> bool {
        lock(&self.state.shelf).contains_key(name.as_str())
    }

    fn at(&self, op: Op) -> Result<(), Unavailable> {
        self.state.faults.at(op)
    }

    fn hand_out(&self, key: Arc<dyn StoredKey>) -> Box<dyn StoredKey> {
        Box::new(ScriptedKey {
            store: self.clone(),
            lie: *lock(&self.state.lie),
            kills: self.state.kills.load(Ordering::SeqCst),
            key,
        })
    }
}

impl fmt::Debug for ScriptedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScriptedStore({})", self.id)
    }
}

impl KeyStore for ScriptedStore {
    fn id(&self) -> StoreId {
        self.id
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.at(Op::Probe)
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        self.at(Op::Open)?;
        if self.id == StoreId::Memory {
            return Ok(None);
        }
        let kept = lock(&self.state.shelf).get(name.as_str()).cloned();
        match kept {
            None => Ok(None),
            Some(Kept::Key(key)) => Ok(Some(self.hand_out(key))),
            Some(Kept::Spoilt(reason)) => Err(Unavailable::new(self.id, reason, "spoilt")),
        }
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        self.at(Op::Create)?;
        let stocked = lock(&self.state.stock).pop();
        let key = stocked.unwrap_or_else(|| keys::make(*lock(&self.state.lie)));
        lock(&self.state.shelf).insert(name.as_str().into(), Kept::Key(Arc::clone(&key)));
        self.at(Op::AfterCreate)?;
        Ok(self.hand_out(key))
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        self.at(Op::Delete)?;
        Ok(lock(&self.state.shelf).remove(name.as_str()).is_some())
    }

    fn outlives_process(&self) -> bool {
        self.outlives_process
    }
}

/// A software key that claims to be what its store's tier demands.
struct ScriptedKey {
    store: ScriptedStore,
    lie: Option<Lie>,
    kills: usize,
    key: Arc<dyn StoredKey>,
}

impl StoredKey for ScriptedKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.store.at(Op::PublicKey)?;
        self.key.public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.key.schemes()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        self.store.at(Op::Sign)?;
        if self.kills < self.store.state.kills.load(Ordering::SeqCst) {
            return Err(Unavailable::new(self.store.id, Reason::Dead, "killed"));
        }
        self.key.sign_digest(scheme, digest)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.store.at(Op::Properties)?;
        let honest = match self.store.id.tier() {
            Tier::KeyGuard => (Isolation::Vbs { per_boot: true }, Origin::Device),
            Tier::Hardware => (Isolation::Device, Origin::Device),
            Tier::InMemory => (Isolation::Process, Origin::Process),
        };
        let (isolation, origin) = match self.lie {
            Some(Lie::NotIsolated) => (Isolation::Process, Origin::Device),
            Some(Lie::OutlivesBoot) => (Isolation::Vbs { per_boot: false }, Origin::Device),
            Some(Lie::Imported) => (honest.0, Origin::Imported),
            _ => honest,
        };
        Ok(KeyProperties {
            isolation,
            origin,
            exportable: Some(false),
            ..KeyProperties::default()
        })
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.store.at(Op::Export)?;
        Ok(match self.lie {
            Some(Lie::Exports) => ExportAttempt::Exported,
            _ => ExportAttempt::Refused("as its tier demands".into()),
        })
    }

    fn is_quick(&self) -> bool {
        self.store.id == StoreId::Memory || self.lie == Some(Lie::Quick)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
