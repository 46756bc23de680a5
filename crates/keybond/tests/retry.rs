//! Retries on the wire, in paused time: the waits are those of the published design, and nobody waits.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keybond::{Error, KeyProvider, Source};
use support::{Bench, RESOURCE, azure::Service, server::Reply};
use tokio::time::Instant;

/// A bench in paused time; its key is made before, for making one takes real time.
async fn paused() -> Bench {
    let bench = Bench::new().await;
    bench.keys.get_or_create_key().await.unwrap();
    tokio::time::pause();
    bench
}

/// Answers the first `times` requests of one service with `reply`, then honestly.
fn fail_first(bench: &Bench, which: Service, times: usize, reply: Reply) {
    let left = Arc::new(AtomicUsize::new(times));
    bench.azure.twist_one(which, move |honest| {
        let failing = left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        if failing { reply.clone() } else { honest }
    });
}

async fn timed(bench: &Bench) -> (Result<(), Error>, u64) {
    let started = Instant::now();
    let result = bench.client().token(RESOURCE).await;
    (result.map(drop), started.elapsed().as_secs())
}

#[tokio::test]
async fn a_busy_metadata_service_is_asked_again() {
    for (status, times, seconds) in [(503, 3, 7), (429, 1, 1), (410, 7, 70), (408, 2, 3)] {
        let bench = paused().await;
        fail_first(
            &bench,
            Service::Metadata,
            times,
            Reply::status(status, "{}"),
        );
        let (result, waited) = timed(&bench).await;
        result.unwrap();
        // Each wait is drawn out by a tenth at most.
        let bounds = seconds..=seconds + seconds / 10;
        assert!(bounds.contains(&waited), "{status}: {waited} s");
        assert_eq!(bench.azure.count(Service::Metadata), times + 1);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn patience_ends_with_the_services_last_answer() {
    let bench = paused().await;
    let unavailable = Reply::status(503, r#"{"error":"busy"}"#);
    fail_first(&bench, Service::Issue, 99, unavailable);
    let (result, waited) = timed(&bench).await;
    let error = result.unwrap_err();
    assert_eq!(error.http_status(), Some(503));
    assert!(error.retryable());
    assert_eq!((waited, bench.azure.count(Service::Issue)), (7, 4));
}

#[tokio::test]
async fn a_404_is_asked_again_only_after_metadata_was_there() {
    let bench = paused().await;
    fail_first(&bench, Service::Issue, 2, Reply::status(404, "{}"));
    let (result, waited) = timed(&bench).await;
    result.unwrap();
    assert_eq!(waited, 3);
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_again_on_every_leg() {
    for (service, times, seconds) in [
        (Service::Metadata, 3, 7),
        (Service::Issue, 2, 3),
        (Service::Token, 1, 1),
    ] {
        let bench = paused().await;
        fail_first(&bench, service, times, Reply::HangUp);
        let (result, waited) = timed(&bench).await;
        result.unwrap();
        assert_eq!((waited, bench.azure.count(service)), (seconds, times + 1));
        tokio::time::resume();
    }
}

#[tokio::test]
async fn retry_after_is_honoured_and_the_deadline_bounds_it() {
    let bench = paused().await;
    let later = |text| Reply::status(429, "{}").with_header("retry-after", text);
    fail_first(&bench, Service::Metadata, 1, later("30"));
    let (result, waited) = timed(&bench).await;
    result.unwrap();
    assert!((30..=33).contains(&waited), "{waited} s");

    fail_first(&bench, Service::Metadata, 1, later("3600"));
    let (result, waited) = timed(&bench).await;
    assert_eq!(result.unwrap_err().http_status(), Some(429));
    assert_eq!(waited, 0, "a wait beyond the deadline is not begun");
}

#[tokio::test]
async fn a_service_that_asks_to_be_left_alone_is_and_what_is_cached_is_used() {
    let bench = paused().await;
    let client = bench.client();
    let later = Reply::status(429, "{}").with_header("retry-after", "3600");
    fail_first(&bench, Service::Metadata, 1, later.clone());
    for resource in [RESOURCE, "https://other.example", RESOURCE] {
        let error = client.token(resource).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    }
    assert_eq!(bench.azure.count(Service::Metadata), 1, "asked once");
    bench.clock.advance(Duration::from_secs(3601));
    client.token(RESOURCE).await.unwrap();

    // With a certificate in use, another one can wait.
    fail_first(&bench, Service::Issue, 1, later);
    assert!(client.renew().await.is_err());
    assert_eq!(client.credential().await.unwrap().version(), 1);
    client.token(RESOURCE).await.unwrap();
    // A service that restarts asks nothing.
    let bench = paused_again().await;
    fail_first(&bench, Service::Metadata, 4, Reply::status(503, "{}"));
    let client = bench.client();
    assert!(client.token(RESOURCE).await.is_err());
    client.token(RESOURCE).await.unwrap();
}

/// Another bench in the same paused time.
async fn paused_again() -> Bench {
    tokio::time::resume();
    paused().await
}

#[tokio::test]
async fn a_caller_that_leaves_during_a_wait_leaves_at_once_and_stops_nobody() {
    let bench = paused().await;
    fail_first(&bench, Service::Metadata, 1, Reply::status(410, "{}"));
    let client = bench.client();
    let started = Instant::now();
    let brief = Duration::from_secs(3);
    let left = tokio::time::timeout(brief, client.token(RESOURCE)).await;
    assert!(left.is_err() && started.elapsed() < brief + Duration::from_millis(50));
    // Whoever comes now shares the wait that is under way.
    client.token(RESOURCE).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(bench.azure.count(Service::Metadata), 2);
}

#[tokio::test]
async fn the_token_service_is_asked_twice() {
    let bench = paused().await;
    fail_first(&bench, Service::Token, 1, Reply::status(500, "{}"));
    let (result, waited) = timed(&bench).await;
    result.unwrap();
    assert_eq!(waited, 1);

    let throttled = Reply::status(503, "{}").with_header("retry-after", "5");
    fail_first(&bench, Service::Token, 1, throttled);
    let (result, waited) = timed(&bench).await;
    assert_eq!(result.unwrap_err().http_status(), Some(503));
    assert_eq!(waited, 0);
}

#[tokio::test]
async fn the_probe_tells_versions_apart_by_their_refusals() {
    for (v2, v1, source, certain, asked) in [
        (400, 400, Source::ImdsV2, true, 1),
        (404, 400, Source::ImdsV1, true, 2),
        (404, 404, Source::None, true, 2),
        (403, 200, Source::None, true, 2),
        (500, 404, Source::None, false, 2),
    ] {
        let bench = Bench::new().await;
        bench.azure.twist(move |service, asked, _| {
            assert_eq!(asked.header("metadata"), None, "a probe goes without it");
            Reply::status(if service == Service::Metadata { v2 } else { v1 }, "{}")
        });
        let keys = KeyProvider::in_memory();
        let client = bench.builder().key_provider(keys.clone()).build().unwrap();
        let report = client.source_probe().await.unwrap();
        assert_eq!(
            (report.source, report.certain),
            (source, certain),
            "{report}"
        );
        assert_eq!(bench.azure.total(), asked, "{report}");
        assert!(keys.cached().is_none(), "no key was made");
    }
}

#[tokio::test]
async fn a_portal_that_answers_400_with_a_page_is_no_metadata_service() {
    let bench = Bench::new().await;
    bench.azure.twist(|_, _, _| {
        Reply::status(400, "<html>").with_header("content-type", "Text/HTML; charset=utf-8")
    });
    let report = bench.client().source_probe().await.unwrap();
    assert_eq!((report.source, report.certain), (Source::None, true));
}

#[tokio::test]
async fn a_probe_of_nothing_is_final_at_once_and_one_of_silence_within_its_budget() {
    let bench = Bench::new().await;
    let client = bench
        .builder()
        .imds_endpoint("http://127.0.0.1:1")
        .build()
        .unwrap();
    let started = std::time::Instant::now();
    let report = client.source_probe().await.unwrap();
    assert_eq!((report.source, report.certain), (Source::None, true));
    assert!(started.elapsed() < Duration::from_millis(200), "{report}");

    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    bench
        .azure
        .twist(move |_, _, honest| Reply::Gated(gate.clone(), Box::new(honest)));
    let budget = Duration::from_millis(100);
    let client = bench.builder().probe_budget(budget).build().unwrap();
    let started = std::time::Instant::now();
    let report = client.source_probe().await.unwrap();
    assert_eq!((report.source, report.certain), (Source::None, false));
    assert!(started.elapsed() < Duration::from_millis(500), "{report}");
}

#[tokio::test]
async fn a_disabled_version_2_is_not_probed() {
    let bench = Bench::new().await;
    bench.env.set("MSAL_MI_DISABLE_IMDS_V2", "1");
    bench.azure.twist(|_, _, _| Reply::status(400, "{}"));
    let report = bench.client().source_probe().await.unwrap();
    assert_eq!(report.source, Source::ImdsV1);
    assert_eq!(bench.azure.count(Service::Metadata), 0);
    assert!(
        report.findings[0]
            .reason
            .contains("administratively disabled")
    );
}

#[tokio::test]
async fn a_silent_metadata_service_is_asked_four_times_and_reported_as_unreachable() {
    let bench = paused().await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    bench.azure.twist_one(Service::Metadata, move |honest| {
        Reply::Gated(gate.clone(), Box::new(honest))
    });
    let (result, waited) = timed(&bench).await;
    let error = result.unwrap_err();
    assert_eq!(error.code(), "managed_identity_unreachable_network");
    assert!(error.retryable() && matches!(error, Error::Unreachable { .. }));
    // Four attempts of 20 s each, and 1, 2 and 4 s between them.
    assert_eq!(
        (waited, bench.azure.count(Service::Metadata)),
        (4 * 20 + 7, 4)
    );
}

#[tokio::test]
async fn who_would_get_no_turn_in_time_is_told_at_once_and_takes_no_place() {
    let bench = paused().await;
    // A certificate takes two requests; two are allowed at once, and then one a minute.
    let client = bench
        .builder()
        .imds_rate(1.0 / 60.0, 2)
        .deadline(Duration::from_secs(50))
        .build()
        .unwrap();
    client.credential().await.unwrap();
    let started = Instant::now();
    for _ in 0..100 {
        let error = client.renew().await.unwrap_err();
        assert_eq!(error.code(), "deadline_exceeded");
        assert_eq!(started.elapsed().as_secs(), 0, "nothing to wait for");
    }
    tokio::time::advance(Duration::from_secs(120)).await;
    client.renew().await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 120);
    assert_eq!(bench.azure.count(Service::Issue), 2);
}

#[tokio::test]
async fn a_rate_that_is_none_is_a_configuration_error() {
    let bench = Bench::new().await;
    let with_rate = |per_second, burst| bench.builder().imds_rate(per_second, burst);
    for per_second in [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        -1.0,
        1e-9,
        1e9,
    ] {
        let error = with_rate(per_second, 5).build().unwrap_err();
        assert_eq!(error.field(), Some("imds_rate"), "{per_second}");
        assert!(error.to_string().contains("0.001 to 1000000"), "{error}");
    }
    let error = with_rate(5.0, 0).build().unwrap_err();
    assert_eq!(error.field(), Some("imds_rate"));
    for per_second in [0.001, 1e6] {
        let client = with_rate(per_second, u32::MAX).build().unwrap();
        client.credential().await.unwrap();
    }
}
