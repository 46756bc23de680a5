//! The TPM's process killed at random instants: an error in time, then everything works again and nothing leaks.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::{SLACK, assert_signs, at_once, bed, loaded, new_key, open};
use keybond_tpm::{Hash, KeyRequest, Scheme};

const PSS: Scheme = Scheme::Pss(Hash::Sha256);
const LIMIT: Duration = Duration::from_secs(10);

/// A random instant within the time that the call of this round takes: to make a key, to load one, to sign.
fn any_instant(round: u32) -> Duration {
    let mut random = [0; 4];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    let share = f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX);
    Duration::from_millis([80, 2, 4][round as usize % 3]).mul_f64(share)
}

#[test]
fn killed_at_any_instant_the_next_call_after_a_restart_works() {
    let (mut swtpm, tpm) = bed();
    let tpm = tpm.with_timeout(LIMIT);
    let key = new_key(&tpm);
    let blob = key.blob().clone();
    let (mut failed, mut done) = (0, 0);
    for round in 0..24u32 {
        let (tpm, blob, key) = (&tpm, &blob, &key);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let began = Instant::now();
                let result = match round % 3 {
                    0 => tpm.create_key(&KeyRequest::default()).map(drop),
                    1 => tpm.load(blob).map(drop),
                    _ => key.sign_digest(PSS, &[7; 32]).map(drop),
                };
                assert!(
                    began.elapsed() < LIMIT,
                    "round {round}: {:?}",
                    began.elapsed()
                );
                result
            });
            let instant = any_instant(round);
            thread::sleep(instant);
            swtpm.kill();
            match worker.join().unwrap() {
                Ok(()) => done += 1,
                Err(error) => {
                    assert!(
                        error.retryable() || error.errno().is_some(),
                        "round {round}, killed after {instant:?}: {error}"
                    );
                    failed += 1;
                }
            }
        });
        swtpm.restart().unwrap();
        assert_signs(key, PSS);
    }
    assert!(failed > 0, "no call was hit in {done} rounds");
    drop((key, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_tpm_that_is_down_is_an_error_at_once() {
    let (mut swtpm, tpm) = bed();
    let key = new_key(&tpm);
    swtpm.kill();
    let error = at_once(|| key.sign_digest(PSS, &[7; 32]).unwrap_err());
    assert_eq!(error.code(), "tpm_not_present", "{error}");
    swtpm.restart().unwrap();
    assert_signs(&key, PSS);
}

#[test]
fn stopped_at_any_instant_and_left_behind_nothing_leaks() {
    let (swtpm, tpm) = bed();
    let key = new_key(&tpm);
    let limit = Duration::from_millis(60);
    let (hurried, hurried_key) = (tpm.with_timeout(limit), key.with_timeout(limit));
    for round in 0..21u32 {
        let (blob, hurried, hurried_key) = (key.blob(), &hurried, &hurried_key);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let began = Instant::now();
                // Done, or given up on: either is fine; that it comes back in time is the point.
                let _ = match round % 3 {
                    0 => hurried.create_key(&KeyRequest::default()).map(drop),
                    1 => hurried.load(blob).map(drop),
                    _ => hurried_key.sign_digest(PSS, &[7; 32]).map(drop),
                };
                began.elapsed()
            });
            let instant = any_instant(round);
            thread::sleep(instant);
            swtpm.stop();
            let took = worker.join().unwrap();
            swtpm.cont();
            assert!(
                took < limit + SLACK,
                "round {round}, stopped after {instant:?}: {took:?}"
            );
        });
    }
    assert_signs(&key, PSS);
    assert!(tpm.transient_handles().unwrap().len() <= 3);
    drop((key, tpm, hurried, hurried_key));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn two_clients_take_turns_on_one_socket() {
    let (swtpm, tpm) = bed();
    let key = new_key(&tpm);
    let blob = key.blob().clone();
    // swtpm serves one connection at a time; the second client gets its turn when the first has been idle.
    let other = open(&swtpm.address()).load(&blob).unwrap();
    for _ in 0..2 {
        assert_signs(&key, PSS);
        assert_signs(&other, PSS);
    }
}
