//! A token as it is kept for other processes: what it is for, when it came, and what was said of its time then. Each
//! process makes its own times of that.
//!
//! The token itself is in it, so nothing here has `Debug`, and no message quotes a file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::request::{self, Confirmation};
use crate::{credential::store::hash, lifecycle::token::Granted};

const VERSION: u32 = 1;

/// Everything that makes a token what it is. Two that differ in any of it are never mistaken for each other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenSlot {
    /// The metadata service that issued the certificate.
    pub(crate) source: String,
    pub(crate) client_id: String,
    pub(crate) tenant_id: String,
    pub(crate) token_endpoint: String,
    /// Whether the key was attested for the certificate.
    pub(crate) attested: bool,
    /// SHA-256 of the key's SubjectPublicKeyInfo, in lower-case hex.
    pub(crate) key_id: String,
    /// SHA-256 of the certificate (DER) in base64url.
    #[serde(rename = "x5t#S256")]
    pub(crate) x5t_s256: String,
    pub(crate) resource: String,
    /// What the token service was told that the client understands (`xms_cc`), in that order.
    pub(crate) client_capabilities: Vec<String>,
}

impl TokenSlot {
    /// The names of all files of the tokens that differ in nothing but the certificate begin with this: 32
    /// hexadecimal digits.
    pub(super) fn family(&self) -> String {
        let attested = if self.attested { "attested" } else { "plain" };
        let capabilities = self
            .client_capabilities
            .iter()
            .map(|capability| capability.escape_default().to_string())
            .collect::<Vec<_>>()
            .join("\n");
        hash(&[
            "token",
            &self.source,
            &self.client_id,
            &self.tenant_id,
            &self.token_endpoint,
            attested,
            &self.key_id,
            &self.resource,
            &capabilities,
        ])
    }

    /// The name of the file.
    pub(super) fn file(&self) -> String {
        let certificate = hash(&["certificate", &self.x5t_s256]);
        format!("{}.{certificate}.json", self.family())
    }

    /// The first thing in which another one differs.
    fn differs_in(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("source", self.source == other.source),
            ("client_id", self.client_id == other.client_id),
            ("tenant_id", self.tenant_id == other.tenant_id),
            (
                "token_endpoint",
                self.token_endpoint == other.token_endpoint,
            ),
            ("attested", self.attested == other.attested),
            ("key_id", self.key_id == other.key_id),
            ("x5t#S256", self.x5t_s256 == other.x5t_s256),
            ("resource", self.resource == other.resource),
            (
                "client_capabilities",
                self.client_capabilities == other.client_capabilities,
            ),
        ];
        pairs
            .into_iter()
            .find_map(|(name, same)| (!same).then_some(name))
    }
}

/// `tokens/<name>.json`. Times are Unix seconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    version: u32,
    #[serde(flatten)]
    slot: TokenSlot,
    /// When the certificate ends.
    certificate_not_after: u64,
    /// When the token was asked for, by this machine's clock.
    obtained: u64,
    expires_in: u64,
    refresh_in: Option<u64>,
    access_token: String,
}

/// Why a record is not what was looked for, in words that quote nothing of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Corrupt(String),
    Foreign(String),
}

impl TokenRecord {
    pub(crate) fn new(
        slot: TokenSlot,
        certificate_not_after: SystemTime,
        granted: Granted,
        secret: &str,
    ) -> Self {
        Self {
            version: VERSION,
            slot,
            certificate_not_after: seconds(certificate_not_after),
            obtained: seconds(granted.asked_at),
            expires_in: granted.expires_in.as_secs(),
            refresh_in: granted.refresh_in.map(|refresh| refresh.as_secs()),
            access_token: secret.to_owned(),
        }
    }

    pub(crate) fn slot(&self) -> &TokenSlot {
        &self.slot
    }

    pub(crate) fn secret(self) -> String {
        self.access_token
    }

    pub(crate) fn granted(&self) -> Granted {
        Granted {
            asked_at: UNIX_EPOCH + Duration::from_secs(self.obtained),
            expires_in: Duration::from_secs(self.expires_in),
            refresh_in: self.refresh_in.map(Duration::from_secs),
        }
    }

    /// When the token ends.
    pub(super) fn expires_on(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.obtained + self.expires_in)
    }

    /// Whether a token of the same family was got later.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        self.obtained < other.obtained
    }

    /// Whether its certificate gave way to that of another token.
    pub(super) fn is_superseded_by(&self, other: &Self) -> bool {
        self.slot.x5t_s256 != other.slot.x5t_s256
            && self.certificate_not_after <= other.certificate_not_after
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, String> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        json.push(b'\n');
        Ok(json)
    }

    /// Reads a record and holds it against itself: the token in it must state the certificate that the record
    /// states.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(content).map_err(|error| {
            // The parser's message would quote a member of the wrong type, which may be the token.
            format!("no record: line {} column {}", error.line(), error.column())
        })?;
        if record.version != VERSION {
            return Err(format!("version {}, expected {VERSION}", record.version));
        }
        if !request::is_printable(&record.access_token) {
            return Err("access_token: expected printable characters".into());
        }
        if !request::is_sane_life(record.expires_in) {
            return Err("expires_in: no token lives so long".into());
        }
        let end = record
            .obtained
            .checked_add(record.expires_in)
            .map(Duration::from_secs)
            .and_then(|end| UNIX_EPOCH.checked_add(end));
        if end.is_none() {
            return Err("obtained: it is no time".into());
        }
        match request::confirmation(&record.access_token, &record.slot.x5t_s256) {
            Confirmation::Stated => Ok(record),
            Confirmation::Unreadable => {
                Err("access_token: it does not show what it is bound to".into())
            }
            Confirmation::Another(_) => {
                Err("access_token: it is bound to another certificate".into())
            }
        }
    }

    /// The record, if it is for this slot.
    pub(super) fn of(self, slot: &TokenSlot) -> Result<Self, Wrong> {
        match self.slot.differs_in(slot) {
            None => Ok(self),
            Some(name) => Err(Wrong::Foreign(format!("its {name} is another"))),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
