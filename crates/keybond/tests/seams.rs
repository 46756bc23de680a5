//! The seams: attestation, TLS, names that resolve, replacement in the background.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, KeyProvider, Leg,
    tls::{BoxFuture, ClientIdentity, TlsConn, TlsConnector, TlsError},
};
use support::{Bench, CLIENT, OTHER, RESOURCE, azure::Service, server::Reply};
use tokio::{net::TcpStream, sync::Semaphore};

/// Answers as it is told and remembers where it would have asked.
struct Attester {
    answer: Result<&'static str, AttestationError>,
    asked: Mutex<Vec<String>>,
}

impl AttestationProvider for Attester {
    fn attest<'a>(
        &'a self,
        request: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        let asked = format!(
            "{} {} {}",
            request.endpoint,
            request.client_id,
            request.key.id()
        );
        self.asked.lock().unwrap().push(asked);
        let answer = self.answer.clone().map(AttestationToken::new);
        Box::pin(async move { answer })
    }
}

fn attester(answer: Result<&'static str, AttestationError>) -> Arc<Attester> {
    Arc::new(Attester {
        answer,
        asked: Mutex::default(),
    })
}

#[tokio::test]
async fn an_attestation_goes_with_the_request_for_the_same_key() {
    let bench = Bench::new().await;
    let attester = attester(Ok("header.claims.signature"));
    let client = bench
        .builder()
        .attestation(attester.clone())
        .build()
        .unwrap();
    let binding = client.credential().await.unwrap();
    let asked = attester.asked.lock().unwrap();
    let expected = format!("https://attest.example/ {CLIENT} {}", binding.key().id());
    assert_eq!(*asked, [expected]);
    let body = &bench.azure.asked(Service::Issue)[0].body;
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["attestation_token"], "header.claims.signature");
    assert!(bench.legs().contains(&Leg::Attestation));
}

#[tokio::test]
async fn a_failing_attestation_never_becomes_an_unattested_request() {
    let failure = AttestationError {
        detail: "the host fails the policy".into(),
        retryable: true,
    };
    for (answer, text, retryable) in [
        (
            Err(failure),
            "attestation leg: the host fails the policy",
            true,
        ),
        (
            Ok(" "),
            "attestation leg: the provider gave an empty token",
            false,
        ),
    ] {
        let bench = Bench::new().await;
        let builder = bench.builder().attestation(attester(answer));
        let error = builder.build().unwrap().credential().await.unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(
            (error.leg(), error.code()),
            (Some(Leg::Attestation), "attestation_failed")
        );
        assert_eq!(error.retryable(), retryable);
        assert_eq!(bench.azure.count(Service::Issue), 0);
    }
}

#[tokio::test]
async fn an_attestation_service_without_tls_gets_nothing() {
    let bench = Bench::new().await;
    bench.azure.twist_one(Service::Metadata, |honest| {
        honest.with_member("attestationEndpoint", "http://attest.example".into())
    });
    let attester = attester(Ok("x"));
    let builder = bench.builder().attestation(attester.clone());
    let error = builder.build().unwrap().credential().await.unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Attestation));
    assert_eq!(error.field(), Some("attestationEndpoint"));
    assert!(attester.asked.lock().unwrap().is_empty());
}

/// Refuses every connection.
struct NoTls;

impl TlsConnector for NoTls {
    fn connect<'a>(
        &'a self,
        _: TcpStream,
        _: &'a str,
        _: keybond::tls::Leg,
        _: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        let problem = "the test says so";
        Box::pin(async move {
            Err(TlsError::Identity {
                problem: problem.into(),
            })
        })
    }
}

#[tokio::test]
async fn an_error_of_the_tls_layer_keeps_its_code_and_gets_its_leg() {
    let bench = Bench::new().await;
    let client = bench.builder().tls(Arc::new(NoTls)).build().unwrap();
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(
        (error.leg(), error.code()),
        (Some(Leg::Token), "tls_client_identity_invalid")
    );
    assert!(error.to_string().contains("the test says so"), "{error}");
    assert_eq!(bench.azure.count(Service::Token), 0);
}

#[tokio::test]
async fn the_metadata_service_may_be_named_by_the_environment_and_by_name() {
    let bench = Bench::new().await;
    let named = bench.azure.imds().replace("127.0.0.1", "localhost");
    bench.env.set("AZURE_POD_IDENTITY_AUTHORITY_HOST", &named);
    let client = keybond::ManagedIdentity::builder()
        .key_provider(bench.keys.clone())
        .tls(bench.tls.clone())
        .environment(bench.env.clone())
        .clock(bench.clock.clone())
        .build()
        .unwrap();
    client.token(RESOURCE).await.unwrap();
    let host = bench.azure.asked(Service::Metadata)[0]
        .header("host")
        .map(str::to_owned);
    assert_eq!(host.unwrap(), named.trim_start_matches("http://"));
}

#[tokio::test]
async fn a_certificate_is_replaced_in_the_background_a_day_before_its_end() {
    let bench = Bench::new().await;
    let client = bench.client();
    let first = client.credential().await.unwrap();
    let lasting = first.not_after().duration_since(first.renew_on()).unwrap();
    let lasting = lasting.as_secs();
    assert!(
        (77_760..=95_040).contains(&lasting),
        "a day and a tenth of it"
    );

    let gate = Arc::new(Semaphore::new(0));
    let shut = Arc::clone(&gate);
    bench.azure.twist_one(Service::Issue, move |honest| {
        Reply::Gated(Arc::clone(&shut), Box::new(honest))
    });
    bench.azure.wish(|wish| wish.until = (2026, 7, 25));
    // Nine and a half days on, half a day is left.
    bench.clock.advance(Duration::from_secs(19 * 43_200));
    let again = client.credential().await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "nobody waits for the renewal");
    gate.add_permits(1);
    let next = loop {
        let binding = client.credential().await.unwrap();
        if binding.version() > first.version() {
            break binding;
        }
        tokio::task::yield_now().await;
    };
    assert!(next.not_after() > first.not_after());
    assert_eq!(bench.azure.count(Service::Issue), 2);
}

#[tokio::test]
async fn a_renewal_that_fails_leaves_the_certificate_in_use() {
    let bench = Bench::new().await;
    let client = bench.client();
    let token = client.token(RESOURCE).await.unwrap();
    bench
        .azure
        .twist_one(Service::Issue, |_| Reply::status(403, "{}"));
    assert_eq!(client.renew().await.unwrap_err().http_status(), Some(403));
    let binding = client.credential().await.unwrap();
    assert!(Arc::ptr_eq(&binding, token.binding().unwrap()));
    assert!(Arc::ptr_eq(&client.token(RESOURCE).await.unwrap(), &token));
}

/// A renewal that overtakes a fetch: the token of the certificate that was given up is not kept.
#[tokio::test]
async fn a_token_fetched_across_a_renewal_is_fetched_again() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.credential().await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let reached = Arc::new(Semaphore::new(0));
    let (shut, signal) = (Arc::clone(&gate), Arc::clone(&reached));
    bench.azure.twist_one(Service::Token, move |honest| {
        signal.add_permits(1);
        Reply::Gated(Arc::clone(&shut), Box::new(honest))
    });
    let fetching = tokio::spawn({
        let client = client.clone();
        async move { client.token(RESOURCE).await.unwrap() }
    });
    reached.acquire().await.unwrap().forget();
    let renewed = client.renew().await.unwrap();
    gate.add_permits(2);
    let token = fetching.await.unwrap();
    assert_eq!(token.binding().unwrap().version(), renewed.version());
    assert_eq!(bench.azure.count(Service::Token), 2);
}

/// A provider without a store has no key, and the way ends before it begins.
#[tokio::test]
async fn without_a_key_nothing_is_sent() {
    let bench = Bench::new().await;
    let keys = KeyProvider::builder().build();
    let client = bench.builder().key_provider(keys).build().unwrap();
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(
        (error.leg(), error.code()),
        (Some(Leg::Key), "no_key_store")
    );
    assert_eq!(bench.azure.total(), 0);
    let reports = bench.reports.lock().unwrap();
    assert!(!reports[0].succeeded && reports[0].outcome == error.to_string());
}

/// A machine's identity may be exchanged while the client runs: what failed with kept metadata starts from
/// fresh metadata the next time.
#[tokio::test]
async fn after_a_failure_the_metadata_is_asked_for_again() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.credential().await.unwrap();
    bench.azure.twist(|service, _, honest| match service {
        Service::Metadata => honest.with_member("clientId", OTHER.into()),
        Service::Issue => honest.with_member("client_id", OTHER.into()),
        _ => honest,
    });
    bench.azure.wish(|wish| wish.client = OTHER.into());
    let error = client.renew().await.unwrap_err();
    assert_eq!(error.code(), "identity_mismatch");
    assert_eq!(client.renew().await.unwrap().client_id(), OTHER);
}
