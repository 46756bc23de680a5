//! An identity that was deleted and made anew: the same name, another client id. The token service does not know the
//! old one any more, and neither the certificate in use nor what was kept of it says so before it ends.

use std::{sync::Arc, time::Duration};

use super::keeping;
use crate::{
    acquisition::Acquisition, client::Shared, error::Error, identity::Identity, leg::Leg,
    token::sharing,
};

/// The token service does not know the client.
const UNKNOWN_CLIENT: u64 = 700_016;

/// A new identity is not known everywhere at once, and callers do not stop asking: so often the metadata service is
/// asked at most.
const PAUSE: Duration = Duration::from_secs(60);

/// Whether the token service refused because the identity has another client id now. The old one's certificate is
/// given up then.
pub(crate) async fn was_made_anew(
    shared: &Arc<Shared>,
    way: &Acquisition,
    failure: &Error,
) -> bool {
    // A client id is a name that no other identity ever gets.
    let named = matches!(shared.imds.identity, Identity::ClientId(_));
    if named || !is_unknown(failure) {
        return false;
    }
    let now = shared.clock.now();
    let Some(binding) = shared.bindings.usable(now) else {
        return false;
    };
    if !shared.bindings.identity_asked.pass(now, PAUSE) {
        return false;
    }
    let Ok(metadata) = super::mint::ask_metadata(shared, way).await else {
        return false;
    };
    let (old, new) = (binding.client_id(), &metadata.client_id);
    if new.eq_ignore_ascii_case(old) {
        return false;
    }
    tracing::warn!(target: "keybond", old, new, "the identity was made anew: its old certificate is given up");
    keeping::change_client_id(shared, &binding, new).await;
    sharing::discard_of_certificate(shared, &binding).await;
    shared.bindings.refused(now, &binding);
    true
}

fn is_unknown(failure: &Error) -> bool {
    let Error::Refused {
        at,
        description,
        error_codes,
        ..
    } = failure
    else {
        return false;
    };
    let stated = if error_codes.is_empty() {
        description.contains("AADSTS700016:")
    } else {
        error_codes.contains(&UNKNOWN_CLIENT)
    };
    at.leg == Leg::Token && stated
}
