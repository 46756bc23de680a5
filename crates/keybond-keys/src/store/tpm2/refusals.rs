//! Why the TPM, or a key file of it, is refused.

use keybond_tpm::{Belonging, ErrorKind, KeyBlob, Tpm, TpmError, TpmNames};

use super::{Record, STORE};
use crate::{
    refusal::{NativeCode, Reason, Unavailable},
    state::StateError,
};

/// The parent handle that means the storage root key (TPM_RH_OWNER).
const STORAGE_ROOT: u32 = 0x4000_0001;
/// TPM_RC_HANDLE without its number.
const NO_SUCH_HANDLE: u32 = 0x8b;

/// Whether a TPM that works does not take this key, so that [`explain`] is to tell why.
pub(super) fn does_not_take(blob: &KeyBlob, error: &TpmError) -> bool {
    error.kind() == ErrorKind::Integrity || lacks_parent(blob, error)
}

fn lacks_parent(blob: &KeyBlob, error: &TpmError) -> bool {
    blob.parent() != STORAGE_ROOT
        && error
            .response_code()
            .is_some_and(|code| code.base() == NO_SUCH_HANDLE)
}

/// Why the TPM does not take a key. Its answer is the same whether the TPM was cleared, is another one, has
/// another parent in the place of the key's, or the file is damaged; what was recorded tells. The detail begins
/// with a stable name.
pub(super) fn explain(
    tpm: &Tpm,
    blob: &KeyBlob,
    record: Option<&Record>,
    error: &TpmError,
) -> Unavailable {
    let recorded = record.and_then(|record| Some((record, record.names().ok()?)));
    let Some((record, names)) = recorded else {
        let detail = "no_record: the key file is damaged, or belongs to another or a cleared TPM";
        return refuse(Reason::Corrupt, detail, error);
    };
    let now = match tpm.names() {
        Ok(now) => now,
        Err(error) => return refusal(error),
    };
    match TpmNames::compare(&names, &now) {
        Belonging::Same => explain_parent(tpm, blob, record, error),
        Belonging::Cleared => refuse(
            Reason::Foreign,
            "tpm_cleared: the TPM was cleared since the key was made",
            error,
        ),
        Belonging::Other => refuse(
            Reason::Foreign,
            "another_tpm: the key belongs to another TPM",
            error,
        ),
        Belonging::ClearedOrOther => refuse(
            Reason::Foreign,
            "tpm_cleared_or_another: the key belongs to another or a cleared TPM",
            error,
        ),
    }
}

/// The TPM is the one that the key was made in: is the parent, too?
fn explain_parent(tpm: &Tpm, blob: &KeyBlob, record: &Record, error: &TpmError) -> Unavailable {
    let parent = blob.parent();
    if lacks_parent(blob, error) {
        // Whoever moved the parent can put it back: no reason to give the key up.
        let detail = format!("parent_missing: nothing is at {parent:#x}, the key's parent");
        return refuse(Reason::Failed, &detail, error)
            .with_remedy("Put the key's parent back with `tpm2_evictcontrol`, or remove the key.");
    }
    if record.parent() != parent {
        let (made, named) = (record.parent(), parent);
        let detail =
            format!("wrong_parent: the key was made below {made:#x}, its file says {named:#x}");
        return refuse(Reason::Corrupt, &detail, error);
    }
    let other_parent = match tpm.parent_name(parent) {
        Ok(name) => record.has_other_parent(&name),
        Err(error) => return refusal(error),
    };
    if other_parent {
        let detail = format!("wrong_parent: another key is at {parent:#x} now");
        refuse(Reason::Foreign, &detail, error)
    } else {
        let detail = "damaged_file: the very TPM and parent of this key do not accept it";
        refuse(Reason::Corrupt, detail, error)
    }
}

fn refuse(reason: Reason, detail: &str, error: &TpmError) -> Unavailable {
    with_codes(Unavailable::new(STORE, reason, detail), error)
}

/// An error of the TPM layer as the provider knows refusals.
pub(super) fn refusal(error: TpmError) -> Unavailable {
    let reason = match error.kind() {
        ErrorKind::Off => Reason::DisabledByPolicy,
        ErrorKind::NotPresent => Reason::NotPresent,
        ErrorKind::NotSupported => Reason::NotSupported,
        ErrorKind::PermissionDenied | ErrorKind::WrongPin => Reason::PermissionDenied,
        ErrorKind::Busy | ErrorKind::Lockout => Reason::Busy,
        ErrorKind::TimedOut => Reason::TimedOut,
        ErrorKind::Integrity | ErrorKind::CorruptFile => Reason::Corrupt,
        _ => Reason::Failed,
    };
    with_codes(Unavailable::new(STORE, reason, error.to_string()), &error)
        .with_remedy(error.remedy())
        .with_retryable(error.retryable())
}

fn with_codes(refusal: Unavailable, error: &TpmError) -> Unavailable {
    if let Some(code) = error.response_code() {
        let name = code.name().map(Into::into);
        refusal.with_native(NativeCode {
            space: "tpm",
            code: code.raw().into(),
            name,
        })
    } else if let Some(errno) = error.errno() {
        refusal.with_native(NativeCode {
            space: "errno",
            code: errno.into(),
            name: None,
        })
    } else {
        refusal
    }
}

pub(super) fn state_refusal(error: StateError) -> Unavailable {
    let reason = match &error {
        StateError::NotTrusted { .. } => Reason::PermissionDenied,
        _ => Reason::Failed,
    };
    Unavailable::new(STORE, reason, error.to_string()).with_remedy(
        "Make the state directory this user's own, with mode 0700 and files of mode 0600.",
    )
}
