//! Bearer tokens in a Service Fabric cluster, over TLS to the emulator's: several nodes, and a token that a resource
//! does not take any more.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, sync::Arc};

use keybond::{
    Environment, ManagedIdentity, Source,
    keys::KeyProvider,
    tls::{TrustRoots, default_connector},
};
use keybond_emulator::Emulator;

const RESOURCE: &str = "https://vault.azure.net";

struct Env(HashMap<&'static str, String>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

fn node(azure: &Emulator, change: impl Fn(&mut HashMap<&'static str, String>)) -> ManagedIdentity {
    let mut variables: HashMap<_, _> = azure.service_fabric_env().into_iter().collect();
    change(&mut variables);
    let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
    ManagedIdentity::builder()
        .key_provider(KeyProvider::in_memory())
        .tls(default_connector(&roots).unwrap())
        .environment(Arc::new(Env(variables)))
        .client_capabilities(["cp1"])
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_for_all_nodes() {
    let azure = Emulator::builder().start().await.unwrap();
    let nodes = [0; 3].map(|_| node(&azure, |_| {}));
    let mut refused = Vec::new();
    for node in &nodes {
        refused.push(node.bearer_token(RESOURCE).await.unwrap());
    }
    let first = refused[0].secret();
    assert!(refused.iter().all(|token| token.secret() == first));
    assert_eq!(refused[0].source(), Source::ServiceFabric);

    let mut others = Vec::new();
    for (node, refused) in nodes.iter().zip(&refused) {
        others.push(node.bearer_token_after_challenge(refused).await.unwrap());
    }
    let second = others[0].secret();
    assert_ne!(second, first);
    assert!(others.iter().all(|token| token.secret() == second));
    assert_eq!(azure.counters().fabric, 6);
}

#[tokio::test]
async fn the_secret_goes_to_the_named_server_only() {
    let azure = Emulator::builder().start().await.unwrap();
    let stranger = node(&azure, |variables| {
        variables.insert("IDENTITY_SERVER_THUMBPRINT", "00".repeat(20));
    });
    let error = stranger.bearer_token(RESOURCE).await.unwrap_err();
    assert_eq!(error.code(), "tls_server_host_mismatch");
    assert_eq!(azure.counters().fabric, 0);
}
