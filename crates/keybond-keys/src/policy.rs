//! Which stores may be used: configuration, parsed strictly.

use std::{fmt, str::FromStr};

use crate::{
    refusal::{Reason, Unavailable},
    strength::{StoreId, UnknownName},
};

/// Which stores may be used. As text (`KEYBOND_STORES`), a comma-separated list:
///
/// - `tpm2,memory`: these and no others;
/// - `-memory`: all but this one;
/// - `+tpm2`: this one is required; every store that would only be asked after it is off.
///
/// ```
/// use keybond_keys::{StoreId, StorePolicy};
///
/// let policy: StorePolicy = "+tpm2".parse()?;
/// assert!(policy.refusal(StoreId::Memory).is_some());
/// assert!(policy.refusal(StoreId::Tpm2).is_none());
/// assert!("tpm".parse::<StorePolicy>().is_err(), "a typo never turns security off");
/// # Ok::<(), keybond_keys::UnknownName>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorePolicy {
    only: Vec<StoreId>,
    disabled: Vec<StoreId>,
    required: Option<StoreId>,
}

impl StorePolicy {
    /// Every store may be used.
    pub fn any() -> Self {
        Self::default()
    }

    /// Turns a store off.
    #[must_use]
    pub fn disable(mut self, store: StoreId) -> Self {
        self.disabled.push(store);
        self
    }

    /// Requires a store: those asked after it are off.
    #[must_use]
    pub fn require(mut self, store: StoreId) -> Self {
        self.required = Some(store);
        self
    }

    /// Why `store` may not be used; `None` if it may.
    pub fn refusal(&self, store: StoreId) -> Option<Unavailable> {
        let detail = if self.disabled.contains(&store) {
            "turned off by configuration".to_owned()
        } else if !self.only.is_empty() && !self.only.contains(&store) {
            "not among the stores that configuration allows".to_owned()
        } else {
            let required = self.required?;
            if store == required || store.tier() > required.tier() {
                return None;
            }
            format!("configuration requires the store {required}")
        };
        Some(Unavailable::new(store, Reason::DisabledByPolicy, detail))
    }
}

impl FromStr for StorePolicy {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let mut policy = Self::default();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            if let Some(name) = item.strip_prefix('-') {
                policy.disabled.push(name.parse()?);
            } else if let Some(name) = item.strip_prefix('+') {
                policy.required = Some(name.parse()?);
            } else {
                policy.only.push(item.parse()?);
            }
        }
        Ok(policy)
    }
}

impl fmt::Display for StorePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let only = self.only.iter().map(ToString::to_string);
        let disabled = self.disabled.iter().map(|store| format!("-{store}"));
        let required = self.required.iter().map(|store| format!("+{store}"));
        let items: Vec<_> = only.chain(disabled).chain(required).collect();
        f.write_str(if items.is_empty() { "any" } else { "" })?;
        f.write_str(&items.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str) -> Vec<StoreId> {
        let policy: StorePolicy = text.parse().unwrap();
        StoreId::ALL
            .into_iter()
            .filter(|store| policy.refusal(*store).is_none())
            .collect()
    }

    #[test]
    fn lists_exclusions_and_requirements() {
        assert_eq!(allowed(""), StoreId::ALL);
        assert_eq!(allowed("tpm2, Memory"), [StoreId::Tpm2, StoreId::Memory]);
        assert_eq!(
            allowed("-memory,-pkcs11"),
            [StoreId::KeyGuard, StoreId::Platform, StoreId::Tpm2]
        );
        assert_eq!(allowed("+tpm2"), [StoreId::KeyGuard, StoreId::Tpm2]);
        assert!("memroy".parse::<StorePolicy>().is_err());
        assert!("+".parse::<StorePolicy>().is_err());
    }

    #[test]
    fn what_is_built_and_what_is_written_are_one() {
        let built = StorePolicy::any()
            .disable(StoreId::Memory)
            .disable(StoreId::Pkcs11)
            .require(StoreId::Tpm2);
        assert_eq!(built.to_string(), "-memory,-pkcs11,+tpm2");
        assert_eq!(built.to_string().parse::<StorePolicy>().unwrap(), built);
        assert_eq!(StorePolicy::any().to_string(), "any");
        let only: StorePolicy = " tpm2 ,, memory".parse().unwrap();
        assert_eq!(only.to_string(), "tpm2,memory");

        for (text, store, detail) in [
            ("-memory", StoreId::Memory, "turned off by configuration"),
            (
                "tpm2",
                StoreId::Memory,
                "not among the stores that configuration allows",
            ),
            (
                "+tpm2",
                StoreId::Pkcs11,
                "configuration requires the store tpm2",
            ),
        ] {
            let refusal = text.parse::<StorePolicy>().unwrap().refusal(store).unwrap();
            assert_eq!(refusal.reason, Reason::DisabledByPolicy);
            assert_eq!(refusal.detail, detail);
            assert!(!refusal.retryable);
        }
    }
}
