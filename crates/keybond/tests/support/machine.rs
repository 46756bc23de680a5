//! A machine with a key that outlives processes, and a state directory.

use std::{fs, path::PathBuf, sync::Arc};

use keybond::{KeyProvider, ManagedIdentityBuilder, keys::StoreId};
use keybond_testkit::stores::ScriptedStore;
use tempfile::TempDir;

use super::{Bench, RESOURCE, azure::Service};

pub struct Machine {
    pub bench: Bench,
    pub device: ScriptedStore,
    pub parent: TempDir,
}

impl Machine {
    pub async fn new() -> Self {
        let device = ScriptedStore::new(StoreId::Tpm2).stocked();
        let mut bench = Bench::new().await;
        bench.keys = provider(&device);
        Self {
            bench,
            device,
            parent: tempfile::tempdir().unwrap(),
        }
    }

    /// keybond's own directory, which it makes itself.
    pub fn state(&self) -> PathBuf {
        self.parent.path().join("keybond")
    }

    /// What a process that starts now sees: the same device and directory, nothing in memory.
    pub fn process(&self) -> ManagedIdentityBuilder {
        self.bench
            .builder()
            .key_provider(provider(&self.device))
            .state_directory(self.state())
    }

    pub async fn token(&self) -> Arc<keybond::AccessToken> {
        self.process()
            .build()
            .unwrap()
            .token(RESOURCE)
            .await
            .unwrap()
    }

    /// What is in a folder of the state directory.
    pub fn files_in(&self, folder: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.state().join(folder)) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    pub fn issued(&self) -> usize {
        self.bench.azure.count(Service::Issue)
    }
}

pub fn provider(device: &ScriptedStore) -> KeyProvider {
    KeyProvider::builder().store(device.clone()).build()
}
