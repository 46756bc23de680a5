//! The ways to a TPM: device, Unix socket, TCP; and how each says at once that there is none.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    env,
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{SLACK, assert_signs, at_once, loaded, new_key, open};
use keybond_testkit::{Device, Swtpm};
use keybond_tpm::{ErrorKind, Hash, Scheme, Tpm, TpmAddress, TpmError, TpmOptions};

const PSS: Scheme = Scheme::Pss(Hash::Sha256);
const NOBODY: u32 = 65534;

fn refused(address: &str) -> TpmError {
    let address = address.parse().unwrap();
    at_once(|| Tpm::open(&address, &TpmOptions::default()).unwrap_err())
}

#[test]
fn a_device_serves() {
    let swtpm = Swtpm::start().unwrap();
    let device = Device::start(&swtpm.socket()).unwrap();
    let tpm = open(&device.address());
    let key = new_key(&tpm);
    for scheme in Scheme::ALL {
        assert_signs(&key, scheme);
    }
    drop((key, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_device_that_hangs_costs_the_deadline() {
    let swtpm = Swtpm::start().unwrap();
    let device = Device::start(&swtpm.socket()).unwrap();
    let tpm = open(&device.address()).with_timeout(Duration::from_millis(150));
    swtpm.stop();
    let began = Instant::now();
    let error = tpm.srk_name().unwrap_err();
    let took = began.elapsed();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(
        error.to_string().starts_with("TPM2_CreatePrimary:"),
        "{error}"
    );
    assert!(took < Duration::from_millis(150) + SLACK, "{took:?}");
    swtpm.cont();
}

#[test]
fn a_tcp_socket_serves() {
    let swtpm = Swtpm::start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let socket = swtpm.socket();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, tpm) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), tpm.try_clone().unwrap());
            thread::spawn(move || pump(&mut from, &mut to, 4096));
            let (mut from, mut to) = (tpm, client);
            // Byte by byte: a response may arrive in as many pieces as there can be.
            thread::spawn(move || pump(&mut from, &mut to, 1));
        }
    });
    let tpm = open(&address);
    assert_signs(&new_key(&tpm), PSS);
}

fn pump(from: &mut impl Read, to: &mut impl Write, at_once: usize) {
    let mut buffer = vec![0; at_once];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

#[test]
fn no_tpm_is_known_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("tpmrm0");
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let closed = dir.path().join("sock");
    drop(UnixListener::bind(&closed).unwrap());
    for address in [
        format!("device:{}", absent.display()),
        format!("unix:{}", absent.display()),
        format!("unix:{}", closed.display()),
        format!("tcp:{free}"),
    ] {
        let error = refused(&address);
        assert_eq!(error.kind(), ErrorKind::NotPresent, "{error}");
        assert!(error.errno().is_some());
        assert!(!error.retryable());
        assert!(error.to_string().starts_with(&address), "{error}");
        assert!(!error.remedy().is_empty());
    }
    let off = Tpm::open(&TpmAddress::Off, &TpmOptions::default()).unwrap_err();
    assert_eq!(off.kind(), ErrorKind::Off);
}

#[test]
fn what_is_not_a_tpm_is_an_error_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tpmrm0");
    fs::write(&file, b"not a TPM").unwrap();
    let error = refused(&format!("device:{}", file.display()));
    assert!(
        matches!(
            error,
            TpmError::Malformed { .. } | TpmError::Connection { .. }
        ),
        "{error}"
    );
    refused("device:/dev/null");
    let zero = refused("device:/dev/zero");
    assert_eq!(zero.code(), "tpm_malformed_answer", "{zero}");
    let directory = refused(&format!("device:{}", dir.path().display()));
    assert_eq!(directory.kind(), ErrorKind::NotPresent, "{directory}");
}

#[test]
fn a_forbidden_device_names_owner_group_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let device = dir.path().join("tpmrm0");
    File::create(&device).unwrap();
    let meta = fs::metadata(&device).unwrap();
    assert_eq!(
        meta.uid(),
        0,
        "this test must run as root, to become somebody else"
    );
    for (mode, group, expected) in [
        (
            0o660,
            "tss",
            "Run `sudo usermod -aG tss nobody` and log in again.",
        ),
        (0o600, "tss", "Run `sudo setfacl -m u:$(id -un):rw "),
        (0o660, "root", "Run `sudo setfacl -m u:$(id -un):rw "),
    ] {
        let gid = group_id(group);
        std::os::unix::fs::chown(&device, Some(0), Some(gid)).unwrap();
        fs::set_permissions(&device, Permissions::from_mode(mode)).unwrap();
        let text = as_nobody(dir.path(), &device);
        let path = device.display();
        let first = format!(
            "{path} may not be opened by user nobody: it belongs to root:{group}, mode {mode:04o}"
        );
        assert!(text.contains(&first), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("PermissionDenied"), "{text}");
    }
}

fn group_id(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let line = groups
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")))
        .unwrap();
    line.split(':').nth(2).unwrap().parse().unwrap()
}

/// What `opened_as_nobody` prints when this very program runs as user nobody.
fn as_nobody(dir: &Path, device: &Path) -> String {
    let program = dir.join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    let output = loop {
        let output = Command::new(&program)
            .args(["--exact", "opened_as_nobody", "--ignored", "--nocapture"])
            .env("KEYBOND_TEST_DEVICE", device)
            .current_dir(dir)
            .uid(NOBODY)
            .gid(NOBODY)
            .output();
        match output {
            // Another test was between fork and exec while the copy was written.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
            other => break other.unwrap(),
        }
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "run by a_forbidden_device_names_owner_group_and_remedy as another user"]
fn opened_as_nobody() {
    let device = env::var("KEYBOND_TEST_DEVICE").unwrap();
    let error = refused(&format!("device:{device}"));
    println!("{error}\n{}\n{:?}", error.remedy(), error.kind());
    assert_eq!(
        io::Error::from_raw_os_error(error.errno().unwrap()).kind(),
        io::ErrorKind::PermissionDenied
    );
}
