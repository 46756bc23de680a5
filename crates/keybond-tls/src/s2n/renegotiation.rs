//! Whether a server may renegotiate: once, on the on-demand leg, under TLS 1.2.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use keybond_keys::SignatureScheme;
use s2n_tls::{
    connection::Connection,
    enums::Version,
    renegotiate::{RenegotiateCallback, RenegotiateResponse},
};

use crate::{error::RenegotiationRefusal, seam::Leg};

/// What the callbacks and the stream of one connection tell each other.
///
/// All of it happens within a poll of that connection, which nobody else can poll at the same time; the atomics
/// only satisfy the borrow checker.
#[derive(Debug)]
pub(super) struct Control {
    leg: Leg,
    has_identity: bool,
    requested: AtomicBool,
    done: AtomicU32,
    refused: Mutex<Option<RenegotiationRefusal>>,
    signature: Mutex<Option<SignatureScheme>>,
}

impl Control {
    pub(super) fn new(leg: Leg, has_identity: bool) -> Self {
        Self {
            leg,
            has_identity,
            requested: AtomicBool::new(false),
            done: AtomicU32::new(0),
            refused: Mutex::new(None),
            signature: Mutex::new(None),
        }
    }

    /// The leg of the connection.
    pub(super) fn leg(&self) -> Leg {
        self.leg
    }

    /// Whether a certificate is there to be sent.
    pub(super) fn has_identity(&self) -> bool {
        self.has_identity
    }

    /// Whether a renegotiation was accepted and is not over.
    pub(super) fn requested(&self) -> bool {
        self.requested.load(Relaxed)
    }

    /// How many renegotiations are over.
    pub(super) fn renegotiations(&self) -> u32 {
        self.done.load(Relaxed)
    }

    /// Why the last request was refused, if one was.
    pub(super) fn refused(&self) -> Option<RenegotiationRefusal> {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The renegotiation is over.
    pub(super) fn finish(&self) {
        self.done.fetch_add(1, Relaxed);
        self.requested.store(false, Relaxed);
    }

    /// The held key signed.
    pub(super) fn signed(&self, scheme: SignatureScheme) {
        *self
            .signature
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(scheme);
    }

    /// The scheme in which the held key signed, if it did.
    pub(super) fn signature(&self) -> Option<SignatureScheme> {
        *self
            .signature
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, version: Option<Version>) -> RenegotiateResponse {
        let refusal = if self.requested() {
            // The server repeats itself; one answer is under way.
            return RenegotiateResponse::Accept;
        } else if self.leg != Leg::OnDemand {
            RenegotiationRefusal::Leg
        } else if !self.has_identity {
            RenegotiationRefusal::NoIdentity
        } else if self.renegotiations() > 0 {
            RenegotiationRefusal::Repeated
        } else if version != Some(Version::TLS12) {
            RenegotiationRefusal::Version
        } else {
            self.requested.store(true, Relaxed);
            return RenegotiateResponse::Accept;
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        RenegotiateResponse::Reject
    }
}

/// Asked by s2n when a HelloRequest arrives.
pub(super) struct Decide;

impl RenegotiateCallback for Decide {
    fn on_renegotiate_request(&self, connection: &mut Connection) -> Option<RenegotiateResponse> {
        // Called from C, through which a panic must not go.
        catch_unwind(AssertUnwindSafe(|| {
            let version = connection.actual_protocol_version().ok();
            let control = connection.application_context::<Arc<Control>>()?;
            Some(control.decide(version))
        }))
        .ok()
        .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_on_demand_under_tls_1_2_and_never_else() {
        let tls12 = Some(Version::TLS12);
        let control = Control::new(Leg::OnDemand, true);
        assert_eq!(control.decide(tls12), RenegotiateResponse::Accept);
        assert_eq!(control.decide(tls12), RenegotiateResponse::Accept);
        control.finish();
        assert_eq!(control.renegotiations(), 1);
        assert_eq!(control.decide(tls12), RenegotiateResponse::Reject);
        assert_eq!(control.refused(), Some(RenegotiationRefusal::Repeated));

        for (leg, identity, version, refusal) in [
            (Leg::Plain, true, tls12, RenegotiationRefusal::Leg),
            (Leg::FirstHandshake, true, tls12, RenegotiationRefusal::Leg),
            (
                Leg::OnDemand,
                false,
                tls12,
                RenegotiationRefusal::NoIdentity,
            ),
            (
                Leg::OnDemand,
                true,
                Some(Version::TLS13),
                RenegotiationRefusal::Version,
            ),
        ] {
            let control = Control::new(leg, identity);
            assert_eq!(control.decide(version), RenegotiateResponse::Reject);
            assert_eq!(control.refused(), Some(refusal));
            assert!(!control.requested());
        }
    }
}
