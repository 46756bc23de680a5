//! What the promises cost, as figures and ratios: `cargo bench -p keybond-keys`.
//!
//! The ratios compare with something measured in the same run on the same machine, so that they mean the same
//! everywhere, and the two sides of a ratio take turns. Reads are so short that the best round counts (the others
//! measure what else the machine does); everything else is a median over rounds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    hint::black_box,
    sync::Arc,
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
    cached_reads(&runtime);
    signatures(&runtime);
    first_callers(&runtime);
}

fn median<T: PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values.swap_remove(values.len() / 2)
}

fn best(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

fn cached_reads(runtime: &Runtime) {
    const READS: u32 = 1_000_000;
    let provider = KeyProvider::in_memory();
    runtime.block_on(provider.get_or_create_key()).unwrap();
    let read = |provider: &KeyProvider| {
        let started = Instant::now();
        for _ in 0..READS {
            black_box(provider.cached());
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
    };
    let awaited = |provider: &KeyProvider| {
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..READS {
                black_box(provider.get_or_create_key().await.unwrap());
            }
            started.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
        })
    };
    let two = |one: &KeyProvider, other: &KeyProvider| {
        thread::scope(|scope| {
            let other = scope.spawn(|| read(other));
            f64::max(read(one), other.join().unwrap())
        })
    };
    let elsewhere = KeyProvider::in_memory();
    runtime.block_on(elsewhere.get_or_create_key()).unwrap();
    let rounds = || 0..3 * ROUNDS;
    let counted = || {
        let value = Arc::new(0);
        let started = Instant::now();
        for _ in 0..READS {
            black_box(Arc::clone(&value));
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
    };
    let bare = best(rounds().map(|_| counted()));
    let alone = best(rounds().map(|_| read(&provider)));
    let by_await = best(rounds().map(|_| awaited(&provider)));
    let apart = best(rounds().map(|_| two(&provider, &elsewhere)));
    let together = best(rounds().map(|_| two(&provider, &provider)));
    println!("a reference counted up and down         {bare:8.1} ns");
    println!("cached key, 1 thread                     {alone:8.1} ns");
    println!("cached key, awaited                      {by_await:8.1} ns");
    println!("cached key, 2 threads, a key each        {apart:8.1} ns");
    println!(
        "cached key, 2 threads, one key           {together:8.1} ns   {:.2} x 1 thread",
        together / alone
    );
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
