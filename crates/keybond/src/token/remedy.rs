//! What is done about a refusal of the token service: a pure machine. It is told what happened and says what to
//! do next; asking, signing and waiting are elsewhere.
//!
//! | what happened | what is done |
//! |---|---|
//! | `invalid_client` without a number, AADSTS1000610 to 1000614, 500181, 1000901 | a new certificate, past every cache, then the token again |
//! | the handshake ends with an alert that names the certificate | the same |
//! | the connection is reset | the key proves itself by a signature; only if it is dead, a new key and certificate |
//! | the key does not sign | the same |
//! | AADSTS392196, AADSTS3921996 | nothing: no certificate changes what the resource or the tenant takes |
//! | anything else | nothing |
//!
//! New certificates are few: so many for one request, and so many for one identity in a while, whatever asks for
//! them. A service that refuses everything costs a few certificates and then an error, not a storm.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use keybond_tls::{Stage, TlsError};
use tokio::time::Instant;

use crate::{
    error::{Error, NoAnswer},
    leg::Leg,
    time::DECADES,
};

/// The token service's numbers for a certificate, or the attestation behind it, that it does not accept.
const REJECTED: [u64; 7] = [
    1_000_610, 1_000_611, 1_000_612, 1_000_613, 1_000_614, 500_181, 1_000_901,
];

/// Its numbers for what no certificate changes: the resource, or the tenant, takes no bound tokens.
const FINAL: [u64; 2] = [RESOURCE_UNBOUND, TENANT_UNBOUND];

/// The resource takes no bound tokens.
pub(crate) const RESOURCE_UNBOUND: u64 = 392_196;

/// The tenant has not been admitted to bound tokens.
pub(crate) const TENANT_UNBOUND: u64 = 3_921_996;

/// How far a client goes to cure refusals of the token service by new certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemedyPolicy {
    /// New certificates for one request at most, and in a row for one identity; 3 if not set, 0 for none ever.
    pub new_certificates: u32,
    /// After how long an identity that has used all of them up may have one more; 60 s if not set.
    pub regain: Duration,
    /// The wait before the second new certificate of a request, doubled before each further one; 1 s if not
    /// set. The first one is not waited for.
    pub back_off: Duration,
}

impl Default for RemedyPolicy {
    fn default() -> Self {
        Self {
            new_certificates: 3,
            regain: Duration::from_secs(60),
            back_off: Duration::from_secs(1),
        }
    }
}

/// What a failed token request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The certificate, or the attestation behind it, is not accepted.
    CertificateRejected,
    /// The connection broke: because of the key, the certificate, or nothing in particular.
    Ambiguous,
    /// The key did not sign.
    KeyFailed,
    /// Nothing that a new certificate could cure.
    Final,
}

impl Finding {
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::Refused {
                at,
                error,
                description,
                error_codes,
                ..
            } if at.leg == Leg::Token => {
                let stated = |known: &[u64]| error_codes.iter().any(|code| known.contains(code));
                let rejected = if stated(&FINAL) {
                    false
                } else if !error_codes.is_empty() {
                    stated(&REJECTED)
                } else {
                    // Some answers have their number in the words alone.
                    error == "invalid_client"
                        && number_in(description).is_none_or(|number| REJECTED.contains(&number))
                };
                if rejected {
                    Self::CertificateRejected
                } else {
                    Self::Final
                }
            }
            Error::Unreachable {
                how: NoAnswer::Broken,
                ..
            } => Self::Ambiguous,
            Error::Tls { cause, .. } => match &**cause {
                TlsError::ClientCertificateRefused { .. } => Self::CertificateRejected,
                TlsError::Key { .. } => Self::KeyFailed,
                TlsError::Closed {
                    stage: Stage::Handshake | Stage::Transfer,
                    ..
                } => Self::Ambiguous,
                TlsError::Io { .. } if cause.retryable() => Self::Ambiguous,
                _ => Self::Final,
            },
            _ => Self::Final,
        }
    }
}

/// The number after the first `AADSTS` in a text.
fn number_in(description: &str) -> Option<u64> {
    let rest = description.split_once("AADSTS")?.1;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// What the provider found out about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyVerdict {
    Alive,
    Replaced,
    /// Its device does not say.
    Unproven,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing more: the failure stands.
    Surface,
    /// Have the key prove itself by a signature, and tell the machine.
    ProveKey,
    /// Wait so long, get a new certificate past every cache, and ask again.
    NewCertificate { after: Duration },
}

/// The remedies of one request.
#[derive(Debug)]
pub(crate) struct Remedies {
    policy: RemedyPolicy,
    certificates: u32,
    proven: bool,
}

impl Remedies {
    pub(crate) fn new(policy: RemedyPolicy) -> Self {
        Self {
            policy,
            certificates: 0,
            proven: false,
        }
    }

    /// What to do about a failed token request.
    pub(crate) fn after(&mut self, finding: Finding) -> Step {
        match finding {
            Finding::CertificateRejected => self.new_certificate(),
            Finding::Ambiguous | Finding::KeyFailed if !self.proven => {
                self.proven = true;
                Step::ProveKey
            }
            Finding::Ambiguous | Finding::KeyFailed | Finding::Final => Step::Surface,
        }
    }

    /// What to do after the key was asked to prove itself.
    pub(crate) fn after_proof(&mut self, verdict: KeyVerdict) -> Step {
        match verdict {
            KeyVerdict::Replaced => self.new_certificate(),
            KeyVerdict::Alive | KeyVerdict::Unproven => Step::Surface,
        }
    }

    /// How many new certificates this request has had.
    pub(crate) fn certificates(&self) -> u32 {
        self.certificates
    }

    fn new_certificate(&mut self) -> Step {
        if self.certificates >= self.policy.new_certificates {
            return Step::Surface;
        }
        let after = match self.certificates {
            0 => Duration::ZERO,
            done => {
                let wait = self.policy.back_off.saturating_mul(1 << (done - 1).min(16));
                wait.min(DECADES)
            }
        };
        self.certificates += 1;
        Step::NewCertificate { after }
    }
}

/// The new certificates that one identity may still have: as many in a row as the policy allows, then one for
/// each `regain`. Monotonic time, so that a clock that is set forward gives none away.
#[derive(Debug)]
pub(crate) struct Allowance {
    policy: RemedyPolicy,
    state: Mutex<(u32, Instant)>,
}

impl Allowance {
    pub(crate) fn new(policy: RemedyPolicy, now: Instant) -> Self {
        Self {
            policy,
            state: Mutex::new((policy.new_certificates, now)),
        }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = &mut *state;
        let regain = self.policy.regain.max(Duration::from_millis(1));
        while *left < self.policy.new_certificates && now.duration_since(*since) >= regain {
            *left += 1;
            *since += regain;
        }
        // Nothing is saved up beyond what is allowed in a row.
        if *left >= self.policy.new_certificates {
            *since = now;
        }
        if *left == 0 {
            return false;
        }
        *left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keybond_keys::KeyError;

    use super::*;
    use crate::error::At;

    fn at(leg: Leg) -> At {
        At::new(leg, &"id".into())
    }

    fn refused(error: &str, description: &str, codes: &[u64]) -> Error {
        Error::Refused {
            at: at(Leg::Token).with_status(401),
            error: error.into(),
            description: description.into(),
            error_codes: codes.into(),
            new_certificates: 0,
            retry_after: None,
        }
    }

    fn tls(cause: TlsError) -> Error {
        Error::Tls {
            at: at(Leg::Token),
            host: "sts".into(),
            cause: Arc::new(cause),
        }
    }

    #[test]
    fn refusals_are_told_apart_by_their_numbers() {
        use Finding::{CertificateRejected, Final};
        for code in REJECTED {
            let words = format!("AADSTS{code}: no");
            assert_eq!(
                Finding::of(&refused("invalid_client", &words, &[code])),
                CertificateRejected
            );
            assert_eq!(
                Finding::of(&refused("invalid_client", &words, &[])),
                CertificateRejected,
                "{code} in words alone"
            );
        }
        for (error, words, codes, expected) in [
            ("invalid_client", "", &[][..], CertificateRejected),
            ("invalid_client", "no number", &[], CertificateRejected),
            ("invalid_client", "AADSTS700016: no", &[], Final),
            ("invalid_client", "AADSTS700016: no", &[700_016], Final),
            ("invalid_request", "", &[500_181], CertificateRejected),
            ("invalid_request", "", &[], Final),
            ("invalid_client", "", &[RESOURCE_UNBOUND], Final),
            ("invalid_client", "", &[TENANT_UNBOUND, 1_000_610], Final),
            ("temporarily_unavailable", "", &[], Final),
        ] {
            assert_eq!(
                Finding::of(&refused(error, words, codes)),
                expected,
                "{error} {words} {codes:?}"
            );
        }
        let elsewhere = Error::Refused {
            at: at(Leg::Issue).with_status(400),
            error: "invalid_client".into(),
            description: String::new(),
            error_codes: Vec::new(),
            new_certificates: 0,
            retry_after: None,
        };
        assert_eq!(Finding::of(&elsewhere), Final, "another leg");
    }

    #[test]
    fn a_connection_that_breaks_blames_nobody_yet() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let host = || "sts".to_owned();
        let stage = Stage::Handshake;
        for (cause, expected) in [
            (
                TlsError::Io {
                    host: host(),
                    stage,
                    source: Arc::new(reset),
                },
                Finding::Ambiguous,
            ),
            (
                TlsError::Closed {
                    host: host(),
                    stage,
                },
                Finding::Ambiguous,
            ),
            (
                TlsError::ClientCertificateRefused {
                    host: host(),
                    alert: keybond_tls::Alert(44),
                },
                Finding::CertificateRejected,
            ),
            (
                TlsError::Key {
                    stage,
                    source: KeyError::DeadlineExceeded {
                        after: Duration::ZERO,
                    },
                },
                Finding::KeyFailed,
            ),
            (
                TlsError::UntrustedServer {
                    host: host(),
                    problem: String::new(),
                },
                Finding::Final,
            ),
        ] {
            assert_eq!(Finding::of(&tls(cause.clone())), expected, "{cause}");
        }
        for (how, expected) in [
            (NoAnswer::Broken, Finding::Ambiguous),
            (NoAnswer::Silence, Finding::Final),
            (NoAnswer::Refused, Finding::Final),
        ] {
            let error = Error::Unreachable {
                at: at(Leg::Token),
                address: "sts:443".into(),
                cause: String::new(),
                how,
            };
            assert_eq!(Finding::of(&error), expected, "{how:?}");
        }
    }

    #[test]
    fn new_certificates_are_bounded_and_backed_off() {
        let mut remedies = Remedies::new(RemedyPolicy::default());
        let waits: Vec<_> =
            std::iter::from_fn(|| match remedies.after(Finding::CertificateRejected) {
                Step::NewCertificate { after } => Some(after.as_secs()),
                _ => None,
            })
            .collect();
        assert_eq!((waits, remedies.certificates()), (vec![0, 1, 2], 3));

        let never = RemedyPolicy {
            back_off: Duration::MAX,
            ..RemedyPolicy::default()
        };
        let mut remedies = Remedies::new(never);
        remedies.after(Finding::CertificateRejected);
        let Step::NewCertificate { after } = remedies.after(Finding::CertificateRejected) else {
            panic!("a second one is allowed");
        };
        assert!(Instant::now().checked_add(after).is_some(), "{after:?}");

        let none = RemedyPolicy {
            new_certificates: 0,
            ..RemedyPolicy::default()
        };
        let step = Remedies::new(none).after(Finding::CertificateRejected);
        assert_eq!(step, Step::Surface);
    }

    #[test]
    fn a_reset_costs_a_signature_and_a_certificate_only_if_the_key_is_dead() {
        for (verdict, expected) in [
            (KeyVerdict::Alive, Step::Surface),
            (KeyVerdict::Unproven, Step::Surface),
            (
                KeyVerdict::Replaced,
                Step::NewCertificate {
                    after: Duration::ZERO,
                },
            ),
        ] {
            let mut remedies = Remedies::new(RemedyPolicy::default());
            assert_eq!(remedies.after(Finding::Ambiguous), Step::ProveKey);
            assert_eq!(remedies.after_proof(verdict), expected);
            // It is not asked for a second signature in the same request.
            assert_eq!(remedies.after(Finding::Ambiguous), Step::Surface);
        }
    }

    #[test]
    fn an_identity_gets_so_many_in_a_row_and_then_one_in_a_while() {
        let start = Instant::now();
        let allowance = Allowance::new(RemedyPolicy::default(), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let taken = |seconds| allowance.take(at(seconds));
        assert!(taken(1000) && taken(1000) && taken(1001));
        assert!(!taken(1002) && !taken(1059));
        assert!(taken(1060) && !taken(1061));
        assert!(taken(1500) && taken(1500) && taken(1500) && !taken(1500));
    }
}
