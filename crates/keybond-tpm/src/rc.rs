//! Response codes: kept as they came, explained for humans (TPM 2.0 Library Part 2, §6.6).

use std::fmt;

use tpm2_protocol::data::{TpmRc, TpmRcBase, TpmRcIndex};

/// What a TPM, or the layer in front of it, answered instead of success. The number is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResponseCode(u32);

/// The part of the command that a [`ResponseCode`] complains about, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The n-th parameter.
    Parameter(u8),
    /// The n-th handle.
    Handle(u8),
    /// The n-th session.
    Session(u8),
}

impl ResponseCode {
    /// TPM2_Startup has not been run.
    pub const INITIALIZE: Self = Self(0x100);
    /// The TPM is in failure mode.
    pub const FAILURE: Self = Self(0x101);
    /// No room for another loaded object.
    pub const OBJECT_MEMORY: Self = Self(0x902);
    /// No room for another session.
    pub const SESSION_MEMORY: Self = Self(0x903);
    /// Locked against guessing.
    pub const LOCKOUT: Self = Self(0x921);

    /// Wraps a raw code.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The code as it came.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The code without parameter, handle or session number and without a software layer's mark, to compare
    /// with: 0x1df and 0x9f both give 0x9f.
    pub fn base(self) -> u32 {
        let code = self.0 & 0xfff;
        if code & 0x80 != 0 { code & 0xbf } else { code }
    }

    /// The name in the specification, such as `TPM_RC_INTEGRITY`; `None` for codes it does not define.
    pub fn name(self) -> Option<String> {
        TpmRcBase::try_from(self.base())
            .ok()
            .map(|base| base.to_string())
    }

    /// The parameter, handle or session complained about.
    pub fn subject(self) -> Option<Subject> {
        match TpmRc::try_from(self.0 & 0xfff) {
            Ok(TpmRc::Fmt1(code)) => match code.index? {
                TpmRcIndex::Parameter(n) => Some(Subject::Parameter(n)),
                TpmRcIndex::Handle(n) => Some(Subject::Handle(n)),
                TpmRcIndex::Session(n) => Some(Subject::Session(n)),
            },
            _ => None,
        }
    }

    /// Whether the command was not carried out and is to be sent again as it is: TESTING, YIELDED, RETRY.
    pub fn wants_resend(self) -> bool {
        matches!(self.base(), 0x90a | 0x908 | 0x922)
    }

    /// Whether a handle is not (or no longer) loaded.
    pub(crate) fn lost_handle(self) -> bool {
        match self.base() {
            0x8b | 0x910..=0x916 => true,
            // libtpms, of a transient handle that names nothing.
            0x84 => matches!(self.subject(), Some(Subject::Handle(_))),
            _ => false,
        }
    }

    /// Whether the TPM says that this key and scheme do not go together, as opposed to not now: ASYMMETRIC,
    /// ATTRIBUTES, HASH, VALUE of a parameter, MGF, MODE, SCHEME, SELECTOR, KEY, COMMAND_CODE.
    pub(crate) fn refuses_scheme(self) -> bool {
        match self.base() {
            0x84 => matches!(self.subject(), Some(Subject::Parameter(_))),
            code => matches!(code, 0x81..=0x83 | 0x88 | 0x89 | 0x92 | 0x98 | 0x9c | 0x143),
        }
    }

    /// Whether the same command may succeed a little later.
    pub fn retryable(self) -> bool {
        matches!(
            self.base(),
            0x901..=0x906 | 0x908..=0x90a | 0x910..=0x916 | 0x920 | 0x921 | 0x922 | 0x923
        )
    }

    /// What it means, in words; the empty string where the name says it all.
    pub fn meaning(self) -> &'static str {
        match self.base() {
            0x100 => "the TPM has not been started up",
            0x101 => "the TPM is in failure mode: its self-test failed",
            0x82 => "the key's attributes do not allow this",
            0x84 => "a value is out of range or not supported",
            0x8b => "the handle does not name a loaded object",
            0x8e => "the authorization (PIN) is wrong, and wrong attempts are counted",
            0x92 => "the key does not sign with this scheme, or the TPM does not implement it",
            0x98 => "the TPM does not implement this algorithm or parameter",
            0x9a => "the command was too short",
            0x9c => "the key cannot be used for this",
            0x9d => "the policy of the object was not satisfied",
            0x9f => "the private part does not belong to this parent, or it was damaged",
            0xa2 => "the authorization (PIN) is wrong",
            0x120 => "the command is disabled",
            0x124 | 0x12f => "this kind of authorization may not be used for this object",
            0x143 => "the TPM does not implement this command",
            0x902 => "there is no room for another loaded object",
            0x903 => "there is no room for another session",
            0x904 => "the TPM is out of memory",
            0x90a => "the TPM is testing itself",
            0x908 | 0x922 => "the TPM could not start the command and asks to send it again",
            0x910..=0x916 => "the object is no longer loaded",
            0x920 | 0x923 => "the TPM cannot write its memory right now",
            0x921 => "too many wrong authorizations: locked out for a time",
            _ => "",
        }
    }

    /// One sentence: what a human can do about it. Empty if nothing sensible is known.
    pub fn remedy(self) -> &'static str {
        match self.base() {
            0x100 => "Use the kernel's /dev/tpmrm0, or run `tpm2_startup -c`.",
            0x101 => "Power the machine off and on; if it stays, the TPM is broken.",
            0x8e | 0xa2 => "Give the PIN that the key was made with.",
            0x902..=0x904 => {
                "Use /dev/tpmrm0, which shares the TPM's memory, or free it with `tpm2_flushcontext -t`."
            }
            0x921 => "Wait until the lockout ends, or reset it with `tpm2_dictionarylockout -c`.",
            0x9f => {
                "Compare the key's recorded SRK and EK names with this TPM's: another or cleared TPM, or a damaged file."
            }
            0x90a | 0x908 | 0x922 | 0x920 | 0x923 => "Try again.",
            _ => "",
        }
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        if let Some(name) = self.name() {
            write!(f, " {name}")?;
        }
        match self.subject() {
            Some(Subject::Parameter(n)) => write!(f, " (parameter {n})")?,
            Some(Subject::Handle(n)) => write!(f, " (handle {n})")?,
            Some(Subject::Session(n)) => write!(f, " (session {n})")?,
            None => {}
        }
        match (self.0 >> 16) & 0xff {
            0 => {}
            // The TSS layer of the resource manager, whose codes the kernel's /dev/tpmrm0 uses too.
            11 => f.write_str(" (from the resource manager)")?,
            layer => write!(f, " (from software layer {layer})")?,
        }
        match self.meaning() {
            "" => Ok(()),
            meaning => write!(f, ": {meaning}"),
        }
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseCode({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_explained() {
        for (raw, text) in [
            (
                0x1df,
                "0x1df TPM_RC_INTEGRITY (parameter 1): the private part does not belong to this parent, or it was damaged",
            ),
            (
                0x98e,
                "0x98e TPM_RC_AUTH_FAIL (session 1): the authorization (PIN) is wrong, and wrong attempts are counted",
            ),
            (
                0x18b,
                "0x18b TPM_RC_HANDLE (handle 1): the handle does not name a loaded object",
            ),
            (
                0x921,
                "0x921 TPM_RC_LOCKOUT: too many wrong authorizations: locked out for a time",
            ),
            (
                0xb0143,
                "0xb0143 TPM_RC_COMMAND_CODE (from the resource manager): the TPM does not implement this command",
            ),
            (0x7ff, "0x7ff"),
        ] {
            assert_eq!(ResponseCode::new(raw).to_string(), text);
        }
    }

    #[test]
    fn a_lost_handle_is_no_refusal_of_a_scheme() {
        for lost in [0x18b, 0x910, 0x184] {
            let code = ResponseCode::new(lost);
            assert!(code.lost_handle() && !code.refuses_scheme(), "{code}");
        }
        for refusal in [0x2d2, 0x2c4, 0x19c, 0x182, 0x143] {
            let code = ResponseCode::new(refusal);
            assert!(code.refuses_scheme() && !code.lost_handle(), "{code}");
        }
        for neither in [0x101, 0x921, 0x98e, 0x902, 0x1df] {
            let code = ResponseCode::new(neither);
            assert!(!code.refuses_scheme() && !code.lost_handle(), "{code}");
        }
    }

    #[test]
    fn every_number_can_be_printed() {
        for raw in (0..=0xffff).chain([u32::MAX, 0xb_0143, 0x8000_0000]) {
            assert!(ResponseCode::new(raw).to_string().starts_with("0x"));
        }
    }

    #[test]
    fn only_three_codes_ask_for_the_same_command_again() {
        let resend: Vec<_> = (0..=0xfffu32)
            .filter(|raw| ResponseCode::new(*raw).wants_resend())
            .collect();
        assert_eq!(resend, [0x908, 0x90a, 0x922]);
    }
}
