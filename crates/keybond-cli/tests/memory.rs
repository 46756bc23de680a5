//! What is left of a key in the memory of the command after the key was dropped, and what a core file has of it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileExt as _, MetadataExt as _},
            net::UnixStream,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const MESSAGE: &[u8] = b"message";
/// System calls on x86_64 (syscall(2)).
const READ: &str = "0 0x0 ";
const WRITE: &str = "1 0x1 ";

/// Finds the primes in what was taken while the key was held, by the signature that they made: a prime `p` of the
/// modulus is a number for which `s^e = EM (mod p)`. Then looks in every file for each number of the private key,
/// in any 32 bytes that follow each other, in both byte orders, and prints which it found.
const ANALYSIS: &str = r#"
import hashlib, sys

E = 65537
signature, message, *files = [open(path, "rb").read() for path in sys.argv[1:]]
s = int.from_bytes(signature, "big")
info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(message).digest()
em = int.from_bytes(b"\0\1" + b"\xff" * (253 - len(info)) + b"\0" + info, "big")

held = files[0]
primes = set()
for at in range(0, len(held) - 127, 8):
    if held[at] & 1 and held[at + 127] & 0x80:
        p = int.from_bytes(held[at:at + 128], "little")
        if p not in primes and pow(s % p, E, p) == em % p:
            primes.add(p)
assert len(primes) == 2, f"{len(primes)} primes while the key is held"
p, q = sorted(primes, reverse=True)
assert pow(s, E, p * q) == em
phi = (p - 1) * (q - 1)
d = pow(E, -1, phi)
numbers = {"p": p, "q": q, "d": d, "dp": d % (p - 1), "dq": d % (q - 1),
           "qinv": pow(q, -1, p), "pinv": pow(p, -1, q)}
for name, content in zip(sys.argv[3:], files):
    found = set()
    for number, value in numbers.items():
        size = (value.bit_length() + 7) // 8
        for order in ("big", "little"):
            image = value.to_bytes(size, order)
            if any(image[at:at + 32] in content for at in range(0, size - 31, 16)):
                found.add(number)
    print(name.rsplit("/", 1)[-1], len(content) > 1_000, " ".join(sorted(found)) or "nothing")
"#;

#[test]
fn a_dropped_key_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Nobody reads what the command writes, until it has been looked at.
    let (mut ours, theirs) = full_stream();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keybond"))
        .args(["key", "sign", "RS256", "--stores", "memory"])
        .stdin(Stdio::piped())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();

    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        // Another process of this user sees nothing at all.
        let denied = loop {
            match File::open(format!("/proc/{}/mem", command.id())) {
                // It has only just been started.
                Ok(_) => thread::yield_now(),
                Err(error) => break error.kind(),
            }
        };
        command.kill().unwrap();
        command.wait().unwrap();
        assert_eq!(denied, ErrorKind::PermissionDenied);
        keybond_testkit::skipped(
            "the search for a dropped key in memory",
            &"only root can read it",
        );
        return;
    }

    // It waits for the message with the key in hand.
    wait_for(&mut command, READ);
    if may_lock(command.id()) {
        let locked = field(command.id(), "VmLck:");
        assert_ne!(locked, "0 kB", "its pages can be swapped out");
    }
    dump(command.id(), &at("held"));
    let gcore = Command::new("gcore")
        .arg("-o")
        .arg(at("core"))
        .arg(command.id().to_string())
        .output()
        .unwrap();
    assert!(gcore.status.success(), "{gcore:?}");
    fs::rename(at(&format!("core.{}", command.id())), at("core")).unwrap();
    command.stdin.take().unwrap().write_all(MESSAGE).unwrap();
    // It has signed, dropped the key and waits to be heard.
    wait_for(&mut command, WRITE);
    dump(command.id(), &at("dropped"));

    let mut written = Vec::new();
    ours.read_to_end(&mut written).unwrap();
    assert!(command.wait().unwrap().success());
    fs::write(at("signature"), &written[written.len() - 256..]).unwrap();
    fs::write(at("message"), MESSAGE).unwrap();
    let analysis = Command::new("python3")
        .args(["-c", ANALYSIS])
        .args(["signature", "message", "held", "dropped", "core"].map(at))
        .output()
        .unwrap();
    let told = String::from_utf8(analysis.stdout).unwrap();
    let errors = String::from_utf8_lossy(&analysis.stderr);
    println!("{told}");
    let mut lines = told.lines();
    let held = lines.next().unwrap_or_else(|| panic!("{errors}"));
    assert!(held.starts_with("held True "), "{held}");
    for number in ["p", "q", "dp", "dq", "qinv"] {
        let found = held.split(' ').any(|word| word == number);
        assert!(found, "{number} could not be found: {held}");
    }
    assert_eq!(lines.next(), Some("dropped True nothing"));
    assert_eq!(lines.next(), Some("core True nothing"));
}

/// A stream that takes no more bytes, and the end from which they can be read.
fn full_stream() -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    loop {
        match theirs.write(&[0; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    theirs.set_nonblocking(false).unwrap();
    (ours, theirs)
}

/// Waits until the main thread is in that system call.
fn wait_for(command: &mut Child, call: &str) {
    let give_up = Instant::now() + Duration::from_secs(60);
    let path = format!("/proc/{}/syscall", command.id());
    while !fs::read_to_string(&path).unwrap().starts_with(call) {
        assert!(command.try_wait().unwrap().is_none(), "it ended");
        assert!(Instant::now() < give_up, "it never came to {call}");
        thread::yield_now();
    }
}

/// Whether the process may lock as much memory as it likes (capabilities(7), `CAP_IPC_LOCK`).
fn may_lock(process: u32) -> bool {
    let effective = u64::from_str_radix(&field(process, "CapEff:"), 16).unwrap();
    effective >> 14 & 1 == 1
}

fn field(process: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().trim().to_owned()
}

/// Writes everything the process could have written a key to into a file; pages full of zeros are left out.
fn dump(process: u32, to: &Path) {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut file = File::create(to).unwrap();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let mut page = [0; 4096];
        for at in (address(start)..address(end)).step_by(page.len()) {
            if memory.read_exact_at(&mut page, at).is_ok() && page != [0; 4096] {
                file.write_all(&page).unwrap();
            }
        }
    }
}
