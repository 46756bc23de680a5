//! A real client of the Azure SDK against the emulator's vaults.
#![allow(clippy::unwrap_used)]

use std::{error::Error as _, sync::Arc, time::Duration};

use azure_core::{
    credentials::TokenCredential,
    error::ErrorKind,
    http::{ClientOptions, StatusCode, Transport},
};
use azure_security_keyvault_secrets::{
    ResourceExt as _, SecretClient, SecretClientOptions, models::SetSecretParameters,
};
use keybond::{
    KeyProvider, ManagedIdentity, ManagedIdentityBuilder, ResourceRule, Strength,
    tls::{TlsConnector, TrustRoots, default_connector},
};
use keybond_azure::{BearerCredential, BoundIdentity, PlainTransport};
use keybond_emulator::{Builder, Emulator, Fault, FaultKind, Leg};

const RESOURCE: &str = "https://vault.azure.net";

/// An emulator, and what it takes to be its client.
struct Bench {
    azure: Emulator,
    tls: Arc<dyn TlsConnector>,
}

impl Bench {
    async fn new(builder: Builder) -> Self {
        let azure = builder.start().await.unwrap();
        let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
        let tls = default_connector(&roots).unwrap();
        Self { azure, tls }
    }

    fn builder(&self) -> ManagedIdentityBuilder {
        ManagedIdentity::builder()
            .imds_endpoint(self.azure.imds_url())
            .allowed_sts_hosts(["localhost"])
            .key_provider(KeyProvider::in_memory())
            .tls(Arc::clone(&self.tls))
            .resource_rule(
                ResourceRule::new("localhost")
                    .token_bound_header()
                    .on_demand(),
            )
    }

    fn bound(&self) -> BoundIdentity {
        BoundIdentity::new(self.builder().build().unwrap(), Arc::clone(&self.tls))
    }

    fn plain(&self) -> Transport {
        PlainTransport::new(Arc::clone(&self.tls)).transport()
    }

    fn bearer(&self) -> Arc<BearerCredential> {
        BearerCredential::new(self.builder().build().unwrap())
    }
}

fn client(url: &str, credential: Arc<dyn TokenCredential>, transport: Transport) -> SecretClient {
    let options = SecretClientOptions {
        api_version: "7.6".into(),
        // The emulator's vault is at localhost, not below the resource's name.
        verify_challenge_resource: Some(false),
        client_options: ClientOptions {
            transport: Some(transport),
            ..ClientOptions::default()
        },
    };
    SecretClient::new(url, credential, Some(options)).unwrap()
}

async fn read(client: &SecretClient, name: &str) -> azure_core::Result<String> {
    let secret = client.get_secret(name, None).await?.into_model()?;
    Ok(secret.value.unwrap())
}

/// The error of keybond that is behind one of the SDK.
fn cause(error: &azure_core::Error) -> &keybond::Error {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<keybond::Error>() {
            return found;
        }
        next = error.source();
    }
    panic!("no cause in {error:?}");
}

#[tokio::test]
async fn a_secret_is_read_and_written_with_a_bound_token() {
    let bench = Bench::new(Emulator::builder().secret("motto", "semper eadem")).await;
    let bound = bench.bound();
    for url in [
        bench.azure.vault_url(),
        bench.azure.renegotiating_vault_url(),
    ] {
        let client = client(&url, bound.credential(), bound.transport());
        assert_eq!(read(&client, "motto").await.unwrap(), "semper eadem");
        let parameters = SetSecretParameters {
            value: Some("per aspera".into()),
            ..SetSecretParameters::default()
        };
        let written = client
            .set_secret("new", parameters.try_into().unwrap(), None)
            .await
            .unwrap()
            .into_model()
            .unwrap();
        assert_eq!(written.resource_id().unwrap().name, "new");
        assert_eq!(read(&client, "new").await.unwrap(), "per aspera");
    }
    let counters = bench.azure.counters();
    assert_eq!((counters.issue, counters.token), (1, 1));
    assert_eq!(counters.honeypot, 0);
}

#[tokio::test]
async fn what_the_sdk_holds_is_no_token_and_opens_nothing_elsewhere() {
    let bench = Bench::new(Emulator::builder().accept_bearer_tokens(true)).await;
    let bound = bench.bound();
    let held = bound
        .credential()
        .get_token(&[RESOURCE], None)
        .await
        .unwrap();
    let token = bound.identity().token(RESOURCE).await.unwrap();
    assert!(!held.token.secret().contains(token.secret()));
    assert!(held.token.secret().starts_with("keybond-ticket."));
    assert_eq!(
        u64::try_from(held.expires_on.unix_timestamp()).unwrap(),
        token
            .expires_on()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    );

    let url = bench.azure.vault_url();
    let elsewhere = client(&url, bound.credential(), bench.plain());
    let error = read(&elsewhere, "demo").await.unwrap_err();
    assert_eq!(error.http_status(), Some(StatusCode::Unauthorized));
    let other = bench.bound();
    let error = read(&client(&url, bound.credential(), other.transport()), "demo").await;
    assert_eq!(
        *error.unwrap_err().kind(),
        ErrorKind::Credential,
        "another identity's ticket"
    );
}

#[tokio::test]
async fn a_bearer_token_opens_only_a_vault_that_takes_it() {
    for accept in [false, true] {
        let bench = Bench::new(Emulator::builder().accept_bearer_tokens(accept)).await;
        let client = client(&bench.azure.vault_url(), bench.bearer(), bench.plain());
        let ended = read(&client, "demo").await;
        match ended {
            Ok(value) => assert!(accept && value == "opened by a bound token"),
            Err(error) => {
                assert!(!accept);
                assert_eq!(error.http_status(), Some(StatusCode::Unauthorized));
            }
        }
        assert_eq!(
            bench.azure.counters().issue,
            0,
            "no certificate for a bearer token"
        );
    }
}

#[tokio::test]
async fn where_binding_is_required_no_bearer_token_is_sent() {
    let bench = Bench::new(Emulator::builder().accept_bearer_tokens(true)).await;
    let bound = bench.bound();
    let client = client(&bench.azure.vault_url(), bench.bearer(), bound.transport());
    let error = read(&client, "demo").await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Credential);
    assert!(
        format!("{error:?}").contains("a bound token is required"),
        "{error:?}"
    );
    assert_eq!(
        bench.azure.counters().vault,
        1,
        "the question without credentials alone"
    );
}

#[tokio::test]
async fn errors_keep_their_cause_and_are_not_tried_again() {
    let bench = Bench::new(Emulator::builder()).await;
    let strong = bench.builder().minimum_strength(Strength::KeyGuard);
    let strong = BoundIdentity::new(strong.build().unwrap(), Arc::clone(&bench.tls));
    let url = bench.azure.vault_url();
    let error = read(
        &client(&url, strong.credential(), strong.transport()),
        "demo",
    )
    .await
    .unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Credential);
    assert_eq!(cause(&error).code(), "min_strength_not_met");
    assert_eq!(bench.azure.counters().issue, 0);

    let refusal = FaultKind::Aadsts {
        code: 392_196,
        error: "invalid_request".into(),
        status: 400,
    };
    bench.azure.inject(Fault::new(Leg::Token, refusal)).unwrap();
    let bound = bench.bound();
    let error = bound
        .credential()
        .get_token(&[RESOURCE], None)
        .await
        .unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("token_request_refused") && told.contains("trace id"),
        "{told}"
    );
    assert_eq!(cause(&error).http_status(), Some(400));
    assert_eq!(bench.azure.counters().token, 1);

    let scopes = [RESOURCE, "https://graph.microsoft.com"];
    let error = bound
        .credential()
        .get_token(&scopes, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("exactly one scope"), "{error}");
}

#[tokio::test]
async fn the_sdk_sends_again_what_broke_off_at_the_resource() {
    let bench = Bench::new(Emulator::builder()).await;
    let bound = bench.bound();
    let client = client(
        &bench.azure.vault_url(),
        bound.credential(),
        bound.transport(),
    );
    read(&client, "demo").await.unwrap();
    let before = bench.azure.counters();
    bench
        .azure
        .inject(Fault::new(Leg::Vault, FaultKind::Reset).times(1))
        .unwrap();
    read(&client, "demo").await.unwrap();
    let after = bench.azure.counters();
    assert_eq!(
        (after.vault - before.vault, after.token - before.token),
        (2, 0)
    );
}

#[tokio::test]
async fn whoever_leaves_stops_nobody() {
    let bench = Bench::new(Emulator::builder()).await;
    let slow = FaultKind::Slow { millis: 300 };
    bench.azure.inject(Fault::new(Leg::Metadata, slow)).unwrap();
    let bound = bench.bound();
    let credential = bound.credential();
    let leaving = credential.get_token(&[RESOURCE], None);
    let left = tokio::time::timeout(Duration::from_millis(100), leaving).await;
    assert!(left.is_err(), "it left in the middle");
    credential.get_token(&[RESOURCE], None).await.unwrap();
    let counters = bench.azure.counters();
    assert_eq!(
        (counters.metadata, counters.token),
        (1, 1),
        "the work went on"
    );
}
