//! What the SDK and keybond log together must not hold a token. One test, for its subscriber is the process's.
#![allow(clippy::unwrap_used)]

use std::{
    io,
    sync::{Arc, Mutex},
};

use azure_core::{credentials::TokenCredential, http::ClientOptions};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use keybond::{
    KeyProvider, ManagedIdentity, ResourceRule,
    tls::{TrustRoots, default_connector},
};
use keybond_azure::{BearerCredential, BoundIdentity, PlainTransport};
use keybond_emulator::Emulator;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_the_sdk_nor_keybond_logs_a_token() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();

    let azure = Emulator::builder()
        .accept_bearer_tokens(true)
        .secret("mine", "the-secret-in-the-vault")
        .start()
        .await
        .unwrap();
    let tls = default_connector(&TrustRoots::from_pem(azure.ca_pem()).unwrap()).unwrap();
    let identity = ManagedIdentity::builder()
        .imds_endpoint(azure.imds_url())
        .allowed_sts_hosts(["localhost"])
        .key_provider(KeyProvider::in_memory())
        .tls(Arc::clone(&tls))
        .resource_rule(
            ResourceRule::new("localhost")
                .token_bound_header()
                .on_demand(),
        )
        .build()
        .unwrap();
    let bound = BoundIdentity::new(identity.clone(), Arc::clone(&tls));
    let plain = PlainTransport::new(tls);
    let bearer: Arc<dyn TokenCredential> = BearerCredential::new(identity.clone());
    for (credential, transport) in [
        (bound.credential(), bound.transport()),
        (Arc::clone(&bearer), plain.transport()),
        (bearer, bound.transport()),
        (bound.credential(), plain.transport()),
    ] {
        let options = SecretClientOptions {
            api_version: "7.6".into(),
            verify_challenge_resource: Some(false),
            client_options: ClientOptions {
                transport: Some(transport),
                ..ClientOptions::default()
            },
        };
        let client = SecretClient::new(&azure.vault_url(), credential, Some(options)).unwrap();
        if let Err(error) = client.get_secret("mine", None).await {
            tracing::info!(%error, debug = ?error, "what a program logs");
        }
    }

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for told in [
        "typespec_client_core",
        "MIv2.STS.mTLS.Token",
        "leg=resource",
    ] {
        assert!(log.contains(told), "{told} is not in the log");
    }
    let resource = azure.vault_resource();
    let bound = identity.token(resource).await.unwrap();
    let bearer = identity.bearer_token(resource).await.unwrap();
    let parts = bound.secret().split('.').chain(bearer.secret().split('.'));
    for secret in parts.chain(["the-secret-in-the-vault"]) {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
