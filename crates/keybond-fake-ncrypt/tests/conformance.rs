//! The conformance suite over both tiers of Windows: everything keybond does down to the binary interface, and
//! the fake `ncrypt.dll` below it.
//!
//! Run by `cargo xtask windows`.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use keybond_cng::{NamedMutex, Provider, names};
use keybond_keys::{KeyGuardSharing, KeyGuardStore, KeyStore, PlatformStore};
use keybond_testkit::{
    FakeNcrypt,
    conformance::{Hurt, Subject, examine},
};

/// Set for the process that is killed while it makes a key: the name of the provider.
const KILLED: &str = "KEYBOND_TEST_KILLED";

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn keyguard() {
    if die_if_child() {
        return;
    }
    let store = || Box::new(KeyGuardStore::new(KeyGuardSharing::Own)) as Box<dyn KeyStore>;
    // Another boot: keys open, and do not sign.
    conforms(
        "keyguard",
        names::SOFTWARE_PROVIDER,
        "vbs=on",
        "boot",
        store,
    );
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn platform() {
    if die_if_child() {
        return;
    }
    let store = || Box::new(PlatformStore::new()) as Box<dyn KeyStore>;
    // The TPM was cleared.
    conforms(
        "platform",
        names::PLATFORM_PROVIDER,
        "tpm=on",
        "tpm-seed",
        store,
    );
}

fn conforms(
    name: &str,
    provider: &str,
    config: &str,
    epoch: &str,
    store: impl Fn() -> Box<dyn KeyStore> + Sync,
) {
    let machine = FakeNcrypt::new(config);
    let now = AtomicU32::new(1);
    let subject = Subject::new(name, store)
        .with(Hurt::DeadKey, || {
            let next = now.fetch_add(1, Ordering::SeqCst) + 1;
            machine.becomes(&format!("{config} {epoch}={next}"));
        })
        .with(Hurt::KilledCreation, || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--ignored", "--exact", name])
                .env(KILLED, provider)
                .stdout(Stdio::null());
            let mut child = keybond_testkit::spawn(&mut command).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(DIED));
        });
    let report = examine(&subject);
    println!("{report}");
    assert!(report.is_green(), "{report}");
}

const DIED: i32 = 77;

/// With the mutex in hand and the key begun, the process ends.
fn die_if_child() -> bool {
    let Ok(provider) = std::env::var(KILLED) else {
        return false;
    };
    let mutex = NamedMutex::open_widest("keybond_K_keybond-default").unwrap();
    let _held = mutex.acquire(Duration::from_secs(20)).unwrap().unwrap();
    let provider = Provider::open(&provider).unwrap();
    let _begun = provider.begin_key(Some("keybond-default"), 0).unwrap();
    // Not a return: that would release both.
    std::process::exit(DIED);
}
