//! Certificates in files below the state directory: `certs/<slot>.json` is what counts, `certs/<slot>.pem` the
//! same chain for people and openssl, `certs/<name>.name.json` a client id, `certs/<name>.lock` a turn.
//!
//! One file decides, and a file is replaced as a whole: a process that is killed at any instant leaves the old
//! certificate or the new one. No file is a secret; all are private, for who can change one could slow a start. On Windows the records are sealed for the user (DPAPI).

use std::{
    fs, io,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keybond_keys::{StateDir, StateError};

use super::{
    CertificateSlot, CertificateStore, CertificateStoreError, KeptCertificate, MintLock,
    StoreAnswer, StoredCertificate, identity_name,
    record::{NameRecord, Record, Wrong},
    seal,
};
use crate::identity::Identity;

/// The folder in the state directory.
const FOLDER: &str = "certs";

/// A temporary file that is older was left behind by a process that was killed.
const LEFT_BEHIND: Duration = Duration::from_secs(60 * 60);

/// Keeps certificates in a state directory.
#[derive(Debug)]
pub struct DiskCertificates {
    state: PathBuf,
    folder: OnceLock<StateDir>,
}

impl DiskCertificates {
    /// Keeps certificates in `certs` below this directory, which is made (0700) when it is first needed.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            folder: OnceLock::new(),
        }
    }

    /// What is kept, of every identity and key: for people who look for trouble. Nothing is made, checked or
    /// set aside for it; a file that cannot be understood is left out, with its name and the cause.
    ///
    /// # Errors
    /// [`CertificateStoreError`] if the folder is there and cannot be read.
    pub fn kept(&self) -> Result<Vec<Result<KeptCertificate, String>>, CertificateStoreError> {
        let path = self.state.join(FOLDER);
        let failed = |cause: String| {
            CertificateStoreError::new("the kept certificates cannot be listed", cause)
        };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| failed(error.to_string()))?,
        };
        let folder = self.folder().map_err(|error| failed(error.to_string()))?;
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_certificate(name))
            .collect();
        names.sort();
        let read = |name: &String| match folder.read(name) {
            Ok(Some(content)) => {
                let read = seal::open(content, seal::CERTIFICATE)
                    .and_then(|content| Record::parse(&content));
                read.map_err(|cause| format!("{name}: {cause}"))
            }
            Ok(None) => Err(format!("{name}: it is gone")),
            Err(error) => Err(format!("{name}: {error}")),
        };
        Ok(names.iter().map(|name| Ok(read(name)?.kept())).collect())
    }

    fn folder(&self) -> Result<&StateDir, StateError> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder);
        }
        let folder = StateDir::open(&self.state)?.subdirectory(FOLDER)?;
        Ok(self.folder.get_or_init(|| folder))
    }

    fn try_keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), String> {
        let folder = self.folder().map_err(|error| error.to_string())?;
        let (json_file, pem_file) = files(slot);
        // What cannot be read now is not known to be worthless.
        if let Err(error @ StateError::Io { .. }) = folder.read(&json_file) {
            return Err(error.to_string());
        }
        let json = seal::seal(Record::new(slot, certificate).to_json()?, seal::CERTIFICATE)?;
        folder
            .write(&pem_file, pem(&certificate.chain).as_bytes())
            .and_then(|()| folder.write(&json_file, &json))
            .map_err(|error| error.to_string())?;
        sweep(folder, now);
        Ok(())
    }
}

impl CertificateStore for DiskCertificates {
    fn describe(&self) -> String {
        self.state.join(FOLDER).display().to_string()
    }

    fn find(&self, slot: &CertificateSlot) -> StoreAnswer {
        let unreadable = |detail: String| StoreAnswer::Unreadable { detail };
        let folder = match self.folder() {
            Ok(folder) => folder,
            Err(error) => return unreadable(error.to_string()),
        };
        let (json_file, _) = files(slot);
        let content = match folder.read(&json_file) {
            Ok(None) => return StoreAnswer::Absent,
            Ok(Some(content)) => content,
            Err(error @ StateError::Io { .. }) => return unreadable(error.to_string()),
            // Somebody else could have written it, or it is none of ours: out of the way, for people to see.
            Err(error) => {
                let set_aside = set_aside(folder, &json_file, "untrusted");
                let detail = error.to_string();
                return StoreAnswer::Foreign { detail, set_aside };
            }
        };
        let read = seal::open(content, seal::CERTIFICATE)
            .and_then(|content| Record::parse(&content))
            .map_err(Wrong::Corrupt)
            .and_then(|record| record.certificate(slot));
        match read {
            Ok(certificate) => StoreAnswer::Certificate(Box::new(certificate)),
            Err(Wrong::Corrupt(detail)) => StoreAnswer::Corrupt {
                detail,
                set_aside: set_aside(folder, &json_file, "corrupt"),
            },
            Err(Wrong::Foreign(detail)) => StoreAnswer::Foreign {
                detail,
                set_aside: set_aside(folder, &json_file, "foreign"),
            },
        }
    }

    fn keep(
        &self,
        slot: &CertificateSlot,
        certificate: &StoredCertificate,
        now: SystemTime,
    ) -> Result<(), CertificateStoreError> {
        self.try_keep(slot, certificate, now)
            .map_err(|cause| CertificateStoreError::new("a certificate cannot be kept", cause))
    }

    fn file(&self, slot: &CertificateSlot) -> Option<PathBuf> {
        let (_, pem_file) = files(slot);
        Some(self.state.join(FOLDER).join(pem_file))
    }

    fn discard(
        &self,
        slot: &CertificateSlot,
        x5t_s256: Option<&str>,
    ) -> Result<bool, CertificateStoreError> {
        if let Some(expected) = x5t_s256
            && !matches!(self.find(slot), StoreAnswer::Certificate(kept) if kept.x5t_s256 == expected)
        {
            return Ok(false);
        }
        let (json_file, pem_file) = files(slot);
        let discarded = self.folder().and_then(|folder| {
            let there = folder.remove(&json_file)?;
            folder.remove(&pem_file)?;
            Ok(there)
        });
        discarded
            .map_err(|cause| CertificateStoreError::new("a certificate cannot be removed", cause))
    }

    fn client_id_of(
        &self,
        source: &str,
        identity: &Identity,
    ) -> Result<Option<String>, CertificateStoreError> {
        let failed =
            |cause: String| CertificateStoreError::new("a client id cannot be read", cause);
        let folder = self.folder().map_err(|error| failed(error.to_string()))?;
        let file = name_file(source, identity);
        let content = match folder.read(&file) {
            Ok(None) => return Ok(None),
            Ok(Some(content)) => content,
            Err(error) => {
                if !matches!(error, StateError::Io { .. }) {
                    set_aside(folder, &file, "untrusted");
                }
                return Err(failed(error.to_string()));
            }
        };
        let read = seal::open(content, seal::CERTIFICATE)
            .and_then(|content| NameRecord::client_id(&content, source, &identity.to_string()));
        match read {
            Ok(client_id) => Ok(Some(client_id)),
            Err(detail) => {
                set_aside(folder, &file, "corrupt");
                Err(failed(detail))
            }
        }
    }

    fn learn(
        &self,
        source: &str,
        identity: &Identity,
        client_id: &str,
    ) -> Result<(), CertificateStoreError> {
        if self
            .client_id_of(source, identity)
            .ok()
            .flatten()
            .as_deref()
            == Some(client_id)
        {
            return Ok(());
        }
        let failed =
            |cause: String| CertificateStoreError::new("a client id cannot be kept", cause);
        let json = NameRecord::new(source, identity.to_string(), client_id)
            .to_json()
            .and_then(|json| seal::seal(json, seal::CERTIFICATE))
            .map_err(failed)?;
        self.folder()
            .and_then(|folder| folder.write(&name_file(source, identity), &json))
            .map_err(|error| failed(error.to_string()))
    }

    fn try_lock(&self, name: &str) -> Result<Option<MintLock>, CertificateStoreError> {
        let locked = self
            .folder()
            .and_then(|folder| folder.try_lock(&format!("{name}.lock")));
        match locked {
            Ok(lock) => Ok(lock.map(MintLock::new)),
            Err(cause) => Err(CertificateStoreError::new(
                "there is no lock to be had",
                cause,
            )),
        }
    }
}

fn files(slot: &CertificateSlot) -> (String, String) {
    let name = slot.name();
    (format!("{name}.json"), format!("{name}.pem"))
}

/// Whether a file in the folder holds a certificate with its facts, by its name.
fn is_certificate(name: &str) -> bool {
    name.strip_suffix(".json")
        .is_some_and(|slot| !slot.starts_with('.') && !slot.ends_with(".name"))
}

fn name_file(source: &str, identity: &Identity) -> String {
    format!("{}.name.json", identity_name(source, identity))
}

/// Out of the way, with a warning of the state directory's own; where it cannot be moved it stays.
pub(crate) fn set_aside(folder: &StateDir, file: &str, why: &str) -> Option<PathBuf> {
    // Dates the name of the file alone.
    match folder.set_aside(file, why, SystemTime::now()) {
        Ok(path) => path,
        Err(error) => {
            tracing::warn!(target: "keybond", %error, "it stays where it is");
            None
        }
    }
}

/// Removes certificates that ended, and what killed processes left half-written. Whatever fails is tried again
/// the next time.
fn sweep(folder: &StateDir, now: SystemTime) {
    let Ok(entries) = fs::read_dir(folder.path()) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_left_behind(&name, &entry) {
            let _ = folder.remove(&name);
        } else if is_certificate(&name)
            && let Some(slot) = name.strip_suffix(".json")
            && let Ok(Some(content)) = folder.read(&name)
            && let Ok(record) =
                seal::open(content, seal::CERTIFICATE).and_then(|content| Record::parse(&content))
            && record.not_after() <= now
        {
            let _ = folder.remove(&name);
            let _ = folder.remove(&format!("{slot}.pem"));
        }
    }
}

/// Whether a file was left half-written by a process that was killed.
pub(crate) fn is_left_behind(name: &str, entry: &fs::DirEntry) -> bool {
    let temporary = name.starts_with('.') && name.ends_with(".tmp");
    temporary
        && entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok())
            .is_some_and(|age| age > LEFT_BEHIND)
}

/// Certificates in PEM (RFC 7468).
fn pem(chain: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = BASE64_STANDARD.encode(der);
        for at in (0..base64.len()).step_by(64) {
            text.push_str(&base64[at..base64.len().min(at + 64)]);
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use keybond_keys::KeyProvider;

    use super::*;

    const ID: &str = "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01";

    async fn kept_one(state: &DiskCertificates) -> (CertificateSlot, StoredCertificate) {
        let key = KeyProvider::in_memory().get_or_create_key().await.unwrap();
        let slot = CertificateSlot {
            source: "http://169.254.169.254/".into(),
            client_id: ID.into(),
            attested: false,
            key: key.id(),
        };
        let certificate = StoredCertificate {
            chain: vec![b"certificate".to_vec()],
            client_id: ID.into(),
            tenant_id: ID.into(),
            token_endpoint: "https://token.example/".into(),
            attested: false,
            x5t_s256: BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, b"certificate")),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33),
        };
        state
            .keep(&slot, &certificate, SystemTime::UNIX_EPOCH)
            .unwrap();
        (slot, certificate)
    }

    #[tokio::test]
    async fn what_is_kept_is_listed_and_nothing_is_made_or_moved_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = DiskCertificates::new(dir.path().join("state"));
        assert_eq!(state.kept().unwrap(), []);
        assert!(!dir.path().join("state").exists());

        let (slot, certificate) = kept_one(&state).await;
        state
            .learn(&slot.source, &Identity::SystemAssigned, ID)
            .unwrap();
        let corrupt = dir.path().join("state/certs/zz.json");
        fs::write(&corrupt, "{").unwrap();
        #[cfg(unix)]
        fs::set_permissions(
            &corrupt,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        let listed = state.kept().unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
        let kept = listed[0].as_ref().unwrap();
        assert_eq!(kept.key_id, slot.key.to_string());
        assert_eq!(kept.x5t_s256, certificate.x5t_s256);
        assert_eq!(kept.not_after, certificate.not_after);
        assert!(listed[1].as_ref().unwrap_err().starts_with("zz.json: "));
        assert!(corrupt.exists());
    }

    #[tokio::test]
    async fn a_time_that_no_clock_shows_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let state = DiskCertificates::new(dir.path().join("state"));
        let (slot, certificate) = kept_one(&state).await;
        let file = dir.path().join("state/certs").join(files(&slot).0);
        let seconds = (1_u64 << 33).to_string();
        let text =
            String::from_utf8(seal::open(fs::read(&file).unwrap(), seal::CERTIFICATE).unwrap())
                .unwrap();
        let changed = text.replace(&seconds, &u64::MAX.to_string());
        fs::write(
            &file,
            seal::seal(changed.into_bytes(), seal::CERTIFICATE).unwrap(),
        )
        .unwrap();
        let found = state.find(&slot);
        assert!(
            matches!(&found, StoreAnswer::Corrupt { detail, .. } if detail.starts_with("not_after: ")),
            "{found:?}"
        );
        state
            .keep(&slot, &certificate, SystemTime::UNIX_EPOCH)
            .unwrap();
    }
}
