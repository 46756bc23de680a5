//! Rotation under load: certificates that live for seconds, 500 requests a second for a minute, and not one of them
//! fails or mixes versions.
//!
//! A certificate is replaced about half-way through its life. Here it lives for 20 seconds, so that a minute sees half
//! a dozen of them; `KEYBOND_ROTATION=<seconds>,<certificate seconds>` says otherwise, and `cargo xtask soak rotation`
//! takes ten minutes with certificates of 90 seconds.
//!
//! Half of the requests go to a vault that asks for the certificate in the first handshake, half to one that
//! renegotiates. Both hold every token against the certificate of its connection (`vault.rs` of the emulator,
//! `authorize`): a mixture would be a 401 here and count in `mixed_bindings` there.
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
use tokio::time::{Instant as Moment, sleep_until};

const RESOURCE: &str = "https://vault.azure.net";
/// Requests a second.
const RATE: u64 = 500;
/// How many of them may be under way at a time.
const CALLERS: u64 = 20;
/// What a busy machine must make of the schedule at least, in percent. A quiet one makes all of it.
const LEAST: u64 = 80;

struct Env(HashMap<&'static str, String>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

fn lengths() -> (Duration, Duration) {
    let text = std::env::var("KEYBOND_ROTATION").unwrap_or_else(|_| "60,20".into());
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

/// The requests of a run, each at its time. Whoever is free makes the next one; one that is late is made at once, so
/// that a pause is caught up with and the rate is what it is said to be.
struct Schedule {
    begin: Moment,
    end: Moment,
    all: u64,
    next: AtomicU64,
}

impl Schedule {
    fn new(run: Duration) -> Self {
        let begin = Moment::now();
        Self {
            begin,
            end: begin + run,
            all: run.as_secs() * RATE,
            next: AtomicU64::new(0),
        }
    }

    /// Waits until the next request is due. `None`: there is no other, or the time is over.
    async fn next(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Relaxed);
        if number >= self.all || Moment::now() >= self.end {
            return None;
        }
        sleep_until(
            self.begin
                + Duration::from_nanos(1_000_000_000 / RATE) * u32::try_from(number).unwrap(),
        )
        .await;
        Some(number)
    }
}

/// One of the two clients, its vault, and how often each version served it.
struct Side {
    client: ManagedIdentity,
    url: String,
    versions: Mutex<BTreeMap<u64, u64>>,
}

impl Side {
    fn new(azure: &Emulator, vault: &str, rule: ResourceRule) -> Self {
        let vault = vault.trim_end_matches('/');
        Self {
            client: client(azure, rule),
            url: format!("{vault}/secrets/demo?api-version=7.4"),
            versions: Mutex::default(),
        }
    }

    async fn call(&self) -> Result<(), String> {
        let response = self.client.get(&self.url).send().await;
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status();
        let version = response.token().binding().unwrap().version();
        let body = response.bytes().await.map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(format!("{status} {}", String::from_utf8_lossy(&body)));
        }
        *self.versions.lock().unwrap().entry(version).or_default() += 1;
        Ok(())
    }

    fn versions(&self) -> u64 {
        self.versions.lock().unwrap().len() as u64
    }

    fn served(&self) -> u64 {
        self.versions.lock().unwrap().values().sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_or_mixes_versions_while_certificates_rotate() {
    let (run, life) = lengths();
    let azure = Emulator::builder()
        .certificate_lifetime(life)
        .start()
        .await
        .unwrap();
    let rule = || ResourceRule::new("localhost");
    let sides = Arc::new([
        Side::new(&azure, &azure.vault_url(), rule()),
        Side::new(&azure, &azure.renegotiating_vault_url(), rule().on_demand()),
    ]);
    let failures = Arc::new(Mutex::new(Vec::new()));
    let slowest = Arc::new(AtomicU64::new(0));
    let schedule = Arc::new(Schedule::new(run));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (sides, schedule) = (Arc::clone(&sides), Arc::clone(&schedule));
        let (failures, slowest) = (Arc::clone(&failures), Arc::clone(&slowest));
        callers.spawn(async move {
            while let Some(number) = schedule.next().await {
                let started = Instant::now();
                if let Err(failure) = sides[(number % 2) as usize].call().await {
                    failures.lock().unwrap().push(failure);
                }
                let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap();
                slowest.fetch_max(elapsed, Relaxed);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }

    let took = schedule.begin.elapsed();
    let failures = failures.lock().unwrap();
    let [early, late] = &*sides;
    let served = early.served() + late.served();
    let counters = azure.counters();
    eprintln!(
        "{served} requests in {:.1} s ({:.0} a second of {RATE}), {} + {} versions, {} certificates, slowest {} ms, \
         {} failed",
        took.as_secs_f64(),
        served as f64 / took.as_secs_f64(),
        early.versions(),
        late.versions(),
        counters.issue,
        slowest.load(Relaxed),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{:#?}",
        &failures[..failures.len().min(5)]
    );
    assert_eq!(counters.mixed_bindings, 0);
    // Nothing was repeated behind the caller's back either: the vaults saw as many requests.
    assert_eq!(counters.vault, served);
    // The load was what it is said to be.
    assert!(
        served * 100 >= schedule.all * LEAST,
        "only {served} of {} requests: this machine is too busy",
        schedule.all
    );
    for side in &*sides {
        // Half-way through their lives, give or take a tenth; twice that leaves time to make them on a busy machine.
        assert!(
            side.versions() > run.as_secs() / life.as_secs(),
            "{:?}",
            side.versions
        );
    }
}
