//! Story 6: a laptop off Azure fails fast.

use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use keybond::{Error, NoAnswer};
use keybond::{KeyProvider, ManagedIdentity, Source};
#[cfg(target_os = "linux")]
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{Bench, RESOURCE, azure::Service, server::Reply};

/// What a definite answer may take.
const AT_ONCE: Duration = Duration::from_millis(200);

/// What is waited where nobody takes the connection, if nobody says otherwise.
#[cfg(target_os = "linux")]
const BUDGET: Duration = Duration::from_secs(1);

/// The machine that runs this may be busy. A second attempt would take more than this.
#[cfg(target_os = "linux")]
const SLACK: Duration = Duration::from_millis(900);

/// An address that takes no connection and refuses none: packets to it are dropped.
#[cfg(target_os = "linux")]
struct BlackHole {
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
    url: String,
}

#[cfg(target_os = "linux")]
impl BlackHole {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // Whoever comes after a full queue is not answered.
        while let Ok(Ok(tcp)) =
            tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
        {
            waiting.push(tcp);
        }
        Self {
            _listener: listener,
            _waiting: waiting,
            url: format!("http://{address}"),
        }
    }
}

/// The fastest of several runs with a client of its own each: what the client waits for, and not the machine.
async fn fastest<F: Future<Output = ()>>(
    runs: usize,
    client: impl Fn() -> ManagedIdentity,
    run: impl Fn(ManagedIdentity) -> F,
) -> Duration {
    let mut times = Vec::new();
    for _ in 0..runs {
        let client = client();
        let started = Instant::now();
        run(client).await;
        times.push(started.elapsed());
    }
    times.into_iter().min().unwrap()
}

#[tokio::test]
async fn story_06_definite_answers_are_decided_at_once_and_asked_for_once() {
    let page = |status| {
        Reply::status(status, "<html>log in</html>").with_header("content-type", "text/html")
    };
    for (name, reply) in [
        ("404", Reply::status(404, "{}")),
        ("403, as Docker Desktop", Reply::status(403, "")),
        ("a portal's page", page(200)),
        ("a portal's page with 400", page(400)),
    ] {
        let bench = Bench::new().await;
        bench.azure.twist(move |_, _, _| reply.clone());
        let time = fastest(
            5,
            || bench.client(),
            |client| async move {
                let found = client.capabilities().await.unwrap();
                assert_eq!(
                    (found.source.source, found.source.certain),
                    (Source::None, true),
                    "{name}"
                );
                let why_not = found.bound_tokens().unwrap_err();
                assert_eq!(why_not.code(), "managed_identity_all_sources_unavailable");
                assert!(!why_not.retryable() && !found.bearer_tokens(), "{name}");
            },
        )
        .await;
        assert!(time <= AT_ONCE, "{name}: {time:?}");
        assert_eq!(
            bench.azure.total(),
            5 * 2,
            "{name}: version 2 and version 1, once"
        );
    }

    let bench = Bench::new().await;
    let refusing = || bench.builder().imds_endpoint("http://127.0.0.1:1");
    let time = fastest(
        5,
        || refusing().build().unwrap(),
        |client| async move {
            let found = client.capabilities().await.unwrap();
            assert_eq!(
                (found.source.source, found.source.certain),
                (Source::None, true)
            );
        },
    )
    .await;
    assert!(time <= AT_ONCE, "refused: {time:?}");
}

#[tokio::test]
async fn story_06_a_token_is_refused_as_fast_so_that_a_chain_moves_on() {
    let bench = Bench::new().await;
    bench.keys.get_or_create_key().await.unwrap();
    bench.azure.twist(|_, _, _| Reply::status(404, "{}"));
    let time = fastest(
        5,
        || bench.client(),
        |client| async move {
            let error = client.token(RESOURCE).await.unwrap_err();
            assert_eq!(error.code(), "mtls_pop_token_not_supported_in_imds_v1");
            assert!(client.bearer_token(RESOURCE).await.is_err());
        },
    )
    .await;
    assert!(time <= AT_ONCE, "404: {time:?}");
    assert_eq!(bench.azure.total(), 5 * 2, "a 404 is not asked again");

    let refusing = || bench.builder().imds_endpoint("http://127.0.0.1:1");
    let time = fastest(
        5,
        || refusing().build().unwrap(),
        |client| async move {
            let error = client.token(RESOURCE).await.unwrap_err();
            assert_eq!(error.code(), "managed_identity_unreachable_network");
            assert!(!error.retryable(), "refused is an answer");
        },
    )
    .await;
    assert!(time <= AT_ONCE, "refused: {time:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn story_06_a_black_hole_costs_the_budget_and_is_not_taken_for_certain() {
    let hole = BlackHole::new().await;
    let bench = Bench::new().await;
    bench.keys.get_or_create_key().await.unwrap();
    let lost = || bench.builder().imds_endpoint(&hole.url);
    let time = fastest(
        3,
        || lost().build().unwrap(),
        |client| async move {
            let found = client.capabilities().await.unwrap();
            assert_eq!(
                (found.source.source, found.source.certain),
                (Source::None, false),
                "{}",
                found.source
            );
            assert!(found.bound_tokens().unwrap_err().retryable());
        },
    )
    .await;
    assert!((BUDGET..=BUDGET + SLACK).contains(&time), "{time:?}");

    let time = fastest(
        3,
        || lost().build().unwrap(),
        |client| async move {
            let error = client.token(RESOURCE).await.unwrap_err();
            let nobody = matches!(
                error,
                Error::Unreachable {
                    how: NoAnswer::NoConnection,
                    ..
                }
            );
            assert!(nobody && error.retryable(), "{error}");
        },
    )
    .await;
    assert!((BUDGET..=BUDGET + SLACK).contains(&time), "token: {time:?}");

    let short = Duration::from_millis(100);
    let time = fastest(
        3,
        || lost().probe_budget(short).build().unwrap(),
        |client| async move {
            assert!(client.token(RESOURCE).await.is_err());
        },
    )
    .await;
    assert!((short..=short + SLACK).contains(&time), "100 ms: {time:?}");
}

#[tokio::test]
async fn story_06_absence_is_remembered_briefly_and_presence_for_long() {
    let bench = Bench::new().await;
    bench.azure.twist(|_, _, _| Reply::status(404, "{}"));
    let client = bench.client();
    let asked_after = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        client.capabilities().await.unwrap();
        bench.azure.total()
    };
    assert_eq!(asked_after(0).await, 2);
    assert_eq!(asked_after(25).await, 2, "remembered");
    assert_eq!(asked_after(10).await, 4, "35 s later");
    // A network came up: now it is there, and that is believed for an hour.
    bench.azure.untwist();
    assert_eq!(asked_after(31).await, 5);
    assert_eq!(asked_after(3000).await, 5);
    assert_eq!(asked_after(1000).await, 6);
    assert_eq!(bench.azure.count(Service::Metadata), 2 + 2);
}

#[tokio::test]
async fn story_06_concurrent_callers_share_one_probe_and_no_key_is_made() {
    let bench = Bench::new().await;
    let keys = KeyProvider::in_memory();
    let client = bench.builder().key_provider(keys.clone()).build().unwrap();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.capabilities().await.unwrap() })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().source.source, Source::ImdsV2);
    }
    assert_eq!(bench.azure.total(), 1);
    assert!(keys.cached().is_none());
}
