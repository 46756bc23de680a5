//! What a token's answers mean.

use cryptoki::error::{Error, RvError};

use crate::{
    refusal::{NativeCode, Reason, Unavailable},
    strength::StoreId,
};

pub(super) fn other(reason: Reason, detail: impl Into<String>) -> Unavailable {
    Unavailable::new(StoreId::Pkcs11, reason, detail)
}

/// The refusal in a token's answer.
pub(super) fn refused(error: Error) -> Unavailable {
    let (rv, function) = match error {
        Error::Pkcs11(rv, function) => (rv, function),
        Error::NullFunctionPointer | Error::MissingSymbol(_) | Error::NotSupported => {
            return other(Reason::NotSupported, error.to_string());
        }
        error => return other(Reason::Failed, error.to_string()),
    };
    let (reason, code, remedy) = meaning(&rv);
    // A token that just fails may work a moment later: SoftHSM does so while another process changes it.
    let retryable = matches!(reason, Reason::Busy | Reason::Failed);
    let refusal = other(reason, format!("C_{function:?} answered {rv:?}"))
        .with_remedy(remedy)
        .with_retryable(retryable);
    match code {
        0 => refusal,
        code => refusal.with_native(NativeCode {
            space: "ckr",
            code,
            name: Some(format!("{rv:?}").into()),
        }),
    }
}

/// The numbers are those of PKCS#11 v2.40, section 3 of its base specification; 0 where none is needed.
fn meaning(rv: &RvError) -> (Reason, i64, &'static str) {
    const PIN: &str = "Correct the PIN where `pin-source` points; a few wrong ones lock the token.";
    const UNLOCK: &str = "Unlock the token with its security officer's PIN.";
    const INSERT: &str = "Insert the token, or correct the URI.";
    match rv {
        RvError::PinIncorrect => (Reason::PermissionDenied, 0xa0, PIN),
        RvError::PinInvalid => (Reason::PermissionDenied, 0xa1, PIN),
        RvError::PinLenRange => (Reason::PermissionDenied, 0xa2, PIN),
        RvError::PinExpired => (Reason::PermissionDenied, 0xa3, "Set a new PIN."),
        RvError::PinLocked => (Reason::PermissionDenied, 0xa4, UNLOCK),
        RvError::UserPinNotInitialized => (Reason::PermissionDenied, 0x102, "Set a user PIN."),
        RvError::UserNotLoggedIn => {
            let remedy = "Name a `pin-source`: the token demands a login.";
            (Reason::PermissionDenied, 0x101, remedy)
        }
        RvError::TokenWriteProtected => (Reason::PermissionDenied, 0xe2, ""),
        RvError::SessionReadOnly => (Reason::PermissionDenied, 0xb5, ""),
        RvError::DeviceRemoved => (Reason::NotPresent, 0x32, INSERT),
        RvError::TokenNotPresent => (Reason::NotPresent, 0xe0, INSERT),
        RvError::TokenNotRecognized => (Reason::NotPresent, 0xe1, INSERT),
        RvError::SlotIdInvalid => (Reason::NotPresent, 0x03, INSERT),
        RvError::HostMemory => (Reason::Busy, 0x02, ""),
        RvError::DeviceMemory => (
            Reason::Busy,
            0x31,
            "Delete objects the token no longer needs.",
        ),
        RvError::SessionCount => (Reason::Busy, 0xb1, ""),
        RvError::FunctionCanceled => (Reason::Busy, 0x50, ""),
        RvError::OperationActive => (Reason::Busy, 0x90, ""),
        RvError::MechanismInvalid => (Reason::NotSupported, 0x70, ""),
        RvError::MechanismParamInvalid => (Reason::NotSupported, 0x71, ""),
        RvError::FunctionNotSupported => (Reason::NotSupported, 0x54, ""),
        RvError::KeyFunctionNotPermitted => (Reason::NotSupported, 0x68, ""),
        RvError::KeySizeRange => (Reason::NotSupported, 0x62, ""),
        RvError::GeneralError => (Reason::Failed, 0x05, ""),
        RvError::FunctionFailed => (Reason::Failed, 0x06, ""),
        RvError::DeviceError => (Reason::Failed, 0x30, ""),
        _ => (Reason::Failed, 0, ""),
    }
}

/// Whether what is known of sessions and objects is out of date, so that another look may help.
pub(super) fn is_stale(refusal: &Unavailable) -> bool {
    const STALE: [&str; 6] = [
        "ObjectHandleInvalid",
        "KeyHandleInvalid",
        "SessionHandleInvalid",
        "SessionClosed",
        "UserNotLoggedIn",
        "DeviceRemoved",
    ];
    STALE.iter().any(|name| refusal.detail.ends_with(name))
}
