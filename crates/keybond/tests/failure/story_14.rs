//! Story 14: fail closed, loudly.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, BindingPolicy,
    Error, Leg, tls::BoxFuture,
};

use crate::{
    cloud::Cloud,
    witness::{Log, Meter},
};

/// An attestation service that refuses every key.
#[derive(Default)]
struct Refusing(AtomicUsize);

impl AttestationProvider for Refusing {
    fn attest<'a>(
        &'a self,
        _: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {
            Err(AttestationError {
                detail: "the host fails the policy".into(),
                retryable: false,
            })
        })
    }
}

/// What goes wrong, how the emulator is told, on which leg it shows and as what.
const LIES: [(&str, &str, Leg, &str); 11] = [
    (
        "a redirect of platform metadata",
        "redirect metadata",
        Leg::Metadata,
        "redirect_refused",
    ),
    (
        "a redirect of the certificate request",
        "redirect issue",
        Leg::Issue,
        "redirect_refused",
    ),
    (
        "a redirect of the token request",
        "redirect token",
        Leg::Token,
        "redirect_refused",
    ),
    (
        "a token of another type",
        r#"fault {"leg":"token","kind":"wrong_token_type"}"#,
        Leg::Token,
        "token_type_mismatch",
    ),
    (
        "a certificate for another key",
        "wrong-key cert",
        Leg::Issue,
        "certificate_for_another_key",
    ),
    (
        "a certificate for another client",
        "wrong-client cert",
        Leg::Issue,
        "certificate_for_another_client",
    ),
    (
        "a certificate for another tenant",
        "wrong-tenant cert",
        Leg::Issue,
        "certificate_for_another_tenant",
    ),
    (
        "a token service without TLS",
        r#"fault {"leg":"issue","kind":"http_sts_endpoint"}"#,
        Leg::Issue,
        "host_not_allowed",
    ),
    (
        "a token service of somebody else",
        r#"fault {"leg":"issue","kind":{"foreign_sts_endpoint":{"host":"evil.example"}}}"#,
        Leg::Issue,
        "host_not_allowed",
    ),
    (
        "metadata of somebody else",
        r#"fault {"leg":"metadata","kind":"wrong_server_header"}"#,
        Leg::Metadata,
        "server_header_invalid",
    ),
    (
        "metadata of nobody in particular",
        r#"fault {"leg":"metadata","kind":"no_server_header"}"#,
        Leg::Metadata,
        "server_header_invalid",
    ),
];

#[tokio::test]
async fn story_14_every_lie_is_an_error_of_its_own_and_a_bearer_token_is_none_of_the_answers() {
    let mut ids = BTreeSet::new();
    for (name, scenario, leg, code) in LIES {
        for policy in [BindingPolicy::Required, BindingPolicy::AllowBearer] {
            let cloud = Cloud::start().await;
            cloud.play(scenario);
            let client = cloud.client();
            let error = client
                .token_with_policy(cloud.resource(), policy)
                .await
                .unwrap_err();
            assert_eq!((error.leg(), error.code()), (Some(leg), code), "{name}");
            assert!(!error.retryable(), "{name}: {error}");
            assert!(error.correlation_id().is_some(), "{name}");
            assert!(keybond::explain(error.code()).is_some(), "{name}");
            ids.insert((
                error
                    .to_string()
                    .replace(error.correlation_id().unwrap(), ""),
                code,
            ));
            let counters = cloud.azure.counters();
            assert_eq!(counters.honeypot, 0, "{name}");
            assert_eq!(counters.v1_token, 0, "{name}: no bearer token");
        }
    }
    assert!(ids.len() >= LIES.len(), "{ids:#?}");
}

#[tokio::test]
async fn story_14_a_failing_attestation_is_no_reason_to_go_on_without() {
    for policy in [BindingPolicy::Required, BindingPolicy::AllowBearer] {
        let cloud = Cloud::start().await;
        let attester = Arc::new(Refusing::default());
        let builder = cloud.builder().attestation(attester.clone());
        let client = builder.build().unwrap();
        let error = client
            .token_with_policy(cloud.resource(), policy)
            .await
            .unwrap_err();
        assert_eq!(
            (error.leg(), error.code()),
            (Some(Leg::Attestation), "attestation_failed")
        );
        assert_eq!(attester.0.load(Ordering::Relaxed), 1);
        let counters = cloud.azure.counters();
        assert_eq!((counters.issue, counters.v1_token), (0, 0));
    }
}

#[tokio::test]
async fn story_14_a_downgrade_is_asked_for_and_shows_in_result_log_and_metric() {
    let unbound = "https://management.azure.com";
    let builder = keybond_emulator::Emulator::builder().unbound_resources([unbound.to_owned()]);
    let cloud = Cloud::with(builder).await;
    let (log, _logging) = Log::listen();
    let meter = Meter::default();
    let _listening = meter.listen();
    let client = cloud.client();

    // By default there is none.
    for error in [
        client.token(unbound).await.unwrap_err(),
        client
            .token_with_policy(unbound, BindingPolicy::default())
            .await
            .unwrap_err(),
    ] {
        let Error::Refused { error_codes, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(**error_codes, [392_196]);
        assert!(error.remedy().contains("takes no bound tokens"));
    }
    assert_eq!(cloud.azure.counters().v1_token, 0);
    assert_eq!(cloud.azure.counters().issue, 1, "no certificate cures that");

    let token = client
        .token_with_policy(unbound, BindingPolicy::AllowBearer)
        .await
        .unwrap();
    assert_eq!(token.token_type().name(), "Bearer");
    assert_eq!(token.strength(), None);
    assert_eq!(token.downgraded().unwrap().code(), "token_request_refused");
    assert_eq!(
        meter.count("keybond_downgrades_total{reason=token_request_refused}"),
        1
    );
    assert_eq!(log.lines_with(&["WARN", "downgraded", unbound]), 1);
    assert!(!log.text().contains(token.secret()));

    // The refusal is remembered, and so is the token.
    let before = cloud.azure.counters().token;
    let again = client
        .token_with_policy(unbound, BindingPolicy::AllowBearer)
        .await
        .unwrap();
    assert_eq!(again.secret(), token.secret());
    assert_eq!(cloud.azure.counters().token, before);
    // Where bound tokens can be had, the same policy gives one.
    let bound = client
        .token_with_policy(cloud.resource(), BindingPolicy::AllowBearer)
        .await
        .unwrap();
    assert!(bound.downgraded().is_none());
}
