//! After the last reference to a key in memory is dropped, no prime factor of its modulus is left in the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]
#![forbid(unsafe_code)]

use std::{
    env,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::Command,
};

use keybond_keys::{KeyProvider, SignatureScheme};

const ROLE: &str = "KEYBOND_TEST_MEMORY";
/// A prime of RSA-2048 in 64-bit words; aws-lc keeps it as such, least significant first.
const WORDS: usize = 16;

#[test]
fn a_dropped_key_leaves_no_prime_behind() {
    if let Ok(role) = env::var(ROLE) {
        let found = scan_own_memory(role == "drop");
        println!("primes found: {found}");
        return;
    }
    // The scan can find: while the key is held, its primes are there.
    let held = run("hold");
    assert!(held.contains("primes found: true"), "{held}");
    let dropped = run("drop");
    assert!(dropped.contains("primes found: false"), "{dropped}");
}

/// In a process of its own: a scan that finds something leaves copies of it.
fn run(role: &str) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "a_dropped_key_leaves_no_prime_behind",
            "--nocapture",
        ])
        .env(ROLE, role)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn scan_own_memory(drop_first: bool) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let provider = KeyProvider::in_memory();
    let key = runtime.block_on(provider.get_or_create_key()).unwrap();
    for scheme in SignatureScheme::ALL {
        runtime.block_on(key.sign(scheme, b"message")).unwrap();
    }
    let modulus = words(key.public_key().modulus());
    let kept = (!drop_first).then_some((provider, key));
    let memory = File::open("/proc/self/mem").unwrap();
    let found = writable_regions()
        .into_iter()
        .any(|(start, end)| holds_a_factor(&memory, start, end, &modulus));
    drop(kept);
    found
}

/// Big endian bytes as words, least significant first.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .rchunks(8)
        .map(|word| u64::from_be_bytes(word.try_into().unwrap()))
        .collect()
}

fn writable_regions() -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.split_whitespace().nth(1).unwrap().starts_with("rw"))
        .map(|line| {
            let (start, end) = line
                .split_whitespace()
                .next()
                .unwrap()
                .split_once('-')
                .unwrap();
            let address = |hex| u64::from_str_radix(hex, 16).unwrap();
            (address(start), address(end))
        })
        .collect()
}

fn holds_a_factor(memory: &File, start: u64, end: u64, modulus: &[u64]) -> bool {
    const CHUNK: u64 = 1 << 16;
    let overlap = (WORDS as u64 - 1) * 8;
    let mut at = start;
    while at < end {
        let length = (CHUNK + overlap).min(end - at);
        let mut bytes = vec![0; length as usize];
        // A region that has gone meanwhile is no longer in the process.
        if memory.read_exact_at(&mut bytes, at).is_err() {
            return false;
        }
        let chunk: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        if chunk
            .windows(WORDS)
            .any(|candidate| divides(candidate, modulus))
        {
            return true;
        }
        at += CHUNK;
    }
    false
}

/// Whether `factor` divides `number` exactly, by division from the least significant word on (Hensel).
fn divides(factor: &[u64], number: &[u64]) -> bool {
    // A prime of a 2048-bit modulus is odd and has its highest bit set.
    if factor[0] & 1 == 0 || factor[WORDS - 1] >> 63 == 0 {
        return false;
    }
    let mut inverse = 1_u64;
    for _ in 0..6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(factor[0].wrapping_mul(inverse)));
    }
    let mut rest = number.to_vec();
    for place in 0..number.len() - WORDS {
        let digit = rest[place].wrapping_mul(inverse);
        let mut borrow = 0_u128;
        for (offset, word) in rest[place..].iter_mut().enumerate() {
            let product = factor
                .get(offset)
                .map_or(0, |f| u128::from(*f) * u128::from(digit));
            let take = product + borrow;
            let (left, under) = word.overflowing_sub(take as u64);
            *word = left;
            borrow = (take >> 64) + u128::from(under);
        }
        if borrow != 0 {
            return false;
        }
    }
    rest.iter().all(|word| *word == 0)
}
