//! Scenarios: what befalls the emulated Azure, and when. The same text does for a file, for the
//! admin endpoint and for tests in the same process.

mod parse;
mod script;

use std::{fmt, str::FromStr, time::Duration};

use crate::{
    attestation::AttestationRule,
    error::EmulatorError,
    fault::Fault,
    world::{World, lifetime_seconds},
};

pub(crate) use script::Script;

/// Events in the order in which they were written, each at once or some time after the start.
///
/// As text, one event a line; empty lines and what follows a `#` at the start of a line do not
/// count:
///
/// ```
/// let scenario: keybond_emulator::Scenario = "
///     ## An update of the metadata service, then a revocation.
///     410 for 60s
///     throttle 5/s issue retry-after 2s
///     after 10m: revoke once
///     after 1h:  clock +6d
/// "
/// .parse()?;
/// assert_eq!(scenario.steps().len(), 4);
///
/// let refusal = "410 for 60".parse::<keybond_emulator::Scenario>().unwrap_err();
/// assert_eq!(
///     refusal.to_string(),
///     "scenario, line 1: expected a duration such as 500ms, 60s, 15m, 2h, 6d or 1d12h, not 60"
/// );
/// # Ok::<(), keybond_emulator::EmulatorError>(())
/// ```
///
/// A line is `[after DURATION:] EVENT [LIMIT …]`. Limits belong to faults: `for DURATION`, `once`,
/// `twice`, `N times`, `always` (the default). Where a leg may be given and is not, `imds` is meant.
/// The legs are those of [`Leg`](crate::Leg), by the names they have in JSON.
///
/// | event | does |
/// |---|---|
/// | `410 [LEG] [retry-after DURATION]` | answers with this status (200 to 599) |
/// | `throttle N/s [LEG] [retry-after DURATION]` | answers 429 to all but N requests of each second |
/// | `slow [LEG] DURATION` | answers so much later; real time, whatever the clock says |
/// | `garbage [LEG]` | answers 200 with what is not JSON |
/// | `redirect [LEG]` | redirects (307) to the honeypot |
/// | `reset [LEG]` | resets the connection instead of answering |
/// | `reset handshake token\|vault` | resets the connection instead of shaking hands |
/// | `wrong-key cert`, `wrong-client cert`, `wrong-tenant cert`, `expired cert`, `early cert` | issues such certificates |
/// | `aadsts N` | the token service refuses with `invalid_client` and this number |
/// | `fault JSON` | any [`Fault`], which then says its own limits |
/// | `revoke [once\|twice\|N times\|always] [with N]` | refuses all certificates there are, as [`Directive::Revoke`] says |
/// | `rotate in DURATION`, `certificate lifetime DURATION` | certificates issued from now on live so long |
/// | `token lifetime DURATION` | tokens issued from now on live so long |
/// | `token-not-after DURATION` | certificates issued from now on get tokens only for so long (then AADSTS1000901) |
/// | `tls13 asks`, `tls13 does-not-ask` | whether the token service asks for the certificate under TLS 1.3 |
/// | `clock +DURATION`, `clock -DURATION` | moves the emulator's clock |
/// | `attestation required\|checked\|refused\|optional` | what `issuecredential` says to attestation tokens |
/// | `clear` | ends all faults |
///
/// All waiting is counted on the emulator's clock from the moment the scenario starts to play. A jump
/// of the clock makes everything due that lies in between, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    steps: Vec<Step>,
}

/// One event of a scenario.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// How long after the start of the scenario, in whole seconds of the emulator's clock.
    pub after: Duration,
    /// What happens.
    pub directive: Directive,
    /// How it was written; made up if it was not.
    pub text: String,
}

/// What a step of a scenario does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Directive {
    /// Makes a leg misbehave.
    Fault(Fault),
    /// The token service refuses every certificate issued so far. The metadata service, which
    /// keeps certificates, hands out revoked ones until it is asked with `bypass_cache=true`.
    Revoke {
        /// The number after `AADSTS`; 0 for `invalid_client` without any.
        code: u32,
        /// Which request with `bypass_cache=true`, counted for each identity, gets the first good
        /// certificate: 1 for the next. `None`: none ever does.
        reissues: Option<u32>,
    },
    /// How long certificates issued from now on are valid.
    CertificateLifetime(Duration),
    /// How long tokens issued from now on are valid.
    TokenLifetime(Duration),
    /// For how long certificates issued from now on get tokens; then the token service refuses them
    /// with AADSTS1000901, however long they are valid.
    TokenNotAfter(Duration),
    /// Whether the token service asks for the client's certificate under TLS 1.3, too.
    AskUnderTls13(bool),
    /// Moves the emulator's clock by whole seconds.
    Clock(i64),
    /// What `issuecredential` says to attestation tokens.
    Attestation(AttestationRule),
    /// Ends all faults.
    Clear,
}

impl Scenario {
    /// A scenario in which nothing happens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what happens at the start.
    #[must_use]
    pub fn at_once(self, directive: Directive) -> Self {
        self.after(Duration::ZERO, directive)
    }

    /// Adds what happens so many whole seconds after the start.
    #[must_use]
    pub fn after(mut self, after: Duration, directive: Directive) -> Self {
        let text = format!("{directive:?}");
        self.steps.push(Step {
            after,
            directive,
            text,
        });
        self
    }

    /// The events, as they were written.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether every step can be done.
    pub(crate) fn check(&self) -> Result<(), EmulatorError> {
        self.steps
            .iter()
            .try_for_each(|step| step.directive.check())
    }
}

impl FromStr for Scenario {
    type Err = EmulatorError;

    fn from_str(text: &str) -> Result<Self, EmulatorError> {
        parse::scenario(text)
    }
}

impl Directive {
    fn check(&self) -> Result<(), EmulatorError> {
        match self {
            Self::Fault(fault) => fault.check(),
            Self::CertificateLifetime(lifetime) => {
                lifetime_seconds("certificate_lifetime", *lifetime).map(drop)
            }
            Self::TokenLifetime(lifetime) => {
                lifetime_seconds("token_lifetime", *lifetime).map(drop)
            }
            Self::TokenNotAfter(window) => lifetime_seconds("token_not_after", *window).map(drop),
            Self::Revoke {
                reissues: Some(0), ..
            } => Err(EmulatorError::invalid("reissues", "at least 1", "0")),
            _ => Ok(()),
        }
    }

    /// Does it, as of this time of the emulator's clock.
    fn apply(self, world: &World, at: u64) -> Result<(), EmulatorError> {
        match self {
            Self::Fault(fault) => world.faults.inject(vec![fault], at),
            Self::Revoke { code, reissues } => {
                world.revoke_kept(code, reissues);
                Ok(())
            }
            Self::CertificateLifetime(lifetime) => world.set_certificate_lifetime(lifetime),
            Self::TokenLifetime(lifetime) => world.set_token_lifetime(lifetime),
            Self::TokenNotAfter(window) => world.set_token_window(window),
            Self::AskUnderTls13(ask) => {
                world.set_ask_under_tls13(ask);
                Ok(())
            }
            Self::Clock(seconds) => world.clock.shift(seconds),
            Self::Attestation(rule) => {
                world.set_attestation(rule);
                Ok(())
            }
            Self::Clear => {
                world.faults.clear();
                Ok(())
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
