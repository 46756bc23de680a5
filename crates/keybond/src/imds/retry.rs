//! What is asked again, how often and when: a pure machine; the clock and the waiting are elsewhere.
//!
//! | family | asked again after | how often | wait |
//! |---|---|---|---|
//! | `Metadata`, `Probe` | 408, 410, 429, 5xx, no answer | 3 | 1, 2, 4 s |
//! | `Issue` | the same and 404 | 3 | 1, 2, 4 s |
//! | each of these, if the first answer is 410 | | 7 | 10 s (the service is back within 70 s) |
//! | `Sts` | 5xx, no answer; nothing that carries `Retry-After` | 1 | 1 s |
//!
//! A 404 for platform metadata means that the service has no version 2, which no waiting changes. Once
//! metadata was there, a 404 is a service in the middle of a restart.

use std::time::Duration;

use ::http::{HeaderMap, StatusCode, header};

/// Whose rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Metadata,
    Issue,
    Probe,
    Sts,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status {
        status: u16,
        /// What the service asks to wait; zero for a date, which is not read.
        retry_after: Option<Duration>,
    },
    TimedOut,
}

impl Outcome {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        let retry_after = headers.get(header::RETRY_AFTER).map(|value| {
            let seconds = value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok());
            Duration::from_secs(seconds.unwrap_or(0))
        });
        Self::Status {
            status: status.as_u16(),
            retry_after,
        }
    }
}

/// The retries of one exchange.
#[derive(Debug)]
pub(crate) struct Retries {
    family: Family,
    done: u32,
    allowed: Option<u32>,
}

impl Retries {
    pub(crate) fn new(family: Family) -> Self {
        Self {
            family,
            done: 0,
            allowed: None,
        }
    }

    /// How long to wait before asking again; `None` if the outcome stands.
    pub(crate) fn after(&mut self, outcome: Outcome) -> Option<Duration> {
        let (status, asked) = match outcome {
            Outcome::TimedOut => (None, None),
            Outcome::Status {
                status,
                retry_after,
            } => (Some(status), retry_after),
        };
        let gone = status == Some(410);
        let sts = self.family == Family::Sts;
        let again = match status {
            None | Some(500..=599) => !(sts && asked.is_some()),
            Some(408 | 410 | 429) => !sts,
            Some(404) => self.family == Family::Issue,
            Some(_) => false,
        };
        // As in the published design, the first failure decides how often.
        let allowed = *self.allowed.get_or_insert(match (sts, gone) {
            (true, _) => 1,
            (false, true) => 7,
            (false, false) => 3,
        });
        if !again || self.done >= allowed {
            return None;
        }
        let wait = match (sts, gone) {
            (true, _) => Duration::from_secs(1),
            (false, true) => Duration::from_secs(10),
            (false, false) => Duration::from_secs((1 << self.done).min(4)),
        };
        self.done += 1;
        Some(wait.max(asked.unwrap_or_default()))
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

    /// The waits in seconds until the outcome stands.
    fn waits(family: Family, outcome: Outcome) -> Vec<u64> {
        let mut retries = Retries::new(family);
        std::iter::from_fn(|| retries.after(outcome))
            .map(|wait| wait.as_secs())
            .collect()
    }

    #[test]
    fn definite_answers_stand_at_once() {
        for family in [Family::Metadata, Family::Issue, Family::Probe, Family::Sts] {
            for code in [200, 400, 401, 403] {
                assert_eq!(waits(family, status(code)), [0; 0], "{family:?} {code}");
            }
        }
        assert_eq!(waits(Family::Metadata, status(404)), [0; 0]);
        assert_eq!(waits(Family::Probe, status(404)), [0; 0]);
        assert_eq!(waits(Family::Sts, status(429)), [0; 0]);
    }

    #[test]
    fn uncertain_ones_are_asked_again_as_published() {
        for code in [404, 408, 429, 500, 503, 599] {
            assert_eq!(waits(Family::Issue, status(code)), [1, 2, 4], "{code}");
        }
        assert_eq!(waits(Family::Metadata, Outcome::TimedOut), [1, 2, 4]);
        assert_eq!(waits(Family::Issue, status(410)), [10; 7]);
        assert_eq!(waits(Family::Sts, status(503)), [1]);
        assert_eq!(waits(Family::Sts, Outcome::TimedOut), [1]);
    }

    #[test]
    fn the_first_answer_decides_how_often_the_current_one_how_long() {
        let mut retries = Retries::new(Family::Metadata);
        let waits: Vec<_> = [410, 503, 410, 503, 503, 503, 503, 503]
            .into_iter()
            .map_while(|code| retries.after(status(code)))
            .map(|wait| wait.as_secs())
            .collect();
        assert_eq!(waits, [10, 2, 10, 4, 4, 4, 4]);
    }

    #[test]
    fn retry_after_lengthens_the_wait_and_stops_the_token_leg() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        let outcome = Outcome::of(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!(waits(Family::Issue, outcome), [7, 7, 7]);
        assert_eq!(waits(Family::Sts, outcome), [0; 0]);
    }
}
