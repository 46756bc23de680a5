//! What can go wrong with keys.

use std::{borrow::Cow, sync::Arc, time::Duration};

use crate::{
    decision::Decision, refusal::Unavailable, scheme::SignatureScheme, strength::Strength,
};

/// An error of the key layer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The strongest key this machine offers is weaker than the floor.
    #[error(
        "min_strength_not_met: the strongest key here has strength {}, the floor is {need}\n{decision}",
        have.map_or("none", Strength::name)
    )]
    MinStrengthNotMet {
        /// What the key was shown to be, or what a weaker store would offer; `None` if nothing would.
        have: Option<Strength>,
        /// The floor.
        need: Strength,
        /// How the key was chosen.
        decision: Arc<Decision>,
    },
    /// No store gave a key.
    #[error("no key store gave a key\n{decision}")]
    NoStore {
        /// What each store said.
        decision: Arc<Decision>,
    },
    /// The key's store refused an operation.
    #[error("the key's store refused: {0}")]
    Refused(#[from] Unavailable),
    /// The key does not sign in this scheme.
    #[error("the key does not sign {scheme}; it offers {}", offered.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    UnsupportedScheme {
        /// The scheme asked for.
        scheme: SignatureScheme,
        /// The schemes the key was shown to support.
        offered: Vec<SignatureScheme>,
    },
    /// The digest's length does not fit the scheme.
    #[error("a digest for {scheme} has {expected} bytes, not {given}")]
    DigestLength {
        /// The scheme.
        scheme: SignatureScheme,
        /// Bytes it needs.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// The device did not answer in time.
    #[error("the key's device did not answer within {after:?}")]
    DeadlineExceeded {
        /// How long was waited.
        after: Duration,
    },
    /// Something on this side failed: a lock file, a thread.
    #[error("{what}: {cause}")]
    Local {
        /// What failed.
        what: Cow<'static, str>,
        /// Why.
        cause: String,
    },
}

impl KeyError {
    /// A stable name for programs and runbooks; MSAL's published code where one exists.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MinStrengthNotMet { .. } => "min_strength_not_met",
            Self::NoStore { .. } => "no_key_store",
            Self::Refused(_) => "key_store_refused",
            Self::UnsupportedScheme { .. } => "signature_scheme_not_supported",
            Self::DigestLength { .. } => "invalid_digest_length",
            Self::DeadlineExceeded { .. } => "key_deadline_exceeded",
            Self::Local { .. } => "key_local_failure",
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.retryable,
            Self::DeadlineExceeded { .. } => true,
            Self::NoStore { decision } | Self::MinStrengthNotMet { decision, .. } => {
                decision.refusals().any(|refusal| refusal.retryable)
            }
            Self::UnsupportedScheme { .. } | Self::DigestLength { .. } | Self::Local { .. } => {
                false
            }
        }
    }

    /// One sentence: what a human can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::MinStrengthNotMet { decision, .. } | Self::NoStore { decision } => decision
                .refusals()
                .map(|refusal| refusal.remedy.as_ref())
                .find(|remedy| !remedy.is_empty())
                .unwrap_or("Use a machine with a TPM or KeyGuard, or lower the floor knowingly.")
                .to_owned(),
            Self::Refused(refusal) => refusal.remedy.clone().into_owned(),
            Self::UnsupportedScheme { .. } => "Ask for one of the schemes the key offers.".into(),
            Self::DigestLength { .. } => "Pass the digest that belongs to the scheme.".into(),
            Self::DeadlineExceeded { .. } => {
                "Try again; if it stays, run `keybond doctor` to see whether the device answers."
                    .into()
            }
            Self::Local { .. } => {
                "Check the state directory's permissions and the system's limits.".into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        decision::{Considered, Outcome},
        refusal::Reason,
        strength::StoreId,
    };

    fn no_store(refusals: &[(StoreId, &'static str, bool)]) -> KeyError {
        let considered = refusals
            .iter()
            .map(|(store, remedy, retryable)| Considered {
                store: *store,
                tier: store.tier(),
                outcome: Outcome::Skipped(
                    Unavailable::new(*store, Reason::Failed, "broken")
                        .with_remedy(*remedy)
                        .with_retryable(*retryable),
                ),
                attempts: 1,
                elapsed: Duration::ZERO,
                details: Vec::new(),
            });
        KeyError::NoStore {
            decision: Arc::new(Decision {
                at: SystemTime::UNIX_EPOCH,
                considered: considered.collect(),
                provisional: false,
            }),
        }
    }

    #[test]
    fn the_strongest_store_that_knows_a_remedy_tells_it() {
        let error = no_store(&[
            (StoreId::KeyGuard, "", false),
            (StoreId::Tpm2, "Plug it in.", false),
            (StoreId::Memory, "Pray.", false),
        ]);
        assert_eq!(error.remedy(), "Plug it in.");
        let none = no_store(&[(StoreId::KeyGuard, "", false)]);
        assert!(none.remedy().starts_with("Use a machine with a TPM"));
    }

    #[test]
    fn one_store_that_may_answer_later_is_enough_to_try_again() {
        let hopeless = (StoreId::Tpm2, "", false);
        assert!(!no_store(&[hopeless]).retryable());
        assert!(no_store(&[hopeless, (StoreId::Memory, "", true)]).retryable());
        let late = KeyError::DeadlineExceeded {
            after: Duration::from_secs(1),
        };
        assert!(late.retryable());
    }
}
