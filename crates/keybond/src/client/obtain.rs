//! How tokens and bindings are got: the runs behind the single flights. What is started when is decided by the
//! machines in `lifecycle`; here it is done.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use keybond_keys::KeyEvent;
use tokio::task::JoinHandle;

use super::Shared;
use crate::{
    acquisition::Acquisition,
    credential::{self, Binding, anew, mint::Mint},
    error::Error,
    leg::Leg,
    random, telemetry,
    token::{
        AccessToken,
        cache::{Asked, Slot},
        settle::{self, Want},
        sharing::Sharing,
    },
};

/// How soon a binding is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Haste {
    /// Somebody waits: a usable one is given at once, and its successor got beside.
    Now,
    /// Nobody waits: if the successor is being got, it is worth waiting for.
    Later,
}

/// One run of a token fetch. `refresh` says that a usable token need not stop it, for nobody waits.
pub(crate) async fn fetch_token(
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    refresh: bool,
) -> Result<Arc<AccessToken>, Error> {
    // A run that ended between the caller's look and this one's start.
    if !refresh && let Some(token) = slot.usable(shared.clock.now(), &shared.bindings) {
        return Ok(token);
    }
    let way = shared.acquisition()?;
    let in_use = slot.usable(shared.clock.now(), &shared.bindings);
    let sharing = Sharing::new(&shared, &way, slot.resource(), in_use.as_deref());
    let fetched = Box::pin(bound_token(&shared, &way, &slot, refresh, &sharing)).await;
    telemetry::bound_ended(&shared, &way.tally, &fetched);
    let error = match fetched {
        Ok(token) => return Ok(token),
        Err(error) => error,
    };
    let now = shared.clock.now();
    let spare = if refresh { None } else { sharing.spare(now) };
    if let Some(token) = &spare {
        slot.put(now, token);
    }
    let jitter = random::jitter(&*shared.random);
    slot.failed(now, &error, error.retry_after(), jitter);
    if refresh || spare.is_some() {
        tracing::warn!(
            target: "keybond", resource = %slot.resource(), %error,
            "a token could not be refreshed; the old one stays in use"
        );
    }
    spare.ok_or(error)
}

async fn bound_token(
    shared: &Arc<Shared>,
    way: &Acquisition,
    slot: &Slot,
    refresh: bool,
    sharing: &Sharing<'_>,
) -> Result<Arc<AccessToken>, Error> {
    shared.check_switch(Leg::Token)?;
    let haste = if refresh { Haste::Later } else { Haste::Now };
    let want = Want::Shared(sharing);
    let asked = settle::token(shared, way, slot.resource(), haste, want).await;
    let token = match asked {
        Err(failure) if anew::was_made_anew(shared, way, &failure).await => {
            settle::token(shared, way, slot.resource(), haste, want).await?
        }
        asked => asked?,
    };
    slot.put(shared.clock.now(), &token);
    Ok(token)
}

/// The binding to use now: the one in use, or the next one. Past its renewal time it is replaced beside.
pub(crate) async fn binding(
    shared: &Arc<Shared>,
    way: Option<&Acquisition>,
    haste: Haste,
) -> Result<Arc<Binding>, Error> {
    let key = shared.keys.cached().map(|key| key.id());
    let (binding, why) = match shared.bindings.ask(shared.clock.now(), key) {
        Asked::Use(binding) => return Ok(binding),
        Asked::Fail(cause) => return Err(cause),
        Asked::UseAndStart(binding) => (Some(Arc::clone(&binding)), Mint::Due(binding)),
        Asked::Start => (None, Mint::Missing),
    };
    let way = match way {
        Some(way) => way.clone(),
        None => shared.acquisition()?,
    };
    let start = || mint(Arc::clone(shared), way.clone(), why.clone());
    match (binding, haste) {
        (None, _) => shared.bindings.flight.join(start).await,
        (Some(binding), Haste::Now) => {
            shared.bindings.flight.launch(start);
            Ok(binding)
        }
        (Some(binding), Haste::Later) => {
            Ok(shared.bindings.flight.join(start).await.unwrap_or(binding))
        }
    }
}

/// Sees to the certificate, which may be due although the tokens are not.
pub(crate) fn tend(shared: &Arc<Shared>, now: SystemTime) {
    let key = shared.keys.cached().map(|key| key.id());
    if let Asked::UseAndStart(binding) = shared.bindings.ask(now, key)
        && let Ok(way) = shared.acquisition()
    {
        let why = Mint::Due(binding);
        let start = || mint(Arc::clone(shared), way.clone(), why.clone());
        shared.bindings.flight.launch(start);
    }
}

/// One run of the way to a certificate.
pub(crate) async fn mint(
    shared: Arc<Shared>,
    way: Acquisition,
    why: Mint,
) -> Result<Arc<Binding>, Error> {
    // A run that ended between the caller's look and this one's start.
    if let Some(binding) = shared.bindings.usable(shared.clock.now())
        && why.is_served_by(&binding)
    {
        return Ok(binding);
    }
    shared.watcher.start(&shared);
    if let Mint::Refused(binding) = &why {
        shared.bindings.refused(shared.clock.now(), binding);
    }
    let minted = Box::pin(credential::mint::mint(&shared, &way, &why)).await;
    let now = shared.clock.now();
    match &minted {
        Ok(binding) => shared.bindings.put(now, binding),
        Err(error) => {
            shared
                .bindings
                .failed(now, error, random::jitter(&*shared.random));
            if matches!(why, Mint::Due(_) | Mint::Challenged(_)) {
                tracing::warn!(target: "keybond", %error, "the certificate could not be renewed; the old one stays in use");
            }
        }
    }
    minted
}

/// Listens for the death of keys, for as long as the client lives.
#[derive(Default)]
pub(crate) struct KeyWatcher(Mutex<Option<JoinHandle<()>>>);

impl KeyWatcher {
    /// Starts it, unless it runs. Called before a key is asked for, so that no death is missed.
    fn start(&self, shared: &Arc<Shared>) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let mut events = shared.keys.events();
        let shared = Arc::downgrade(shared);
        *running = Some(tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                if let KeyEvent::Replaced { from, to, .. } = event {
                    let in_use = shared.bindings.key_in_use();
                    if let Some(dead) = from.or(in_use).filter(|dead| *dead != to) {
                        shared.key_died(dead).await;
                    }
                }
            }
        }));
    }
}

impl Drop for KeyWatcher {
    fn drop(&mut self) {
        let running = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = running.take() {
            task.abort();
        }
    }
}
