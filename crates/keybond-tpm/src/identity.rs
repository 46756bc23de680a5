//! Which TPM this is: what it says about itself, and the names by which it is known again.

use std::fmt;

/// What the TPM says about itself (TPM_PT_FIXED, TPM 2.0 Library Part 2, §6.13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmIdentity {
    /// The manufacturer's four letters in the TCG's registry, such as `IFX` or `MSFT`.
    pub manufacturer: String,
    /// The vendor's free text.
    pub vendor: String,
    /// The firmware version as two 32-bit numbers; most vendors mean four numbers of 16 bits.
    pub firmware: (u32, u32),
    /// The version of the specification: `2.0`.
    pub family: String,
    /// The revision of the specification times 100: 159 is 1.59.
    pub revision: u32,
}

impl TpmIdentity {
    pub(crate) fn from_properties(properties: &[(u32, u32)]) -> Self {
        let value = |wanted: u32| {
            properties
                .iter()
                .find(|(property, _)| *property == wanted)
                .map_or(0, |(_, value)| *value)
        };
        Self {
            manufacturer: text(&[value(0x105)]),
            vendor: text(&[value(0x106), value(0x107), value(0x108), value(0x109)]),
            firmware: (value(0x10b), value(0x10c)),
            family: text(&[value(0x100)]),
            revision: value(0x102),
        }
    }
}

impl fmt::Display for TpmIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = self.firmware;
        write!(f, "{} {}, firmware ", self.manufacturer, self.vendor)?;
        write!(
            f,
            "{}.{}.{}.{}",
            high >> 16,
            high & 0xffff,
            low >> 16,
            low & 0xffff
        )?;
        write!(
            f,
            ", TPM {} revision {}.{:02}",
            self.family,
            self.revision / 100,
            self.revision % 100
        )
    }
}

/// Characters packed into numbers; anything but printable ASCII is left out.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
    let text: String = bytes
        .filter(|b| (0x20..0x7f).contains(b))
        .map(char::from)
        .collect();
    text.trim().to_owned()
}

/// The names of a TPM's root keys, to be recorded with each key.
///
/// A key that does not load gives the same answer (TPM_RC_INTEGRITY) whether it belongs to another TPM, the TPM
/// was cleared, or the file is damaged. The names tell which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmNames {
    /// The name of the storage root key, which changes when the TPM is cleared.
    pub srk: Vec<u8>,
    /// The name of the endorsement key, which does not; `None` if the TPM does not make one for us.
    pub ek: Option<Vec<u8>>,
}

/// Whether the TPM at hand is the one whose names were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belonging {
    /// The same, uncleared: a key that does not load is damaged.
    Same,
    /// The same chip, but cleared since: its old keys are gone for good.
    Cleared,
    /// Another TPM.
    Other,
    /// Cleared or another; one of the endorsement keys is not known.
    ClearedOrOther,
}

impl TpmNames {
    /// Compares the recorded names with those of the TPM at hand.
    pub fn compare(recorded: &Self, now: &Self) -> Belonging {
        match (&recorded.ek, &now.ek) {
            _ if recorded.srk == now.srk => Belonging::Same,
            (Some(then), Some(now)) if then == now => Belonging::Cleared,
            (Some(_), Some(_)) => Belonging::Other,
            _ => Belonging::ClearedOrOther,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_a_cleared_tpm_from_another() {
        let names = |srk: &[u8], ek: Option<&[u8]>| TpmNames {
            srk: srk.to_vec(),
            ek: ek.map(<[u8]>::to_vec),
        };
        let recorded = names(b"s", Some(b"e"));
        for (now, expected) in [
            (names(b"s", Some(b"e")), Belonging::Same),
            (names(b"s", None), Belonging::Same),
            (names(b"t", Some(b"e")), Belonging::Cleared),
            (names(b"t", Some(b"f")), Belonging::Other),
            (names(b"t", None), Belonging::ClearedOrOther),
        ] {
            assert_eq!(TpmNames::compare(&recorded, &now), expected);
        }
    }

    #[test]
    fn odd_characters_in_properties_are_left_out() {
        let identity = TpmIdentity::from_properties(&[
            (0x105, u32::from_be_bytes(*b"IFX\0")),
            (0x106, u32::from_be_bytes([b'a', 0x1b, 0xff, b'b'])),
            (0x10b, 0x0007_0055),
            (0x10c, 0x0011_2200),
            (0x100, u32::from_be_bytes(*b"2.0\0")),
            (0x102, 138),
        ]);
        assert_eq!(
            identity.to_string(),
            "IFX ab, firmware 7.85.17.8704, TPM 2.0 revision 1.38"
        );
    }
}
