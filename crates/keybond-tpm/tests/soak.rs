//! Thousands of signatures in a row, with a second session idle beside: each one verifies, and nothing is left
//! behind in the TPM or in memory. `KEYBOND_SOAK` says how many (`cargo xtask soak`: 70,000).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{assert_signs, loaded, new_key, open, verifies};
use keybond_testkit::{Swtpm, Tpmrm0};
use keybond_tpm::{Hash, Scheme};

const COUNT: u32 = 2_000;
const SCHEMES: [Scheme; 4] = [
    Scheme::Pss(Hash::Sha256),
    Scheme::Pkcs1(Hash::Sha256),
    Scheme::Pss(Hash::Sha384),
    Scheme::Pss(Hash::Sha512),
];

/// The memory of this process that is in use, in KiB.
fn memory() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let resident = pages.split(' ').nth(1).unwrap();
    resident.parse::<u64>().unwrap() * 4
}

#[test]
fn thousands_of_signatures_leave_nothing_behind() {
    let count = match std::env::var("KEYBOND_SOAK") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => COUNT,
    };
    let swtpm = Swtpm::start().unwrap();
    // Two sessions at once need a resource manager; on a bare socket they take turns.
    let device = Tpmrm0::start(&swtpm.socket(), 0o600, Duration::ZERO);
    let (address, through) = match &device {
        Ok(device) => (device.address(), "a resource manager"),
        Err(error) => {
            keybond_testkit::skipped(
                "the soak through a resource manager (a socket serves)",
                &error,
            );
            (swtpm.address(), "a socket")
        }
    };
    let (tpm, idle) = (open(&address), open(&address));
    let (key, idle_key) = (new_key(&tpm), new_key(&idle));
    assert_signs(&idle_key, SCHEMES[0]);

    let sign = |round: u32| {
        let message = round.to_be_bytes();
        let scheme = SCHEMES[round as usize % SCHEMES.len()];
        let signature = key
            .sign_digest(scheme, &scheme.hash().digest(&message))
            .unwrap_or_else(|error| panic!("signature {round}: {error}"));
        assert!(
            verifies(key.public(), scheme, &message, &signature),
            "signature {round}, {scheme}"
        );
    };
    // Buffers and caches have their size after this.
    let warm = count / 10;
    (0..warm).for_each(sign);
    let (before, began) = (memory(), Instant::now());
    (warm..count).for_each(sign);
    let (grown, took) = (memory().saturating_sub(before), began.elapsed());
    eprintln!(
        "{count} signatures through {through}: {:.2} ms each, memory grew by {grown} KiB",
        took.as_secs_f64() * 1e3 / f64::from((count - warm).max(1))
    );
    assert!(grown < 2048, "memory grew by {grown} KiB");
    assert!(tpm.transient_handles().unwrap().len() <= 3);

    // The other one slept all the while.
    assert_signs(&idle_key, SCHEMES[0]);
    drop((key, idle_key, tpm, idle));
    drop(device);
    assert!(loaded(&swtpm).is_empty());
}
