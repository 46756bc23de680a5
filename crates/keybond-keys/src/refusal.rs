//! Why a store cannot be used: typed, with the native code and what a human can do about it.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

use crate::strength::StoreId;

/// A store's refusal: why it has no key to offer, or why its key cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{store}: {reason}: {detail}")]
pub struct Unavailable {
    /// The store that refused.
    pub store: StoreId,
    /// The kind of refusal.
    pub reason: Reason,
    /// What happened, in words.
    pub detail: String,
    /// The code the device or operating system gave, if any.
    pub native: Option<NativeCode>,
    /// One sentence: what a human can do about it. Empty if nothing needs doing.
    pub remedy: Cow<'static, str>,
    /// Whether the same request may succeed a little later.
    pub retryable: bool,
}

impl Unavailable {
    /// A refusal without code or remedy; retryable where the reason usually is.
    pub fn new(store: StoreId, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            store,
            reason,
            detail: detail.into(),
            native: None,
            remedy: Cow::Borrowed(""),
            retryable: reason.usually_retryable(),
        }
    }

    /// Adds the code that the device or operating system gave.
    #[must_use]
    pub fn with_native(mut self, native: NativeCode) -> Self {
        self.native = Some(native);
        self
    }

    /// Adds one sentence on what to do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Overrides whether the same request may succeed a little later.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// This build or platform has no such store, or the device cannot do what a key needs.
    NotSupported,
    /// There is no such device or service on this machine.
    NotPresent,
    /// The device is there but this user may not use it.
    PermissionDenied,
    /// The device is serving somebody else, or is out of memory for now.
    Busy,
    /// The device did not answer in time.
    TimedOut,
    /// What the store keeps for this key cannot be understood.
    Corrupt,
    /// The key belongs to another device, or the device was cleared.
    Foreign,
    /// The evidence is below what the tier demands.
    TooWeak,
    /// Configuration excludes this store.
    DisabledByPolicy,
    /// The key exists but no longer works.
    Dead,
    /// The device failed in a way that fits nothing above.
    Failed,
}

impl Reason {
    /// The name used in output and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSupported => "not_supported",
            Self::NotPresent => "not_present",
            Self::PermissionDenied => "permission_denied",
            Self::Busy => "busy",
            Self::TimedOut => "timed_out",
            Self::Corrupt => "corrupt",
            Self::Foreign => "foreign",
            Self::TooWeak => "too_weak",
            Self::DisabledByPolicy => "disabled_by_policy",
            Self::Dead => "dead",
            Self::Failed => "failed",
        }
    }

    const fn usually_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::TimedOut)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A code from below, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NativeCode {
    /// Whose code: `errno`, `tpm`, `hresult`, `ckr`.
    pub space: &'static str,
    /// The number.
    pub code: i64,
    /// Its symbolic name, if known.
    pub name: Option<Cow<'static, str>>,
}

impl NativeCode {
    /// The code of an I/O error, if the operating system gave one.
    pub fn from_io(error: &std::io::Error) -> Option<Self> {
        Some(Self {
            space: "errno",
            code: error.raw_os_error()?.into(),
            name: None,
        })
    }
}

impl fmt::Display for NativeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.space {
            "errno" => write!(f, "errno {}", self.code)?,
            space => write!(f, "{space} {:#x}", self.code)?,
        }
        match &self.name {
            Some(name) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn codes_are_printed_in_the_base_that_people_look_them_up_in() {
        let busy = NativeCode::from_io(&io::Error::from_raw_os_error(16)).unwrap();
        assert_eq!(busy.to_string(), "errno 16");
        assert!(NativeCode::from_io(&io::Error::other("of our own")).is_none());
        let tpm = NativeCode {
            space: "tpm",
            code: 0x18b,
            name: Some("TPM_RC_HANDLE".into()),
        };
        assert_eq!(tpm.to_string(), "tpm 0x18b TPM_RC_HANDLE");
    }
}
