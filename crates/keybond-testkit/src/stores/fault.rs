//! Faults, and the plan that says when they strike.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use keybond_keys::Unavailable;
use tokio::sync::Semaphore;

use super::lock;

/// A place where a store can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `KeyStore::probe`.
    Probe,
    /// `KeyStore::open`, before anything is looked up.
    Open,
    /// `KeyStore::create`, before there is a key.
    Create,
    /// `KeyStore::create`, when the key is in the store but nobody knows yet.
    AfterCreate,
    /// `KeyStore::delete`.
    Delete,
    /// `StoredKey::public_key`.
    PublicKey,
    /// `StoredKey::sign_digest`.
    Sign,
    /// `StoredKey::properties`.
    Properties,
    /// `StoredKey::attempt_export`.
    Export,
}

impl Op {
    /// Every place.
    pub const ALL: [Self; 9] = [
        Self::Probe,
        Self::Open,
        Self::Create,
        Self::AfterCreate,
        Self::Delete,
        Self::PublicKey,
        Self::Sign,
        Self::Properties,
        Self::Export,
    ];
}

/// A way to fail.
#[derive(Clone)]
pub enum Fault {
    /// Answers with this refusal.
    Refuse(Unavailable),
    /// Waits until the gate opens, then goes on as if nothing had been.
    Hang(Gate),
    /// Takes this long, then goes on.
    Slow(Duration),
    /// Panics.
    Die,
}

/// Holds a hanging operation until it is opened. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<GateState>);

struct GateState {
    open: Mutex<bool>,
    opened: Condvar,
    arrivals: Semaphore,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::new(GateState {
            open: Mutex::new(false),
            opened: Condvar::new(),
            arrivals: Semaphore::new(0),
        }))
    }

    /// Waits until one more operation hangs at the gate.
    pub async fn reached(&self) {
        if let Ok(permit) = self.0.arrivals.acquire().await {
            permit.forget();
        }
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *lock(&self.0.open) = true;
        self.0.opened.notify_all();
    }

    fn wait(&self) {
        self.0.arrivals.add_permits(1);
        let mut open = lock(&self.0.open);
        while !*open {
            open = self
                .0
                .opened
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Default)]
pub(super) struct Plan {
    faults: Mutex<HashMap<Op, (Fault, Option<usize>)>>,
    calls: Mutex<HashMap<Op, usize>>,
}

impl Plan {
    pub(super) fn set(&self, op: Op, fault: Fault, times: Option<usize>) {
        lock(&self.faults).insert(op, (fault, times));
    }

    pub(super) fn clear(&self, op: Op) {
        lock(&self.faults).remove(&op);
    }

    pub(super) fn calls(&self, op: Op) -> usize {
        lock(&self.calls).get(&op).copied().unwrap_or(0)
    }

    pub(super) fn at(&self, op: Op) -> Result<(), Unavailable> {
        *lock(&self.calls).entry(op).or_default() += 1;
        match self.take(op) {
            None => Ok(()),
            Some(Fault::Refuse(refusal)) => Err(refusal),
            Some(Fault::Hang(gate)) => {
                gate.wait();
                Ok(())
            }
            Some(Fault::Slow(time)) => {
                std::thread::sleep(time);
                Ok(())
            }
            Some(Fault::Die) => std::panic::resume_unwind(Box::new("the test kills the store")),
        }
    }

    fn take(&self, op: Op) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let (fault, times) = faults.get_mut(&op)?;
        let fault = fault.clone();
        if let Some(left) = times {
            *left = left.checked_sub(1)?;
            if *left == 0 {
                faults.remove(&op);
            }
        }
        Some(fault)
    }
}
