//! Three words that are not synonyms: *store* (where a key lives), *tier* (the store's place in the
//! hierarchy) and *strength* (what the key was shown to be).

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Where a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreId {
    /// Windows KeyGuard: the key is isolated by virtualization-based security.
    KeyGuard,
    /// The TPM through Windows' Platform Crypto Provider.
    Platform,
    /// A TPM 2.0 on Linux.
    Tpm2,
    /// A PKCS#11 token.
    Pkcs11,
    /// The memory of this process.
    Memory,
}

impl StoreId {
    /// Every store keybond knows, strongest tier first.
    pub const ALL: [Self; 5] = [
        Self::KeyGuard,
        Self::Platform,
        Self::Tpm2,
        Self::Pkcs11,
        Self::Memory,
    ];

    /// The store's place in the hierarchy.
    pub const fn tier(self) -> Tier {
        match self {
            Self::KeyGuard => Tier::KeyGuard,
            Self::Platform | Self::Tpm2 | Self::Pkcs11 => Tier::Hardware,
            Self::Memory => Tier::InMemory,
        }
    }

    /// The name used in configuration, records and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyGuard => "keyguard",
            Self::Platform => "platform",
            Self::Tpm2 => "tpm2",
            Self::Pkcs11 => "pkcs11",
            Self::Memory => "memory",
        }
    }
}

/// A store's place in the hierarchy. Greater is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// RSA in process memory.
    InMemory,
    /// A Trusted Platform Module or another hardware key store.
    Hardware,
    /// Windows KeyGuard.
    KeyGuard,
}

impl Tier {
    /// What a key of this tier must be shown to be; weaker evidence means the tier is not available.
    pub const fn required_strength(self) -> Strength {
        match self {
            Self::InMemory => Strength::Software,
            Self::Hardware => Strength::Hardware,
            Self::KeyGuard => Strength::KeyGuard,
        }
    }

    /// The tier's name: `KeyGuard`, `Hardware`, `InMemory`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InMemory => "InMemory",
            Self::Hardware => "Hardware",
            Self::KeyGuard => "KeyGuard",
        }
    }
}

/// What a key was *shown* to be. Greater is stronger; the numbers are those of the published
/// MSI v2 design, where 0 stands for a token that is bound to no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Strength {
    /// A key that software on this machine may be able to read.
    Software = 1,
    /// A key that a hardware device made and does not release.
    Hardware = 2,
    /// A key isolated by virtualization-based security for this boot.
    KeyGuard = 3,
}

impl Strength {
    /// The name used in configuration and output: `software`, `hardware`, `keyguard`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Hardware => "hardware",
            Self::KeyGuard => "keyguard",
        }
    }
}

/// A word that names no store or strength.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what}: expected {expected}")]
pub struct UnknownName {
    what: &'static str,
    given: String,
    expected: &'static str,
}

impl FromStr for Strength {
    type Err = UnknownName;

    /// Reads `software`, `hardware` or `keyguard` in any case; anything else is an error, so that a typo
    /// never lowers a floor.
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        [Self::Software, Self::Hardware, Self::KeyGuard]
            .into_iter()
            .find(|strength| strength.name().eq_ignore_ascii_case(s.trim()))
            .ok_or_else(|| UnknownName {
                what: "key strength",
                given: s.to_owned(),
                expected: "software, hardware or keyguard",
            })
    }
}

impl FromStr for StoreId {
    type Err = UnknownName;

    /// Reads a store's name in any case.
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|store| store.name().eq_ignore_ascii_case(s.trim()))
            .ok_or_else(|| UnknownName {
                what: "key store",
                given: s.to_owned(),
                expected: "keyguard, platform, tpm2, pkcs11 or memory",
            })
    }
}

macro_rules! named {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    )*};
}
named!(StoreId, Tier, Strength);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_keyguard_hardware_memory() {
        assert!(Tier::KeyGuard > Tier::Hardware && Tier::Hardware > Tier::InMemory);
        assert!(Strength::KeyGuard > Strength::Hardware && Strength::Hardware > Strength::Software);
        let tiers: Vec<_> = StoreId::ALL.iter().map(|store| store.tier()).collect();
        assert!(
            tiers.is_sorted_by(|a, b| a >= b),
            "stores are listed strongest first"
        );
    }

    #[test]
    fn a_typo_is_an_error_that_names_the_choices() {
        assert_eq!("KeyGuard".parse(), Ok(Strength::KeyGuard));
        let error = "hardwear".parse::<Strength>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`hardwear` is no key strength: expected software, hardware or keyguard"
        );
        assert!("tpm".parse::<StoreId>().is_err());
    }
}
