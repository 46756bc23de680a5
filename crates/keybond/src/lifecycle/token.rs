//! The life of a token: its times, which those of its certificate bound.

use std::time::{Duration, SystemTime};

use super::{Life, spread};

/// A token is not handed out in its last minutes: it has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// The most by which a refresh time is moved.
const LARGEST_JITTER: Duration = Duration::from_secs(5 * 60);

/// What a service says of a token's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// When it was asked for, by this machine's clock.
    pub(crate) asked_at: SystemTime,
    /// How long it is valid.
    pub(crate) expires_in: Duration,
    /// After how long the service wants it refreshed.
    pub(crate) refresh_in: Option<Duration>,
}

/// The times of a token that is bound to a certificate with these times.
///
/// It is refreshed when the service says so or after half its life, up to five minutes (a tenth, if that is
/// less) earlier or later. It is used until five minutes before its end, or for nine tenths of a short life, and
/// never longer than its certificate. When that is to be replaced, the token is, too: somewhere in the middle half
/// of the time that remains, so that the tokens of one certificate do not all move at once.
pub(crate) fn life(granted: Granted, certificate: &Life, jitter: f64) -> Life {
    let Granted {
        asked_at,
        expires_in,
        refresh_in,
    } = granted;
    let refresh = refresh_in
        .filter(|refresh| !refresh.is_zero() && *refresh < expires_in)
        .unwrap_or(expires_in / 2);
    let room = LARGEST_JITTER.min(refresh / 10);
    let refresh = if jitter < 0.0 {
        refresh - room.mul_f64((-jitter).min(1.0))
    } else {
        refresh + room.mul_f64(jitter.min(1.0))
    };
    let end = certificate.usable_until;
    // A token that was got late moves half-way to the end.
    let from = certificate.refresh_on.max(asked_at);
    let left = end.duration_since(from).unwrap_or_default();
    let moves_on = from + spread(left, 0.25 * jitter.clamp(-1.0, 1.0) - 0.5);
    Life {
        obtained: asked_at,
        refresh_on: (asked_at + refresh).min(moves_on),
        usable_until: (asked_at + expires_in - MARGIN.min(expires_in / 10)).min(end),
    }
}
