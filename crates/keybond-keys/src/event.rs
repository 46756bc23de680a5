//! What happens to the held key, for those who want to know as it happens: a stream, the log, and metrics.
//!
//! Metrics (through the `metrics` facade; without a recorder they cost next to nothing):
//!
//! | name | kind | labels | meaning |
//! |---|---|---|---|
//! | `keybond_key_events_total` | counter | `event`, `store` | one for each [`KeyEvent`]; `event` is its JSON name |
//! | `keybond_key_refusals_total` | counter | `store`, `reason` | one for each refusal of a store that was asked |
//! | `keybond_key_decision_seconds` | histogram | `store` | how long finding or making the key took; `store` is `none` if there is none |
//! | `keybond_key_strength` | gauge | – | strength of the key in use: 1 software, 2 hardware, 3 keyguard |
//! | `keybond_key_provisional` | gauge | – | 1 while a stronger store is expected back |

use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::{
    public_key::KeyId,
    refusal::Unavailable,
    strength::{StoreId, Strength},
};

/// Something that happened to the key of a provider.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeyEvent {
    /// A key was made.
    Created {
        /// Where.
        store: StoreId,
        /// Which.
        key: KeyId,
    },
    /// A key that was there already was opened.
    Opened {
        /// Where.
        store: StoreId,
        /// Which.
        key: KeyId,
    },
    /// The key in use is weaker than it might be: a stronger store refused for a reason that may pass.
    Provisional {
        /// The store in use for now.
        store: StoreId,
        /// The key in use for now.
        key: KeyId,
    },
    /// A stronger key took the place of a provisional one.
    Upgraded {
        /// The provisional key.
        from: KeyId,
        /// The stronger key.
        to: KeyId,
        /// Where it is.
        store: StoreId,
    },
    /// A key that no longer worked was replaced. Certificates of the old key are worthless now.
    Replaced {
        /// Where.
        store: StoreId,
        /// The old key, if it could still be told.
        from: Option<KeyId>,
        /// The new key.
        to: KeyId,
        /// Why the old one was given up.
        cause: String,
    },
    /// A new key took the place of the one in use, on demand. The old one still works until the next rotation.
    Rotated {
        /// Where the new key is.
        store: StoreId,
        /// The old key.
        from: KeyId,
        /// The new key.
        to: KeyId,
    },
    /// A store refused.
    Refused(Unavailable),
}

/// The events of a provider, from the moment of subscription on.
#[derive(Debug)]
pub struct KeyEvents(broadcast::Receiver<KeyEvent>);

impl KeyEvents {
    /// The next event; `None` when the provider is gone. A receiver that is more than 64 events behind
    /// loses the oldest ones.
    pub async fn next(&mut self) -> Option<KeyEvent> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// The sending side: tells subscribers and the log.
pub(crate) struct Announcer(broadcast::Sender<KeyEvent>);

impl Announcer {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(64))
    }

    pub(crate) fn subscribe(&self) -> KeyEvents {
        KeyEvents(self.0.subscribe())
    }

    pub(crate) fn announce(&self, event: KeyEvent) {
        count(&event);
        match &event {
            KeyEvent::Created { store, key } => {
                tracing::info!(target: "keybond::keys", %store, %key, "key created");
            }
            KeyEvent::Opened { store, key } => {
                tracing::info!(target: "keybond::keys", %store, %key, "key opened");
            }
            KeyEvent::Provisional { store, key } => tracing::warn!(
                target: "keybond::keys", %store, %key,
                "the key is provisional: a stronger store refused for a reason that may pass"
            ),
            KeyEvent::Upgraded { from, to, store } => {
                tracing::info!(target: "keybond::keys", %store, %from, %to, "key upgraded");
            }
            KeyEvent::Rotated { store, from, to } => {
                tracing::info!(target: "keybond::keys", %store, %from, %to, "key rotated");
            }
            KeyEvent::Replaced {
                store, to, cause, ..
            } => {
                tracing::warn!(target: "keybond::keys", %store, %to, %cause, "key replaced");
            }
            KeyEvent::Refused(refusal) => tracing::info!(
                target: "keybond::keys",
                store = %refusal.store, reason = %refusal.reason, detail = %refusal.detail,
                "key store refused"
            ),
        }
        // Err means that nobody listens.
        let _ = self.0.send(event);
    }
}

fn count(event: &KeyEvent) {
    let (name, store) = match event {
        KeyEvent::Created { store, .. } => ("created", store),
        KeyEvent::Opened { store, .. } => ("opened", store),
        KeyEvent::Provisional { store, .. } => ("provisional", store),
        KeyEvent::Upgraded { store, .. } => ("upgraded", store),
        KeyEvent::Replaced { store, .. } => ("replaced", store),
        KeyEvent::Rotated { store, .. } => ("rotated", store),
        KeyEvent::Refused(refusal) => ("refused", &refusal.store),
    };
    metrics::counter!("keybond_key_events_total", "event" => name, "store" => store.name())
        .increment(1);
    if let KeyEvent::Refused(Unavailable { store, reason, .. }) = event {
        let labels = [("store", store.name()), ("reason", reason.name())];
        metrics::counter!("keybond_key_refusals_total", &labels).increment(1);
    }
}

/// A search for a key ended.
pub(crate) fn measure_decision(store: Option<StoreId>, took: Duration) {
    let store = store.map_or("none", StoreId::name);
    metrics::histogram!("keybond_key_decision_seconds", "store" => store).record(took);
}

/// A key is in use from now on.
pub(crate) fn measure_key(strength: Strength, provisional: bool) {
    metrics::gauge!("keybond_key_strength").set(f64::from(strength as u8));
    metrics::gauge!("keybond_key_provisional").set(f64::from(u8::from(provisional)));
}
