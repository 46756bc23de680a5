//! Our errors as the SDK's. Its retry policy sends again after `Io` and `Connection` only.

use azure_core::error::{Error, ErrorKind};
use keybond::{Leg, NoAnswer};

/// The way to a token failed. It was retried as published already.
pub(crate) fn of_credential(error: keybond::Error) -> Error {
    told(ErrorKind::Credential, error)
}

/// A call failed: on the way to its token, or at the resource.
pub(crate) fn of_call(error: keybond::Error) -> Error {
    let kind = match &error {
        _ if error.leg() != Some(Leg::Resource) => ErrorKind::Credential,
        keybond::Error::Unreachable {
            how: NoAnswer::NoConnection,
            ..
        } => ErrorKind::Connection,
        keybond::Error::Unreachable { .. } | keybond::Error::Tls { .. } if error.retryable() => {
            ErrorKind::Io
        }
        _ => ErrorKind::Other,
    };
    told(kind, error)
}

fn told(kind: ErrorKind, error: keybond::Error) -> Error {
    let mut text = format!("{}: {error}. {}", error.code(), error.remedy());
    for (name, id) in [
        ("correlation id", error.correlation_id()),
        ("trace id", error.trace_id()),
    ] {
        if let Some(id) = id {
            text.push_str(&format!(" ({name} {id})"));
        }
    }
    Error::with_error(kind, error, text)
}
