//! Connections that are kept for the next request, one version of the binding at a time.
//!
//! 1. A connection is used only with tokens of the binding whose certificate it showed: it is looked up by the
//!    token's own binding, never by the newest.
//! 2. When a host is first asked for with a newer binding, the idle connections of the older one are closed; those
//!    in use end with their exchange. A request that still holds an older token gets a connection of its own.
//! 3. No connection idles longer or lives longer than the limits, whether or not anybody asks for it again.
//! 4. A key in a device shakes few hands at a time; those who wait take a connection that becomes free meanwhile.
//!    Where the server may ask late, the first exchange belongs to the handshake, as long as it may still ask.

use std::{
    collections::HashMap,
    error::Error as StdError,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use keybond_keys::{KeyId, StoreId};
use keybond_tls::{Leg as TlsLeg, TlsInfo, TlsVersion};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use url::Url;

use crate::{
    credential::Binding,
    error::{At, Error},
    http::{
        Net, Via,
        connection::{Connection, address, broken, unanswered},
    },
    time,
};

/// How many connections to one host are kept idle.
const IDLE_PER_HOST: usize = 32;

/// How many handshakes a key in a device makes at a time. Devices sign one after the other, and a server does not
/// wait for ever.
const DEVICE_HANDSHAKES: usize = 4;

/// How long connections are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) idle: Duration,
    pub(crate) life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Azure's front ends give up after two minutes or more.
            idle: Duration::from_secs(60),
            life: Duration::from_secs(10 * 60),
        }
    }
}

/// Whom a connection leads to, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    address: String,
    leg: TlsLeg,
    newest: TlsVersion,
}

impl Target {
    pub(crate) fn new(url: &Url, leg: TlsLeg, newest: TlsVersion) -> Self {
        Self {
            address: address(url),
            leg,
            newest,
        }
    }
}

/// The connections of one client.
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Limits,
    state: Mutex<State>,
    gates: Mutex<HashMap<KeyId, Weak<Semaphore>>>,
}

#[derive(Default)]
struct State {
    hosts: HashMap<Target, Host>,
    reaping: bool,
}

#[derive(Default)]
struct Host {
    version: u64,
    idle: Vec<Idle>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                limits,
                state: Mutex::default(),
                gates: Mutex::default(),
            }),
        }
    }

    /// A connection that showed, or will show, the certificate of `binding`. `fresh`: none that was used before.
    pub(crate) async fn take(
        &self,
        net: &Net,
        url: &Url,
        target: &Target,
        binding: &Arc<Binding>,
        at: &At,
        fresh: bool,
    ) -> Result<Lease, Error> {
        let idle = || async {
            while !fresh && let Some(mut connection) = self.inner.idle(target, binding.version()) {
                // The end of the last exchange is at most one turn of its task away.
                if connection.is_ready().await {
                    return Some(connection);
                }
            }
            None
        };
        if let Some(connection) = idle().await {
            return Ok(self.lease(target, binding, connection, true));
        }
        let gate = self.inner.gate(binding).await;
        if gate.is_some()
            && let Some(connection) = idle().await
        {
            return Ok(self.lease(target, binding, connection, true));
        }
        let via = Via::Resource {
            leg: target.leg,
            newest: target.newest,
            identity: Arc::clone(binding.client_identity()),
        };
        let connection = Connection::open(net, url, &via, at).await?;
        if let Some(turn) = gate
            && target.leg == TlsLeg::OnDemand
            && connection
                .tls()
                .is_some_and(|tls| tls.client_signature.is_none())
        {
            connection.hold(turn);
        }
        Ok(self.lease(target, binding, connection, false))
    }

    fn lease(
        &self,
        target: &Target,
        binding: &Binding,
        connection: Connection,
        reused: bool,
    ) -> Lease {
        Lease {
            connection: Some(connection),
            target: target.clone(),
            version: binding.version(),
            pool: Arc::downgrade(&self.inner),
            reused,
            tls: None,
        }
    }
}

impl Inner {
    /// A connection that is not known to be closed.
    fn idle(&self, target: &Target, version: u64) -> Option<Connection> {
        let now = Instant::now();
        let mut state = self.state();
        let host = state.hosts.entry(target.clone()).or_default();
        if version > host.version {
            host.version = version;
            host.idle.clear();
        }
        if version < host.version {
            return None;
        }
        host.idle.retain(|idle| self.limits.allow(idle, now));
        Some(host.idle.pop()?.connection)
    }

    fn put(self: &Arc<Self>, target: &Target, version: u64, connection: Connection) {
        let now = Instant::now();
        let idle = Idle {
            connection,
            since: now,
        };
        let mut state = self.state();
        let host = state.hosts.entry(target.clone()).or_default();
        if version < host.version
            || host.idle.len() >= IDLE_PER_HOST
            || !self.limits.allow(&idle, now)
        {
            return;
        }
        host.version = version;
        host.idle.push(idle);
        if !state.reaping {
            state.reaping = true;
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }

    /// Closes what is over its time; when to look again.
    fn sweep(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        for host in state.hosts.values_mut() {
            host.idle.retain(|idle| self.limits.allow(idle, now));
        }
        let idle = state.hosts.values().flat_map(|host| &host.idle);
        let next = idle.map(|idle| self.limits.end(idle)).min();
        if next.is_none() {
            state.hosts.clear();
            state.reaping = false;
        }
        next
    }

    /// Leave to shake hands with this binding's key, if it needs any.
    async fn gate(&self, binding: &Binding) -> Option<OwnedSemaphorePermit> {
        let key = binding.key();
        if key.store() == StoreId::Memory {
            return None;
        }
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            gates.retain(|_, gate| gate.strong_count() > 0);
            match gates.get(&key.id()).and_then(Weak::upgrade) {
                Some(gate) => gate,
                None => {
                    let gate = Arc::new(Semaphore::new(DEVICE_HANDSHAKES));
                    gates.insert(key.id(), Arc::downgrade(&gate));
                    gate
                }
            }
        };
        // Never closed, hence never an error.
        gate.acquire_owned().await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limits {
    fn end(&self, idle: &Idle) -> Instant {
        let unused = time::after(idle.since, self.idle);
        unused.min(time::after(idle.connection.opened(), self.life))
    }

    fn allow(&self, idle: &Idle, now: Instant) -> bool {
        !idle.connection.is_closed() && now < self.end(idle)
    }
}

/// Closes idle connections when their time is over, as long as there are any.
async fn reap(pool: Weak<Inner>) {
    while let Some(next) = pool.upgrade().and_then(|pool| pool.sweep()) {
        tokio::time::sleep_until(next).await;
    }
}

/// A connection in use. Dropping it closes it; [`Lease::release`] keeps it for the next.
pub(crate) struct Lease {
    connection: Option<Connection>,
    target: Target,
    version: u64,
    pool: Weak<Inner>,
    reused: bool,
    tls: Option<TlsInfo>,
}

impl Lease {
    /// Whether it served another exchange before: then it may have been closed meanwhile.
    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Waits until the last exchange is over. `false`: the server closed the connection after it.
    pub(crate) async fn is_ready(&mut self) -> bool {
        match &mut self.connection {
            Some(connection) => connection.is_ready().await,
            None => false,
        }
    }

    pub(crate) fn broken(&self, at: &At, error: &(dyn StdError + 'static)) -> Error {
        broken(at, &self.target.address, error)
    }

    pub(crate) fn silent(&self, at: &At, waited: Duration) -> Error {
        unanswered(at, &self.target.address, waited)
    }

    /// Facts about the connection, as of its release if it is over.
    pub(crate) fn tls(&self) -> Option<TlsInfo> {
        match &self.connection {
            Some(connection) => connection.tls(),
            None => self.tls.clone(),
        }
    }

    /// The exchange is over on both sides: others may use the connection.
    pub(crate) fn release(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.tls = connection.tls();
            if let Some(pool) = self.pool.upgrade() {
                pool.put(&self.target, self.version, connection);
            }
        }
    }
}
