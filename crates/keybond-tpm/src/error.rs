//! What can go wrong with a TPM: typed, with the native code and what a human can do about it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::{address::InvalidAddress, keyfile::KeyFileError, rc::ResponseCode};

/// An error of the TPM layer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The address is not one.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// Configuration says `off`.
    #[error("the TPM is switched off by configuration")]
    Off,
    /// There is no TPM at this address.
    #[error("{address}: there is no TPM: {cause}")]
    NoDevice {
        /// The address.
        address: String,
        /// What the operating system said.
        cause: Arc<io::Error>,
    },
    /// The TPM speaks only version 1.2, which knows none of the commands needed.
    #[error("{address}: this is a TPM 1.2; a TPM 2.0 is needed")]
    Tpm12 {
        /// The address.
        address: String,
    },
    /// The device is there, but this user may not open it.
    #[error(
        "{path} may not be opened by user {user}: it belongs to {owner}:{group}, mode {mode:04o}"
    )]
    PermissionDenied {
        /// The device or socket.
        path: PathBuf,
        /// The effective user of this process, by name if known.
        user: String,
        /// Its owner, by name if known.
        owner: String,
        /// Its group, by name if known.
        group: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process keeps the device to itself (possible with /dev/tpm0, not with /dev/tpmrm0).
    #[error("{address}: another process keeps this TPM to itself")]
    DeviceBusy {
        /// The address.
        address: String,
    },
    /// The connection failed. The next call makes a new one.
    #[error("{command}: the connection to the TPM failed: {cause}")]
    Connection {
        /// The command that was under way.
        command: &'static str,
        /// Why.
        cause: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("{command}: the TPM did not answer within {after:?}")]
    DeadlineExceeded {
        /// The command; `queue` if other work came first, `connect`, or `TPM command` if it cannot be told which.
        command: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is not in the TPM's wire format.
    #[error("{command}: the TPM's answer is malformed: {field}: {detail}")]
    Malformed {
        /// The command.
        command: &'static str,
        /// The field of the answer.
        field: &'static str,
        /// What was expected, and what came.
        detail: String,
    },
    /// The TPM answered with an error.
    #[error("{command}: the TPM answered {code}")]
    Response {
        /// The command.
        command: &'static str,
        /// The code.
        code: ResponseCode,
    },
    /// Too many wrong authorizations (TPM_RC_LOCKOUT). Keys with the attribute `noDA` still work.
    #[error("{command}: the TPM is locked out after too many wrong authorizations{}", until(.recovery))]
    Lockout {
        /// The command.
        command: &'static str,
        /// After how long the TPM forgives one wrong attempt, if it says so.
        recovery: Option<Duration>,
    },
    /// The caller asked for something that cannot be.
    #[error("{field}: {detail}")]
    Input {
        /// The argument.
        field: &'static str,
        /// What was expected.
        detail: String,
    },
    /// The key asks for a PIN, and none was given. Trying without would count as a wrong one.
    #[error("the key asks for a PIN")]
    PinRequired,
    /// What the TPM says about the key is not what the file says.
    #[error("the TPM's public area of the key differs from the one in the file: {field}")]
    PublicMismatch {
        /// The field that differs.
        field: &'static str,
    },
    /// PSS with a salt as long as the hash cannot be made with this TPM and key.
    #[error("this TPM cannot sign PSS with this key: {cause}")]
    PssUnavailable {
        /// Why.
        cause: String,
    },
    /// A key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// Something on this side failed: a thread, randomness.
    #[error("{what}: {cause}")]
    Local {
        /// What failed.
        what: &'static str,
        /// Why.
        cause: String,
    },
}

/// The kinds of [`TpmError`], for deciding what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Configuration excludes the TPM.
    Off,
    /// There is no TPM.
    NotPresent,
    /// The TPM is too old or lacks a command, algorithm or mode.
    NotSupported,
    /// This user may not use it.
    PermissionDenied,
    /// It serves somebody else, or has no room right now.
    Busy,
    /// It did not answer in time.
    TimedOut,
    /// It is locked out.
    Lockout,
    /// It is in failure mode.
    FailureMode,
    /// It has not been started up.
    NotStarted,
    /// The private part does not belong to this parent, or is damaged: compare the recorded names.
    Integrity,
    /// The PIN is wrong or missing.
    WrongPin,
    /// The key file cannot be understood.
    CorruptFile,
    /// The caller asked for something that cannot be.
    Input,
    /// Anything else.
    Failed,
}

impl TpmError {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address(_) | Self::Input { .. } => ErrorKind::Input,
            Self::Off => ErrorKind::Off,
            Self::NoDevice { .. } => ErrorKind::NotPresent,
            Self::Tpm12 { .. } | Self::PssUnavailable { .. } => ErrorKind::NotSupported,
            Self::PermissionDenied { .. } => ErrorKind::PermissionDenied,
            Self::DeviceBusy { .. } => ErrorKind::Busy,
            Self::DeadlineExceeded { .. } => ErrorKind::TimedOut,
            Self::Lockout { .. } => ErrorKind::Lockout,
            Self::PinRequired => ErrorKind::WrongPin,
            Self::KeyFile(error) => error.kind(),
            Self::PublicMismatch { .. } => ErrorKind::CorruptFile,
            Self::Connection { .. } | Self::Malformed { .. } | Self::Local { .. } => {
                ErrorKind::Failed
            }
            Self::Response { code, .. } => match code.base() {
                0x100 => ErrorKind::NotStarted,
                0x101 => ErrorKind::FailureMode,
                0x902..=0x906 | 0x908 | 0x90a | 0x920 | 0x922 | 0x923 => ErrorKind::Busy,
                0x9f => ErrorKind::Integrity,
                0x8e | 0xa2 => ErrorKind::WrongPin,
                0x92 | 0x98 | 0x120 | 0x143 => ErrorKind::NotSupported,
                _ => ErrorKind::Failed,
            },
        }
    }

    /// A stable name for programs and runbooks.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "tpm_invalid_address",
            Self::Off => "tpm_off",
            Self::NoDevice { .. } => "tpm_not_present",
            Self::Tpm12 { .. } => "tpm_version_1_2",
            Self::PermissionDenied { .. } => "tpm_permission_denied",
            Self::DeviceBusy { .. } => "tpm_device_busy",
            Self::Connection { .. } => "tpm_connection_failed",
            Self::DeadlineExceeded { .. } => "tpm_deadline_exceeded",
            Self::Malformed { .. } => "tpm_malformed_answer",
            Self::Lockout { .. } => "tpm_lockout",
            Self::Input { .. } => "tpm_invalid_input",
            Self::PinRequired => "tpm_pin_required",
            Self::PublicMismatch { .. } => "tpm_public_mismatch",
            Self::PssUnavailable { .. } => "tpm_pss_unavailable",
            Self::KeyFile(error) => error.code(),
            Self::Local { .. } => "tpm_local_failure",
            Self::Response { code, .. } => match code.base() {
                0x100 => "tpm_not_started",
                0x101 => "tpm_failure_mode",
                0x902..=0x904 => "tpm_out_of_memory",
                0x9f => "tpm_integrity",
                0x8e | 0xa2 => "tpm_wrong_pin",
                _ => "tpm_refused",
            },
        }
    }

    /// The TPM's response code, if it is the TPM that refused.
    pub fn response_code(&self) -> Option<ResponseCode> {
        match self {
            Self::Response { code, .. } => Some(*code),
            Self::Lockout { .. } => Some(ResponseCode::LOCKOUT),
            _ => None,
        }
    }

    /// The operating system's error number, if it is the operating system that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoDevice { cause, .. } | Self::Connection { cause, .. } => cause.raw_os_error(),
            Self::PermissionDenied { .. } => Some(rustix::io::Errno::ACCESS.raw_os_error()),
            Self::DeviceBusy { .. } => Some(rustix::io::Errno::BUSY.raw_os_error()),
            Self::KeyFile(error) => error.errno(),
            _ => None,
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::DeviceBusy { .. }
            | Self::Connection { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Malformed { .. }
            | Self::Lockout { .. } => true,
            Self::Response { code, .. } => code.retryable(),
            _ => false,
        }
    }

    /// One sentence: what a human can do about it. Empty if nothing sensible is known.
    pub fn remedy(&self) -> String {
        match self {
            Self::Address(_) => "Correct KEYBOND_TPM.".into(),
            Self::Off => "Unset KEYBOND_TPM, or set it to the TPM's address.".into(),
            Self::NoDevice { address, .. } if address.starts_with("device:") => {
                "Enable the TPM in the firmware or add a virtual TPM to the machine, and load its kernel driver.".into()
            }
            Self::NoDevice { .. } => "Start the TPM behind this socket.".into(),
            Self::Tpm12 { .. } => "Switch the chip to TPM 2.0 in the firmware, if it can.".into(),
            // Root's group would give away far more than the device.
            Self::PermissionDenied { path, group, mode, .. } if mode & 0o060 != 0o060 || group == "root" => {
                format!("Run `sudo setfacl -m u:$(id -un):rw {}`.", path.display())
            }
            Self::PermissionDenied { user, group, .. } => {
                format!("Run `sudo usermod -aG {group} {user}` and log in again.")
            }
            Self::DeviceBusy { .. } => "Use /dev/tpmrm0, which serves many processes.".into(),
            Self::Connection { .. } | Self::DeadlineExceeded { .. } => {
                "Try again; if it stays, check that the TPM answers at all: `tpm2_getrandom 8`.".into()
            }
            Self::Malformed { .. } => "Check what is at the TPM's address.".into(),
            Self::Lockout { .. } => ResponseCode::LOCKOUT.remedy().into(),
            Self::Response { code, .. } => code.remedy().into(),
            Self::PinRequired => "Give the PIN that the key was made with.".into(),
            Self::PublicMismatch { .. } => "Restore the key file, or remove it to get a new key.".into(),
            Self::PssUnavailable { .. } => {
                "If the key came from elsewhere, move it away: a key made here also allows raw RSA where that helps.".into()
            }
            Self::KeyFile(error) => error.remedy().into(),
            Self::Local { .. } => "Check the system's limits on threads and memory.".into(),
            Self::Input { .. } => String::new(),
        }
    }
}

fn until(recovery: &Option<Duration>) -> String {
    match recovery {
        Some(time) => format!("; one attempt is forgiven every {} s", time.as_secs()),
        None => String::new(),
    }
}
