//! The conformance suite over the tpm2 store: on a socket, and on a stand-in for the kernel's /dev/tpmrm0.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use keybond_keys::{KeyStore, StateDir, Tpm2Store};
use keybond_testkit::{
    Swtpm, Tpmrm0,
    conformance::{Hurt, Outcome, Subject, examine},
};

/// Examines the store over two TPMs at these addresses; the second one takes the first one's place when it is
/// asked to be foreign.
fn conforms(name: &str, tpm: &Swtpm, addresses: [String; 2]) {
    let state = tpm.dir().join("keybond");
    let dir = || StateDir::open(&state).unwrap();
    let exchanged = AtomicBool::new(false);
    let connect = || -> Box<dyn KeyStore> {
        let address = &addresses[usize::from(exchanged.load(Ordering::SeqCst))];
        Box::new(Tpm2Store::new(address.parse().unwrap(), &dir()).unwrap())
    };
    let keys = || dir().subdirectory("keys").unwrap();
    let subject = Subject::new(name, connect)
        .with(Hurt::CorruptRecord, || {
            keys().write("default.pem", b"not a key").unwrap();
        })
        .with(Hurt::ForeignDevice, || {
            exchanged.store(true, Ordering::SeqCst);
        })
        .with(Hurt::KilledCreation, || {
            // What a writer leaves that is killed before its file is put in place.
            fs::write(state.join("keys/.default.pem.0123.tmp"), b"half a k").unwrap();
        });
    let report = examine(&subject);
    assert!(report.is_green(), "{report}");
    let passed = |row: &&keybond_testkit::conformance::Row| row.outcome == Outcome::Passed;
    let passed = report.rows.iter().filter(passed).count();
    assert_eq!(passed, report.rows.len(), "a check did not apply\n{report}");
}

#[test]
fn over_a_socket() {
    let (tpm, other) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
    conforms("tpm2", &tpm, [tpm.address(), other.address()]);
}

#[test]
fn over_a_device_with_a_resource_manager() {
    let (tpm, other) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
    let device = |tpm: &Swtpm| Tpmrm0::start(&tpm.socket(), 0o660, Duration::ZERO);
    let (device, exchanged) = match (device(&tpm), device(&other)) {
        (Ok(device), Ok(exchanged)) => (device, exchanged),
        (Err(error), _) | (_, Err(error)) => {
            assert!(
                !std::path::Path::new("/dev/fuse").exists(),
                "/dev/fuse is there, but: {error}"
            );
            keybond_testkit::skipped("tpm2 over a device with a resource manager", &error);
            return;
        }
    };
    conforms("tpmrm0", &tpm, [device.address(), exchanged.address()]);
}
