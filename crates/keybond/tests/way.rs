//! The honest way: what is asked of whom, in which order, and how often.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use keybond::{Identity, Leg, ResourceRule, TokenType, tls};
use support::{
    Bench, CLIENT, OTHER, RESOURCE, TENANT,
    azure::Service,
    server::{Asked, Reply},
};
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_token_is_asked_for_as_published() {
    let bench = Bench::new().await;
    let token = bench.client().token(RESOURCE).await.unwrap();

    let metadata = &bench.azure.asked(Service::Metadata)[0];
    assert_eq!(metadata.method, "GET");
    assert_eq!(
        metadata.target,
        "/metadata/identity/getplatformmetadata?cred-api-version=2.0"
    );
    assert_eq!(metadata.header("metadata"), Some("true"));
    let id = metadata.header("x-ms-client-request-id").unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'), "{id}");

    let issue = &bench.azure.asked(Service::Issue)[0];
    assert_eq!(issue.method, "POST");
    assert_eq!(
        issue.target,
        "/metadata/identity/issuecredential?cred-api-version=2.0"
    );
    assert_eq!(issue.header("metadata"), Some("true"));
    assert_eq!(issue.header("x-ms-client-request-id"), Some(id));
    assert_eq!(
        issue.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    let body: serde_json::Value = serde_json::from_slice(&issue.body).unwrap();
    let members: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["csr"], "attestation_token is left out");

    let asked = &bench.azure.asked(Service::Token)[0];
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.target, format!("/{TENANT}/oauth2/v2.0/token"));
    assert_eq!(asked.header("client-request-id"), Some(id));
    assert_eq!(
        String::from_utf8_lossy(&asked.body),
        format!(
            "client_id={CLIENT}&scope=https%3A%2F%2Fvault.azure.net%2F.default\
             &grant_type=client_credentials&token_type=mtls_pop"
        )
    );
    let shown = bench.tls.shown.lock().unwrap();
    assert_eq!(
        (&*shown[0].host, shown[0].leg),
        ("127.0.0.1", tls::Leg::FirstHandshake)
    );

    assert_eq!(token.token_type(), TokenType::MtlsPop);
    assert_eq!(token.resource(), RESOURCE);
    assert!(token.is_confirmed());
    let binding = token.binding().unwrap();
    assert_eq!((binding.client_id(), binding.tenant_id()), (CLIENT, TENANT));
    assert_eq!(
        shown[0].identity.as_ref().unwrap().chain()[0],
        binding.certificate_der()
    );
    let legs = [Leg::Key, Leg::Metadata, Leg::Csr, Leg::Issue, Leg::Token];
    assert_eq!(bench.legs(), legs);
    assert!(bench.reports.lock().unwrap()[4].tls.is_some());
}

#[tokio::test]
async fn a_call_uses_token_and_certificate_of_one_binding() {
    let bench = Bench::new().await;
    let rule = ResourceRule::new("127.0.0.1")
        .resource(RESOURCE)
        .token_bound_header()
        .on_demand();
    let client = bench.builder().resource_rule(rule).build().unwrap();
    let url = bench.azure.url("/secrets/motto?api-version=7.4");
    let response = client
        .get(&url)
        .header("accept", "text/plain")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.tls_info().is_some());
    let binding = Arc::clone(response.token().binding().unwrap());
    assert_eq!(response.bytes().await.unwrap(), "the secret");

    let asked = &bench.azure.asked(Service::Resource)[0];
    assert_eq!(asked.target, "/secrets/motto?api-version=7.4");
    assert_eq!(asked.header("x-ms-tokenboundauth"), Some("true"));
    assert_eq!(asked.header("accept"), Some("text/plain"));
    let token = client.token(RESOURCE).await.unwrap();
    assert_eq!(
        asked.header("authorization").unwrap(),
        format!("mtls_pop {}", token.secret())
    );
    assert_eq!(bench.tls.last_certificate(), binding.certificate_der());
    let shown = bench.tls.shown.lock().unwrap();
    assert_eq!(shown[1].leg, tls::Leg::OnDemand);
    assert_eq!(bench.azure.count(Service::Token), 1);
}

#[tokio::test]
async fn without_a_rule_the_header_is_not_sent_and_the_resource_must_be_named() {
    let bench = Bench::new().await;
    let client = bench.client();
    let error = client.get(&bench.azure.url("/")).send().await.unwrap_err();
    assert_eq!(error.field(), Some("resource"));
    assert_eq!(bench.azure.total(), 0);

    let named = client
        .get(&bench.azure.url("/"))
        .resource("https://x.example/.default");
    assert_eq!(named.send().await.unwrap().status(), 200);
    let asked = &bench.azure.asked(Service::Resource)[0];
    assert_eq!(asked.header("x-ms-tokenboundauth"), None);
}

#[tokio::test]
async fn bad_calls_are_refused_before_anything_is_sent() {
    let bench = Bench::new().await;
    let client = bench.client();
    let url = bench.azure.url("/");
    let clear = url.replace("https", "http");
    for (request, field) in [
        (client.get(&clear), "url"),
        (client.get("/secrets"), "url"),
        (client.get("https://me:pw@vault.azure.net"), "url"),
        (
            client.get(&url).header("authorization", "Bearer x"),
            "header",
        ),
        (client.get(&url).header("host", "elsewhere"), "header"),
        (client.get(&url).header("x y", "z"), "header"),
        (client.get(&url).header("x", "a\r\nb: c"), "header"),
        (client.get(&url).resource("a b"), "resource"),
    ] {
        let error = request.resource("a b").send().await.unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
    }
    assert_eq!(bench.azure.total(), 0);
}

#[tokio::test]
async fn selectors_are_sent_on_both_metadata_legs() {
    let resource_id = "/subscriptions/s/resourceGroups/g & h";
    assert!(Identity::resource_id(resource_id).is_err(), "spaces");
    for (identity, selector) in [
        (
            Identity::client_id(CLIENT).unwrap(),
            format!("client_id={CLIENT}"),
        ),
        (
            Identity::object_id(OTHER).unwrap(),
            format!("object_id={OTHER}"),
        ),
        (
            Identity::resource_id("/subscriptions/s/g&h").unwrap(),
            "mi_res_id=%2Fsubscriptions%2Fs%2Fg%26h".into(),
        ),
    ] {
        let bench = Bench::new().await;
        let client = bench.builder().identity(identity).build().unwrap();
        client.credential().await.unwrap();
        for service in [Service::Metadata, Service::Issue] {
            let target = &bench.azure.asked(service)[0].target;
            assert!(
                target.ends_with(&format!("?cred-api-version=2.0&{selector}")),
                "{target}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_callers_make_one_request_per_leg() {
    let bench = Bench::new().await;
    let client = bench.client();
    let callers: Vec<_> = (0..100)
        .map(|n| {
            let client = client.clone();
            let resource = if n % 2 == 0 {
                RESOURCE
            } else {
                "https://vault.azure.net/.default"
            };
            tokio::spawn(async move { client.token(resource).await.unwrap() })
        })
        .collect();
    let mut tokens = Vec::new();
    for caller in callers {
        tokens.push(caller.await.unwrap());
    }
    assert!(tokens.iter().all(|token| Arc::ptr_eq(token, &tokens[0])));
    for service in [Service::Metadata, Service::Issue, Service::Token] {
        assert_eq!(bench.azure.count(service), 1, "{service:?}");
    }
}

#[tokio::test]
async fn a_second_resource_costs_a_token_only() {
    let bench = Bench::new().await;
    let client = bench.client();
    let first = client.token(RESOURCE).await.unwrap();
    let second = client.token("https://graph.microsoft.com").await.unwrap();
    let version = |token: &keybond::AccessToken| token.binding().unwrap().version();
    assert_eq!(version(&first), version(&second));
    assert_eq!(bench.azure.count(Service::Issue), 1);
    assert_eq!(bench.azure.count(Service::Token), 2);
}

#[tokio::test]
async fn renewal_keeps_the_key_and_gives_up_the_tokens() {
    let bench = Bench::new().await;
    let client = bench.client();
    let old = client.token(RESOURCE).await.unwrap();
    bench.azure.wish(|wish| wish.until = (2026, 6, 26));
    let renewed = client.renew().await.unwrap();
    let before = old.binding().unwrap();
    assert_eq!(renewed.key().id(), before.key().id());
    assert_ne!(renewed.x5t_s256(), before.x5t_s256());
    assert!(renewed.version() > before.version());

    let new = client.token(RESOURCE).await.unwrap();
    assert_eq!(new.binding().unwrap().version(), renewed.version());
    assert_eq!(bench.azure.count(Service::Token), 2);
    assert_eq!(bench.azure.count(Service::Metadata), 1, "metadata is kept");
}

#[tokio::test]
async fn past_the_refresh_time_the_old_token_is_served_while_the_next_is_fetched() {
    let bench = Bench::new().await;
    let client = bench.client();
    let gate = Arc::new(Semaphore::new(1));
    let shut = Arc::clone(&gate);
    bench.azure.twist_one(Service::Token, move |honest| {
        Reply::Gated(Arc::clone(&shut), Box::new(honest))
    });
    let first = client.token(RESOURCE).await.unwrap();
    bench.clock.advance(Duration::from_secs(44_000));
    let again = client.token(RESOURCE).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "nobody waits for the refresh");
    gate.add_permits(1);
    let next = loop {
        let token = client.token(RESOURCE).await.unwrap();
        if !Arc::ptr_eq(&first, &token) {
            break token;
        }
        tokio::task::yield_now().await;
    };
    assert!(next.expires_on() > first.expires_on());
    assert_eq!(bench.azure.count(Service::Token), 2);
}

#[tokio::test]
async fn a_failing_refresh_serves_the_old_token_until_its_last_minutes() {
    let bench = Bench::new().await;
    let client = bench.client();
    let first = client.token(RESOURCE).await.unwrap();
    bench
        .azure
        .twist_one(Service::Token, |_| Reply::status(400, "{}"));
    bench.clock.advance(Duration::from_secs(86_399 - 301));
    let again = client.token(RESOURCE).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    bench.clock.advance(Duration::from_secs(2));
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(
        (error.leg(), error.http_status()),
        (Some(Leg::Token), Some(400))
    );
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_and_its_tokens_with_it() {
    let bench = Bench::new().await;
    let client = bench.client();
    bench.azure.twist_one(Service::Token, |honest| {
        honest.with_member("expires_in", (30 * 86_400).into())
    });
    let old = client.token(RESOURCE).await.unwrap();
    bench.clock.advance(Duration::from_secs(10 * 86_400));
    bench.azure.wish(|wish| {
        wish.from = (2026, 6, 20);
        wish.until = (2026, 7, 20);
    });
    let new = client.token(RESOURCE).await.unwrap();
    assert!(new.binding().unwrap().version() > old.binding().unwrap().version());
}

#[tokio::test]
async fn a_caller_that_leaves_stops_nobody() {
    let bench = Bench::new().await;
    let client = bench.client();
    let gate = Arc::new(Semaphore::new(0));
    let reached = Arc::new(Semaphore::new(0));
    let (shut, signal) = (Arc::clone(&gate), Arc::clone(&reached));
    bench.azure.twist(move |service, _: &Asked, honest| {
        if service == Service::Issue {
            signal.add_permits(1);
            return Reply::Gated(Arc::clone(&shut), Box::new(honest));
        }
        honest
    });
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.token(RESOURCE).await }
    });
    reached.acquire().await.unwrap().forget();
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());

    let staying = tokio::spawn(async move { client.token(RESOURCE).await });
    gate.add_permits(1);
    staying.await.unwrap().unwrap();
    assert_eq!(bench.azure.count(Service::Issue), 1, "the work went on");
}

#[tokio::test]
async fn nothing_that_is_printed_holds_the_token() {
    let bench = Bench::new().await;
    let client = bench.client();
    let token = client.token(RESOURCE).await.unwrap();
    let response = client
        .get(&bench.azure.url("/"))
        .resource(RESOURCE)
        .send()
        .await
        .unwrap();
    let reports = bench.reports.lock().unwrap();
    let printed = format!(
        "{token} {token:?} {response:?} {:?} {client:?} {reports:?}",
        token.binding()
    );
    let csr = &bench.azure.asked(Service::Issue)[0].body;
    let csr = String::from_utf8_lossy(&csr[8..40]).into_owned();
    for secret in [token.secret(), &token.secret()[..20], "VE9QU0VDUkVU", &csr] {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
    assert!(printed.contains("<redacted>"));
}
