//! Story 10: revocation.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use keybond::{Error, Leg, ManagedIdentity, RemedyPolicy};

use crate::{cloud::Cloud, witness::Meter};

const OTHER: &str = "https://other.example";

/// A client that reports its legs, with so many new certificates and no wait between them.
fn client(cloud: &Cloud, new_certificates: u32) -> (ManagedIdentity, Arc<Mutex<Vec<String>>>) {
    let legs = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&legs);
    let policy = RemedyPolicy {
        new_certificates,
        back_off: Duration::ZERO,
        ..RemedyPolicy::default()
    };
    let client = cloud
        .builder()
        .remedy_policy(policy)
        .on_leg(Arc::new(move |report| {
            if matches!(report.leg, Leg::Issue | Leg::Token) {
                let end = report.code.unwrap_or("ok");
                told.lock().unwrap().push(format!("{} {end}", report.leg));
            }
        }))
        .build()
        .unwrap();
    (client, legs)
}

#[tokio::test]
async fn story_10_a_revoked_certificate_is_replaced_past_every_cache() {
    let cloud = Cloud::start().await;
    let meter = Meter::default();
    let _listening = meter.listen();
    let (client, legs) = client(&cloud, 3);
    let first = client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();
    legs.lock().unwrap().clear();

    cloud.play("revoke once");
    let second = client.token(OTHER).await.unwrap();
    assert_eq!(
        *legs.lock().unwrap(),
        ["token invalid_client", "issue ok", "token ok"]
    );
    let counters = cloud.azure.counters();
    assert_eq!(
        (counters.token, counters.issue, counters.issue_bypass_cache),
        (2, 1, 1)
    );
    let old = first.binding().unwrap();
    let new = second.binding().unwrap();
    assert_ne!(old.x5t_s256(), new.x5t_s256());
    assert_eq!(old.key().id(), new.key().id(), "the key stays");
    assert_eq!(
        meter.count("keybond_new_certificates_total{cause=rejected,outcome=issued}"),
        1
    );
    assert_eq!(
        meter.count("keybond_remedies_total{outcome=cured,remedy=new_certificate}"),
        1
    );
    // Only the certificate was replaced: what was fetched with the old one is served until its time.
    let cached = client.token(cloud.resource()).await.unwrap();
    assert_eq!(cached.secret(), first.secret());
    assert_eq!(cloud.azure.counters().token, 2);
}

#[tokio::test]
async fn story_10_a_second_rejection_ends_it() {
    let cloud = Cloud::start().await;
    let (client, legs) = client(&cloud, 1);
    client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();
    legs.lock().unwrap().clear();

    cloud.play("revoke always");
    let error = client.token(OTHER).await.unwrap_err();
    assert_eq!(
        *legs.lock().unwrap(),
        ["token invalid_client", "issue ok", "token invalid_client"]
    );
    let counters = cloud.azure.counters();
    assert_eq!(
        (counters.token, counters.issue, counters.issue_bypass_cache),
        (2, 1, 1)
    );
    assert_eq!((error.code(), error.retryable()), ("invalid_client", false));
    let Error::Refused {
        error_codes,
        new_certificates,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((&**error_codes, *new_certificates), (&[1_000_610][..], 1));
    assert!(
        error
            .to_string()
            .ends_with("(a new certificate was refused, too)"),
        "{error}"
    );
    // What is cached is served all the while.
    client.token(cloud.resource()).await.unwrap();
}

#[tokio::test]
async fn story_10_repeated_rejections_are_bounded_for_the_request_and_for_the_identity() {
    let cloud = Cloud::start().await;
    let (client, _) = client(&cloud, 3);
    client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();

    cloud.play("revoke always");
    let error = client.token(OTHER).await.unwrap_err();
    let counters = cloud.azure.counters();
    assert_eq!(
        (counters.token, counters.issue, counters.issue_bypass_cache),
        (4, 3, 3),
        "{error}"
    );
    // All are used up: the next request is refused without another certificate.
    let error = client.token(OTHER).await.unwrap_err();
    assert_eq!(error.code(), "invalid_client");
    let counters = cloud.azure.counters();
    assert_eq!((counters.token, counters.issue), (5, 3));
}

#[tokio::test]
async fn story_10_many_requests_that_are_refused_share_one_new_certificate() {
    let cloud = Cloud::start().await;
    let (client, _) = client(&cloud, 3);
    client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();

    cloud.play("revoke once");
    let requests: Vec<_> = (0..20)
        .map(|index| {
            let client = client.clone();
            tokio::spawn(async move {
                let resource = format!("https://{index}.example");
                client.token(&resource).await
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    let counters = cloud.azure.counters();
    assert_eq!((counters.issue, counters.issue_bypass_cache), (1, 1));
    assert!(counters.token <= 40, "{}", counters.token);
}

#[tokio::test]
async fn story_10_a_reset_alone_costs_a_signature_and_no_certificate() {
    let cloud = Cloud::start().await;
    let meter = Meter::default();
    let _listening = meter.listen();
    let (client, _) = client(&cloud, 3);
    client.token(cloud.resource()).await.unwrap();
    cloud.azure.reset_counters();

    cloud.play("reset handshake token");
    let error = client.token(OTHER).await.unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Token));
    assert!(error.retryable(), "{error}");
    assert_eq!(
        meter.count("keybond_remedies_total{outcome=alive,remedy=prove_key}"),
        1,
        "{error}"
    );
    let counters = cloud.azure.counters();
    assert_eq!((counters.issue, counters.token), (0, 0));
    assert_eq!(
        counters.handshakes_reset, 2,
        "asked once more, as published"
    );

    cloud.play("clear");
    client.token(OTHER).await.unwrap();
    assert_eq!(cloud.azure.counters().issue, 0);
}
