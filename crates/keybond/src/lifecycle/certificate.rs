//! The life of a certificate: its times, and what the events of its key mean for it.

use std::time::{Duration, SystemTime};

use super::{Input, Life, Machine, Output, SKEW, spread};

/// A certificate is replaced a day before it ends, or halfway.
const RENEW_BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate is not shown in its last moments: a handshake takes time, too.
const MARGIN: Duration = Duration::from_secs(30);

/// The times of a certificate: replaced at the smaller of a day and half its life before its end, up to a tenth
/// of that earlier or later (`jitter` from -1 to 1), so that machines which started together do not ask together.
///
/// Issuers date certificates back by some minutes, for clocks that are slow. That is no life: a certificate that
/// ends soon would be due when it is born.
pub(crate) fn life(
    obtained: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
    jitter: f64,
) -> Life {
    let dated_back = obtained.duration_since(not_before).unwrap_or_default();
    let begin = not_before + dated_back.min(SKEW);
    let whole = not_after.duration_since(begin).unwrap_or_default();
    Life {
        obtained,
        refresh_on: not_after - spread(RENEW_BEFORE.min(whole / 2), 0.1 * jitter),
        usable_until: not_after - MARGIN.min(whole / 30),
    }
}

/// What is in use: which version, and which key it certifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InUse<K> {
    pub(crate) version: u64,
    pub(crate) key: K,
}

/// The machine of one identity's certificate.
#[derive(Clone, Debug)]
pub(crate) struct Certificate<K, F> {
    machine: Machine<F>,
    in_use: Option<InUse<K>>,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event<K, F> {
    /// Somebody needs a certificate. The key is the one that the provider has now, if it has one.
    Asked { key: Option<K> },
    /// A run ended with a certificate.
    Got { in_use: InUse<K>, life: Life },
    /// A run failed; `hold` is what the service asked to wait.
    Failed {
        cause: F,
        hold: Option<Duration>,
        jitter: f64,
    },
    /// This key is dead: what certifies it is worthless.
    KeyDied(K),
    /// The certificate of this version was refused for good.
    Refused { version: u64 },
}

impl<K, F> Default for Certificate<K, F> {
    fn default() -> Self {
        Self {
            machine: Machine::default(),
            in_use: None,
        }
    }
}

impl<K: Copy + Eq, F: Clone> Certificate<K, F> {
    /// The version in use, usable or not.
    pub(crate) fn in_use(&self) -> Option<InUse<K>> {
        self.in_use
    }

    /// Takes note of what happened and says what is to be done.
    pub(crate) fn step(&mut self, now: SystemTime, event: Event<K, F>) -> Output<F> {
        match event {
            Event::Asked { key } => {
                let other = |used: InUse<K>| key.is_some_and(|key| key != used.key);
                if self.in_use.is_some_and(other) {
                    // Another key took over. The old one still signs, or there would have been word of its
                    // death, so its certificate serves until the next is there.
                    self.machine.hasten(now);
                }
                self.machine.step(now, Input::Asked)
            }
            Event::Got { in_use, life } => {
                // Runs may overtake each other; a version never goes back.
                if self.in_use.is_some_and(|now| now.version > in_use.version) {
                    return Output::Wait;
                }
                self.in_use = Some(in_use);
                self.machine.step(now, Input::Got(life))
            }
            Event::Failed {
                cause,
                hold,
                jitter,
            } => self.machine.step(
                now,
                Input::Failed {
                    cause,
                    hold,
                    jitter,
                },
            ),
            Event::KeyDied(key) => self.revoke_if(now, |used| used.key == key),
            Event::Refused { version } => self.revoke_if(now, |used| used.version == version),
        }
    }

    fn revoke_if(&mut self, now: SystemTime, hit: impl Fn(InUse<K>) -> bool) -> Output<F> {
        if self.in_use.is_some_and(hit) {
            return self.machine.step(now, Input::Revoked);
        }
        Output::Wait
    }
}
