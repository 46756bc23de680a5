//! What a Windows call answered, and what that means for us.

use crate::codes::Hresult;

/// A Windows call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {code}")]
pub struct CngError {
    call: &'static str,
    code: Hresult,
}

/// What a failure means, as far as a decision depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There certainly is no such key, property or certificate.
    NotFound,
    /// There is one of this name already.
    Exists,
    /// The key is there, but was sealed to an earlier boot and can never be used again.
    Undecryptable,
    /// This Windows, provider or configuration cannot do it.
    NotSupported,
    /// This user or session may not.
    PermissionDenied,
    /// A service in between (KeyIso, TBS) is not running.
    ServiceDown,
    /// Somebody else uses it right now, or memory or the device is exhausted for now.
    Busy,
    /// The user has no profile, or one that does not stay.
    NoProfile,
    /// The provider or its device is not there.
    NoDevice,
    /// There is no room.
    Storage,
    /// The call was not made as Windows wants it: a mistake on our side, or a system that knows less.
    Invalid,
    /// A code that is not known to mean anything above.
    Other,
}

impl CngError {
    /// The failure of `call` with `code`.
    pub const fn new(call: &'static str, code: Hresult) -> Self {
        Self { call, code }
    }

    /// The call that failed.
    pub const fn call(&self) -> &'static str {
        self.call
    }

    /// The code it gave.
    pub const fn code(&self) -> Hresult {
        self.code
    }

    /// What the code means.
    pub fn kind(&self) -> ErrorKind {
        self.code.kind()
    }

    /// Whether the same call may succeed a little later.
    pub fn retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Busy | ErrorKind::ServiceDown)
    }

    /// One sentence: what a human can do about it; empty if nothing needs doing.
    pub fn remedy(&self) -> &'static str {
        match self.kind() {
            ErrorKind::PermissionDenied => {
                "Run as the user that made the key, or delete the key as that user."
            }
            ErrorKind::ServiceDown => {
                "Start the services CNG Key Isolation (KeyIso) and TPM Base Services (TBS)."
            }
            ErrorKind::NoProfile => {
                "Let the account have a profile that is loaded: for an IIS pool set Load User Profile, \
                 for a task or service log on once as that user."
            }
            ErrorKind::NoDevice => {
                "Turn on the TPM (2.0) in firmware, or give the VM a virtual TPM."
            }
            ErrorKind::Storage => "Make room on the system drive or delete keys that nobody uses.",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bits: u32) -> ErrorKind {
        CngError::new("call", Hresult::from_bits(bits)).kind()
    }

    #[test]
    fn only_two_kinds_say_that_a_key_is_absent_or_lost() {
        for absent in [0x8009_0016, 0x8009_000d, 0x8009_0011] {
            assert_eq!(kind(absent), ErrorKind::NotFound);
        }
        assert_eq!(kind(0x8009_003a), ErrorKind::Undecryptable);
        // Access denied, sharing violation, no service, no profile, asks a human, unknown.
        for alive in [
            0x8009_0010,
            0x8007_0005,
            0x8007_0020,
            0x8007_06ba,
            0x8007_0426,
            0x8007_0002,
            0x8009_0022,
            0x8009_9999,
        ] {
            assert!(
                !matches!(kind(alive), ErrorKind::NotFound | ErrorKind::Undecryptable),
                "{alive:#x}"
            );
        }
    }

    #[test]
    fn what_may_pass_is_retryable() {
        let retryable = |bits| CngError::new("call", Hresult::from_bits(bits)).retryable();
        assert!(retryable(0x8007_0020) && retryable(0x8007_06ba) && retryable(0x8028_0922));
        assert!(!retryable(0x8009_0010) && !retryable(0x8009_0030) && !retryable(0x8009_0016));
    }
}
