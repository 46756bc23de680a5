//! What happens to the held key, for those who want to know as it happens.

use serde::Serialize;
use tokio::sync::broadcast;

use crate::{public_key::KeyId, refusal::Unavailable, strength::StoreId};

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
