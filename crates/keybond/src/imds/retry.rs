//! What is asked again, how often and when: a pure machine; the clock and the waiting are elsewhere.
//!
//! | family | asked again after | how often | wait |
//! |---|---|---|---|
//! | `Metadata`, `Probe` | 408, 410, 429, 5xx, silence, a broken connection | 3 | 1, 2, 4 s |
//! | `Issue` | the same and 404 | 3 | 1, 2, 4 s |
//! | each of these, if the first answer is 410 | | 7 | 10 s (the service is back within 70 s) |
//! | `Source` | 404, 408, 429, 500, 503, 504, silence, a broken connection | 3 | 1 s |
//! | `Sts` | 5xx, silence, a broken connection; nothing that carries `Retry-After` | 1 | 1 s |
//!
//! A 404 for platform metadata means that the service has no version 2, which no waiting changes. Once
//! metadata was there, a 404 is a service in the middle of a restart. A connection that is refused is a
//! definite answer of the network and stands at once. One that nobody takes in time is not tried again by `Probe`
//! and `FirstContact`, which is `Metadata` until the service was seen for the first time: nobody is there, which is
//! no certainty, but no reason to wait four times as long either.
//!
//! `Retry-After` lengthens a wait and never shortens one. Every wait is drawn out by up to a tenth, so that
//! machines that were thrown out together do not come back together.

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, StatusCode, header};

use crate::{
    error::{Error, NoAnswer},
    time::http_date,
};

/// The longest wait that a service is believed to ask for.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Whose rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    FirstContact,
    Metadata,
    Issue,
    Probe,
    /// A source of bearer tokens other than the metadata service.
    Source,
    Sts,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status {
        status: u16,
        /// What the service asks to wait.
        retry_after: Option<Duration>,
    },
    /// No answer: silence, or a connection that broke.
    Lost,
    /// Not even a connection.
    NotThere,
}

impl Outcome {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        Self::Status {
            status: status.as_u16(),
            retry_after: retry_after(headers),
        }
    }

    /// The outcome of an attempt without an answer; `None` if that is definite.
    pub(crate) fn of_error(error: &Error) -> Option<Self> {
        match error {
            Error::Unreachable { how, .. } => match how {
                NoAnswer::Refused => None,
                NoAnswer::NoConnection => Some(Self::NotThere),
                NoAnswer::Silence | NoAnswer::Broken => Some(Self::Lost),
            },
            // The key's own troubles have their own retries.
            Error::Tls { cause, .. }
                if cause.retryable() && !matches!(**cause, keybond_tls::TlsError::Key { .. }) =>
            {
                Some(Self::Lost)
            }
            _ => None,
        }
    }
}

/// What a service asks to wait, in seconds or as a date, which is held against the service's own clock. A
/// value that cannot be read asks for no particular time.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &::http::HeaderValue| value.to_str().unwrap_or_default().trim())
    };
    let asked = text(header::RETRY_AFTER)?;
    let wait = match asked.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => until(http_date(asked), text(header::DATE).and_then(http_date)),
    };
    Some(wait.unwrap_or_default().min(LONGEST_WAIT))
}

fn until(then: Option<SystemTime>, now: Option<SystemTime>) -> Option<Duration> {
    then?.duration_since(now?).ok()
}

/// The retries of one exchange.
#[derive(Debug)]
pub(crate) struct Retries {
    family: Family,
    done: u32,
    allowed: Option<u32>,
    /// The state of the generator that draws the waits out.
    jitter: u64,
}

impl Retries {
    /// `seed` is what differs from one machine and one exchange to the next: a correlation id.
    pub(crate) fn new(family: Family, seed: &str) -> Self {
        // FNV-1a: spreads ids well enough, and the same on every platform.
        let jitter = seed.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            family,
            done: 0,
            allowed: None,
            jitter,
        }
    }

    /// How long to wait before asking again; `None` if the outcome stands.
    pub(crate) fn after(&mut self, outcome: Outcome) -> Option<Duration> {
        let (status, asked) = match outcome {
            Outcome::Lost | Outcome::NotThere => (None, None),
            Outcome::Status {
                status,
                retry_after,
            } => (Some(status), retry_after),
        };
        let gone = status == Some(410);
        let again = match (self.family, status) {
            (Family::Sts, None | Some(500..=599)) => asked.is_none(),
            (Family::Sts, _) => false,
            (Family::FirstContact | Family::Probe, None) => outcome == Outcome::Lost,
            (_, None) => true,
            (Family::Source, Some(status)) => {
                matches!(status, 404 | 408 | 429 | 500 | 503 | 504)
            }
            (family, Some(404)) => family == Family::Issue,
            (_, Some(status)) => matches!(status, 408 | 410 | 429 | 500..=599),
        };
        // As in the published design, the first failure decides how often.
        let allowed = *self.allowed.get_or_insert(match (self.family, gone) {
            (Family::Sts, _) => 1,
            (Family::Source, _) | (_, false) => 3,
            (_, true) => 7,
        });
        if !again || self.done >= allowed {
            return None;
        }
        let wait = match (self.family, gone) {
            (Family::Sts | Family::Source, _) => Duration::from_secs(1),
            (_, true) => Duration::from_secs(10),
            (_, false) => Duration::from_secs((1 << self.done).min(4)),
        };
        self.done += 1;
        Some(self.draw_out(wait.max(asked.unwrap_or_default())))
    }

    /// The wait and up to a tenth of it.
    fn draw_out(&mut self, wait: Duration) -> Duration {
        // SplitMix64; what it has to be is cheap and different everywhere.
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.jitter;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let thousandths = u32::try_from((mixed ^ (mixed >> 31)) % 101).unwrap_or(0);
        wait + wait * thousandths / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16) -> Outcome {
        Outcome::Status {
            status,
            retry_after: None,
        }
    }

    /// The waits in whole seconds until the outcome stands.
    fn waits(family: Family, outcome: Outcome) -> Vec<u64> {
        let mut retries = Retries::new(family, "0");
        std::iter::from_fn(|| retries.after(outcome))
            .map(|wait| wait.as_secs())
            .collect()
    }

    const EVERY: [Family; 6] = [
        Family::FirstContact,
        Family::Metadata,
        Family::Issue,
        Family::Probe,
        Family::Source,
        Family::Sts,
    ];

    #[test]
    fn definite_answers_stand_at_once() {
        for family in EVERY {
            for code in [200, 400, 401, 403, 405] {
                assert_eq!(waits(family, status(code)), [0; 0], "{family:?} {code}");
            }
        }
        assert_eq!(waits(Family::Metadata, status(404)), [0; 0]);
        assert_eq!(waits(Family::FirstContact, status(404)), [0; 0]);
        assert_eq!(waits(Family::Probe, status(404)), [0; 0]);
        assert_eq!(waits(Family::Sts, status(429)), [0; 0]);
        assert_eq!(waits(Family::FirstContact, Outcome::NotThere), [0; 0]);
        assert_eq!(waits(Family::Probe, Outcome::NotThere), [0; 0]);
        for code in [410, 501, 502] {
            assert_eq!(waits(Family::Source, status(code)), [0; 0], "{code}");
        }
    }

    #[test]
    fn uncertain_ones_are_asked_again_as_published() {
        for code in [404, 408, 429, 500, 503, 599] {
            assert_eq!(waits(Family::Issue, status(code)), [1, 2, 4], "{code}");
        }
        for family in [
            Family::FirstContact,
            Family::Metadata,
            Family::Issue,
            Family::Probe,
        ] {
            assert_eq!(waits(family, Outcome::Lost), [1, 2, 4]);
            // A tenth more at most: all seven are over in 77 s.
            let gone = waits(family, status(410));
            assert!(gone.len() == 7 && gone.iter().all(|wait| (10..=11).contains(wait)));
        }
        for family in [Family::Metadata, Family::Issue] {
            assert_eq!(waits(family, Outcome::NotThere), [1, 2, 4]);
        }
        for outcome in [status(404), status(429), status(504), Outcome::Lost] {
            assert_eq!(waits(Family::Source, outcome), [1, 1, 1]);
        }
        assert_eq!(waits(Family::Sts, status(503)), [1]);
        assert_eq!(waits(Family::Sts, Outcome::Lost), [1]);
    }

    #[test]
    fn the_first_answer_decides_how_often_the_current_one_how_long() {
        let mut retries = Retries::new(Family::Metadata, "0");
        let waits: Vec<_> = [410, 503, 410, 503, 503, 503, 503, 503]
            .into_iter()
            .map_while(|code| retries.after(status(code)))
            .map(|wait| wait.as_secs())
            .collect();
        assert_eq!(waits.len(), 7);
        for (wait, least) in waits.into_iter().zip([10, 2, 10, 4, 4, 4, 4]) {
            assert!((least..=least + 1).contains(&wait), "{wait}, not {least}");
        }
    }

    #[test]
    fn retry_after_lengthens_the_wait_and_stops_the_token_leg() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        let outcome = Outcome::of(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!(waits(Family::Issue, outcome), [7, 7, 7]);
        assert_eq!(waits(Family::Sts, outcome), [0; 0]);
        headers.insert(header::RETRY_AFTER, "1".parse().unwrap());
        let outcome = Outcome::of(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!(waits(Family::Issue, outcome), [1, 2, 4]);
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_of_the_service() {
        let read = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("retry-after", " 120 ")]), Some(120));
        assert_eq!(read(&[("retry-after", "999999999")]), Some(3600));
        let later = ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT");
        assert_eq!(read(&[later, date]), Some(30));
        assert_eq!(read(&[later]), Some(0), "no clock to hold it against");
        let past = ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT");
        assert_eq!(read(&[past, date]), Some(0));
        assert_eq!(read(&[("retry-after", "soon"), date]), Some(0));
        assert_eq!(read(&[("retry-after", "-1"), date]), Some(0));
    }

    #[test]
    fn waits_are_drawn_out_by_a_tenth_at_most_and_differently() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..200 {
            let mut retries = Retries::new(Family::Issue, &seed.to_string());
            for least in [1000, 2000, 4000] {
                let wait = retries.after(status(503)).unwrap().as_millis();
                assert!((least..=least + least / 10).contains(&wait), "{wait}");
                seen.insert(wait);
            }
        }
        assert!(seen.len() > 200, "{} different waits of 600", seen.len());
    }
}
