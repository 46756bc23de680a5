//! A TPM that takes two seconds for a signature must not hold up anything else in the process.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keybond_keys::{HeldKey, KeyProvider, SignatureScheme, StateDir, StoreId, Tpm2Store};
use keybond_testkit::{Action, Shim, Swtpm};

const SLOW: Duration = Duration::from_secs(2);
const BEAT: Duration = Duration::from_millis(10);
const SLIP: Duration = Duration::from_millis(50);
const SCHEME: SignatureScheme = SignatureScheme::RsaPssSha256;

/// A way to the TPM on which signatures are slow while `slow` says so.
fn shim(tpm: &Swtpm, slow: &Arc<AtomicBool>) -> Shim {
    let is_slow = Arc::clone(slow);
    Shim::start(&tpm.socket(), move |command| {
        let sign = command.get(6..10) == Some(&[0, 0, 1, 0x5d]);
        match sign && is_slow.load(Ordering::SeqCst) {
            true => Action::Delay(SLOW),
            false => Action::Forward,
        }
    })
    .unwrap()
}

/// With the deadlines that everybody has.
fn provider(tpm: &Swtpm, shim: &Shim) -> KeyProvider {
    let state = StateDir::open(tpm.dir().join("keybond")).unwrap();
    let store = Tpm2Store::new(shim.address().parse().unwrap(), &state).unwrap();
    KeyProvider::builder().store(store).state_dir(state).build()
}

/// A key in a TPM that signs slowly from now on.
async fn bed() -> (Swtpm, Shim, Arc<HeldKey>) {
    let tpm = Swtpm::start().unwrap();
    let slow = Arc::new(AtomicBool::new(false));
    let shim = shim(&tpm, &slow);
    let key = provider(&tpm, &shim).get_or_create_key().await.unwrap();
    assert_eq!(key.store(), StoreId::Tpm2);
    slow.store(true, Ordering::SeqCst);
    (tpm, shim, key)
}

/// Seven signatures prove a key, which takes longer than the deadline for one answer.
#[tokio::test]
async fn a_slow_chip_is_no_hung_one() {
    let tpm = Swtpm::start().unwrap();
    let slow = Arc::new(AtomicBool::new(false));
    let shim = shim(&tpm, &slow);
    let made = provider(&tpm, &shim).get_or_create_key().await.unwrap();
    slow.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let opened = provider(&tpm, &shim).get_or_create_key().await.unwrap();
    assert!(began.elapsed() > 7 * SLOW, "{:?}", began.elapsed());
    assert_eq!((opened.store(), opened.id()), (StoreId::Tpm2, made.id()));
    assert_eq!(opened.schemes(), SignatureScheme::ALL);
}

/// Beats until told to stop; the result is the largest time between two beats beyond what was asked.
async fn heartbeat(stop: Arc<AtomicBool>) -> Duration {
    let (mut last, mut worst) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(BEAT).await;
        worst = worst.max(last.elapsed().saturating_sub(BEAT));
        last = Instant::now();
    }
    worst
}

/// The same beats on a thread of its own: what this machine slips by itself. It is told with a failure and excuses
/// none.
fn control(stop: &AtomicBool) -> Duration {
    let (mut last, mut worst) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(BEAT);
        worst = worst.max(last.elapsed().saturating_sub(BEAT));
        last = Instant::now();
    }
    worst
}

#[tokio::test(flavor = "current_thread")]
async fn a_heartbeat_in_the_same_runtime_does_not_slip() {
    let (_tpm, _shim, key) = bed().await;
    let mut slips = Vec::new();
    // Others use this machine, too: once in three times is proof that it is not the signature.
    for _ in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let beats = tokio::spawn(heartbeat(Arc::clone(&stop)));
        let stopped = Arc::clone(&stop);
        let machine = std::thread::spawn(move || control(&stopped));
        let began = Instant::now();
        let signature = key.sign(SCHEME, b"message").await.unwrap();
        assert!(began.elapsed() >= SLOW, "the signature was not slow");
        stop.store(true, Ordering::SeqCst);
        let worst = beats.await.unwrap();
        assert!(key.public_key().verify(SCHEME, b"message", &signature));
        let machine = machine.join().unwrap();
        if worst <= SLIP {
            return;
        }
        slips.push((worst, machine));
    }
    panic!("the heartbeat slipped each time, and the machine: {slips:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_caller_who_gives_up_is_back_at_once() {
    let (_tpm, _shim, key) = bed().await;
    let limit = Duration::from_millis(100);
    let mut late = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let given_up = tokio::time::timeout(limit, key.sign(SCHEME, b"message")).await;
        let late_by = began.elapsed().saturating_sub(limit);
        assert!(given_up.is_err(), "the signature was not slow");
        if late_by <= SLIP {
            // What was given up does not disturb what comes next.
            let signature = key.sign(SCHEME, b"again").await.unwrap();
            assert!(key.public_key().verify(SCHEME, b"again", &signature));
            return;
        }
        late.push(late_by);
    }
    panic!("never back in time: {late:?}");
}
