//! Story 7: a busy machine does not become one without an identity.

use std::time::Duration;

use keybond::{ManagedIdentity, Source};
use tokio::time::Instant;

use crate::support::{Bench, RESOURCE, azure::Service, server::Reply};

/// A bench in paused time; its key is made before, for making one takes real time.
async fn paused() -> Bench {
    let bench = Bench::new().await;
    bench.keys.get_or_create_key().await.unwrap();
    tokio::time::pause();
    bench
}

/// A client that waits for the metadata service as long as it takes.
fn patient(bench: &Bench) -> ManagedIdentity {
    let builder = bench.builder().probe_budget(Duration::from_secs(100));
    builder.build().unwrap()
}

/// Metadata is answered with `reply` for so many seconds from now on, then honestly.
fn for_seconds(bench: &Bench, seconds: u64, reply: Reply) {
    let end = Instant::now() + Duration::from_secs(seconds);
    bench.azure.twist(move |service, _, honest| {
        if service == Service::Metadata && Instant::now() < end {
            reply.clone()
        } else {
            honest
        }
    });
}

/// What the host itself answers while the metadata service restarts.
fn wire_server() -> Reply {
    Reply::status(500, "<html>").with_header("server", "Microsoft-IIS/10.0")
}

#[tokio::test]
async fn story_07_an_outage_of_a_minute_is_waited_for() {
    for (name, reply) in [("410", Reply::status(410, "{}")), ("500", wire_server())] {
        let bench = paused().await;
        for_seconds(&bench, if name == "410" { 60 } else { 5 }, reply);
        let started = Instant::now();
        bench.client().token(RESOURCE).await.unwrap();
        let waited = started.elapsed();
        assert!(waited <= Duration::from_secs(75), "{name}: {waited:?}");

        for_seconds(&bench, 60, Reply::status(410, "{}"));
        let started = Instant::now();
        let found = patient(&bench).capabilities().await.unwrap();
        let waited = started.elapsed();
        assert_eq!(
            (found.source.source, found.source.certain),
            (Source::ImdsV2, true)
        );
        assert!(waited <= Duration::from_secs(75), "{name}: {waited:?}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn story_07_trouble_within_the_budget_is_doubt_and_never_remembered() {
    for (name, reply) in [
        ("410", Reply::status(410, "{}")),
        ("500", wire_server()),
        ("429", Reply::status(429, "{}")),
        ("broken", Reply::HangUp),
    ] {
        let bench = Bench::new().await;
        bench.azure.twist(move |_, _, _| reply.clone());
        let client = bench.client();
        let found = client.capabilities().await.unwrap();
        let why_not = found.bound_tokens().unwrap_err();
        assert!(!found.source.certain && why_not.retryable(), "{name}");
        assert_eq!(
            why_not.code(),
            "managed_identity_all_sources_unavailable",
            "{name}"
        );
        // The service is back, and so is the identity, at once.
        bench.azure.untwist();
        let found = client.capabilities().await.unwrap();
        assert_eq!(found.source.source, Source::ImdsV2, "{name}");
        assert!(found.bound_tokens().is_ok(), "{name}");
    }
}

#[tokio::test]
async fn story_07_an_answer_after_three_seconds_is_an_answer() {
    let late = |honest| Reply::Late(Duration::from_secs(3), Box::new(honest));
    let bench = paused().await;
    bench.azure.twist_one(Service::Metadata, late);
    // Within the default budget of one second: no certainty, nothing remembered.
    let client = bench.client();
    let found = client.capabilities().await.unwrap();
    assert!(!found.source.certain);
    // Whoever waits gets it, and a token does wait.
    let found = patient(&bench).capabilities().await.unwrap();
    assert_eq!(found.source.source, Source::ImdsV2);
    let started = Instant::now();
    client.token(RESOURCE).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn story_07_what_is_cached_outlives_an_outage() {
    let bench = paused().await;
    let client = bench.client();
    let token = client.token(RESOURCE).await.unwrap();
    bench.azure.twist(|_, _, _| Reply::status(500, "{}"));
    let again = client.token(RESOURCE).await.unwrap();
    assert_eq!(token.secret(), again.secret());
    // Past its refresh time, too, while the service is still away.
    bench.clock.advance(Duration::from_secs(13 * 60 * 60));
    let again = client.token(RESOURCE).await.unwrap();
    assert_eq!(token.secret(), again.secret());
}
