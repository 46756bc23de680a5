//! What the promises cost, as figures and ratios: `cargo bench -p keybond-keys`.
//!
//! The ratios compare with something measured in the same run on the same machine, so that they mean the same
//! everywhere, and the two sides of a ratio take turns. Reads are so short that the best round counts (the others
//! measure what else the machine does); everything else is a median over rounds.
//!
//! An argument chooses one of `reads`, `signatures`, `callers`. `count read N` and `count await N` make N cached
//! reads for `valgrind --tool=callgrind --toggle-collect='*counted_*'`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    hint::black_box,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Waker},
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair},
};
use keybond_keys::{HeldKey, KeyProvider, SignatureScheme};
use tokio::{runtime::Runtime, sync::Barrier, task::JoinSet};

const ROUNDS: usize = 21;

fn main() {
    let runtime = Runtime::new().unwrap();
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            cached_reads(&runtime);
            signatures(&runtime);
            first_callers(&runtime);
        }
        ["reads"] => cached_reads(&runtime),
        ["signatures"] => signatures(&runtime),
        ["callers"] => first_callers(&runtime),
        ["count", how, reads] => count(&runtime, how, reads.parse().unwrap()),
        _ => panic!("expected reads, signatures, callers, count read N or count await N"),
    }
}

fn count(runtime: &Runtime, how: &str, reads: u64) {
    let provider = KeyProvider::in_memory();
    runtime.block_on(provider.get_or_create_key()).unwrap();
    match how {
        "await" => counted_awaits(&provider, reads),
        _ => counted_reads(&provider, reads),
    }
}

#[inline(never)]
fn counted_reads(provider: &KeyProvider, reads: u64) {
    for _ in 0..reads {
        black_box(provider.cached());
    }
}

#[inline(never)]
fn counted_awaits(provider: &KeyProvider, reads: u64) {
    for _ in 0..reads {
        awaited(provider);
    }
}

/// Polled by hand: a runtime of its own for each call is nobody's cost but the bench's.
fn awaited(provider: &KeyProvider) {
    let mut context = Context::from_waker(Waker::noop());
    let call = pin!(provider.get_or_create_key());
    assert!(black_box(call.poll(&mut context)).is_ready());
}

fn median<T: PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values.swap_remove(values.len() / 2)
}

/// Reads in a round: short enough that a round is often not interrupted.
const READS: u32 = 20_000;

/// The best round of `READS` calls, in nanoseconds a call.
fn best(once: impl Fn()) -> f64 {
    (0..2_000)
        .map(|_| round(&once))
        .fold(f64::INFINITY, f64::min)
}

fn round(once: &impl Fn()) -> f64 {
    let started = Instant::now();
    for _ in 0..READS {
        once();
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
}

/// [`best`] while another thread does the same, of those rounds in which that one really ran: it has to come at
/// least half as far as this one.
fn best_of_two(once: impl Fn() + Sync) -> f64 {
    const STEP: u32 = 100;
    let (done, other) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for _ in 0..STEP {
                    once();
                }
                other.fetch_add(STEP, Ordering::Relaxed);
            }
        });
        let (mut best, mut rounds) = (f64::INFINITY, 0);
        let give_up = Instant::now() + Duration::from_secs(60);
        while rounds < 1_000 && Instant::now() < give_up {
            let before = other.load(Ordering::Relaxed);
            let time = round(&once);
            if other.load(Ordering::Relaxed).wrapping_sub(before) >= READS / 2 {
                best = best.min(time);
                rounds += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        best
    })
}

fn cached_reads(runtime: &Runtime) {
    let provider = KeyProvider::in_memory();
    runtime.block_on(provider.get_or_create_key()).unwrap();
    let read = || {
        black_box(provider.cached());
    };
    let awaited = || awaited(&provider);
    let value = Arc::new(0);
    let counted = || {
        black_box(Arc::clone(&value));
    };
    let shared = best_of_two(counted);
    let bare = best(counted);
    println!("a reference counted up and down           {bare:8.1} ns");
    println!(
        "the same by 2 threads at once             {shared:8.1} ns   {:.2} x 1 thread",
        shared / bare
    );
    for (what, alone, together) in [
        ("read", best(read), best_of_two(read)),
        ("awaited", best(awaited), best_of_two(awaited)),
    ] {
        println!(
            "cached key, {what:7}                       {alone:8.1} ns   {:.2} x the reference count",
            alone / bare
        );
        println!(
            "cached key, {what:7}, by 2 threads at once {together:8.1} ns   {:.2} x 1 thread",
            together / alone
        );
    }
}

fn signatures(runtime: &Runtime) {
    const SIGNATURES: u32 = 40;
    let message = [7; 512];
    let bare = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let held = runtime
        .block_on(KeyProvider::in_memory().get_or_create_key())
        .unwrap();
    let random = SystemRandom::new();
    let sign_bare = |encoding: &'static dyn RsaEncoding| {
        let started = Instant::now();
        for _ in 0..SIGNATURES {
            let mut signature = vec![0; bare.public_modulus_len()];
            bare.sign(encoding, &random, &message, &mut signature)
                .unwrap();
            black_box(signature);
        }
        started.elapsed().as_secs_f64() * 1e6 / f64::from(SIGNATURES)
    };
    let sign_held = |key: &HeldKey, scheme| {
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..SIGNATURES {
                black_box(key.sign(scheme, &message).await.unwrap());
            }
            started.elapsed().as_secs_f64() * 1e6 / f64::from(SIGNATURES)
        })
    };
    for (scheme, encoding) in [
        (
            SignatureScheme::RsaPssSha256,
            &RSA_PSS_SHA256 as &'static dyn RsaEncoding,
        ),
        (SignatureScheme::RsaPkcs1Sha256, &RSA_PKCS1_SHA256),
    ] {
        let (bare, held): (Vec<_>, Vec<_>) = (0..ROUNDS)
            .map(|_| (sign_bare(encoding), sign_held(&held, scheme)))
            .unzip();
        let (bare, held) = (median(bare), median(held));
        println!("{scheme} by bare aws-lc-rs                  {bare:8.1} us");
        println!(
            "{scheme} by a held key in memory            {held:8.1} us   {:.3} x bare",
            held / bare
        );
    }
}

fn first_callers(runtime: &Runtime) {
    const CALLERS: usize = 1_000;
    let round = || -> Duration {
        let provider = KeyProvider::in_memory();
        runtime.block_on(async {
            let barrier = Arc::new(Barrier::new(CALLERS));
            let mut callers = JoinSet::new();
            for _ in 0..CALLERS {
                let (provider, barrier) = (provider.clone(), Arc::clone(&barrier));
                callers.spawn(async move {
                    barrier.wait().await;
                    let key = provider.get_or_create_key().await.unwrap();
                    (Instant::now(), key.id())
                });
            }
            let answers = callers.join_all().await;
            let keys_differ = answers.iter().any(|(_, id)| *id != answers[0].1);
            assert!(!keys_differ, "more than one key");
            let times = || answers.iter().map(|(at, _)| *at);
            times().max().unwrap() - times().min().unwrap()
        })
    };
    let spread = median((0..ROUNDS).map(|_| round()).collect());
    println!(
        "{CALLERS} first callers, last answer after first {:8.2} ms",
        spread.as_secs_f64() * 1e3
    );
}
