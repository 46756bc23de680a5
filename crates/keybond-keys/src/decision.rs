//! The decision record: which stores were considered, in order, what each said, and how long it took.
//! `doctor`, logs and errors all print this one thing.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

use crate::{
    refusal::Unavailable,
    strength::{StoreId, Strength, Tier},
};

/// How a key was chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// When the decision was made (Unix seconds in JSON).
    #[serde(serialize_with = "unix_seconds")]
    pub at: SystemTime,
    /// The stores considered, in order; the last entry marked chosen holds the key.
    pub considered: Vec<Considered>,
    /// Whether a stronger store refused for a reason that may pass, so that it will be asked again.
    pub provisional: bool,
}

/// One store in a decision.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// The store.
    pub store: StoreId,
    /// Its tier.
    pub tier: Tier,
    /// What it said.
    pub outcome: Outcome,
    /// Facts about its device and the key in it, asked for by a probe alone; in the order to print them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(String, String)>,
    /// How often it was asked.
    pub attempts: u32,
    /// How long all attempts took together (milliseconds in JSON).
    #[serde(rename = "elapsed_ms", serialize_with = "milliseconds")]
    pub elapsed: Duration,
}

/// What a store said.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its key is used.
    Chosen {
        /// Whether the key was made now (otherwise it was there already).
        created: bool,
        /// What the key was shown to be.
        strength: Strength,
    },
    /// It could hold a key, as far as can be told without making one.
    Available,
    /// It refused.
    Skipped(Unavailable),
    /// A store before it was chosen, or the key in use is its equal already; this one was not asked.
    NotAsked,
}

impl Decision {
    /// The entry of the store whose key is used.
    pub fn chosen(&self) -> Option<&Considered> {
        self.considered
            .iter()
            .find(|c| matches!(c.outcome, Outcome::Chosen { .. }))
    }

    /// The refusals of the stores that were asked, in order.
    pub fn refusals(&self) -> impl Iterator<Item = &Unavailable> {
        self.considered.iter().filter_map(|c| match &c.outcome {
            Outcome::Skipped(refusal) => Some(refusal),
            _ => None,
        })
    }
}

impl Considered {
    /// Whether the store refused for a reason that may pass.
    pub fn may_pass(&self) -> bool {
        matches!(&self.outcome, Outcome::Skipped(refusal) if refusal.retryable)
    }
}

/// One line a store: `tpm2      Hardware  skipped  not_present: …  (0.1 ms)`.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.considered.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Considered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9} {:<9} ", self.store, self.tier)?;
        match &self.outcome {
            Outcome::Chosen { created, strength } => {
                let how = if *created { "created" } else { "opened" };
                write!(f, "chosen   {how}, strength {strength}")?;
            }
            Outcome::Available => f.write_str("available")?,
            Outcome::Skipped(refusal) => {
                write!(f, "skipped  {}: {}", refusal.reason, refusal.detail)?;
                if let Some(native) = &refusal.native {
                    write!(f, " [{native}]")?;
                }
                if !refusal.remedy.is_empty() {
                    write!(f, " — {}", refusal.remedy)?;
                }
            }
            Outcome::NotAsked => return f.write_str("not asked"),
        }
        if self.attempts > 1 {
            write!(f, " after {} attempts", self.attempts)?;
        }
        write!(f, " ({:.1} ms)", self.elapsed.as_secs_f64() * 1e3)?;
        for (name, value) in &self.details {
            write!(f, "\n{:20} {name}={value}", "")?;
        }
        Ok(())
    }
}

fn unix_seconds<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

fn milliseconds<S: Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((elapsed.as_secs_f64() * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::{NativeCode, Reason};

    fn considered(outcome: Outcome, attempts: u32) -> Considered {
        Considered {
            store: StoreId::Tpm2,
            tier: Tier::Hardware,
            outcome,
            attempts,
            elapsed: Duration::from_micros(1_540),
            details: Vec::new(),
        }
    }

    #[test]
    fn a_line_tells_everything_that_is_known() {
        let chosen = |created| Outcome::Chosen {
            created,
            strength: Strength::Hardware,
        };
        let bare = Unavailable::new(StoreId::Tpm2, Reason::Failed, "it broke");
        let plain = Unavailable {
            native: None,
            remedy: "".into(),
            ..bare.clone()
        };
        let full = Unavailable {
            native: Some(NativeCode {
                space: "errno",
                code: 5,
                name: Some("EIO".into()),
            }),
            remedy: "Mend it.".into(),
            ..bare
        };
        for (entry, line) in [
            (
                considered(chosen(true), 1),
                "tpm2      Hardware  chosen   created, strength hardware (1.5 ms)",
            ),
            (
                considered(chosen(false), 3),
                "tpm2      Hardware  chosen   opened, strength hardware after 3 attempts (1.5 ms)",
            ),
            (
                considered(Outcome::Available, 1),
                "tpm2      Hardware  available (1.5 ms)",
            ),
            (
                considered(Outcome::Skipped(plain), 1),
                "tpm2      Hardware  skipped  failed: it broke (1.5 ms)",
            ),
            (
                considered(Outcome::Skipped(full), 2),
                "tpm2      Hardware  skipped  failed: it broke [errno 5 EIO] — Mend it. after 2 attempts (1.5 ms)",
            ),
            (
                considered(Outcome::NotAsked, 0),
                "tpm2      Hardware  not asked",
            ),
        ] {
            assert_eq!(entry.to_string(), line);
        }
    }

    #[test]
    fn times_are_in_seconds_and_milliseconds() {
        let decision = Decision {
            at: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            considered: vec![considered(Outcome::NotAsked, 0)],
            provisional: true,
        };
        let json = serde_json::to_value(&decision).unwrap();
        assert_eq!(json["at"], 1_800_000_000_u64);
        assert_eq!(json["considered"][0]["elapsed_ms"], 1.54);
        assert_eq!(json["provisional"], true);
    }

    #[test]
    fn a_decision_is_a_line_a_store_and_names_the_chosen_one() {
        let busy = Unavailable::new(StoreId::KeyGuard, Reason::Busy, "it is at work");
        let absent = Unavailable::new(StoreId::Pkcs11, Reason::NotPresent, "no module");
        let entry = |outcome| considered(outcome, 1);
        let mut decision = Decision {
            at: UNIX_EPOCH,
            considered: vec![
                entry(Outcome::Skipped(busy)),
                entry(Outcome::Skipped(absent)),
            ],
            provisional: false,
        };
        assert!(decision.chosen().is_none());
        decision.considered.push(entry(Outcome::Chosen {
            created: true,
            strength: Strength::Hardware,
        }));
        decision.considered.push(entry(Outcome::NotAsked));

        let lines: Vec<_> = decision
            .considered
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(decision.to_string(), lines.join("\n"));
        assert!(matches!(
            decision.chosen().map(|chosen| &chosen.outcome),
            Some(Outcome::Chosen { created: true, .. })
        ));
        let refusals: Vec<_> = decision.refusals().map(|refusal| refusal.reason).collect();
        assert_eq!(refusals, [Reason::Busy, Reason::NotPresent]);
        let may_pass: Vec<_> = decision
            .considered
            .iter()
            .map(Considered::may_pass)
            .collect();
        assert_eq!(may_pass, [true, false, false, false]);
    }
}
