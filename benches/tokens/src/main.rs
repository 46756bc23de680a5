//! Cached tokens, as figures and as ratios to `azure_identity` in the same process: `cargo xtask bench`.
//!
//! The two sides of a ratio take turns, and the best round of each counts: the others measure what else the
//! machine does. Times are those that the thread itself spent on a core. Azure is played by the stand-in of keybond's tests, in clear on loopback; the other library is
//! answered by a transport that never leaves the process, which favours it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod memory;
mod other;
#[path = "../../../crates/keybond/tests/support/mod.rs"]
mod support;

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use azure_core::credentials::TokenCredential;
use keybond::{ManagedIdentity, SystemClock};
use support::{Bench, azure::Service, server::Reply};
use tokio::{runtime::Runtime, sync::Semaphore};

const READS: u32 = 20_000;
const ROUNDS: usize = 200;
const RESOURCE: &str = "https://vault.azure.net";
const SCOPE: &str = "https://vault.azure.net/.default";

fn main() {
    let runtime = Runtime::new().unwrap();
    let (bench, client) = runtime.block_on(async {
        let bench = Bench::new().await;
        // Certificates by the machine's own clock.
        bench.azure.wish(|wish| {
            wish.from = (2020, 1, 1);
            wish.until = (2040, 1, 1);
        });
        let client = bench
            .builder()
            .clock(Arc::new(SystemClock))
            .imds_rate(1e6, 1_000)
            .build()
            .unwrap();
        client.token(RESOURCE).await.unwrap();
        (bench, client)
    });
    let azure = other::credential(Duration::ZERO);
    runtime.block_on(azure.get_token(&[SCOPE], None)).unwrap();

    let (mut ours, mut theirs, mut clock) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(runtime.block_on(read(&client)));
        theirs.push(runtime.block_on(read_azure(&*azure)));
        clock.push(read_clock());
    }
    let (one, them) = (best(&ours), best(&theirs));
    println!(
        "cached token                     {one:8.1} ns   (median {:.1}; the clock alone {:.1})",
        median(&ours),
        best(&clock)
    );
    println!(
        "azure_identity 1.0.0             {them:8.1} ns   (median {:.1})",
        median(&theirs)
    );
    println!("ratio                            {:8.1} ×", them / one);

    let (mut alone, mut two) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(read_in_threads(&client, 1));
        two.push(read_in_threads(&client, 2));
    }
    let (alone, two) = (best(&alone), best(&two));
    println!(
        "two threads, the slower          {two:8.1} ns   {:.2} × one ({alone:.1} ns)",
        two / alone
    );

    while_another_is_fetched(&runtime, &bench, &client);
    many(&runtime);
    runtime.block_on(cold_callers());
}

async fn read(client: &ManagedIdentity) -> f64 {
    let started = spent();
    for _ in 0..READS {
        black_box(client.token(black_box(RESOURCE)).await.unwrap());
    }
    (spent() - started).as_secs_f64() * 1e9 / f64::from(READS)
}

async fn read_azure(azure: &dyn TokenCredential) -> f64 {
    let started = spent();
    for _ in 0..READS {
        black_box(azure.get_token(black_box(&[SCOPE]), None).await.unwrap());
    }
    (spent() - started).as_secs_f64() * 1e9 / f64::from(READS)
}

/// What this thread has spent on a core.
fn spent() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

fn read_clock() -> f64 {
    let started = spent();
    for _ in 0..READS {
        black_box(keybond::Clock::now(&SystemClock));
    }
    (spent() - started).as_secs_f64() * 1e9 / f64::from(READS)
}

/// Threads at once; the slowest one counts.
fn read_in_threads(client: &ManagedIdentity, count: usize) -> f64 {
    let start = Barrier::new(count);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    runtime.block_on(read(client));
                    start.wait();
                    runtime.block_on(read(client))
                })
            })
            .collect();
        let times = readers.into_iter().map(|reader| reader.join().unwrap());
        times.fold(0.0, f64::max)
    })
}

/// One resource is fetched from a server that takes a second; how long a cached read of another takes.
fn while_another_is_fetched(runtime: &Runtime, bench: &Bench, client: &ManagedIdentity) {
    const SLOW: &str = "https://slow.example";
    let gate = Arc::new(Semaphore::new(0));
    let shut = Arc::clone(&gate);
    bench.azure.twist(move |service, asked, honest| {
        let slow = String::from_utf8_lossy(&asked.body).contains("slow.example");
        if service == Service::Token && slow {
            return Reply::Gated(Arc::clone(&shut), Box::new(honest));
        }
        honest
    });
    let (worst, mean, reads) = runtime.block_on(async {
        let fetching = tokio::spawn({
            let client = client.clone();
            async move { client.token(SLOW).await.unwrap() }
        });
        let began = Instant::now();
        let mut times = Vec::new();
        while began.elapsed() < Duration::from_secs(1) {
            let started = spent();
            for _ in 0..100 {
                black_box(client.token(RESOURCE).await.unwrap());
            }
            times.push((spent() - started).as_secs_f64() * 1e7);
            tokio::task::yield_now().await;
        }
        assert!(!fetching.is_finished());
        gate.add_permits(1);
        fetching.await.unwrap();
        let reads = times.len() * 100;
        (
            times.iter().copied().fold(0.0, f64::max),
            median(&times),
            reads,
        )
    });
    bench.azure.untwist();
    println!("while another resource is fetched for 1 s");
    println!(
        "  cached read                    {mean:8.1} ns   (worst hundred {worst:.1} ns each; {reads} reads)"
    );

    let azure = other::credential(Duration::from_secs(1));
    let theirs = runtime.block_on(async {
        azure.get_token(&[SCOPE], None).await.unwrap();
        let fetching = tokio::spawn({
            let azure = Arc::clone(&azure);
            async move {
                azure
                    .get_token(&["https://slow.example/.default"], None)
                    .await
                    .unwrap()
            }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let started = Instant::now();
        azure.get_token(&[SCOPE], None).await.unwrap();
        let waited = started.elapsed();
        fetching.await.unwrap();
        waited
    });
    println!(
        "  azure_identity 1.0.0           {:8.1} ms",
        theirs.as_secs_f64() * 1e3
    );
}

/// How reads and inserts depend on how much is cached, and what a token takes.
fn many(runtime: &Runtime) {
    println!("entries     hot read    every entry in turn    inserted in");
    let (bench, client) = runtime.block_on(async {
        let bench = Bench::new().await;
        bench.azure.wish(|wish| {
            wish.from = (2020, 1, 1);
            wish.until = (2040, 1, 1);
        });
        let client = bench
            .builder()
            .clock(Arc::new(SystemClock))
            .build()
            .unwrap();
        client.token(RESOURCE).await.unwrap();
        (bench, client)
    });
    let mut names = vec![RESOURCE.to_owned()];
    for count in [1, 100, 10_000] {
        let began = Instant::now();
        runtime.block_on(async {
            let more: Vec<String> = (names.len()..count)
                .map(|number| format!("https://resource-{number}.example"))
                .collect();
            for batch in more.chunks(16) {
                let fetching: Vec<_> = batch
                    .iter()
                    .map(|name| {
                        let (client, name) = (client.clone(), name.clone());
                        tokio::spawn(async move { client.token(&name).await.unwrap() })
                    })
                    .collect();
                for fetched in fetching {
                    fetched.await.unwrap();
                }
            }
            names.extend(more);
        });
        let inserted = began.elapsed();
        let hot = best(
            &(0..ROUNDS)
                .map(|_| runtime.block_on(read(&client)))
                .collect::<Vec<_>>(),
        );
        let turn = best(
            &(0..7)
                .map(|_| {
                    runtime.block_on(async {
                        let started = spent();
                        let rounds = 20_000 / names.len() + 1;
                        for _ in 0..rounds {
                            for name in &names {
                                black_box(client.token(name).await.unwrap());
                            }
                        }
                        (spent() - started).as_secs_f64() * 1e9 / (rounds * names.len()) as f64
                    })
                })
                .collect::<Vec<_>>(),
        );
        println!(
            "{count:7}   {hot:6.1} ns   {turn:16.1} ns   {:8.2} s (with their requests)",
            inserted.as_secs_f64()
        );
    }
    drop(bench);
    let before = memory::live();
    let secret = runtime
        .block_on(client.token(RESOURCE))
        .unwrap()
        .secret()
        .len();
    drop(client);
    let freed = before - memory::live();
    println!(
        "memory per cached token          {:8} bytes (its text is {secret} of them; everything the client held, by the number of tokens)",
        freed / names.len()
    );
}

/// A thousand callers, one resource, nothing cached.
async fn cold_callers() {
    let bench = Bench::new().await;
    let client = bench.client();
    let callers: Vec<_> = (0..1_000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.token(RESOURCE).await.unwrap() })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    println!(
        "1,000 cold callers               {} metadata, {} issuance, {} token",
        bench.azure.count(Service::Metadata),
        bench.azure.count(Service::Issue),
        bench.azure.count(Service::Token)
    );
}

fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
