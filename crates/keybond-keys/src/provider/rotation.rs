//! Rotation on demand: two slots for each key name, and which of them is in use.

use std::sync::{Arc, PoisonError};

use super::Stores;
use crate::{
    error::KeyError,
    event::KeyEvent,
    key::HeldKey,
    state::{StateDir, StateError},
    store::KeyName,
};

/// One of the two places for keys of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    /// `<name>`.
    #[default]
    A,
    /// `<name>-b`.
    B,
}

impl Slot {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn text(self) -> &'static [u8] {
        match self {
            Self::A => b"a\n",
            Self::B => b"b\n",
        }
    }

    fn key_name(self, name: &KeyName) -> Result<KeyName, KeyError> {
        match self {
            Self::A => Ok(name.clone()),
            Self::B => KeyName::new(format!("{name}-b"))
                .map_err(|error| local("the name of the key's second slot", error.to_string())),
        }
    }
}

impl Stores {
    /// The name under which the key in use is kept.
    pub(super) fn name(&self) -> Result<KeyName, KeyError> {
        self.slot()?.key_name(&self.settings.name)
    }

    /// The names of both slots, the one in use first.
    pub(super) fn slots(&self) -> Result<Vec<KeyName>, KeyError> {
        let slot = self.slot()?;
        let mut names = vec![slot.key_name(&self.settings.name)?];
        // A name too long for a second slot has none.
        names.extend(slot.other().key_name(&self.settings.name));
        Ok(names)
    }

    /// Makes and proves a key in the slot that is not in use, then turns to it.
    pub(super) async fn rotate(&self, current: &Arc<HeldKey>) -> Result<Arc<HeldKey>, KeyError> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.store.id() == current.store());
        let lasting = entry.is_some_and(|entry| entry.store.outlives_process());
        let keys = match self.keys()? {
            Some(keys) => Some(keys),
            None if lasting => {
                let cause = "there is no state directory to remember the slot in".to_owned();
                return Err(local("the key cannot be rotated", cause));
            }
            None => None,
        };
        let _alone = match &keys {
            Some(keys) => Some(
                keys.try_lock(&self.file("rotation.lock"))
                    .map_err(state)?
                    .ok_or_else(|| {
                        local(
                            "the key cannot be rotated",
                            "another process is rotating it".into(),
                        )
                    })?,
            ),
            None => None,
        };
        let next = self.slot()?.other();
        let name = next.key_name(&self.settings.name)?;
        // The key that the last rotation retired makes room.
        for entry in &self.entries {
            if self.settings.policy.refusal(entry.store.id()).is_none() {
                self.delete_from(entry, name.clone()).await?;
            }
        }
        let key = self.walk_for(&name, current.strength(), None).await?;
        match &keys {
            Some(keys) => keys.write(&self.file("slot"), next.text()).map_err(state)?,
            None => *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = next,
        }
        let (store, from, to) = (key.store(), current.id(), key.id());
        self.events.announce(KeyEvent::Rotated { store, from, to });
        Ok(key)
    }

    fn slot(&self) -> Result<Slot, KeyError> {
        let Some(keys) = self.keys()? else {
            return Ok(*self.slot.lock().unwrap_or_else(PoisonError::into_inner));
        };
        match keys.read(&self.file("slot")).map_err(state)? {
            None => Ok(Slot::A),
            Some(text) if text == Slot::A.text() => Ok(Slot::A),
            Some(text) if text == Slot::B.text() => Ok(Slot::B),
            // Guessing might bring a retired key back.
            Some(_) => Err(local(
                "the slot of the key is not known",
                format!(
                    "{}: expected `a` or `b`",
                    keys.path().join(self.file("slot")).display()
                ),
            )),
        }
    }

    fn keys(&self) -> Result<Option<StateDir>, KeyError> {
        let state_dir = self.settings.state.as_ref();
        state_dir
            .map(|dir| dir.subdirectory("keys"))
            .transpose()
            .map_err(state)
    }

    fn file(&self, kind: &str) -> String {
        format!("{}.{kind}", self.settings.name)
    }
}

fn state(error: StateError) -> KeyError {
    local("the state of the key", error.to_string())
}

fn local(what: &'static str, cause: String) -> KeyError {
    KeyError::Local {
        what: what.into(),
        cause,
    }
}
