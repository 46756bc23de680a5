//! Story 15: an operator at three in the morning.

use std::fs;

use keybond::{BindingPolicy, ManagedIdentity, Source};

use crate::{
    cloud::Cloud,
    witness::{Log, Meter},
};

const SWITCH: &str = "MSAL_MI_DISABLE_IMDS_V2";
const OTHER: &str = "https://other.example";
const CODE: &str = "mtls_pop_administratively_disabled";

/// Requests that only version 2 knows: probes, metadata, certificates, tokens.
fn of_version_2(cloud: &Cloud) -> u64 {
    let counters = cloud.azure.counters();
    counters.probe + counters.metadata + counters.issue + counters.token
}

/// A warm client: its certificate and one token are cached, and what is here is known.
async fn warm(cloud: &Cloud, client: &ManagedIdentity) -> String {
    assert!(client.capabilities().await.unwrap().bound_tokens().is_ok());
    let token = client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();
    token.secret().to_owned()
}

/// What holds while the switch is on, however it was thrown.
async fn assert_off(cloud: &Cloud, client: &ManagedIdentity, cached: &str, switch: &str) {
    let error = client.token(OTHER).await.unwrap_err();
    assert_eq!((error.code(), error.field()), (CODE, Some(switch)));
    assert!(!error.retryable() && error.remedy().contains(switch));
    assert_eq!(client.renew().await.unwrap_err().code(), CODE);
    let claims = client.token_for_claims(OTHER, r#"{"access_token":{}}"#);
    assert_eq!(claims.await.unwrap_err().code(), CODE);

    let found = client.capabilities().await.unwrap();
    assert_eq!(found.bound_tokens().unwrap_err().code(), CODE);
    assert!(found.bearer_tokens());
    assert_eq!(found.source.source, Source::ImdsV1);
    let report = client.source_probe().await.unwrap();
    assert!(report.to_string().contains("administratively disabled"));

    // Bearer tokens go on, by version 1, for those who ask for one.
    client.bearer_token(OTHER).await.unwrap();
    let granted = client
        .token_with_policy(OTHER, BindingPolicy::AllowBearer)
        .await
        .unwrap();
    assert_eq!(granted.downgraded().unwrap().code(), CODE);

    // What is cached is neither revoked nor forgotten.
    let token = client.token(cloud.resource()).await.unwrap();
    assert_eq!(token.secret(), cached);
    assert_eq!(of_version_2(cloud), 0, "{:?}", cloud.azure.counters());
}

#[tokio::test]
async fn story_15_the_variable_is_read_live() {
    let cloud = Cloud::start().await;
    let meter = Meter::default();
    let _listening = meter.listen();
    let client = cloud.client();
    let cached = warm(&cloud, &client).await;

    for value in ["true", "1", "TRUE"] {
        cloud.env.set(SWITCH, value);
        assert_off(&cloud, &client, &cached, SWITCH).await;
    }
    assert_eq!(
        meter.count(&format!("keybond_downgrades_total{{reason={CODE}}}")),
        3
    );

    // Back on, without a restart, with the certificate that was there.
    cloud.env.set(SWITCH, "");
    client.token(OTHER).await.unwrap();
    let counters = cloud.azure.counters();
    assert_eq!((counters.issue, counters.token), (0, 1));
    let found = client.capabilities().await.unwrap();
    assert!(found.bound_tokens().is_ok());
    assert_eq!(counters.probe, 0, "the earlier finding was not forgotten");
}

#[tokio::test]
async fn story_15_the_file_is_read_live() {
    let cloud = Cloud::start().await;
    let state = tempfile::tempdir().unwrap();
    let client = cloud
        .builder()
        .state_directory(state.path())
        .build()
        .unwrap();
    let cached = warm(&cloud, &client).await;
    let file = state.path().join("disable-imds-v2");
    fs::write(&file, "").unwrap();
    assert_off(
        &cloud,
        &client,
        &cached,
        "disable-imds-v2 in the state directory",
    )
    .await;
    fs::remove_file(&file).unwrap();
    client.token(OTHER).await.unwrap();
    assert_eq!(cloud.azure.counters().issue, 0);
}

#[tokio::test]
async fn story_15_a_typo_switches_nothing_and_is_told_once() {
    let cloud = Cloud::start().await;
    let (log, _logging) = Log::listen();
    cloud.env.set(SWITCH, "ture");
    let client = cloud.client();
    for resource in [cloud.resource(), OTHER] {
        client.token(resource).await.unwrap();
    }
    assert!(client.capabilities().await.unwrap().bound_tokens().is_ok());
    assert_eq!(log.lines_with(&["WARN", SWITCH]), 1);
    assert!(!log.text().contains("ture"), "a value is never logged");
}

#[tokio::test]
async fn story_15_the_log_names_every_leg_with_its_id_and_no_secret() {
    let cloud = Cloud::start().await;
    let (log, _logging) = Log::listen();
    let client = cloud.client();
    let token = client.token(cloud.resource()).await.unwrap();
    let error = {
        cloud.play("aadsts 700016");
        client.token(OTHER).await.unwrap_err()
    };
    let text = log.text();
    assert!(text.contains(error.correlation_id().unwrap()));
    for leg in ["key", "metadata", "csr", "issue", "token"] {
        let named = format!("leg={leg}");
        assert!(
            log.lines_with(&[&named, "correlation_id"]) > 0,
            "{leg} is not in the log"
        );
    }
    // The beginnings of every JWT, of base64 of every certificate request, and the token itself.
    for secret in ["eyJ", "MIIC", token.secret()] {
        assert!(!text.contains(secret));
    }
    assert!(keybond::explain(error.code()).is_some());
    assert!(keybond::explain(CODE).is_some());
}
