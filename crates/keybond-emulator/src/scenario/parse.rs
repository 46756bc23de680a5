//! The text of a scenario, read strictly: a line that is not understood in full is refused with its
//! number and with what was expected there.

use std::{borrow::Cow, str::SplitWhitespace, time::Duration};

use serde::{Deserialize, de::value::StrDeserializer};

use super::{Directive, Scenario, Step};
use crate::{
    admin::REVOKED,
    attestation::AttestationRule,
    error::EmulatorError,
    fault::{Fault, FaultKind, Leg},
};

const DURATION: &str = "a duration such as 500ms, 60s, 15m, 2h, 6d or 1d12h";
const LIMIT: &str = "'for DURATION', 'once', 'twice', 'N times', 'always' or the end of the line";
const LEG: &str = "imds, probe, metadata, issue, v1_probe, v1_token, compute, token, discovery, \
                   attestation or vault";
const EVENT: &str = "an event: a status, throttle, slow, garbage, redirect, reset, wrong-key, \
                     wrong-client, wrong-tenant, expired, early, aadsts, fault, revoke, rotate, \
                     certificate, token, token-not-after, tls13, clock, attestation or clear";

/// What was expected, and what stands there.
type Refusal = (Cow<'static, str>, String);

pub(super) fn scenario(text: &str) -> Result<Scenario, EmulatorError> {
    let mut steps = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = at + 1;
        let step = step(line).map_err(|(expected, given)| {
            EmulatorError::invalid(format!("scenario, line {number}"), expected, given)
        })?;
        step.directive.check().map_err(|error| {
            EmulatorError::invalid(
                format!("scenario, line {number}"),
                "an event that makes sense",
                format!("{line} ({error})"),
            )
        })?;
        steps.push(step);
    }
    Ok(Scenario { steps })
}

fn step(line: &str) -> Result<Step, Refusal> {
    let (after, event) = match line.strip_prefix("after ") {
        None => (Duration::ZERO, line),
        Some(rest) => {
            let (wait, event) = rest
                .split_once(':')
                .ok_or_else(|| refused("'after DURATION: EVENT'", line))?;
            (seconds(wait.trim())?, event.trim())
        }
    };
    let mut words = Words {
        left: event.split_whitespace(),
        leg_may_come: false,
    };
    let directive = directive(event, &mut words)?;
    words.end()?;
    Ok(Step {
        after,
        directive,
        text: event.to_owned(),
    })
}

fn directive(event: &str, words: &mut Words<'_>) -> Result<Directive, Refusal> {
    let verb = words.next(EVENT)?;
    let fault = |leg, kind, words: &mut Words<'_>| limited(Fault::new(leg, kind), words);
    match verb {
        "throttle" => {
            let rate = words.next("a rate such as 5/s")?;
            let per_second = rate
                .strip_suffix("/s")
                .and_then(number)
                .ok_or_else(|| refused("a rate such as 5/s", rate))?;
            let leg = words.leg_or_imds();
            let retry_after = retry_after(words)?;
            let kind = FaultKind::Throttle {
                per_second,
                retry_after,
            };
            fault(leg, kind, words)
        }
        "slow" => {
            let leg = words.leg_or_imds();
            let expected = format!("a leg ({LEG}) or {DURATION}");
            let word = words.next(expected.clone())?;
            let time = duration(word).ok_or_else(|| refused(expected, word))?;
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            fault(leg, FaultKind::Slow { millis }, words)
        }
        "garbage" => fault(words.leg_or_imds(), FaultKind::Garbage, words),
        "redirect" => {
            let kind = FaultKind::Redirect {
                status: 307,
                location: None,
            };
            fault(words.leg_or_imds(), kind, words)
        }
        "reset" if words.take("handshake") => match words.next("token or vault")? {
            "token" => fault(Leg::Token, FaultKind::ResetHandshake, words),
            "vault" => fault(Leg::Vault, FaultKind::ResetHandshake, words),
            other => Err(refused("token or vault", other)),
        },
        "reset" => fault(words.leg_or_imds(), FaultKind::Reset, words),
        "wrong-key" => certificate_fault(FaultKind::WrongKey, words),
        "wrong-client" => certificate_fault(FaultKind::WrongClientId, words),
        "wrong-tenant" => certificate_fault(FaultKind::WrongTenantId, words),
        "expired" => certificate_fault(FaultKind::Expired, words),
        "early" => certificate_fault(FaultKind::NotYetValid, words),
        "aadsts" => {
            let kind = FaultKind::Aadsts {
                code: words.number("the number after AADSTS; 0 for none")?,
                error: "invalid_client".into(),
                status: 401,
            };
            fault(Leg::Token, kind, words)
        }
        "fault" => {
            let json = event["fault".len()..].trim();
            words.left = "".split_whitespace();
            serde_json::from_str(json)
                .map(Directive::Fault)
                .map_err(|error| refused("a fault as JSON", format!("{json} ({error})")))
        }
        "revoke" => revoke(words),
        "rotate" => {
            words.expect("in")?;
            Ok(Directive::CertificateLifetime(words.seconds()?))
        }
        "certificate" => {
            words.expect("lifetime")?;
            Ok(Directive::CertificateLifetime(words.seconds()?))
        }
        "token" => {
            words.expect("lifetime")?;
            Ok(Directive::TokenLifetime(words.seconds()?))
        }
        "token-not-after" => Ok(Directive::TokenNotAfter(words.seconds()?)),
        "tls13" => {
            const BOTH: &str = "asks or does-not-ask";
            match words.next(BOTH)? {
                "asks" => Ok(Directive::AskUnderTls13(true)),
                "does-not-ask" => Ok(Directive::AskUnderTls13(false)),
                other => Err(refused(BOTH, other)),
            }
        }
        "clock" => clock(words),
        "attestation" => {
            const RULES: &str = "required, checked, refused or optional";
            match words.next(RULES)? {
                "required" => Ok(Directive::Attestation(AttestationRule::Required)),
                "checked" => Ok(Directive::Attestation(AttestationRule::Checked)),
                "refused" => Ok(Directive::Attestation(AttestationRule::Refused)),
                "optional" => Ok(Directive::Attestation(AttestationRule::Optional)),
                other => Err(refused(RULES, other)),
            }
        }
        "clear" => Ok(Directive::Clear),
        status => match number(status) {
            Some(code) if (200..=599).contains(&code) => {
                let leg = words.leg_or_imds();
                let kind = FaultKind::Status {
                    status: u16::try_from(code).unwrap_or(500),
                    retry_after: retry_after(words)?,
                };
                fault(leg, kind, words)
            }
            Some(_) => Err(refused("a status of 200 to 599", status)),
            None => Err(refused(EVENT, status)),
        },
    }
}

fn certificate_fault(kind: FaultKind, words: &mut Words<'_>) -> Result<Directive, Refusal> {
    words.expect("cert")?;
    limited(Fault::new(Leg::Issue, kind), words)
}

/// The limits at the end of a fault's line, each at most once.
fn limited(mut fault: Fault, words: &mut Words<'_>) -> Result<Directive, Refusal> {
    let mut always = false;
    let expected = if words.leg_may_come {
        format!("a leg ({LEG}), {LIMIT}").into()
    } else {
        Cow::Borrowed(LIMIT)
    };
    while let Some(word) = words.left.next() {
        let times = match word {
            "always" if !always && fault.times.is_none() && fault.seconds.is_none() => {
                always = true;
                continue;
            }
            "for" if !always && fault.seconds.is_none() => {
                fault.seconds = Some(words.seconds()?.as_secs());
                continue;
            }
            _ if always || fault.times.is_some() => None,
            word => repetitions(word, words)?,
        };
        fault.times = Some(times.ok_or_else(|| refused(expected.clone(), word))?);
    }
    Ok(Directive::Fault(fault))
}

/// `once`, `twice`, `N times`; `None` for another word.
fn repetitions(word: &str, words: &mut Words<'_>) -> Result<Option<u32>, Refusal> {
    Ok(match word {
        "once" => Some(1),
        "twice" => Some(2),
        _ => match number(word).filter(|times| *times > 0) {
            Some(times) => {
                words.expect("times")?;
                Some(times)
            }
            None => None,
        },
    })
}

fn retry_after(words: &mut Words<'_>) -> Result<Option<u32>, Refusal> {
    if !words.take("retry-after") {
        return Ok(None);
    }
    let seconds = words.seconds()?.as_secs();
    Ok(Some(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

fn revoke(words: &mut Words<'_>) -> Result<Directive, Refusal> {
    const EXPECTED: &str =
        "'once', 'twice', 'N times', 'always', 'with CODE' or the end of the line";

    let (mut code, mut reissues) = (REVOKED, Some(1));
    let mut word = words.left.next();
    if let Some(first) = word
        && first != "with"
    {
        reissues = match first {
            "always" => None,
            _ => Some(repetitions(first, words)?.ok_or_else(|| refused(EXPECTED, first))?),
        };
        word = words.left.next();
    }
    match word {
        None => {}
        Some("with") => code = words.number("the number after AADSTS; 0 for none")?,
        Some(other) => return Err(refused(EXPECTED, other)),
    }
    Ok(Directive::Revoke { code, reissues })
}

fn clock(words: &mut Words<'_>) -> Result<Directive, Refusal> {
    const EXPECTED: &str = "a movement such as +6d or -10m";

    let word = words.next(EXPECTED)?;
    let (sign, rest) = match word.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(refused(EXPECTED, word)),
    };
    let seconds = i64::try_from(seconds(rest)?.as_secs()).map_err(|_| refused(EXPECTED, word))?;
    Ok(Directive::Clock(sign * seconds))
}

/// The words of a line.
struct Words<'a> {
    left: SplitWhitespace<'a>,
    /// Whether a leg could have stood where the next word stands.
    leg_may_come: bool,
}

impl<'a> Words<'a> {
    fn next(&mut self, expected: impl Into<Cow<'static, str>>) -> Result<&'a str, Refusal> {
        self.left
            .next()
            .ok_or_else(|| refused(expected, "the end of the line"))
    }

    /// Takes the next word if it is this one.
    fn take(&mut self, word: &str) -> bool {
        let there = self.left.clone().next() == Some(word);
        if there {
            self.left.next();
            self.leg_may_come = false;
        }
        there
    }

    fn expect(&mut self, word: &str) -> Result<(), Refusal> {
        let given = self.next(format!("'{word}'"))?;
        if given == word {
            Ok(())
        } else {
            Err(refused(format!("'{word}'"), given))
        }
    }

    fn leg_or_imds(&mut self) -> Leg {
        let named = self.left.clone().next().and_then(leg);
        if named.is_some() {
            self.left.next();
        }
        self.leg_may_come = named.is_none();
        named.unwrap_or(Leg::Imds)
    }

    fn seconds(&mut self) -> Result<Duration, Refusal> {
        seconds(self.next(DURATION)?)
    }

    fn number(&mut self, expected: &'static str) -> Result<u32, Refusal> {
        let word = self.next(expected)?;
        number(word).ok_or_else(|| refused(expected, word))
    }

    fn end(&mut self) -> Result<(), Refusal> {
        match self.left.next() {
            None => Ok(()),
            Some(word) => Err(refused("the end of the line", word)),
        }
    }
}

fn leg(word: &str) -> Option<Leg> {
    let name: StrDeserializer<'_, serde::de::value::Error> = StrDeserializer::new(word);
    Leg::deserialize(name).ok()
}

fn number(word: &str) -> Option<u32> {
    // `parse` would take a sign.
    word.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| word.parse().ok())?
}

/// A duration of whole seconds.
fn seconds(word: &str) -> Result<Duration, Refusal> {
    let time = duration(word).ok_or_else(|| refused(DURATION, word))?;
    if time.subsec_millis() == 0 {
        Ok(time)
    } else {
        Err(refused("whole seconds", word))
    }
}

/// Numbers with units, without spaces, the larger unit first: `1d12h`.
fn duration(word: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let (mut rest, mut left, mut millis) = (word, &UNITS[..], 0_u64);
    loop {
        let unit_at = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (amount, tail) = rest.split_at(unit_at);
        let end = tail
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let at = left.iter().position(|(name, _)| *name == unit)?;
        let amount = amount.parse::<u64>().ok()?.checked_mul(left[at].1)?;
        millis = millis.checked_add(amount)?;
        if tail.is_empty() {
            return Some(Duration::from_millis(millis));
        }
        (rest, left) = (tail, &left[at + 1..]);
    }
}

fn refused(expected: impl Into<Cow<'static, str>>, given: impl Into<String>) -> Refusal {
    (expected.into(), given.into())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
