//! Conventions by which MSAL.NET and MSAL Go share a key and its certificates on one machine, as published in
//! their repositories (`WindowsCngKeyOperations.cs`, `WindowsPersistentCertificateCache.cs`,
//! `InterprocessLock.cs` of microsoft-authentication-library-for-dotnet).
//!
//! ```
//! use keybond_cng::msal::FriendlyName;
//!
//! let name = FriendlyName::new("system_assigned_managed_identity", true, "https://eastus.mtlsauth.microsoft.com/tenant")?;
//! assert_eq!(
//!     name.to_string(),
//!     "MSAL|alias=system_assigned_managed_identity#att=1|ep=https://eastus.mtlsauth.microsoft.com/tenant"
//! );
//! assert_eq!(name.to_string().parse(), Ok(name));
//! # Ok::<(), keybond_cng::msal::InvalidFriendlyName>(())
//! ```

use std::{fmt, str::FromStr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};

/// The name of the KeyGuard key that all MSALs of one user share.
pub const KEYGUARD_KEY: &str = "KeyGuardRSAKey";

/// How long MSAL waits for the mutex of the certificates of one alias before it goes without.
pub const CERTIFICATES_WAIT: Duration = Duration::from_millis(300);

/// How long MSAL Go waits for the mutex of a key.
pub const KEY_WAIT: Duration = Duration::from_secs(10);

/// The mutex that guards the certificates of `alias` in the user's store, without its namespace (`Global\`,
/// or `Local\` where that is denied).
pub fn certificates_mutex(alias: &str) -> String {
    format!("MSAL_MI_P_{}", suffix(alias))
}

/// The mutex that MSAL Go holds while it makes the key called `key`, without its namespace. MSAL.NET takes
/// none.
pub fn key_mutex(key: &str) -> String {
    format!("MSAL_MI_K_{}", suffix(key))
}

/// The first 32 hexadecimal digits of SHA-256 over the trimmed name in upper case.
fn suffix(name: &str) -> String {
    let hash = digest(&SHA256, upper(name.trim()).as_bytes());
    hash.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// .NET's invariant upper case maps character to character; `ß` stays.
fn upper(name: &str) -> String {
    let simple = |c: char| {
        let mut mapped = c.to_uppercase();
        match (mapped.next(), mapped.next()) {
            (Some(single), None) => single,
            _ => c,
        }
    };
    name.chars().map(simple).collect()
}

/// The friendly name by which a certificate in the user's store is found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FriendlyName {
    alias: String,
    attested: bool,
    endpoint: String,
}

/// A friendly name that is not MSAL's, or parts that cannot be in one; says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a friendly name as MSAL writes it: {0}")]
pub struct InvalidFriendlyName(&'static str);

impl FriendlyName {
    /// The name for the certificates of `identity` (the id as the caller gave it, or
    /// `system_assigned_managed_identity`) used at `endpoint` (base URL of the token service with tenant).
    ///
    /// # Errors
    /// [`InvalidFriendlyName`] if a part is blank or holds `|`, a line break or NUL.
    pub fn new(
        identity: &str,
        attested: bool,
        endpoint: &str,
    ) -> Result<Self, InvalidFriendlyName> {
        let (identity, endpoint) = (identity.trim(), endpoint.trim());
        for part in [identity, endpoint] {
            if part.is_empty() {
                return Err(InvalidFriendlyName("a part is blank"));
            }
            if part.contains(['|', '\r', '\n', '\0']) {
                return Err(InvalidFriendlyName("a part holds `|`, a line break or NUL"));
            }
        }
        Ok(Self {
            alias: identity.to_owned(),
            attested,
            endpoint: endpoint.to_owned(),
        })
    }

    /// What the mutex is named after and certificates are told apart by: identity and attestation.
    pub fn alias(&self) -> String {
        format!("{}#att={}", self.alias, u8::from(self.attested))
    }

    /// The base URL of the token service.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl fmt::Display for FriendlyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MSAL|alias={}|ep={}", self.alias(), self.endpoint)
    }
}

impl FromStr for FriendlyName {
    type Err = InvalidFriendlyName;

    /// Unknown fields are ignored and the last of two wins, as MSAL does it.
    fn from_str(text: &str) -> Result<Self, InvalidFriendlyName> {
        let fields = text
            .strip_prefix("MSAL|")
            .ok_or(InvalidFriendlyName("it does not begin with `MSAL|`"))?;
        let (mut alias, mut endpoint) = (None, None);
        for field in fields.split('|') {
            match field.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
                Some(("alias", value)) => alias = Some(value),
                Some(("ep", value)) => endpoint = Some(value),
                _ => {}
            }
        }
        let alias = alias.ok_or(InvalidFriendlyName("it has no alias"))?;
        let endpoint = endpoint.ok_or(InvalidFriendlyName("it has no endpoint"))?;
        let (identity, attested) = match alias.rsplit_once("#att=") {
            Some((identity, "0")) => (identity, false),
            Some((identity, "1")) => (identity, true),
            _ => {
                return Err(InvalidFriendlyName(
                    "its alias does not end with #att=0 or #att=1",
                ));
            }
        };
        Self::new(identity, attested, endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutex_names_ignore_case_and_blanks() {
        // echo -n 'SYSTEM_ASSIGNED_MANAGED_IDENTITY#ATT=1' | sha256sum | cut -c1-32
        let expected = "MSAL_MI_P_5bc545fe3a0881304f0474bba856bb06";
        for alias in [
            "system_assigned_managed_identity#att=1",
            " SYSTEM_assigned_managed_identity#ATT=1\t",
        ] {
            assert_eq!(certificates_mutex(alias), expected);
        }
        assert_eq!(key_mutex("KeyGuardRSAKey"), key_mutex("KEYGUARDRSAKEY "));
        assert_ne!(key_mutex("a")[10..], key_mutex("b")[10..]);
        assert_eq!(upper("straße"), "STRAßE");
    }

    #[test]
    fn friendly_names_of_others_are_read_and_foreign_ones_refused() {
        let name: FriendlyName = "MSAL|x=y|alias=old#att=0| ep = https://h/t |alias=new#att=1"
            .parse()
            .unwrap();
        assert_eq!(
            (name.alias().as_str(), name.endpoint()),
            ("new#att=1", "https://h/t")
        );
        for foreign in [
            "",
            "msal|alias=a#att=0|ep=e",
            "MSAL|alias=a#att=0",
            "MSAL|ep=e",
            "MSAL|alias=a|ep=e",
            "MSAL|alias=a#att=2|ep=e",
            "MSAL|alias= #att=0|ep=e",
        ] {
            assert!(foreign.parse::<FriendlyName>().is_err(), "{foreign:?}");
        }
        assert!(FriendlyName::new("a|b", false, "e").is_err());
        assert!(
            FriendlyName::new("a", false, "e\n").is_ok(),
            "blanks are trimmed"
        );
    }
}
