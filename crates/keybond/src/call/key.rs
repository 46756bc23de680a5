//! A key that does not sign a handshake with a resource: is it dead, and is there another one now?

use std::{sync::Arc, time::Duration};

use keybond_keys::Verdict;
use keybond_tls::{Stage, TlsError};
use tokio::time::timeout;

use crate::{client::Shared, credential::Binding, error::Error, telemetry};

/// The handshake that the key did not sign, if that is why the request failed.
pub(super) fn unsigned(failure: &Error) -> Option<Stage> {
    let Error::Tls { cause, .. } = failure else {
        return None;
    };
    match **cause {
        TlsError::Key { stage, .. } => Some(stage),
        _ => None,
    }
}

/// Has the provider find out by a signature whether the binding's key is alive. If it is dead and replaced, the
/// certificate and every token of it are given up; only then `true`.
pub(super) async fn is_replaced(
    shared: &Arc<Shared>,
    binding: &Binding,
    failure: &Error,
    within: Duration,
) -> bool {
    let cause = failure.to_string();
    let key = binding.key();
    let proving = shared.keys.report_failure(key, &cause);
    let outcome = match timeout(within, proving).await {
        Ok(Ok(Verdict::Replaced(_))) => "replaced",
        Ok(Ok(Verdict::Alive)) => "alive",
        // The handshake's failure is what the caller should hear of, not that nobody knows why.
        Ok(Ok(Verdict::Unproven(_)) | Err(_)) | Err(_) => "unproven",
    };
    telemetry::remedy("prove_key", outcome);
    let replaced = outcome == "replaced";
    if replaced {
        shared.key_died(key.id()).await;
    }
    replaced
}
