//! What can be had is told beforehand, in the words of the request itself, and without making a key.

use keybond::{KeyProvider, Source, Strength};

use crate::support::{Bench, RESOURCE, azure::Service, server::Reply};

#[tokio::test]
async fn a_key_is_promised_and_shown_only_if_asked_for() {
    let bench = Bench::new().await;
    let keys = KeyProvider::in_memory();
    let client = bench.builder().key_provider(keys.clone()).build().unwrap();
    let found = client.capabilities().await.unwrap();
    assert_eq!(found.source.source, Source::ImdsV2);
    assert_eq!(
        (found.strength, found.strength_shown),
        (Some(Strength::Software), false)
    );
    assert!(found.bound_tokens().is_ok() && found.bearer_tokens());
    assert!(keys.cached().is_none(), "no key was made");
    assert!(found.to_string().contains("no key was made"), "{found}");

    let found = client.capabilities_with_key().await.unwrap();
    assert!(found.strength_shown && keys.cached().is_some());
    assert_eq!(bench.azure.total(), 1, "one probe for both");
    assert_eq!(bench.azure.count(Service::Issue), 0);
}

#[tokio::test]
async fn why_not_is_the_error_that_the_request_gives() {
    let bench = Bench::new().await;
    bench.azure.twist(|service, _, honest| match service {
        Service::Metadata => Reply::status(404, "{}"),
        // The probe for version 1 goes to this service's path, too.
        _ if matches!(honest, Reply::Whole { .. }) => Reply::status(400, "{}"),
        _ => honest,
    });
    let client = bench.client();
    let found = client.capabilities().await.unwrap();
    let error = client.token(RESOURCE).await.unwrap_err();
    let why_not = found.bound_tokens().unwrap_err();
    assert_eq!(found.source.source, Source::ImdsV1);
    assert_eq!(
        (why_not.code(), why_not.retryable()),
        (error.code(), error.retryable())
    );

    let bench = Bench::new().await;
    let demanding = bench.builder().minimum_strength(Strength::Hardware);
    let client = demanding.build().unwrap();
    let found = client.capabilities().await.unwrap();
    assert_eq!(found.floor, Strength::Hardware);
    assert_eq!(
        found.bound_tokens().unwrap_err().code(),
        "min_strength_not_met"
    );
    assert_eq!(
        client.token(RESOURCE).await.unwrap_err().code(),
        "min_strength_not_met"
    );
    assert_eq!(bench.azure.count(Service::Issue), 0);
}

#[tokio::test]
async fn an_administrators_word_outranks_what_the_machine_lacks() {
    let bench = Bench::new().await;
    bench
        .env
        .set("IDENTITY_ENDPOINT", "http://127.0.0.1:1/msi/token");
    bench.env.set("IDENTITY_HEADER", "secret");
    let client = bench.placeless().build().unwrap();
    let found = client.capabilities().await.unwrap();
    assert_eq!(found.source.source, Source::AppService);
    assert!(found.bearer_tokens());
    let code = "mtls_pop_not_supported_for_environment";
    assert_eq!(found.bound_tokens().unwrap_err().code(), code);
    assert_eq!(client.token(RESOURCE).await.unwrap_err().code(), code);

    bench.env.set("MSAL_MI_DISABLE_IMDS_V2", "1");
    let found = client.capabilities().await.unwrap();
    let code = "mtls_pop_administratively_disabled";
    assert_eq!(found.bound_tokens().unwrap_err().code(), code);
    assert_eq!(client.token(RESOURCE).await.unwrap_err().code(), code);
    assert_eq!(bench.azure.total(), 0, "a named source is not asked");
}
