//! How often each leg was asked.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::fault::Leg;

/// Requests per leg since the start or the last reset, faulty and refused ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Metadata requests without the `Metadata` header: probes for version 2.
    pub probe: u64,
    /// Platform metadata.
    pub metadata: u64,
    /// Certificates asked for.
    pub issue: u64,
    /// Those of `issue` that said `bypass_cache=true`.
    pub issue_bypass_cache: u64,
    /// Version 1 token requests without the `Metadata` header: probes for version 1.
    pub v1_probe: u64,
    /// Bearer tokens asked for by version 1.
    pub v1_token: u64,
    /// Instance metadata.
    pub compute: u64,
    /// Tokens asked for at the token service.
    pub token: u64,
    /// Key sets and configurations asked for at the token service.
    pub discovery: u64,
    /// Requests to the vault.
    pub vault: u64,
    /// Requests that followed a redirect into the trap.
    pub honeypot: u64,
}

/// The living counters.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    legs: [AtomicU64; 9],
    bypass_cache: AtomicU64,
    honeypot: AtomicU64,
}

impl Counting {
    pub(crate) fn request(&self, leg: Leg) {
        if let Some(index) = index(leg) {
            self.legs[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn bypass_cache(&self) {
        self.bypass_cache.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn honeypot(&self) {
        self.honeypot.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let of = |leg| index(leg).map_or(0, |index| self.legs[index].load(Ordering::Relaxed));
        Counters {
            probe: of(Leg::Probe),
            metadata: of(Leg::Metadata),
            issue: of(Leg::Issue),
            issue_bypass_cache: self.bypass_cache.load(Ordering::Relaxed),
            v1_probe: of(Leg::V1Probe),
            v1_token: of(Leg::V1Token),
            compute: of(Leg::Compute),
            token: of(Leg::Token),
            discovery: of(Leg::Discovery),
            vault: of(Leg::Vault),
            honeypot: self.honeypot.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reset(&self) {
        for counter in self.legs.iter().chain([&self.bypass_cache, &self.honeypot]) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

fn index(leg: Leg) -> Option<usize> {
    Some(match leg {
        Leg::Probe => 0,
        Leg::Metadata => 1,
        Leg::Issue => 2,
        Leg::V1Probe => 3,
        Leg::V1Token => 4,
        Leg::Compute => 5,
        Leg::Token => 6,
        Leg::Discovery => 7,
        Leg::Vault => 8,
        Leg::Imds => return None,
    })
}
