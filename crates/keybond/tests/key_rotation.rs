//! A key that is rotated while a call is under way: the call ends with the key, certificate and token it began with.
#![cfg(not(target_env = "msvc"))]
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, sync::Arc};

use keybond::{
    Environment, ManagedIdentity, ResourceRule,
    keys::{KeyProvider, SignatureScheme, StateDir, StoreId},
    tls::{TrustRoots, default_connector},
};
use keybond_emulator::Emulator;
use keybond_testkit::stores::{Op, ScriptedStore};

const RESOURCE: &str = "https://vault.azure.net";

struct Env(HashMap<&'static str, String>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_under_way_while_the_key_is_rotated_ends_well() {
    let azure = Emulator::builder().start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = ScriptedStore::new(StoreId::Tpm2);
    let keys = KeyProvider::builder()
        .store(store.clone())
        .state_dir(StateDir::open(dir.path().join("state")).unwrap())
        .build();
    let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
    let rule = ResourceRule::new("localhost").resource(RESOURCE);
    let client = ManagedIdentity::builder()
        .key_provider(keys.clone())
        .tls(default_connector(&roots).unwrap())
        .environment(Arc::new(Env(azure.env().into_iter().collect())))
        .resource_rule(rule.token_bound_header().on_demand())
        .build()
        .unwrap();
    let vault = azure.renegotiating_vault_url();
    let url = format!(
        "{}/secrets/demo?api-version=7.4",
        vault.trim_end_matches('/')
    );
    client.token(RESOURCE).await.unwrap();
    let old = keys.cached().unwrap();

    // The vault has read the request and asks for the certificate; the old key is about to sign.
    let signing = store.hang(Op::Sign);
    let calling = tokio::spawn(client.get(&url).send());
    signing.reached().await;
    store.heal(Op::Sign);
    let new = keys.rotate_key().await.unwrap();
    assert_ne!(new.id(), old.id());
    assert_eq!(keys.cached().unwrap().id(), new.id());
    signing.open();
    let response = calling.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let used = Arc::clone(response.token().binding().unwrap());
    assert_eq!(used.key().id(), old.id());
    response.bytes().await.unwrap();

    // The next certificate is for the new key, and calls go over to it as a whole.
    assert_eq!(client.renew().await.unwrap().key().id(), new.id());
    let response = client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.token().binding().unwrap().key().id(), new.id());
    let counters = azure.counters();
    assert_eq!((counters.mixed_bindings, counters.issue), (0, 2));
    assert_eq!(counters.vault, 2, "nothing was repeated");

    // Whoever still holds the old binding can still sign with it.
    let held = used.key().sign(SignatureScheme::RsaPssSha256, b"drained");
    held.await.unwrap();
}
