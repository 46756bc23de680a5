//! The device transport on a stand-in for the kernel's resource manager: many processes, one TPM, one key file.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{SLACK, assert_signs, loaded, new_key, open};
use keybond_testkit::{Swtpm, Tpmrm0};
use keybond_tpm::{ErrorKind, Existing, ExportAttempt, Hash, KeyBlob, Scheme, TpmError};

const PSS: Scheme = Scheme::Pss(Hash::Sha256);

/// `None`, said loudly, on machines without FUSE.
fn bed(delay: Duration) -> Option<(Swtpm, Tpmrm0)> {
    let swtpm = Swtpm::start().unwrap();
    if !Path::new("/dev/fuse").exists() {
        keybond_testkit::skipped("a device with a resource manager", &"there is no /dev/fuse");
        return None;
    }
    let device = Tpmrm0::start(&swtpm.socket(), 0o600, delay).unwrap();
    Some((swtpm, device))
}

#[test]
fn keys_work_through_the_resource_manager() {
    let Some((swtpm, device)) = bed(Duration::ZERO) else {
        return;
    };
    let tpm = open(&device.address());
    let keys: Vec<_> = (0..3).map(|_| new_key(&tpm)).collect();
    for key in &keys {
        for scheme in Scheme::ALL {
            assert_signs(key, scheme);
        }
        assert!(matches!(
            key.attempt_export().unwrap(),
            ExportAttempt::Refused(_)
        ));
        key.certify(b"nonce").unwrap();
    }
    tpm.names().unwrap();
    // The storage root key and one key: certifying needed the third place.
    assert_eq!(tpm.transient_handles().unwrap().len(), 2);
    drop((keys, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn processes_share_the_tpm_and_the_key_file() {
    let Some((swtpm, device)) = bed(Duration::ZERO) else {
        return;
    };
    let key = new_key(&open(&device.address()));
    let file = swtpm.dir().join("key.pem");
    key.blob().save(&file, Existing::Keep).unwrap();
    let others: Vec<_> = (0..4).map(|_| process(&device, &file, "20")).collect();
    for _ in 0..20 {
        assert_signs(&key, PSS);
    }
    for other in others {
        let output = other.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    drop(key);
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_process_that_is_killed_leaves_nothing_behind() {
    let Some((swtpm, device)) = bed(Duration::ZERO) else {
        return;
    };
    let key = new_key(&open(&device.address()));
    let file = swtpm.dir().join("key.pem");
    key.blob().save(&file, Existing::Keep).unwrap();
    for round in 1..=5 {
        let mut other = process(&device, &file, "1000000");
        std::thread::sleep(Duration::from_millis(round * 23));
        other.kill().unwrap();
        other.wait().unwrap();
        assert_signs(&key, PSS);
    }
    assert_eq!(key.tpm().transient_handles().unwrap().len(), 2);
    drop(key);
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_tpm_that_was_reset_below_the_resource_manager_is_made_good() {
    let Some((mut swtpm, device)) = bed(Duration::ZERO) else {
        return;
    };
    let key = new_key(&open(&device.address()));
    for _ in 0..2 {
        swtpm.restart().unwrap();
        assert_signs(&key, PSS);
    }
}

#[test]
fn a_slow_device_costs_the_hurried_their_deadline_and_the_patient_the_wait() {
    let Some((_swtpm, device)) = bed(Duration::from_millis(80)) else {
        return;
    };
    let key = new_key(&open(&device.address()));
    assert_signs(&key, PSS);
    for limit in [
        Duration::ZERO,
        Duration::from_millis(5),
        Duration::from_millis(60),
    ] {
        let began = Instant::now();
        let error = key
            .with_timeout(limit)
            .sign_digest(PSS, &[7; 32])
            .unwrap_err();
        assert!(
            matches!(error, TpmError::DeadlineExceeded { .. }),
            "{error}"
        );
        assert!(began.elapsed() < limit + SLACK, "{:?}", began.elapsed());
    }
    assert_signs(&key, PSS);
}

#[test]
fn a_stopped_tpm_costs_the_deadline_and_then_works_on() {
    let Some((swtpm, device)) = bed(Duration::ZERO) else {
        return;
    };
    let key = new_key(&open(&device.address()));
    assert_signs(&key, PSS);
    swtpm.stop();
    let limit = Duration::from_millis(200);
    let began = Instant::now();
    let error = key
        .with_timeout(limit)
        .sign_digest(PSS, &[7; 32])
        .unwrap_err();
    assert!(began.elapsed() < limit + SLACK, "{:?}", began.elapsed());
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().starts_with("TPM2_Sign"), "{error}");
    swtpm.cont();
    assert_signs(&key, PSS);
}

/// This very program again, as `signs_as_told`.
fn process(device: &Tpmrm0, file: &Path, times: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "signs_as_told", "--ignored"])
        .env("KEYBOND_TEST_DEVICE", device.address())
        .env("KEYBOND_TEST_KEY", file)
        .env("KEYBOND_TEST_TIMES", times)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "run by the tests above in processes of their own"]
fn signs_as_told() {
    let told = |name: &str| env::var(name).unwrap();
    let blob = KeyBlob::load(Path::new(&told("KEYBOND_TEST_KEY"))).unwrap();
    let key = open(&told("KEYBOND_TEST_DEVICE")).load(&blob).unwrap();
    for _ in 0..told("KEYBOND_TEST_TIMES").parse().unwrap() {
        assert_signs(&key, PSS);
    }
}
