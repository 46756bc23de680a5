//! The provider's promises, with stores that do as the test says.
#![allow(clippy::unwrap_used, missing_docs)]
#![forbid(unsafe_code)]

#[path = "provider/concurrency.rs"]
mod concurrency;
#[path = "provider/evidence.rs"]
mod evidence;
#[path = "provider/faults.rs"]
mod faults;
#[path = "provider/floor.rs"]
mod floor;
#[path = "provider/hierarchy.rs"]
mod hierarchy;
#[path = "provider/lock.rs"]
mod lock;
#[path = "provider/machine.rs"]
mod machine;
#[path = "provider/recovery.rs"]
mod recovery;

use std::{future::Future, pin::pin, task::Poll, time::Duration};

use keybond_keys::{
    Decision, KeyEvent, KeyEvents, KeyProvider, KeyProviderBuilder, Reason, StoreId,
};
use keybond_testkit::stores::ScriptedStore;

/// A provider over these stores that gives up retrying at once and waits briefly for devices.
fn over<const N: usize>(stores: [&ScriptedStore; N]) -> KeyProviderBuilder {
    stores
        .into_iter()
        .fold(KeyProvider::builder(), |builder, store| {
            builder.store(store.clone())
        })
        .retry_budget(Duration::ZERO)
}

/// Why `store` was skipped.
fn reason(decision: &Decision, store: StoreId) -> Option<Reason> {
    decision
        .refusals()
        .find(|refusal| refusal.store == store)
        .map(|refusal| refusal.reason)
}

/// Waits for the first event that `wanted` takes, at most ten seconds.
async fn event<T>(events: &mut KeyEvents, mut wanted: impl FnMut(KeyEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("the provider lives");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search)
        .await
        .expect("the event comes")
}

/// Polls `future` once and drops it: a caller that is cancelled.
async fn cancel_after_first_poll(future: impl Future) {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "it had to wait");
        Poll::Ready(())
    })
    .await;
}
