//! Azure on loopback with real TLS, and a client for it.

use std::sync::{Arc, LazyLock};

use keybond::{
    KeyProvider, ManagedIdentity, ManagedIdentityBuilder,
    tls::{TlsConnector, TrustRoots, default_connector},
};
use keybond_emulator::{Builder, Emulator};

use crate::support::TestEnv;

/// One key for all tests: making one takes a quarter of a second.
static KEYS: LazyLock<KeyProvider> = LazyLock::new(KeyProvider::in_memory);

pub(crate) struct Cloud {
    pub(crate) azure: Emulator,
    pub(crate) env: Arc<TestEnv>,
    pub(crate) keys: KeyProvider,
    pub(crate) tls: Arc<dyn TlsConnector>,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::with(Emulator::builder()).await
    }

    pub(crate) async fn with(builder: Builder) -> Self {
        let azure = builder.start().await.unwrap();
        let mut roots = TrustRoots::empty();
        roots.add_pem(azure.ca_pem().as_bytes()).unwrap();
        let env = TestEnv::default();
        for (name, value) in azure.env() {
            env.set(name, &value);
        }
        Self {
            azure,
            env: Arc::new(env),
            keys: KEYS.clone(),
            tls: default_connector(&roots).unwrap(),
        }
    }

    pub(crate) fn builder(&self) -> ManagedIdentityBuilder {
        ManagedIdentity::builder()
            .key_provider(self.keys.clone())
            .tls(self.tls.clone())
            .environment(self.env.clone())
    }

    pub(crate) fn client(&self) -> ManagedIdentity {
        self.builder().build().unwrap()
    }

    pub(crate) fn play(&self, scenario: &str) {
        self.azure.play(&scenario.parse().unwrap()).unwrap();
    }

    pub(crate) fn resource(&self) -> &'static str {
        self.azure.vault_resource()
    }
}
