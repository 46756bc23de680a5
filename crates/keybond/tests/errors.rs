//! What an error tells support: leg, status, ids, code and remedy; and what it must not repeat.
#![allow(clippy::unwrap_used)]

mod support;

use keybond::{Error, Leg, explain};
use serde_json::json;
use support::{
    Bench, RESOURCE,
    azure::Service,
    server::{Asked, Reply},
};

const TRACE: &str = "8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c";

/// The error of a way on which one service answers this to a request.
async fn error_of(
    service: Service,
    reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (Bench, Error) {
    let bench = Bench::new().await;
    bench.azure.twist(move |which, asked, honest| {
        if which == service {
            reply(asked)
        } else {
            honest
        }
    });
    let error = bench.client().token(RESOURCE).await.unwrap_err();
    (bench, error)
}

#[tokio::test]
async fn a_refusal_tells_all_that_support_asks_for() {
    for (service, leg, header) in [
        (Service::Metadata, Leg::Metadata, "x-ms-client-request-id"),
        (Service::Issue, Leg::Issue, "x-ms-client-request-id"),
        (Service::Token, Leg::Token, "client-request-id"),
    ] {
        let (bench, error) = error_of(service, |asked| {
            let id = asked.header("client-request-id");
            let body = json!({
                "error": "invalid_request",
                "error_description": "AADSTS900144: no.",
                "error_codes": [900_144],
                "trace_id": TRACE.to_ascii_uppercase(),
                "correlation_id": id,
            });
            Reply::status(400, body.to_string())
        })
        .await;
        assert_eq!((error.leg(), error.http_status()), (Some(leg), Some(400)));
        let sent = bench.azure.asked(service)[0]
            .header(header)
            .unwrap()
            .to_owned();
        assert_eq!(error.correlation_id(), Some(&*sent));
        assert_eq!(error.trace_id(), Some(TRACE));
        if leg == Leg::Token {
            assert_eq!(error.service_correlation_id(), Some(&*sent));
        }
        assert!(!error.remedy().is_empty());
        assert!(explain(error.code()).unwrap().legs.contains(&leg));

        let reports = bench.reports.lock().unwrap();
        let last = reports.last().unwrap();
        assert_eq!((last.leg, last.code), (leg, Some(error.code())));
        assert_eq!(
            (&*last.correlation_id, last.trace_id.as_deref()),
            (&*sent, Some(TRACE))
        );
        assert!(reports.iter().all(|report| *report.correlation_id == *sent));
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_has_its_ids_from_the_headers() {
    let (_bench, error) = error_of(Service::Token, |_| {
        Reply::status(200, "{}").with_header("x-ms-request-id", TRACE)
    })
    .await;
    assert_eq!(error.code(), "token_type_missing");
    assert_eq!(
        (error.http_status(), error.trace_id()),
        (Some(200), Some(TRACE))
    );
}

#[tokio::test]
async fn ids_that_are_none_are_left_out() {
    let (_bench, error) = error_of(Service::Token, |_| {
        let body = json!({"error": "e", "trace_id": "x\r\nforged: line", "correlation_id": 7});
        Reply::status(400, body.to_string()).with_header("x-ms-request-id", "not one")
    })
    .await;
    assert_eq!(
        (error.trace_id(), error.service_correlation_id()),
        (None, None)
    );
    assert!(error.correlation_id().is_some());
}

#[tokio::test]
async fn what_was_sent_is_not_repeated_though_the_service_does() {
    let (bench, error) = error_of(Service::Issue, |asked| {
        let echo = String::from_utf8(asked.body.clone()).unwrap();
        let body = json!({"error": echo, "error_description": format!("bad request: {echo}")});
        Reply::status(400, body.to_string())
    })
    .await;
    let sent: serde_json::Value =
        serde_json::from_slice(&bench.azure.asked(Service::Issue)[0].body).unwrap();
    let csr = sent["csr"].as_str().unwrap();
    let told = format!("{error} {error:?} {:?}", bench.reports.lock().unwrap());
    assert!(told.contains("characters>"), "{told}");
    for piece in csr.as_bytes().chunks(40) {
        let piece = std::str::from_utf8(piece).unwrap();
        assert!(!told.contains(piece), "{piece} in {told}");
    }
}

#[tokio::test]
async fn the_key_and_the_request_have_the_id_of_their_way_too() {
    let bench = Bench::new().await;
    let strong = bench
        .builder()
        .minimum_strength(keybond::Strength::KeyGuard)
        .build()
        .unwrap();
    let error = strong.token(RESOURCE).await.unwrap_err();
    assert_eq!(error.code(), "min_strength_not_met");
    let reports = bench.reports.lock().unwrap();
    assert_eq!(error.correlation_id(), Some(&*reports[0].correlation_id));
    assert_eq!(bench.azure.total(), 0);
}
