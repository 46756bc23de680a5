//! A downgrade happens for incapability alone, and never below a floor.

use keybond::{BindingPolicy, ManagedIdentity, Strength};
use serde_json::json;

use crate::support::{Bench, RESOURCE, azure::Service, server::Reply};

const ALLOW: BindingPolicy = BindingPolicy::AllowBearer;

/// Version 1 gives a bearer token; version 2 answers with this.
fn version_2_answers(bench: &Bench, reply: Reply) {
    bench.azure.twist(move |service, asked, honest| {
        if asked.path() == "/metadata/identity/oauth2/token" {
            Reply::json(&json!({"access_token": "b", "token_type": "Bearer", "expires_in": 3600}))
        } else if service == Service::Metadata {
            reply.clone()
        } else {
            honest
        }
    });
}

async fn code(client: &ManagedIdentity) -> Result<String, &'static str> {
    match client.token_with_policy(RESOURCE, ALLOW).await {
        Ok(token) => Ok(token.downgraded().unwrap().code().to_owned()),
        Err(error) => Err(error.code()),
    }
}

#[tokio::test]
async fn a_machine_with_version_1_alone_is_asked_once() {
    let bench = Bench::new().await;
    version_2_answers(&bench, Reply::status(404, "{}"));
    let client = bench.client();
    for _ in 0..3 {
        assert_eq!(
            code(&client).await.unwrap(),
            "mtls_pop_token_not_supported_in_imds_v1"
        );
    }
    assert_eq!(bench.azure.count(Service::Metadata), 1);
    // Who requires a bound token is told by the service itself.
    assert!(client.token(RESOURCE).await.is_err());
    assert_eq!(bench.azure.count(Service::Metadata), 2);
}

#[tokio::test]
async fn what_may_pass_is_no_reason() {
    for (reply, expected) in [
        (Reply::status(403, "{}"), "managed_identity_request_failed"),
        (
            Reply::status(200, "<html>"),
            "managed_identity_response_parse_failure",
        ),
    ] {
        let bench = Bench::new().await;
        version_2_answers(&bench, reply);
        assert_eq!(code(&bench.client()).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn a_bound_token_that_is_cached_is_used_whatever_was_said_before() {
    let bench = Bench::new().await;
    version_2_answers(&bench, Reply::status(404, "{}"));
    let client = bench.client();
    code(&client).await.unwrap();
    bench.azure.untwist();
    let bound = client.token(RESOURCE).await.unwrap();
    let granted = client.token_with_policy(RESOURCE, ALLOW).await.unwrap();
    assert!(granted.downgraded().is_none());
    assert_eq!(granted.secret(), bound.secret());
}

/// What comes over plain HTTP may be anybody's word.
#[tokio::test]
async fn the_metadata_service_speaks_for_itself_alone() {
    let no_bound_tokens = r#"{"error":"invalid_target","error_codes":[392196]}"#;
    for (reply, expected) in [
        (
            Reply::status(400, no_bound_tokens),
            "managed_identity_request_failed",
        ),
        (
            Reply::status(404, "{}").without_header("server"),
            "server_header_invalid",
        ),
        (
            Reply::status(404, "{}").with_header("server", "proxy"),
            "server_header_invalid",
        ),
    ] {
        let bench = Bench::new().await;
        version_2_answers(&bench, reply);
        assert_eq!(code(&bench.client()).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn a_floor_rules_it_out() {
    let bench = Bench::new().await;
    bench.env.set("MSAL_MI_DISABLE_IMDS_V2", "1");
    version_2_answers(&bench, Reply::status(404, "{}"));
    let disabled = "mtls_pop_administratively_disabled";
    assert_eq!(code(&bench.client()).await.unwrap(), disabled);
    let demanding = bench.builder().minimum_strength(Strength::Hardware);
    let client = demanding.build().unwrap();
    assert_eq!(code(&client).await.unwrap_err(), disabled);
}
