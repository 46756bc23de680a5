//! What is kept beside a TPM's key file. The key works without it; it serves to tell a cleared TPM from
//! another one and from a damaged file, which all give the same answer.

use keybond_tpm::{PssMode, TpmNames};
use serde::{Deserialize, Serialize};

use crate::public_key::KeyId;

/// `keys/<name>.json`. Byte strings are lower-case hex, times are Unix seconds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of this format.
    version: u32,
    /// The name of the storage root key.
    srk_name: String,
    /// The name of the endorsement key, if the TPM makes one for us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ek_name: Option<String>,
    /// The handle of the key's parent, `40000001` for the storage root key.
    parent: String,
    /// The name of the key's parent.
    parent_name: String,
    /// How the key makes PSS signatures.
    pss_mode: String,
    /// SHA-256 of the SubjectPublicKeyInfo.
    key_id: String,
    /// When the key was made.
    created: u64,
}

impl Record {
    const VERSION: u32 = 1;

    pub(super) fn new(
        names: &TpmNames,
        (parent, parent_name): (u32, &[u8]),
        pss: PssMode,
        key: KeyId,
        created: u64,
    ) -> Self {
        Self {
            version: Self::VERSION,
            srk_name: hex(&names.srk),
            ek_name: names.ek.as_deref().map(hex),
            parent: format!("{parent:08x}"),
            parent_name: hex(parent_name),
            pss_mode: pss.name().into(),
            key_id: key.to_string(),
            created,
        }
    }

    /// Reads a record; the error says what cannot be understood.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if record.version != Self::VERSION {
            return Err(format!(
                "version {}, expected {}",
                record.version,
                Self::VERSION
            ));
        }
        record.names()?;
        if u32::from_str_radix(&record.parent, 16).is_err() {
            return Err("parent: expected a handle in hex".into());
        }
        unhex(&record.parent_name).ok_or("parent_name: expected hex")?;
        record.pss_mode()?;
        Ok(record)
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec_pretty(self).map_err(|error| error.to_string())
    }

    pub(super) fn names(&self) -> Result<TpmNames, String> {
        let srk = unhex(&self.srk_name).ok_or("srk_name: expected hex")?;
        let ek = match &self.ek_name {
            Some(name) => Some(unhex(name).ok_or("ek_name: expected hex")?),
            None => None,
        };
        Ok(TpmNames { srk, ek })
    }

    pub(super) fn pss_mode(&self) -> Result<PssMode, String> {
        PssMode::from_name(&self.pss_mode)
            .ok_or_else(|| format!("pss_mode: {:?} is unknown", self.pss_mode))
    }

    pub(super) fn parent(&self) -> u32 {
        u32::from_str_radix(&self.parent, 16).unwrap_or_default()
    }

    pub(super) fn has_other_parent(&self, name: &[u8]) -> bool {
        self.parent_name != hex(name)
    }

    pub(super) fn is_for(&self, key: KeyId) -> bool {
        self.key_id == key.to_string()
    }

    pub(super) fn created(&self) -> u64 {
        self.created
    }
}

/// For fuzzers: reads these bytes as a record, and what was read once more. Tells whether they were taken.
pub(crate) fn fuzz(bytes: &[u8]) -> bool {
    let Ok(record) = Record::parse(bytes) else {
        return false;
    };
    let again = record.to_json().ok().map(|json| Record::parse(&json));
    assert_eq!(again, Some(Ok(record)));
    true
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::public_key::PublicKey;

    #[test]
    fn records_survive_a_round_trip_and_refuse_what_they_do_not_know() {
        let names = TpmNames {
            srk: vec![0, 11, 0xff],
            ek: None,
        };
        let key = PublicKey::from_rsa_components(&[0xff; 256], &[1, 0, 1])
            .unwrap()
            .id();
        let record = Record::new(&names, (0x8100_0001, b"p"), PssMode::Synthesised, key, 7);
        let json = record.to_json().unwrap();
        let again = Record::parse(&json).unwrap();
        assert_eq!(again, record);
        assert_eq!(again.names().unwrap(), names);
        assert!(again.is_for(key));
        assert_eq!(again.parent(), 0x8100_0001);
        assert!(again.has_other_parent(b"q") && !again.has_other_parent(b"p"));

        let text = String::from_utf8(json).unwrap();
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("000bff", "000bf"),
            ("000bff", "000bxy"),
            ("81000001", "8100000g"),
            ("\"70\"", "\"7\""),
            ("synthesised", "magic"),
            ("{", ""),
        ] {
            assert!(
                Record::parse(text.replacen(from, to, 1).as_bytes()).is_err(),
                "{to:?} was accepted"
            );
        }
    }
}
