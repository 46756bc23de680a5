//! How often each leg was asked, and for what.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{fault::Leg, http_io::Request};

/// Requests per leg since the start or the last reset, faulty and refused ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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
    /// The most requests that reached the metadata service within one second of the emulator's
    /// clock, wherever the second begins.
    pub imds_peak_per_second: u64,
    /// Tokens asked for at the token service.
    pub token: u64,
    /// Those of `token` by resource: the scope without `/.default`.
    pub token_by_resource: BTreeMap<String, u64>,
    /// The correlation ids that the metadata service and the token service were told, by leg: each once,
    /// the newest 64 of each leg in the order of their coming.
    pub correlation_ids: BTreeMap<&'static str, Vec<String>>,
    /// Key sets and configurations asked for at the token service.
    pub discovery: u64,
    /// Statements and keys asked for at the attestation service.
    pub attestation: u64,
    /// Tokens asked for at the token service of a Service Fabric cluster.
    pub fabric: u64,
    /// Requests to the vaults.
    pub vault: u64,
    /// Requests to the vaults whose connection has a client certificate other than the one that the
    /// token names: versions of a binding were mixed, or the token was stolen.
    pub mixed_bindings: u64,
    /// Certificates asked for by renegotiation, and an answer given, be it none.
    pub renegotiations: u64,
    /// TLS handshakes that were reset on purpose.
    pub handshakes_reset: u64,
    /// Requests that followed a redirect or an endpoint into the honeypot.
    pub honeypot: u64,
    /// Connections to the honeypot, with and without requests.
    pub honeypot_connections: u64,
    /// Those of `honeypot` that carried something to steal: a client certificate, an
    /// `Authorization` header or a body.
    pub honeypot_credentials: u64,
}

/// The living counters.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    legs: [AtomicU64; 11],
    events: [AtomicU64; 7],
    resources: Mutex<BTreeMap<String, u64>>,
    correlation_ids: Mutex<BTreeMap<&'static str, Vec<String>>>,
    imds: Mutex<Rate>,
}

/// What is counted beside the requests of each leg.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    BypassCache,
    MixedBinding,
    HandshakeReset,
    Renegotiation,
    HoneypotRequest,
    HoneypotConnection,
    HoneypotCredential,
}

/// The requests of the last second, and the most there were.
#[derive(Debug, Default)]
struct Rate {
    recent: VecDeque<SystemTime>,
    peak: u64,
}

impl Counting {
    /// A request has come.
    pub(crate) fn request(&self, leg: Leg, now: SystemTime) {
        if let Some(index) = index(leg) {
            self.legs[index].fetch_add(1, Ordering::Relaxed);
        }
        if leg.is_imds() {
            lock(&self.imds).note(now);
        }
    }

    /// The request could be read: what it asks for.
    pub(crate) fn content(&self, leg: Leg, request: &Request) {
        let is = |(name, value): &(String, String)| name == "bypass_cache" && value == "true";
        if leg == Leg::Issue && request.query.iter().any(is) {
            self.event(Event::BypassCache);
        }
        self.correlation_id(leg, request);
        if leg == Leg::Token {
            let scope = url::form_urlencoded::parse(&request.body)
                .find_map(|(name, value)| (name == "scope").then(|| value.into_owned()));
            if let Some(scope) = scope {
                let resource = scope.strip_suffix("/.default").unwrap_or(&scope);
                *lock(&self.resources)
                    .entry(resource.to_owned())
                    .or_default() += 1;
            }
        }
    }

    fn correlation_id(&self, leg: Leg, request: &Request) {
        const KEPT: usize = 64;
        let header = if leg.is_imds() || leg == Leg::Fabric {
            "x-ms-client-request-id"
        } else {
            "client-request-id"
        };
        let Some(id) = request.headers.get(header).and_then(|id| id.to_str().ok()) else {
            return;
        };
        let mut legs = lock(&self.correlation_ids);
        let ids = legs.entry(leg.name()).or_default();
        if !ids.iter().any(|known| known == id) {
            if ids.len() == KEPT {
                ids.remove(0);
            }
            ids.push(id.to_owned());
        }
    }

    pub(crate) fn event(&self, event: Event) {
        self.events[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let of = |leg| index(leg).map_or(0, |index| self.legs[index].load(Ordering::Relaxed));
        let event = |event: Event| self.events[event as usize].load(Ordering::Relaxed);
        Counters {
            probe: of(Leg::Probe),
            metadata: of(Leg::Metadata),
            issue: of(Leg::Issue),
            issue_bypass_cache: event(Event::BypassCache),
            v1_probe: of(Leg::V1Probe),
            v1_token: of(Leg::V1Token),
            compute: of(Leg::Compute),
            imds_peak_per_second: lock(&self.imds).peak,
            token: of(Leg::Token),
            token_by_resource: lock(&self.resources).clone(),
            correlation_ids: lock(&self.correlation_ids).clone(),
            discovery: of(Leg::Discovery),
            attestation: of(Leg::Attestation),
            fabric: of(Leg::Fabric),
            vault: of(Leg::Vault),
            mixed_bindings: event(Event::MixedBinding),
            renegotiations: event(Event::Renegotiation),
            handshakes_reset: event(Event::HandshakeReset),
            honeypot: event(Event::HoneypotRequest),
            honeypot_connections: event(Event::HoneypotConnection),
            honeypot_credentials: event(Event::HoneypotCredential),
        }
    }

    pub(crate) fn reset(&self) {
        for counter in self.legs.iter().chain(&self.events) {
            counter.store(0, Ordering::Relaxed);
        }
        lock(&self.resources).clear();
        lock(&self.correlation_ids).clear();
        *lock(&self.imds) = Rate::default();
    }
}

impl Rate {
    fn note(&mut self, now: SystemTime) {
        const WINDOW: Duration = Duration::from_secs(1);
        let mut now = now;
        if let Some(last) = self.recent.back() {
            match last.duration_since(now) {
                // The clock was moved back: what was recent is not any more.
                Ok(ahead) if ahead >= WINDOW => self.recent.clear(),
                // Somebody who looked at the clock a little later was counted first.
                Ok(_) => now = *last,
                Err(_) => {}
            }
        }
        let old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age >= WINDOW);
        while self.recent.front().is_some_and(old) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.peak = self.peak.max(self.recent.len() as u64);
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
        Leg::Attestation => 9,
        Leg::Fabric => 10,
        Leg::Imds => return None,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_peak_is_that_of_any_second() {
        let counting = Counting::default();
        for millis in [0, 400, 900, 1_399, 1_899, 5_000] {
            let at = UNIX_EPOCH + Duration::from_millis(millis);
            counting.request(Leg::Metadata, at);
            counting.request(Leg::Vault, at);
        }
        // 400, 900 and 1399 lie within a second, as do 900, 1399 and 1899.
        assert_eq!(counting.snapshot().imds_peak_per_second, 3);
        assert_eq!(counting.snapshot().metadata, 6);
        counting.reset();
        assert_eq!(counting.snapshot(), Counters::default());
    }

    #[test]
    fn a_clock_that_goes_back_a_little_or_a_lot_does_not_hide_requests() {
        let peak = |millis: &[u64]| {
            let counting = Counting::default();
            for millis in millis {
                counting.request(Leg::Issue, UNIX_EPOCH + Duration::from_millis(*millis));
            }
            counting.snapshot().imds_peak_per_second
        };
        assert_eq!(peak(&[100, 102, 101, 103]), 4);
        assert_eq!(peak(&[90_000, 90_001, 100, 101, 102]), 3);
    }
}
