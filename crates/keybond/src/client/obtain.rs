//! How tokens and bindings are got: the runs behind the single flights.

use std::{sync::Arc, time::Duration};

use super::Shared;
use crate::{
    acquisition::Acquisition,
    credential::{self, Binding, mint::Mint},
    error::Error,
    leg::Leg,
    telemetry,
    token::{AccessToken, cache::Slot, request},
};

/// After a failure in the background, how long until the next try.
pub(crate) const BACKGROUND_PAUSE: Duration = Duration::from_secs(30);

/// One run of a token fetch. `refresh` says that a usable token need not stop it.
pub(crate) async fn fetch_token(
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    resource: String,
    refresh: bool,
) -> Result<Arc<AccessToken>, Error> {
    // A run that ended between the caller's look and this one's start.
    if !refresh && let Some(token) = slot.usable(shared.clock.now(), &shared.bindings) {
        return Ok(token);
    }
    let way = shared.acquisition()?;
    let fetched = async {
        shared.check_switch(Leg::Token)?;
        loop {
            let bound_to = binding(&shared, &way).await?;
            let asking = request::request(&shared, &way, &bound_to, &resource);
            let token = way.leg(Leg::Token, asking).await?;
            // A renewal in the meantime gave this certificate up: the next round uses the new one.
            if !shared.bindings.is_retired(&bound_to) {
                slot.put(&token);
                return Ok(token);
            }
        }
    };
    let fetched = Box::pin(fetched).await;
    telemetry::bound_ended(&shared, &way.tally, &fetched);
    if let (true, Err(error)) = (refresh, &fetched) {
        tracing::warn!(target: "keybond", %resource, %error, "a token could not be refreshed; the old one stays in use");
    }
    fetched
}

/// The binding in use, or the next one. Past its renewal time it is replaced in the background.
pub(crate) async fn binding(
    shared: &Arc<Shared>,
    way: &Acquisition,
) -> Result<Arc<Binding>, Error> {
    let now = shared.clock.now();
    let start = || mint(Arc::clone(shared), way.clone(), Mint::Missing);
    let Some(binding) = shared.bindings.usable(now) else {
        return shared.bindings.flight.join(start).await;
    };
    if shared.is_due(&binding) && shared.bindings.renewal.pass(now, BACKGROUND_PAUSE) {
        shared.bindings.flight.launch(|| {
            let why = Mint::Due(Arc::clone(&binding));
            let minted = mint(Arc::clone(shared), way.clone(), why);
            async {
                let minted = minted.await;
                if let Err(error) = &minted {
                    tracing::warn!(target: "keybond", %error, "the certificate could not be renewed; the old one stays in use");
                }
                minted
            }
        });
    }
    Ok(binding)
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
    let binding = Box::pin(credential::mint::mint(&shared, &way, &why)).await?;
    shared.bindings.put(&binding);
    Ok(binding)
}
