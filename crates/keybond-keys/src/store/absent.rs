//! A store that cannot be used here, kept in the list so that every decision says why.

use super::{KeyName, KeyStore, StoredKey};
use crate::{refusal::Unavailable, strength::StoreId};

/// A place in the hierarchy whose store this platform, build or configuration does not have. It answers
/// every question with the same refusal.
///
/// ```
/// use keybond_keys::{AbsentStore, KeyProvider, MemoryStore, Reason, StoreId, Unavailable};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), keybond_keys::KeyError> {
/// let keyguard = Unavailable::new(StoreId::KeyGuard, Reason::NotSupported, "KeyGuard is a part of Windows");
/// let provider = KeyProvider::builder().store(AbsentStore::new(keyguard)).store(MemoryStore).build();
/// let key = provider.get_or_create_key().await?;
/// assert!(key.decision().to_string().contains("KeyGuard is a part of Windows"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AbsentStore(Unavailable);

impl AbsentStore {
    /// A store that refuses for this reason.
    pub fn new(refusal: Unavailable) -> Self {
        Self(refusal)
    }
}

impl KeyStore for AbsentStore {
    fn id(&self) -> StoreId {
        self.0.store
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Err(self.0.clone())
    }

    fn open(&self, _name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        Err(self.0.clone())
    }

    fn create(&self, _name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        Err(self.0.clone())
    }

    fn delete(&self, _name: &KeyName) -> Result<bool, Unavailable> {
        Err(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Reason;

    #[test]
    fn every_question_has_the_same_answer() {
        let refusal = Unavailable::new(StoreId::KeyGuard, Reason::NotSupported, "not here");
        let (store, name) = (AbsentStore::new(refusal.clone()), KeyName::default());
        assert_eq!(store.id(), StoreId::KeyGuard);
        for answer in [
            store.probe().unwrap_err(),
            store.open(&name).err().unwrap(),
            store.create(&name).err().unwrap(),
            store.delete(&name).unwrap_err(),
        ] {
            assert_eq!(answer.to_string(), refusal.to_string());
        }
    }
}
