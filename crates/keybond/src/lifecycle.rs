//! The life of a value that is used, refreshed ahead of time and given up: a machine without clock, I/O or
//! randomness. Certificates and tokens are such values; what their times are is in [`certificate`] and [`token`].
//!
//! 1. While the value is usable, every answer is to use it. Failures change nothing about that.
//! 2. From its refresh time on, somebody who asks is told to start the next run, too; then nobody is for a
//!    while. The while shortens as the end comes near, so that a value of 90 seconds gets its chances.
//! 3. Without a usable value whoever asks is told to start. Only what a service asked to wait (`Retry-After`)
//!    makes the last failure the answer, and no longer than an hour.
//! 4. A clock that was set back makes the value due, not unusable; what was remembered for later than it can
//!    have been meant is forgotten.

pub(crate) mod certificate;
pub(crate) mod pace;
#[cfg(test)]
mod simulation;
pub(crate) mod token;

use std::time::{Duration, SystemTime};

/// Clocks may be apart, or be set back, by this much without anybody minding.
pub(crate) const SKEW: Duration = Duration::from_secs(5 * 60);

/// The longest and the shortest pause between two runs that nobody waits for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// The first pause after a failure; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(15);

/// While a run is under way nobody else starts one; if it dies without a word, the next one starts after this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A service can ask everybody to keep away for an hour at most.
const LONGEST_HOLD: Duration = Duration::from_secs(60 * 60);

/// When a value is what. A value is usable from the moment it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// When it was got, by this machine's clock.
    pub(crate) obtained: SystemTime,
    /// From when on the next one is got ahead of time.
    pub(crate) refresh_on: SystemTime,
    /// Until when it is used.
    pub(crate) usable_until: SystemTime,
}

/// How old a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// Nothing is to be done.
    Fresh,
    /// It is used, and the next one is wanted.
    Due,
    /// It is not used any more.
    Over,
}

impl Life {
    /// How old the value is now.
    pub(crate) fn age(&self, now: SystemTime) -> Age {
        if now >= self.usable_until {
            Age::Over
        } else if now >= self.refresh_on || now + SKEW < self.obtained {
            Age::Due
        } else {
            Age::Fresh
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Input<F> {
    /// Somebody wants the value.
    Asked,
    /// A run ended with a value.
    Got(Life),
    /// A run failed.
    Failed {
        /// With what.
        cause: F,
        /// What the service asked to wait.
        hold: Option<Duration>,
        /// From -1 to 1, spread evenly.
        jitter: f64,
    },
    /// The value must not be used any more, whatever its times say.
    Revoked,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output<F> {
    /// Use the value; nothing changes before `until`.
    Use { until: SystemTime },
    /// Use the value, start a run, and do not wait for it; nothing else changes before `until`.
    UseAndStart { until: SystemTime },
    /// Start a run, or join the one that is under way, and wait for it.
    Start,
    /// Fail with this.
    Fail(F),
    /// Wait for the next input: nobody asked.
    Wait,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine<F> {
    life: Option<Life>,
    failures: u32,
    /// Nobody is told to start ahead of time before this.
    rest_until: Option<SystemTime>,
    hold: Option<(SystemTime, F)>,
}

impl<F> Default for Machine<F> {
    fn default() -> Self {
        Self {
            life: None,
            failures: 0,
            rest_until: None,
            hold: None,
        }
    }
}

impl<F: Clone> Machine<F> {
    /// Takes note of what happened and says what is to be done.
    pub(crate) fn step(&mut self, now: SystemTime, input: Input<F>) -> Output<F> {
        match input {
            Input::Asked => self.asked(now),
            Input::Got(life) => {
                self.life = Some(life);
                self.hold = None;
                self.failures = 0;
                // A value that is due at birth must not make a new run of every question.
                self.rest_until = (life.age(now) != Age::Fresh).then(|| now + self.pause(now, 0.0));
                Output::Wait
            }
            Input::Failed {
                cause,
                hold,
                jitter,
            } => {
                self.rest_until = Some(now + self.pause(now, jitter));
                self.failures = self.failures.saturating_add(1);
                self.hold = hold.map(|hold| (now + hold.min(LONGEST_HOLD), cause));
                Output::Wait
            }
            Input::Revoked => {
                self.life = None;
                self.rest_until = None;
                Output::Wait
            }
        }
    }

    /// Makes the value due now: there is a reason that its times do not know.
    pub(crate) fn hasten(&mut self, now: SystemTime) {
        if let Some(life) = &mut self.life {
            life.refresh_on = life.refresh_on.min(now);
        }
    }

    /// The failure after which the service asked to wait, and until when it stands.
    pub(crate) fn held(&self, now: SystemTime) -> Option<(SystemTime, F)> {
        (self.hold.as_ref())
            .filter(|(until, _)| now < *until && *until <= now + LONGEST_HOLD)
            .map(|(until, cause)| (*until, cause.clone()))
    }

    fn asked(&mut self, now: SystemTime) -> Output<F> {
        let held = self.held(now);
        let Some(life) = self.life.filter(|life| life.age(now) != Age::Over) else {
            return match held {
                Some((_, cause)) => Output::Fail(cause),
                None => Output::Start,
            };
        };
        if life.age(now) == Age::Fresh {
            return Output::Use {
                until: life.refresh_on,
            };
        }
        let resting = self
            .rest_until
            .filter(|until| now < *until && *until <= now + 2 * LONGEST_PAUSE);
        let rest = resting.max(held.map(|(until, _)| until));
        if let Some(until) = rest {
            return Output::Use {
                until: until.min(life.usable_until),
            };
        }
        let until = now + PATIENCE.min(self.share(now)).max(SHORTEST_PAUSE);
        self.rest_until = Some(until);
        Output::UseAndStart {
            until: until.min(life.usable_until),
        }
    }

    /// How long to rest after a failure.
    fn pause(&self, now: SystemTime, jitter: f64) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8));
        let pause = doubled.min(LONGEST_PAUSE).min(self.share(now));
        spread(pause, 0.2 * jitter).max(SHORTEST_PAUSE)
    }

    /// A part of the time that the value has left: there are to be several tries in it.
    fn share(&self, now: SystemTime) -> Duration {
        let left = self
            .life
            .and_then(|life| life.usable_until.duration_since(now).ok());
        left.unwrap_or(LONGEST_PAUSE) / 8
    }
}

/// The duration, longer or shorter by a part of itself.
pub(crate) fn spread(duration: Duration, part: f64) -> Duration {
    duration.mul_f64((1.0 + part).max(0.0))
}

#[cfg(test)]
mod tests;
