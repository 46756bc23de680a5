//! Faults on demand: which leg misbehaves, how, and for how long.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::EmulatorError;

/// A kind of request, by what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Leg {
    /// Every request to the Instance Metadata Service.
    Imds,
    /// Platform metadata asked for without the `Metadata` header.
    Probe,
    /// Platform metadata.
    Metadata,
    /// A certificate.
    Issue,
    /// A version 1 token asked for without the `Metadata` header.
    V1Probe,
    /// A version 1 token.
    V1Token,
    /// Instance metadata.
    Compute,
    /// A token, at the token service.
    Token,
    /// The key set or the configuration, at the token service.
    Discovery,
    /// The attestation service.
    Attestation,
    /// A token, at the token service of a Service Fabric cluster.
    Fabric,
    /// The vaults.
    Vault,
}

impl Leg {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Imds => "imds",
            Self::Probe => "probe",
            Self::Metadata => "metadata",
            Self::Issue => "issue",
            Self::V1Probe => "v1_probe",
            Self::V1Token => "v1_token",
            Self::Compute => "compute",
            Self::Token => "token",
            Self::Discovery => "discovery",
            Self::Attestation => "attestation",
            Self::Fabric => "fabric",
            Self::Vault => "vault",
        }
    }

    pub(crate) const fn is_imds(self) -> bool {
        !matches!(
            self,
            Self::Token | Self::Discovery | Self::Attestation | Self::Fabric | Self::Vault
        )
    }

    fn covers(self, request: Self) -> bool {
        self == request || self == Self::Imds && request.is_imds()
    }
}

/// A misbehaviour of one leg.
///
/// As JSON: `{"leg":"metadata","kind":{"status":{"status":410}},"seconds":60}`,
/// `{"leg":"token","kind":"reset","times":1}`. Without `times` and `seconds` it stays until
/// cleared.
///
/// ```
/// let fault: keybond_emulator::Fault =
///     serde_json::from_str(r#"{"leg":"issue","kind":"wrong_key","times":1}"#)?;
/// assert_eq!(fault.kind, keybond_emulator::FaultKind::WrongKey);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The leg.
    pub leg: Leg,
    /// The misbehaviour.
    pub kind: FaultKind,
    /// For how many requests; each request of the leg uses up one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// For how many seconds of the emulator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

impl Fault {
    /// A fault that stays until cleared.
    pub fn new(leg: Leg, kind: FaultKind) -> Self {
        Self {
            leg,
            kind,
            times: None,
            seconds: None,
        }
    }

    /// Only for so many requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only for so many seconds of the emulator's clock.
    #[must_use]
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.seconds = Some(seconds);
        self
    }

    /// Reads one fault or an array of them from JSON: the form of a scenario file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn list_from_json(json: &[u8]) -> Result<Vec<Self>, EmulatorError> {
        let one_or_more = serde_json::from_slice(json).and_then(|value| match value {
            Value::Array(faults) => faults.into_iter().map(serde_json::from_value).collect(),
            fault => serde_json::from_value(fault).map(|fault| vec![fault]),
        });
        one_or_more.map_err(|error| {
            EmulatorError::invalid("faults", "a fault or an array of faults", error.to_string())
        })
    }

    pub(crate) fn check(&self) -> Result<(), EmulatorError> {
        use FaultKind as K;

        let fits = match &self.kind {
            K::WrongKey
            | K::WrongClientId
            | K::WrongTenantId
            | K::Expired
            | K::NotYetValid
            | K::HttpStsEndpoint
            | K::ForeignStsEndpoint { .. } => self.leg == Leg::Issue,
            K::WrongTokenType | K::Aadsts { .. } => self.leg == Leg::Token,
            K::ClaimsChallenge { .. } => self.leg == Leg::Vault,
            K::ResetHandshake => matches!(self.leg, Leg::Token | Leg::Vault),
            K::WrongServerHeader | K::NoServerHeader => self.leg.is_imds(),
            _ => true,
        };
        if !fits {
            let kind = serde_json::to_string(&self.kind).unwrap_or_default();
            return Err(EmulatorError::invalid(
                "leg",
                format!("a leg that can fail as {kind}"),
                self.leg.name(),
            ));
        }
        let status = match self.kind {
            K::Status { status, .. } => Some((status, 200..=599)),
            K::Redirect { status, .. } => Some((status, 300..=399)),
            K::Aadsts { status, .. } => Some((status, 400..=599)),
            _ => None,
        };
        match status {
            Some((status, range)) if !range.contains(&status) => Err(EmulatorError::invalid(
                "status",
                format!("{} to {}", range.start(), range.end()),
                status.to_string(),
            )),
            _ => Ok(()),
        }
    }
}

/// How a leg misbehaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum FaultKind {
    /// Answers with this status (200 to 599) and an error body.
    Status {
        /// The HTTP status.
        status: u16,
        /// The `Retry-After` header, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u32>,
    },
    /// Answers 429 to all but the first so many requests of each second of the emulator's clock.
    Throttle {
        /// Requests let through per second.
        per_second: u32,
        /// The `Retry-After` header of the refusals, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u32>,
    },
    /// Answers properly, so many milliseconds late.
    Slow {
        /// Milliseconds of real time.
        millis: u64,
    },
    /// Answers 200 with something that is not JSON.
    Garbage,
    /// Answers 200 with bytes that are not UTF-8.
    NotUtf8,
    /// Answers 200 with a body that goes on and on.
    HugeBody {
        /// Its length in bytes; 1 GiB if not given.
        #[serde(default = "gibibyte")]
        bytes: u64,
    },
    /// Redirects.
    Redirect {
        /// The HTTP status (300 to 399), 307 if not given.
        #[serde(default = "temporary_redirect")]
        status: u16,
        /// The `Location`; the emulator's own counted trap if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        location: Option<String>,
    },
    /// Resets the TCP connection instead of answering.
    Reset,
    /// Token service and vault: resets the TCP connection when the TLS handshake has begun. Each
    /// connection uses up one of [`Fault::times`].
    ResetHandshake,
    /// IMDS: says in `Server` that it is something else.
    WrongServerHeader,
    /// IMDS: does not say who it is.
    NoServerHeader,
    /// Leaves a field out of the JSON answer; dots lead inwards (`cuId.vmId`).
    MissingField {
        /// The field.
        field: String,
    },
    /// Sets a field of the JSON answer to the empty string.
    EmptyField {
        /// The field.
        field: String,
    },
    /// Sets a field of the JSON answer to this value.
    SetField {
        /// The field.
        field: String,
        /// The value.
        value: Value,
    },
    /// Issues a certificate for another key.
    WrongKey,
    /// Issues a certificate for another client id.
    WrongClientId,
    /// Issues a certificate for another tenant.
    WrongTenantId,
    /// Issues a certificate that has expired.
    Expired,
    /// Issues a certificate that becomes valid in an hour.
    NotYetValid,
    /// Sends clients to a token service without TLS (the counted trap).
    HttpStsEndpoint,
    /// Sends clients to a token service of this host.
    ForeignStsEndpoint {
        /// Host, or host and port.
        host: String,
    },
    /// Issues the token but says that it is of type `Bearer`.
    WrongTokenType,
    /// The token service refuses with this code.
    Aadsts {
        /// The number after `AADSTS`; 0 for an error without any code.
        code: u32,
        /// The OAuth error, `invalid_client` if not given.
        #[serde(default = "invalid_client")]
        error: String,
        /// The HTTP status (400 to 599), 401 if not given.
        #[serde(default = "unauthorized")]
        status: u16,
    },
    /// The vault refuses with a claims challenge.
    ClaimsChallenge {
        /// The claims, JSON as text.
        claims: String,
    },
}

fn gibibyte() -> u64 {
    1 << 30
}

fn temporary_redirect() -> u16 {
    307
}

fn invalid_client() -> String {
    "invalid_client".into()
}

fn unauthorized() -> u16 {
    401
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct FaultBoard(Mutex<Vec<Pinned>>);

#[derive(Debug)]
struct Pinned {
    fault: Fault,
    left: Option<u32>,
    until: Option<u64>,
    /// The second of the emulator's clock and how many requests it has let through.
    window: (u64, u32),
}

impl FaultBoard {
    pub(crate) fn inject(&self, faults: Vec<Fault>, now: u64) -> Result<(), EmulatorError> {
        for fault in &faults {
            fault.check()?;
        }
        self.pins().extend(faults.into_iter().map(|fault| Pinned {
            left: fault.times,
            until: fault.seconds.map(|seconds| now.saturating_add(seconds)),
            window: (now, 0),
            fault,
        }));
        Ok(())
    }

    pub(crate) fn clear(&self) {
        self.pins().clear();
    }

    /// The faults still in force, with what is left of them.
    pub(crate) fn list(&self, now: u64) -> Vec<Fault> {
        let mut pins = self.pins();
        pins.retain(|pin| pin.in_force(now));
        pins.iter()
            .map(|pin| Fault {
                times: pin.left,
                seconds: pin.until.map(|until| until - now),
                ..pin.fault.clone()
            })
            .collect()
    }

    /// What befalls one request of this leg; each fault that applies is used up by one.
    pub(crate) fn strike(&self, leg: Leg, now: u64) -> Vec<FaultKind> {
        let mut pins = self.pins();
        pins.retain(|pin| pin.in_force(now));
        pins.iter_mut()
            .filter(|pin| pin.fault.leg.covers(leg))
            .filter(|pin| pin.fault.kind != FaultKind::ResetHandshake)
            .filter_map(|pin| {
                if let Some(left) = &mut pin.left {
                    *left -= 1;
                }
                if let FaultKind::Throttle { per_second, .. } = pin.fault.kind {
                    if pin.window.0 != now {
                        pin.window = (now, 0);
                    }
                    pin.window.1 = pin.window.1.saturating_add(1);
                    if pin.window.1 <= per_second {
                        return None;
                    }
                }
                Some(pin.fault.kind.clone())
            })
            .collect()
    }

    /// Whether the TLS handshake of a connection for this leg is to be reset; if so, that is used
    /// up by one.
    pub(crate) fn strikes_handshake(&self, leg: Leg, now: u64) -> bool {
        let mut pins = self.pins();
        pins.retain(|pin| pin.in_force(now));
        let struck = pins
            .iter_mut()
            .find(|pin| pin.fault.leg == leg && pin.fault.kind == FaultKind::ResetHandshake);
        match struck {
            Some(pin) => {
                if let Some(left) = &mut pin.left {
                    *left -= 1;
                }
                true
            }
            None => false,
        }
    }

    fn pins(&self) -> std::sync::MutexGuard<'_, Vec<Pinned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pinned {
    fn in_force(&self, now: u64) -> bool {
        self.left != Some(0) && self.until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> FaultKind {
        FaultKind::Status {
            status: 410,
            retry_after: None,
        }
    }

    #[test]
    fn a_fault_lasts_as_many_requests_or_seconds_as_it_says() {
        let board = FaultBoard::default();
        board
            .inject(
                vec![
                    Fault::new(Leg::Imds, gone()).times(2),
                    Fault::new(Leg::Vault, FaultKind::Reset).seconds(60),
                ],
                100,
            )
            .unwrap();
        assert_eq!(board.strike(Leg::Token, 100), []);
        assert_eq!(board.strike(Leg::Metadata, 100), [gone()]);
        assert_eq!(board.list(110)[1].seconds, Some(50));
        assert_eq!(board.strike(Leg::Probe, 100), [gone()]);
        assert_eq!(board.strike(Leg::Probe, 100), [], "used up");
        assert_eq!(board.strike(Leg::Vault, 159), [FaultKind::Reset]);
        assert_eq!(board.strike(Leg::Vault, 160), [], "over");
        assert_eq!(board.list(160), []);
    }

    #[test]
    fn a_throttle_lets_so_many_through_in_each_second() {
        let board = FaultBoard::default();
        let throttle = FaultKind::Throttle {
            per_second: 2,
            retry_after: Some(1),
        };
        board
            .inject(vec![Fault::new(Leg::Issue, throttle)], 0)
            .unwrap();
        let struck = |now| board.strike(Leg::Issue, now).len();
        assert_eq!([struck(5), struck(5), struck(5), struck(6)], [0, 0, 1, 0]);
    }

    #[test]
    fn a_fault_that_makes_no_sense_is_refused() {
        let board = FaultBoard::default();
        let refused = |fault| board.inject(vec![fault], 0).unwrap_err().to_string();
        assert_eq!(
            refused(Fault::new(Leg::Vault, FaultKind::WrongKey)),
            "leg: expected a leg that can fail as \"wrong_key\", not vault"
        );
        let status = FaultKind::Status {
            status: 42,
            retry_after: None,
        };
        assert_eq!(
            refused(Fault::new(Leg::Token, status)),
            "status: expected 200 to 599, not 42"
        );
        for text in [
            r#"{"leg":"issue","kind":"wrong_kee"}"#,
            r#"{"leg":"nowhere","kind":"reset"}"#,
            r#"{"leg":"issue","kind":"reset","tmes":1}"#,
            r#"{"leg":"issue","kind":{"slow":{"millis":1,"extra":2}}}"#,
        ] {
            assert!(Fault::list_from_json(text.as_bytes()).is_err(), "{text}");
        }
        let one = br#"{"leg":"issue","kind":"reset"}"#;
        let reset = Fault::new(Leg::Issue, FaultKind::Reset);
        assert_eq!(Fault::list_from_json(one).unwrap(), [reset]);
        assert_eq!(Fault::list_from_json(b"[]").unwrap(), []);
    }
}
