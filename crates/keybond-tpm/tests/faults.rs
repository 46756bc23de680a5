//! TPMs and wires that misbehave: each fault is a typed error within the deadline, and the next call works.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{SLACK, assert_signs, at_once, new_key, open};
use keybond_testkit::{Action, Shim, Swtpm, old_pss, response_code};
use keybond_tpm::{
    ErrorKind, Hash, KeyBlob, KeyRequest, LoadedKey, PssMode, Scheme, Tpm, TpmError, TpmOptions,
};

const PKCS1: Scheme = Scheme::Pkcs1(Hash::Sha256);
const PSS: Scheme = Scheme::Pss(Hash::Sha256);
const SIGN: u32 = 0x15d;
const RSA_DECRYPT: u32 = 0x159;

fn code(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().unwrap())
}

/// A TPM and a key of it, which many shims in front of it serve.
struct Bed {
    swtpm: Swtpm,
    key: KeyBlob,
}

impl Bed {
    fn new() -> Self {
        let swtpm = Swtpm::start().unwrap();
        let key = open(&swtpm.address()).create_key(&KeyRequest::default());
        Self {
            key: key.unwrap(),
            swtpm,
        }
    }
}

/// A shim that does `fault` to the first `times` TPM2_Sign commands.
fn faulty_sign(bed: &Bed, times: usize, fault: Action) -> (Shim, LoadedKey) {
    let left = Arc::new(AtomicUsize::new(times));
    let shim = Shim::start(&bed.swtpm.socket(), move |command| {
        let hit = code(command) == SIGN
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        if hit { fault.clone() } else { Action::Forward }
    })
    .unwrap();
    let key = open(&shim.address()).load(&bed.key).unwrap();
    (shim, key)
}

/// The same key with a short deadline.
fn hurried(key: &LoadedKey) -> LoadedKey {
    key.tpm()
        .with_timeout(Duration::from_millis(300))
        .load(key.blob())
        .unwrap()
}

#[test]
fn a_command_is_sent_again_while_the_tpm_asks_for_that() {
    let bed = Bed::new();
    for rc in [0x922, 0x90a, 0x908] {
        let (shim, key) = faulty_sign(&bed, 4, Action::Answer(response_code(rc)));
        let before = shim.commands();
        assert_signs(&key, PKCS1);
        assert_eq!(shim.commands() - before, 5);
    }
}

#[test]
fn a_tpm_that_never_becomes_ready_costs_the_deadline_only() {
    let bed = Bed::new();
    let (_shim, key) = faulty_sign(&bed, usize::MAX, Action::Answer(response_code(0x922)));
    let key = hurried(&key);
    let began = Instant::now();
    let error = key.sign_digest(PKCS1, &[0; 32]).unwrap_err();
    assert_eq!(error.response_code().unwrap().raw(), 0x922);
    assert!(error.retryable());
    assert!(
        began.elapsed() < Duration::from_millis(300) + SLACK,
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_broken_answer_is_an_error_and_the_next_call_works() {
    let bed = Bed::new();
    for (fault, expected) in [
        (Action::Hang, "tpm_deadline_exceeded"),
        (
            Action::Delay(Duration::from_millis(600)),
            "tpm_deadline_exceeded",
        ),
        // More is announced than comes.
        (Action::LieAboutLength(4000), "tpm_deadline_exceeded"),
        (Action::LieAboutLength(12), "tpm_malformed_answer"),
        (Action::LieAboutLength(9), "tpm_malformed_answer"),
        (Action::LieAboutLength(0), "tpm_malformed_answer"),
        (Action::LieAboutLength(4097), "tpm_malformed_answer"),
        (Action::LieAboutLength(u32::MAX), "tpm_malformed_answer"),
        (
            Action::Answer(vec![0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]),
            "tpm_malformed_answer",
        ),
        (
            Action::Answer(vec![
                0x80, 2, 0, 0, 0, 14, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
            ]),
            "tpm_malformed_answer",
        ),
        (
            Action::Answer(vec![0x80, 2, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0, 0]),
            "tpm_malformed_answer",
        ),
        (
            Action::Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            "tpm_malformed_answer",
        ),
    ] {
        let (_shim, key) = faulty_sign(&bed, 1, fault.clone());
        let key = hurried(&key);
        let began = Instant::now();
        let error = key.sign_digest(PKCS1, &[0; 32]).unwrap_err();
        assert!(
            began.elapsed() < Duration::from_millis(300) + SLACK,
            "{fault:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(error.code(), expected, "{fault:?}: {error}");
        assert!(error.retryable(), "{fault:?}: {error}");
        let patient = key.tpm().with_timeout(Duration::from_secs(20));
        assert_signs(&patient.load(key.blob()).unwrap(), PKCS1);
    }
}

#[test]
fn a_connection_that_died_is_replaced_without_the_caller_noticing() {
    let bed = Bed::new();
    for fault in [
        Action::Close,
        Action::Truncate(0),
        Action::Truncate(9),
        Action::Truncate(20),
    ] {
        let (_shim, key) = faulty_sign(&bed, 1, fault);
        assert_signs(&key, PKCS1);
    }
    let (_shim, key) = faulty_sign(&bed, usize::MAX, Action::Close);
    assert_eq!(
        key.sign_digest(PKCS1, &[0; 32]).unwrap_err().code(),
        "tpm_connection_failed"
    );
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one() {
    let bed = Bed::new();
    let twice = [response_code(0x922), response_code(0x922)].concat();
    let (_shim, key) = faulty_sign(&bed, 1, Action::Answer(twice.clone()));
    assert_signs(&key, PKCS1);
    let (_shim, key) = faulty_sign(&bed, usize::MAX, Action::Answer(twice));
    let error = key.sign_digest(PKCS1, &[0; 32]).unwrap_err();
    assert!(
        error.to_string().contains("belong to no command"),
        "{error}"
    );
}

#[test]
fn a_lost_handle_and_a_full_memory_are_made_good_once() {
    let bed = Bed::new();
    for rc in [0x902, 0x910, 0x18b, 0x184] {
        let (_shim, key) = faulty_sign(&bed, 1, Action::Answer(response_code(rc)));
        assert_signs(&key, PKCS1);
        let (_shim, key) = faulty_sign(&bed, usize::MAX, Action::Answer(response_code(rc)));
        let error = key.sign_digest(PKCS1, &[0; 32]).unwrap_err();
        assert_eq!(error.response_code().unwrap().raw(), rc);
    }
}

/// The TPM is never asked for more room than it has, which would cost all that is loaded.
#[test]
fn what_is_loaded_stays_and_room_is_made_before_it_is_needed() {
    let swtpm = Swtpm::start().unwrap();
    let shim = Shim::start(&swtpm.socket(), |_| Action::Forward).unwrap();
    // However slow the machine is, nothing is given back for being idle.
    let options = TpmOptions {
        idle_release: Some(Duration::from_secs(600)),
        ..TpmOptions::default()
    };
    let tpm = Tpm::open(&shim.address().parse().unwrap(), &options).unwrap();
    let keys: Vec<_> = (0..3).map(|_| new_key(&tpm)).collect();
    let count = |calls: &mut dyn FnMut()| {
        let before = shim.commands();
        calls();
        shim.commands() - before
    };
    let sign = |key: &LoadedKey| assert_signs(key, PKCS1);
    sign(&keys[0]);
    sign(&keys[1]);
    assert_eq!(
        count(&mut || [0, 1, 0, 1].map(|n| sign(&keys[n])).into_iter().collect()),
        4
    );
    // Flush, load, sign.
    assert_eq!(count(&mut || sign(&keys[2])), 3);
    // The most recently used are the ones that stay.
    assert_eq!(count(&mut || sign(&keys[1])), 1);
    assert_eq!(count(&mut || sign(&keys[0])), 3);
    // Flush, create.
    assert_eq!(
        count(&mut || drop(tpm.create_key(&KeyRequest::default()).unwrap())),
        2
    );
    assert_eq!(count(&mut || sign(&keys[0])), 1);
}

#[test]
fn an_old_chip_gets_its_pss_from_software() {
    let swtpm = Swtpm::start().unwrap();
    let refuses = |command: &[u8]| match old_pss(command) {
        Action::LargestSalt => Action::Answer(response_code(0x2d2)),
        other => other,
    };
    let old = Shim::start(&swtpm.socket(), old_pss).unwrap();
    let older = Shim::start(&swtpm.socket(), refuses).unwrap();
    for (shim, cause) in [
        (old, "another salt length"),
        (older, "0x2d2 TPM_RC_SCHEME (parameter 2)"),
    ] {
        let tpm = open(&shim.address());
        let sign_only = new_key(&tpm);
        assert_eq!(sign_only.pss_mode().unwrap(), PssMode::Unavailable);
        let error = sign_only.sign_digest(PSS, &[0; 32]).unwrap_err();
        assert!(error.to_string().contains(cause), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert_signs(&sign_only, PKCS1);

        let request = KeyRequest {
            raw_rsa: true,
            ..KeyRequest::default()
        };
        let key = tpm.load(&tpm.create_key(&request).unwrap()).unwrap();
        assert_eq!(key.public().attributes().bits(), 0x0006_0472);
        assert_eq!(key.pss_mode().unwrap(), PssMode::Synthesised);
        for scheme in Scheme::ALL {
            assert_signs(&key, scheme);
        }
        let chosen = tpm.create_pss_key(&KeyRequest::default()).unwrap();
        assert_eq!(chosen.pss_mode().unwrap(), PssMode::Synthesised);
    }
}

#[test]
fn raw_rsa_is_not_allowed_where_it_is_not_needed_or_does_not_help() {
    let swtpm = Swtpm::start().unwrap();
    let neither = Shim::start(&swtpm.socket(), |command| {
        match (old_pss(command), code(command)) {
            (Action::LargestSalt, _) | (_, RSA_DECRYPT) => Action::Answer(response_code(0x143)),
            (other, _) => other,
        }
    })
    .unwrap();
    for (address, mode) in [
        (swtpm.address(), PssMode::Native),
        (neither.address(), PssMode::Unavailable),
    ] {
        let key = open(&address)
            .create_pss_key(&KeyRequest::default())
            .unwrap();
        assert_eq!(key.pss_mode().unwrap(), mode);
        assert!(!key.public().attributes().decrypt());
        assert_signs(&key, PKCS1);
    }
}

#[test]
fn a_busy_tpm_proves_nothing_about_pss() {
    let bed = Bed::new();
    let (_shim, key) = faulty_sign(&bed, 1, Action::Answer(response_code(0x923)));
    assert_eq!(key.pss_mode().unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(key.pss_mode().unwrap(), PssMode::Native);
}

#[test]
fn a_tpm_that_cannot_serve_says_why_at_once() {
    let swtpm = Swtpm::start().unwrap();
    let tpm12 = vec![0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e];
    for (answer, kind, code, remedy) in [
        (
            response_code(0x101),
            ErrorKind::FailureMode,
            "tpm_failure_mode",
            "Power the machine",
        ),
        (
            response_code(0x100),
            ErrorKind::NotStarted,
            "tpm_not_started",
            "tpm2_startup -c",
        ),
        (
            response_code(0x902),
            ErrorKind::Busy,
            "tpm_out_of_memory",
            "/dev/tpmrm0",
        ),
        (
            response_code(0x903),
            ErrorKind::Busy,
            "tpm_out_of_memory",
            "/dev/tpmrm0",
        ),
        (tpm12, ErrorKind::NotSupported, "tpm_version_1_2", "TPM 2.0"),
    ] {
        let shim = Shim::start(&swtpm.socket(), move |_| Action::Answer(answer.clone())).unwrap();
        let address = shim.address().parse().unwrap();
        let error = at_once(|| Tpm::open(&address, &TpmOptions::default()).unwrap_err());
        assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
        assert!(error.remedy().contains(remedy), "{}", error.remedy());
    }
}

#[test]
fn a_hung_tpm_costs_each_caller_only_its_own_deadline() {
    let swtpm = Swtpm::start().unwrap();
    let key = new_key(&open(&swtpm.address()));
    swtpm.stop();
    std::thread::scope(|scope| {
        for limit in [100, 200, 400] {
            let key = &key;
            scope.spawn(move || {
                let limit = Duration::from_millis(limit);
                let began = Instant::now();
                let tpm = key.tpm().with_timeout(limit);
                let error = tpm.load(key.blob()).unwrap_err();
                let took = began.elapsed();
                assert!(
                    matches!(error, TpmError::DeadlineExceeded { .. }),
                    "{error}"
                );
                assert!(took >= limit && took < limit + SLACK, "{limit:?}: {took:?}");
            });
        }
    });
    swtpm.cont();
    assert_signs(&key, PKCS1);
}

#[test]
fn dropping_a_hung_tpm_does_not_hang() {
    let swtpm = Swtpm::start().unwrap();
    let tpm = open(&swtpm.address());
    let key = tpm
        .with_timeout(Duration::from_millis(100))
        .load(new_key(&tpm).blob())
        .unwrap();
    swtpm.stop();
    assert!(key.sign_digest(PKCS1, &[0; 32]).is_err());
    let began = Instant::now();
    drop((key, tpm));
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}
