//! Calls: which connection a request goes on, what is repeated and what never is, and how long all may take.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use keybond::{
    ClientCertificate, KeyProvider, Leg, ManagedIdentity, ManagedIdentityBuilder, Method,
    RequestBuilder, ResourceRule, Timeouts,
    keys::{Reason, StoreId},
};
use keybond_testkit::stores::{Op, ScriptedStore};
use support::{
    Bench, RESOURCE,
    azure::{Azure, Service},
    server::Reply,
};
use tokio::sync::Semaphore;
use tower_service::Service as _;

fn on_demand(bench: &Bench) -> ManagedIdentityBuilder {
    let rule = ResourceRule::new("127.0.0.1")
        .resource(RESOURCE)
        .on_demand();
    bench.builder().resource_rule(rule)
}

fn get(client: &ManagedIdentity, azure: &Azure) -> RequestBuilder {
    client.get(&azure.url("/secrets/motto"))
}

fn post(client: &ManagedIdentity, azure: &Azure) -> RequestBuilder {
    client.request(Method::POST, &azure.url("/keys"))
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    for _ in 0..20 {
        let response = get(&client, &bench.azure).send().await.unwrap();
        assert!(response.tls_info().is_some());
        assert_eq!(response.bytes().await.unwrap(), "the secret");
    }
    assert_eq!(bench.tls.on_demand().len(), 1);
    let reports = bench.reports.lock().unwrap();
    let outcome = &reports.last().unwrap().outcome;
    assert!(outcome.ends_with("connection reused"), "{outcome}");
}

#[tokio::test]
async fn an_answer_that_is_not_read_to_its_end_ends_its_connection() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench
        .azure
        .twist_one(Service::Resource, |_| Reply::Gigabyte);
    let mut response = get(&client, &bench.azure).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    let ended = bench.tls.ended.available_permits();
    drop(response);
    bench
        .tls
        .ended
        .acquire_many(u32::try_from(ended).unwrap() + 1)
        .await
        .unwrap()
        .forget();
    bench.azure.untwist();
    let response = get(&client, &bench.azure).send().await.unwrap();
    response.bytes().await.unwrap();
    assert_eq!(bench.tls.on_demand().len(), 2);
}

#[tokio::test]
async fn a_renewal_closes_the_old_connections_and_no_request_mixes_versions() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    let first = get(&client, &bench.azure).send().await.unwrap();
    let old = Arc::clone(first.token().binding().unwrap());
    first.bytes().await.unwrap();
    while let Ok(permit) = bench.tls.ended.try_acquire() {
        permit.forget();
    }

    bench.azure.wish(|wish| wish.until = (2026, 6, 26));
    client.renew().await.unwrap();
    let second = get(&client, &bench.azure).send().await.unwrap();
    let new = Arc::clone(second.token().binding().unwrap());
    assert_ne!(old.x5t_s256(), new.x5t_s256());
    second.bytes().await.unwrap();
    let shown = bench.tls.on_demand();
    assert_eq!(shown, [old.certificate_der(), new.certificate_der()]);
    // That of the token leg, and the old one to the resource.
    bench.tls.ended.acquire_many(2).await.unwrap().forget();
}

#[tokio::test]
async fn a_renewal_while_the_connection_is_made_changes_nothing_about_it() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench.tls.gate.forget_permits(Semaphore::MAX_PERMITS);
    let calling = tokio::spawn(get(&client, &bench.azure).send());
    bench.tls.waiting.acquire().await.unwrap().forget();
    bench.azure.wish(|wish| wish.until = (2026, 6, 26));
    let renewed = client.renew().await.unwrap();
    bench.tls.gate.add_permits(1000);
    let response = calling.await.unwrap().unwrap();
    let used = response.token().binding().unwrap();
    assert!(used.version() < renewed.version());
    assert_eq!(bench.tls.on_demand(), [used.certificate_der()]);
    let asked = &bench.azure.asked(Service::Resource)[0];
    assert_eq!(
        asked.header("authorization").unwrap(),
        format!("mtls_pop {}", response.token().secret())
    );
}

#[tokio::test]
async fn what_grew_too_old_while_connecting_is_replaced_together() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench.tls.gate.forget_permits(Semaphore::MAX_PERMITS);
    let calling = tokio::spawn(get(&client, &bench.azure).send());
    bench.tls.waiting.acquire().await.unwrap().forget();
    bench.clock.advance(Duration::from_secs(10 * 86_400));
    bench.azure.wish(|wish| {
        wish.from = (2026, 6, 20);
        wish.until = (2026, 7, 20);
    });
    bench.tls.gate.add_permits(1000);
    let response = calling.await.unwrap().unwrap();
    let used = response.token().binding().unwrap();
    assert_eq!(used.version(), 2);
    assert_eq!(bench.tls.on_demand()[1], used.certificate_der());
    assert_eq!(bench.azure.count(Service::Resource), 1);
}

/// Refuses requests that go out under the first certificate with a claims challenge; the first of them as late as
/// the gate opens. The permits say that it arrived.
fn challenge_the_first_certificate(bench: &Bench) -> (Arc<Semaphore>, Arc<Semaphore>) {
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (arriving, closed) = (Arc::clone(&arrived), Arc::clone(&gate));
    let first = OnceLock::new();
    bench.azure.twist(move |service, asked, honest| {
        if service != Service::Resource {
            return honest;
        }
        let sent = asked.header("authorization").unwrap().to_owned();
        let straggles = first.get().is_none();
        if first.get_or_init(|| sent.clone()) != &sent {
            return honest;
        }
        let refusal =
            Reply::status(401, "").with_header("www-authenticate", r#"Bearer claims="{}""#);
        if straggles {
            arriving.add_permits(1);
            return Reply::Gated(Arc::clone(&closed), Box::new(refusal));
        }
        refusal
    });
    (arrived, gate)
}

/// A challenge is about the token that was sent: whatever is newer than that is tried first, and no certificate is
/// asked for in the place of one that nobody challenged.
#[tokio::test]
async fn challenges_of_one_certificate_cost_one_certificate() {
    const OTHER: &str = "https://other.example";
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    client.token(RESOURCE).await.unwrap();
    client.token(OTHER).await.unwrap();
    let (arrived, gate) = challenge_the_first_certificate(&bench);
    let counts = || {
        (
            bench.azure.count(Service::Issue),
            bench.azure.count(Service::Token),
        )
    };
    let straggler = tokio::spawn(get(&client, &bench.azure).send());
    arrived.acquire().await.unwrap().forget();

    let response = get(&client, &bench.azure).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.token().binding().unwrap().version(), 2);
    assert_eq!(counts(), (2, 3));

    gate.add_permits(1);
    let response = straggler.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(counts(), (2, 3), "the token that was there by then did");

    let other = get(&client, &bench.azure).resource(OTHER).send();
    assert_eq!(other.await.unwrap().status(), 200);
    assert_eq!(counts(), (2, 4), "its token, but no certificate");
}

/// Claims are quoted by the rules of HTTP; those that make no sense hide nothing of what the resource said.
#[tokio::test]
async fn a_strange_challenge_is_the_answer_and_a_quoted_one_is_followed() {
    for (challenge, status, certificates) in [
        (r#"Bearer claims="%%%""#, 401, 1),
        (r#"Bearer claims="[]""#, 401, 1),
        (r#"Bearer claims="{\"access_token\":{}}""#, 200, 2),
    ] {
        let bench = Bench::new().await;
        let first = OnceLock::new();
        bench.azure.twist(move |service, _, honest| {
            if service == Service::Resource && first.set(()).is_ok() {
                Reply::status(401, "no").with_header("www-authenticate", challenge)
            } else {
                honest
            }
        });
        let client = on_demand(&bench).build().unwrap();
        let response = get(&client, &bench.azure).send().await.unwrap();
        assert_eq!(response.status(), status, "{challenge}");
        assert_eq!(bench.azure.count(Service::Issue), certificates);
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_costs_a_safe_request_nothing() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    get(&client, &bench.azure)
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    // The server closes at the moment the request arrives, as one does that had waited long enough.
    let once = Arc::new(Semaphore::new(1));
    let left = Arc::clone(&once);
    bench
        .azure
        .twist_one(Service::Resource, move |honest| match left.try_acquire() {
            Ok(permit) => {
                permit.forget();
                Reply::HangUp
            }
            Err(_) => honest,
        });
    let response = get(&client, &bench.azure).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), "the secret");
    assert_eq!(bench.azure.count(Service::Resource), 3);
    assert_eq!(bench.tls.on_demand().len(), 2);

    // What may have changed something is not repeated; nor is anything on a connection that is new.
    once.add_permits(1);
    let error = post(&client, &bench.azure)
        .body("x")
        .send()
        .await
        .unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Resource), "{error}");
    assert_eq!(bench.azure.count(Service::Resource), 4);
    once.add_permits(1);
    get(&client, &bench.azure).send().await.unwrap_err();
    assert_eq!(bench.azure.count(Service::Resource), 5);
}

#[tokio::test]
async fn a_connection_that_is_known_to_be_closed_is_not_used_for_anything() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench.azure.twist_one(Service::Resource, |honest| {
        honest.with_header("connection", "close")
    });
    for round in 1..4 {
        let answer = post(&client, &bench.azure).body("x").send().await.unwrap();
        answer.bytes().await.unwrap();
        assert_eq!(bench.tls.on_demand().len(), round);
    }
    assert_eq!(bench.azure.count(Service::Resource), 3);
}

#[tokio::test]
async fn connections_end_when_their_time_is_over_though_nobody_asks() {
    let long = Duration::from_secs(600);
    for (idle, life) in [
        (Duration::from_millis(50), long),
        (long, Duration::from_millis(50)),
    ] {
        let bench = Bench::new().await;
        let client = on_demand(&bench)
            .keep_connections(idle, life)
            .build()
            .unwrap();
        get(&client, &bench.azure)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        // That of the token leg, and this one.
        let ended = bench.tls.ended.acquire_many(2);
        tokio::time::timeout(Duration::from_secs(20), ended)
            .await
            .unwrap()
            .unwrap()
            .forget();
    }
}

#[tokio::test]
async fn a_large_body_waits_until_the_certificate_was_asked_for() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench.azure.twist(|service, asked, honest| {
        if service == Service::Resource && asked.method == "HEAD" {
            return Reply::status(405, "");
        }
        honest
    });
    let large = vec![7; 100_000];
    for (shown, body, asked) in [
        (false, Bytes::from_static(b"small"), &["POST"][..]),
        (false, Bytes::from(large.clone()), &["HEAD", "POST"]),
        (true, Bytes::from(large), &["POST"]),
    ] {
        bench.tls.certificate_shown.store(shown, SeqCst);
        let client = on_demand(&bench).build().unwrap();
        let before = bench.azure.count(Service::Resource);
        let sent = post(&client, &bench.azure).body(body.clone()).send().await;
        assert_eq!(sent.unwrap().status(), 200);
        let log = bench.azure.asked(Service::Resource).split_off(before);
        let methods: Vec<_> = log.iter().map(|asked| asked.method.as_str()).collect();
        assert_eq!(methods, asked);
        let last = log.last().unwrap();
        assert_eq!((&last.body, &*last.target), (&body.to_vec(), "/keys"));
        assert!(log.iter().all(|one| one.header("authorization").is_some()));
    }
    drop(client);
}

/// The question before a large body meets the closed connection first, and is asked again like every safe request.
#[tokio::test]
async fn a_kept_connection_that_the_server_closed_costs_a_large_body_nothing() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    bench.tls.certificate_shown.store(false, SeqCst);
    let kept = get(&client, &bench.azure).send().await.unwrap();
    kept.bytes().await.unwrap();
    let once = Arc::new(Semaphore::new(1));
    let left = Arc::clone(&once);
    bench
        .azure
        .twist(move |service, asked, honest| match asked.method.as_str() {
            "HEAD" if service == Service::Resource => match left.try_acquire() {
                Ok(permit) => {
                    permit.forget();
                    Reply::HangUp
                }
                Err(_) => Reply::status(405, ""),
            },
            _ => honest,
        });
    let send = || {
        let parts = Parts(vec![Bytes::from_static(b"a large body")], None);
        post(&client, &bench.azure).body_stream(parts).send()
    };
    assert_eq!(send().await.unwrap().status(), 200);
    let log = bench.azure.asked(Service::Resource);
    let methods: Vec<_> = log.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["GET", "HEAD", "HEAD", "POST"]);
    assert_eq!(log[3].body, b"a large body");

    // A connection that is new was not closed for being old.
    once.add_permits(1);
    send().await.unwrap_err();
    assert_eq!(bench.azure.count(Service::Resource), 5);
}

#[tokio::test]
async fn every_wait_has_an_end() {
    let bench = Bench::new().await;
    let never = Arc::new(Semaphore::new(0));
    let (gate, short) = (Arc::clone(&never), Duration::from_millis(100));
    bench.azure.twist_one(Service::Resource, move |honest| {
        Reply::Gated(Arc::clone(&gate), Box::new(honest))
    });
    let idle = on_demand(&bench)
        .timeouts(Timeouts::default().idle(short))
        .build()
        .unwrap();
    let error = get(&idle, &bench.azure).send().await.unwrap_err();
    assert_eq!(
        (error.code(), error.leg()),
        ("request_timeout", Some(Leg::Resource))
    );
    assert!(error.retryable());

    let total = get(&idle, &bench.azure)
        .timeouts(Timeouts::default().total(short))
        .send()
        .await
        .unwrap_err();
    assert_eq!(
        (total.code(), total.leg()),
        ("deadline_exceeded", Some(Leg::Resource))
    );

    bench.tls.gate.forget_permits(Semaphore::MAX_PERMITS);
    let connect = get(&idle, &bench.azure)
        .timeouts(Timeouts::default().connect(short))
        .send()
        .await
        .unwrap_err();
    assert_eq!(
        (connect.code(), connect.leg()),
        ("request_timeout", Some(Leg::Resource))
    );
    bench.tls.gate.add_permits(1000);

    // Within an answer.
    bench.azure.twist_one(Service::Resource, |_| Reply::Stalled);
    let mut response = get(&idle, &bench.azure).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "half");
    let error = response.chunk().await.unwrap_err();
    assert_eq!(error.code(), "request_timeout", "{error}");
}

#[tokio::test]
async fn no_limit_may_be_said_by_the_longest_of_all() {
    let (bench, no_limit) = (Bench::new().await, Duration::MAX);
    let client = on_demand(&bench)
        .deadline(no_limit)
        .probe_budget(no_limit)
        .keep_connections(no_limit, no_limit)
        .timeouts(
            Timeouts::default()
                .connect(no_limit)
                .idle(no_limit)
                .total(no_limit),
        )
        .build()
        .unwrap();
    for _ in 0..2 {
        let response = get(&client, &bench.azure).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), "the secret");
    }
    assert_eq!(bench.tls.on_demand().len(), 1);
}

/// Parts, then an error if there is one.
struct Parts(Vec<Bytes>, Option<&'static str>);

impl Body for Parts {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !self.0.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.0.remove(0)))));
        }
        let error = self.1.take().map(|text| Err(std::io::Error::other(text)));
        Poll::Ready(error)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let left: usize = self.0.iter().map(Bytes::len).sum();
        http_body::SizeHint::with_exact(left as u64 + u64::from(self.1.is_some()))
    }
}

/// The token is good for hours, and worth nothing without its key.
#[tokio::test]
async fn a_key_that_died_is_replaced_before_anything_is_sent() {
    let device = ScriptedStore::new(StoreId::Tpm2).stocked();
    let mut bench = Bench::new().await;
    bench.keys = KeyProvider::builder().store(device.clone()).build();
    let client = on_demand(&bench).build().unwrap();
    let before = client.token(RESOURCE).await.unwrap();
    bench.tls.signed.store(true, SeqCst);
    device.kill();
    let parts = Parts(vec![Bytes::from_static(b"once")], None);
    let response = post(&client, &bench.azure)
        .body_stream(parts)
        .send()
        .await
        .unwrap();
    let key = |token: &keybond::AccessToken| token.binding().unwrap().key().id();
    assert_ne!(key(response.token()), key(&before));
    assert_eq!(bench.azure.asked(Service::Resource)[0].body, b"once");
    let counts = [Service::Resource, Service::Issue, Service::Token];
    let counts = counts.map(|service| bench.azure.count(service));
    assert_eq!(counts, [1, 2, 2], "one of each in the dead one's place");
}

/// A device that hiccups has not lost its key: the failure is the caller's to see, and the token stays.
#[tokio::test]
async fn a_key_that_is_alive_costs_one_failure_and_nothing_else() {
    let device = ScriptedStore::new(StoreId::Tpm2).stocked();
    let mut bench = Bench::new().await;
    bench.keys = KeyProvider::builder().store(device.clone()).build();
    let client = on_demand(&bench).build().unwrap();
    client.token(RESOURCE).await.unwrap();
    bench.tls.signed.store(true, SeqCst);
    device.next(1, Op::Sign, device.refusal(Reason::Busy));
    let error = get(&client, &bench.azure).send().await.unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Resource), "{error}");
    assert_eq!(bench.azure.count(Service::Resource), 0);
    get(&client, &bench.azure).send().await.unwrap();
    assert_eq!(bench.azure.count(Service::Token), 1);
}

#[tokio::test]
async fn a_streamed_body_goes_out_once_and_its_failure_is_the_error() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    let parts = || vec![Bytes::from_static(b"one "), Bytes::from_static(b"two")];
    let sent = post(&client, &bench.azure).body_stream(Parts(parts(), None));
    assert_eq!(sent.send().await.unwrap().status(), 200);
    assert_eq!(bench.azure.asked(Service::Resource)[0].body, b"one two");

    let broken = Parts(parts(), Some("the pipe burst"));
    let error = post(&client, &bench.azure)
        .body_stream(broken)
        .send()
        .await
        .unwrap_err();
    assert_eq!(error.code(), "request_body_failed");
    assert!(error.to_string().contains("the pipe burst"), "{error}");
    assert_eq!(bench.azure.count(Service::Resource), 1);
}

#[tokio::test]
async fn what_the_stack_lacks_is_refused_before_anything_is_sent() {
    let bench = Bench::new().await;
    let rule = ResourceRule::new("127.0.0.1")
        .resource(RESOURCE)
        .client_certificate(ClientCertificate::PostHandshake);
    let client = bench.builder().resource_rule(rule).build().unwrap();
    let error = get(&client, &bench.azure).send().await.unwrap_err();
    assert_eq!(error.field(), Some("client_certificate"));
    assert!(error.to_string().contains("post-handshake"), "{error}");
    assert_eq!(bench.azure.total(), 0);
}

#[tokio::test]
async fn as_a_tower_service_it_brings_its_own_token() {
    let bench = Bench::new().await;
    let client = on_demand(&bench).build().unwrap();
    let mut service = client.service();
    let request = http::Request::post(bench.azure.url("/keys"))
        .header("authorization", "Bearer of somebody else")
        .header("host", "elsewhere")
        .header("content-type", "text/plain")
        .body(http_body_util::Full::new(Bytes::from_static(b"hello")))
        .unwrap();
    type Whole = http_body_util::Full<Bytes>;
    std::future::poll_fn(|context| {
        tower_service::Service::<http::Request<Whole>>::poll_ready(&mut service, context)
    })
    .await
    .unwrap();
    let answer = service.call(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let token = answer
        .extensions()
        .get::<Arc<keybond::AccessToken>>()
        .unwrap();
    let asked = &bench.azure.asked(Service::Resource)[0];
    assert_eq!(
        asked.header("authorization").unwrap(),
        format!("mtls_pop {}", token.secret())
    );
    assert_ne!(asked.header("host"), Some("elsewhere"));
    assert_eq!(asked.header("content-type"), Some("text/plain"));
    assert_eq!(asked.body, b"hello");
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap();
    assert_eq!(body.to_bytes(), "the secret");
}
