//! Rotation under load: certificates that live for seconds, many requests a second, and not one of them fails or
//! mixes versions. The vault holds every token against the certificate of its connection.
//!
//! `KEYBOND_ROTATION=<seconds>,<certificate seconds>` runs longer than the few seconds of a test run.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use keybond::{
    Environment, ManagedIdentity, ResourceRule,
    keys::KeyProvider,
    tls::{TrustRoots, default_connector},
};
use keybond_emulator::Emulator;
use tokio::time::{MissedTickBehavior, interval};

const RESOURCE: &str = "https://vault.azure.net";
/// Requests a second that are aimed at, and who makes them.
const RATE: u64 = 500;
const CALLERS: u64 = 20;

struct Env(HashMap<&'static str, String>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

fn lengths() -> (Duration, Duration) {
    let text = std::env::var("KEYBOND_ROTATION").unwrap_or_else(|_| "20,20".into());
    let (run, life) = text.split_once(',').unwrap();
    let seconds = |text: &str| Duration::from_secs(text.parse().unwrap());
    (seconds(run), seconds(life))
}

fn client(azure: &Emulator, rule: ResourceRule) -> ManagedIdentity {
    let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
    ManagedIdentity::builder()
        .key_provider(KeyProvider::in_memory())
        .tls(default_connector(&roots).unwrap())
        .environment(Arc::new(Env(azure.env().into_iter().collect())))
        .resource_rule(rule.resource(RESOURCE).token_bound_header())
        .build()
        .unwrap()
}

/// What went wrong, and how often each version served.
#[derive(Default)]
struct Tally {
    failures: Mutex<Vec<String>>,
    versions: Mutex<BTreeMap<u64, u64>>,
    served: AtomicU64,
    slowest: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_or_mixes_versions_while_certificates_rotate() {
    let (run, life) = lengths();
    let azure = Emulator::builder()
        .certificate_lifetime(life)
        .start()
        .await
        .unwrap();
    let early = client(&azure, ResourceRule::new("localhost"));
    let late = client(&azure, ResourceRule::new("localhost").on_demand());
    let urls = [azure.vault_url(), azure.renegotiating_vault_url()].map(|vault| {
        format!(
            "{}/secrets/demo?api-version=7.4",
            vault.trim_end_matches('/')
        )
    });

    let tally = Arc::new(Tally::default());
    let end = Instant::now() + run;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let which = usize::from(caller % 2 == 1);
        let client = [&early, &late][which].clone();
        let (url, tally) = (urls[which].clone(), Arc::clone(&tally));
        callers.spawn(async move {
            let mut pace = interval(Duration::from_nanos(1_000_000_000 * CALLERS / RATE));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while Instant::now() < end {
                pace.tick().await;
                call(&client, &url, &tally).await;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }

    let failures = tally.failures.lock().unwrap();
    let versions = tally.versions.lock().unwrap();
    let served = tally.served.load(Relaxed);
    eprintln!(
        "{served} requests in {} s ({:.0} a second), {} versions, {} certificates, slowest {} ms, {} failed",
        run.as_secs(),
        served as f64 / run.as_secs_f64(),
        versions.len(),
        azure.counters().issue,
        tally.slowest.load(Relaxed),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{:#?}",
        &failures[..failures.len().min(5)]
    );
    // Nothing was repeated behind the caller's back either: the vaults saw as many requests.
    assert_eq!(azure.counters().vault, served);
    // Certificates are replaced half-way through their lives, or a little later.
    let rotations = run.as_secs() / life.as_secs();
    assert!(versions.len() as u64 > rotations, "{versions:?}");
    assert!(served > run.as_secs() * RATE / 20, "only {served} requests");
}

async fn call(client: &ManagedIdentity, url: &str, tally: &Tally) {
    let started = Instant::now();
    let failure = match client.get(url).send().await {
        Ok(response) => {
            let status = response.status();
            let version = response.token().binding().unwrap().version();
            match response.bytes().await {
                Ok(_) if status == 200 => {
                    *tally.versions.lock().unwrap().entry(version).or_default() += 1;
                    None
                }
                Ok(body) => Some(format!("{status} {}", String::from_utf8_lossy(&body))),
                Err(error) => Some(error.to_string()),
            }
        }
        Err(error) => Some(error.to_string()),
    };
    let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap();
    tally.slowest.fetch_max(elapsed, Relaxed);
    match failure {
        None => drop(tally.served.fetch_add(1, Relaxed)),
        Some(failure) => tally.failures.lock().unwrap().push(failure),
    }
}
