//! What the metadata service says to attestation tokens.

use std::sync::atomic::{AtomicU8, Ordering};

/// What `issuecredential` says to attestation tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttestationRule {
    /// Certifies with and without one.
    #[default]
    Optional,
    /// Refuses requests without one.
    Required,
    /// Refuses requests with one, whatever it says, and certifies without.
    Refused,
}

impl AttestationRule {
    const ALL: [Self; 3] = [Self::Optional, Self::Required, Self::Refused];
}

/// A rule that may change while requests are answered.
#[derive(Debug, Default)]
pub(crate) struct CurrentRule(AtomicU8);

impl CurrentRule {
    pub(crate) fn new(rule: AttestationRule) -> Self {
        let current = Self::default();
        current.set(rule);
        current
    }

    pub(crate) fn set(&self, rule: AttestationRule) {
        self.0.store(rule as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> AttestationRule {
        let at = usize::from(self.0.load(Ordering::Relaxed));
        AttestationRule::ALL.get(at).copied().unwrap_or_default()
    }
}
