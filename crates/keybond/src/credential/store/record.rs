//! What stands in the files: a certificate with its facts, and a name with its client id. Everything that
//! cannot be understood is an error in words; nothing is guessed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Serialize};

use super::{CertificateSlot, KeptCertificate, StoredCertificate};
use crate::random::is_uuid;

const VERSION: u32 = 1;

/// `certs/<slot>.json`. Times are Unix seconds, certificates DER in base64.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The metadata service that issued it.
    source: String,
    client_id: String,
    tenant_id: String,
    token_endpoint: String,
    attested: bool,
    /// SHA-256 of the key's SubjectPublicKeyInfo, in lower-case hex.
    key_id: String,
    #[serde(rename = "x5t#S256")]
    x5t_s256: String,
    not_before: u64,
    not_after: u64,
    /// The client's own first.
    chain: Vec<String>,
}

/// Why a record is not what was looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Corrupt(String),
    Foreign(String),
}

impl Record {
    pub(super) fn new(slot: &CertificateSlot, certificate: &StoredCertificate) -> Self {
        Self {
            version: VERSION,
            source: slot.source.clone(),
            client_id: certificate.client_id.clone(),
            tenant_id: certificate.tenant_id.clone(),
            token_endpoint: certificate.token_endpoint.clone(),
            attested: slot.attested,
            key_id: slot.key.to_string(),
            x5t_s256: certificate.x5t_s256.clone(),
            not_before: seconds(certificate.not_before),
            not_after: seconds(certificate.not_after),
            chain: certificate
                .chain
                .iter()
                .map(|der| BASE64_STANDARD.encode(der))
                .collect(),
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, String> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        json.push(b'\n');
        Ok(json)
    }

    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("version {}, expected {VERSION}", record.version));
        }
        for (name, seconds) in [
            ("not_before", record.not_before),
            ("not_after", record.not_after),
        ] {
            if UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .is_none()
            {
                return Err(format!("{name}: {seconds} is no time"));
            }
        }
        Ok(record)
    }

    /// When the certificate ends, for those who sweep.
    pub(super) fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.not_after)
    }

    /// What it says of itself, without the certificate.
    pub(super) fn kept(self) -> KeptCertificate {
        KeptCertificate {
            not_before: UNIX_EPOCH + Duration::from_secs(self.not_before),
            not_after: self.not_after(),
            source: self.source,
            client_id: self.client_id,
            tenant_id: self.tenant_id,
            attested: self.attested,
            key_id: self.key_id,
            x5t_s256: self.x5t_s256,
        }
    }

    /// The certificate, if the record is for this slot and agrees with itself.
    pub(super) fn certificate(self, slot: &CertificateSlot) -> Result<StoredCertificate, Wrong> {
        let corrupt = |what: &str| Wrong::Corrupt(what.to_owned());
        let chain: Vec<Vec<u8>> = self
            .chain
            .iter()
            .map(|text| BASE64_STANDARD.decode(text))
            .collect::<Result<_, _>>()
            .map_err(|_| corrupt("chain: expected DER in base64"))?;
        let leaf = chain.first().ok_or_else(|| corrupt("chain: it is empty"))?;
        if BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, leaf)) != self.x5t_s256 {
            return Err(corrupt("x5t#S256: it is not that of the certificate"));
        }
        for (name, id) in [
            ("client_id", &self.client_id),
            ("tenant_id", &self.tenant_id),
        ] {
            if !is_uuid(id) {
                return Err(corrupt(&format!("{name}: expected a UUID")));
            }
        }
        for (name, expected, found) in [
            ("source", &slot.source, &self.source),
            (
                "client_id",
                &slot.client_id,
                &self.client_id.to_ascii_lowercase(),
            ),
            (
                "attested",
                &slot.attested.to_string(),
                &self.attested.to_string(),
            ),
            ("key_id", &slot.key.to_string(), &self.key_id),
        ] {
            if expected != found {
                return Err(Wrong::Foreign(format!(
                    "{name} is `{}`, expected `{expected}`",
                    found.escape_debug()
                )));
            }
        }
        Ok(StoredCertificate {
            not_after: self.not_after(),
            not_before: UNIX_EPOCH + Duration::from_secs(self.not_before),
            chain,
            client_id: self.client_id,
            tenant_id: self.tenant_id,
            token_endpoint: self.token_endpoint,
            attested: self.attested,
            x5t_s256: self.x5t_s256,
        })
    }
}

/// `certs/<name>.name.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NameRecord {
    version: u32,
    source: String,
    /// The identity as it was named, for people.
    named: String,
    client_id: String,
}

impl NameRecord {
    pub(super) fn new(source: &str, named: String, client_id: &str) -> Self {
        Self {
            version: VERSION,
            source: source.to_owned(),
            named,
            client_id: client_id.to_ascii_lowercase(),
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, String> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        json.push(b'\n');
        Ok(json)
    }

    /// The client id, if the record is for this name.
    pub(super) fn client_id(content: &[u8], source: &str, named: &str) -> Result<String, String> {
        let record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("version {}, expected {VERSION}", record.version));
        }
        // Azure compares resource ids without regard to case.
        if record.source != source || !record.named.eq_ignore_ascii_case(named) {
            return Err("it is for another identity".into());
        }
        if !is_uuid(&record.client_id) {
            return Err("client_id: expected a UUID".into());
        }
        Ok(record.client_id)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
