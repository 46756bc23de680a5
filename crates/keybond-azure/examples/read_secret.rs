//! Reads a secret with `azure_security_keyvault_secrets` and a bound token, over mutual TLS, from the emulator's
//! vault: `cargo run -p keybond-azure --example read_secret`.
#![allow(clippy::print_stdout)]

use std::{error::Error, sync::Arc};

use azure_core::http::ClientOptions;
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use keybond::{
    KeyProvider, ManagedIdentity, ResourceRule,
    tls::{TrustRoots, default_connector},
};
use keybond_azure::{BoundIdentity, PlainTransport};
use keybond_emulator::Emulator;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let azure = Emulator::builder()
        .secret("motto", "read with a token that nobody else can use")
        .start()
        .await?;
    // On Azure: the system's roots, and nothing of the next four settings.
    let tls = default_connector(&TrustRoots::from_pem(azure.ca_pem())?)?;
    let identity = ManagedIdentity::builder()
        .imds_endpoint(azure.imds_url())
        .allowed_sts_hosts(["localhost"])
        .resource_rule(
            ResourceRule::new("localhost")
                .token_bound_header()
                .on_demand(),
        )
        .key_provider(KeyProvider::in_memory())
        .tls(Arc::clone(&tls))
        .on_leg(Arc::new(|leg| println!("{:>9}  {}", leg.leg, leg.outcome)))
        .build()?;
    let bound = BoundIdentity::new(identity, Arc::clone(&tls));

    let options = |transport| SecretClientOptions {
        api_version: "7.6".into(),
        verify_challenge_resource: Some(false),
        client_options: ClientOptions {
            transport: Some(transport),
            ..ClientOptions::default()
        },
    };
    let vault = azure.renegotiating_vault_url();
    let client = SecretClient::new(&vault, bound.credential(), Some(options(bound.transport())))?;
    let secret = client.get_secret("motto", None).await?.into_model()?;
    println!("   secret  {}", secret.value.unwrap_or_default());

    // The same credential with another transport: the ticket is no token.
    let plain = PlainTransport::new(tls).transport();
    let thief = SecretClient::new(&vault, bound.credential(), Some(options(plain)))?;
    match thief.get_secret("motto", None).await {
        Ok(_) => Err("the ticket opened the vault".into()),
        Err(error) => {
            println!("    thief  {:?}", error.http_status());
            Ok(())
        }
    }
}
