//! What survives a restart: the authority, the token service's key, the vault's secrets.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::error::EmulatorError;

/// A secret of the vault.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secret {
    pub(crate) value: String,
    /// 32 hexadecimal digits.
    pub(crate) version: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Seconds since 1970.
    pub(crate) updated: u64,
}

/// The vault's secrets by name.
pub(crate) type Secrets = BTreeMap<String, Secret>;

/// Where state is kept: a folder of the user's, or memory with only the CA file on disk.
#[derive(Debug)]
pub(crate) enum State {
    Kept {
        folder: PathBuf,
        /// Locked while this emulator lives, and however it dies.
        _lock: fs::File,
    },
    Fleeting(tempfile::TempDir),
}

/// What clients trust; made again from the authority at every start.
const CA_FILE: &str = "ca.pem";
const LOCK_FILE: &str = "emulator.lock";
const SECRETS_FILE: &str = "secrets.json";

impl State {
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self, EmulatorError> {
        let Some(folder) = folder else {
            let folder = tempfile::Builder::new()
                .prefix("keybond-emulator-")
                .tempdir()
                .map_err(failed(&std::env::temp_dir(), "making a folder"))?;
            return Ok(Self::Fleeting(folder));
        };
        // Clients are told where the CA file is, wherever they run.
        let folder = &std::path::absolute(folder).map_err(failed(folder, "finding the folder"))?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(folder)
            .map_err(failed(folder, "making the folder"))?;
        let path = folder.join(LOCK_FILE);
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let lock = options.open(&path).map_err(failed(&path, "opening"))?;
        lock.try_lock().map_err(io::Error::from).map_err(failed(
            &path,
            "locking (another emulator may use the folder)",
        ))?;
        Ok(Self::Kept {
            folder: folder.clone(),
            _lock: lock,
        })
    }

    /// Where the authority's certificate is written.
    pub(crate) fn ca_file(&self) -> PathBuf {
        match self {
            Self::Kept { folder, .. } => folder.join(CA_FILE),
            Self::Fleeting(folder) => folder.path().join(CA_FILE),
        }
    }

    /// DER documents kept in one PEM file, in the order of these labels, if the file is there.
    pub(crate) fn read_pem<const N: usize>(
        &self,
        name: &str,
        labels: [&str; N],
        expected: &'static str,
    ) -> Result<Option<[Vec<u8>; N]>, EmulatorError> {
        let Some((path, text)) = self.read(name)? else {
            return Ok(None);
        };
        match decode_pem(&text, labels) {
            Some(documents) => Ok(Some(documents)),
            None => Err(EmulatorError::CorruptState { path, expected }),
        }
    }

    /// Keeps labelled documents in one file, which is there in full or not at all.
    pub(crate) fn write_pem(
        &self,
        name: &str,
        documents: &[(&str, &[u8])],
    ) -> Result<(), EmulatorError> {
        let Self::Kept { folder, .. } = self else {
            return Ok(());
        };
        let text: String = documents
            .iter()
            .map(|(label, der)| pem(label, der))
            .collect();
        write(&folder.join(name), text.as_bytes())
    }

    /// Writes what clients are to trust, whether or not other state is kept.
    pub(crate) fn write_ca(&self, certificate: &[u8]) -> Result<(), EmulatorError> {
        write(&self.ca_file(), pem("CERTIFICATE", certificate).as_bytes())
    }

    pub(crate) fn read_secrets(&self) -> Result<Option<Secrets>, EmulatorError> {
        let Some((path, text)) = self.read(SECRETS_FILE)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&text) {
            Ok(secrets) => Ok(Some(secrets)),
            Err(_) => Err(EmulatorError::CorruptState {
                path,
                expected: "the vault's secrets as JSON",
            }),
        }
    }

    pub(crate) fn write_secrets(&self, secrets: &Secrets) -> Result<(), EmulatorError> {
        let Self::Kept { folder, .. } = self else {
            return Ok(());
        };
        let path = folder.join(SECRETS_FILE);
        let text = serde_json::to_vec_pretty(secrets)
            .map_err(io::Error::from)
            .map_err(failed(&path, "writing"))?;
        write(&path, &text)
    }

    fn read(&self, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, EmulatorError> {
        let Self::Kept { folder, .. } = self else {
            return Ok(None);
        };
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(text) => {
                private(&path)?;
                Ok(Some((path, text)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, "reading")(error)),
        }
    }
}

/// PEM with lines of 64 characters (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let body = STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn decode_pem<const N: usize>(text: &[u8], labels: [&str; N]) -> Option<[Vec<u8>; N]> {
    let mut rest = std::str::from_utf8(text).ok()?;
    let mut documents = [const { Vec::new() }; N];
    for (label, document) in labels.into_iter().zip(&mut documents) {
        let (body, after) = rest
            .trim_start()
            .strip_prefix(&format!("-----BEGIN {label}-----"))?
            .split_once(&format!("-----END {label}-----"))?;
        let body: String = body.split_whitespace().collect();
        *document = STANDARD.decode(body).ok()?;
        rest = after;
    }
    rest.trim().is_empty().then_some(documents)
}

/// A new or replaced file that only this user may read; a crash leaves the old one or the new one.
fn write(path: &Path, content: &[u8]) -> Result<(), EmulatorError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let attempt = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    attempt().map_err(failed(path, "writing"))
}

/// Refuses a key or secret that others may read.
#[cfg(unix)]
fn private(path: &Path) -> Result<(), EmulatorError> {
    use std::os::unix::fs::PermissionsExt;

    let mode = fs::metadata(path)
        .map_err(failed(path, "reading its mode"))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(EmulatorError::State {
            path: path.to_owned(),
            what: "others may read this file (it must have mode 0600)",
            cause: io::ErrorKind::PermissionDenied.into(),
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn private(_: &Path) -> Result<(), EmulatorError> {
    Ok(())
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> EmulatorError {
    let path = path.to_owned();
    move |cause| EmulatorError::State { path, what, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_reads_back() {
        let (first, second) = (vec![7_u8; 100], vec![8_u8; 3]);
        let text = pem("A", &first) + &pem("B", &second);
        assert_eq!(
            decode_pem(text.as_bytes(), ["A", "B"]).unwrap(),
            [first, second]
        );
        assert!(decode_pem(text.as_bytes(), ["A"]).is_none());
        assert!(decode_pem(text.as_bytes(), ["B", "A"]).is_none());
        assert!(decode_pem(b"-----BEGIN A-----\nAA", ["A"]).is_none());
    }

    #[test]
    fn a_folder_belongs_to_one_emulator_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = State::open(Some(folder.path())).unwrap();
        let refusal = State::open(Some(folder.path())).unwrap_err();
        assert!(
            refusal.to_string().contains("another emulator"),
            "{refusal}"
        );
        drop(first);
        State::open(Some(folder.path())).unwrap();
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(Some(folder.path())).unwrap();
        write(&folder.path().join("sts.key"), b"not a key").unwrap();
        let refusal = state
            .read_pem("sts.key", ["PRIVATE KEY"], "a PKCS #8 key")
            .unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("sts.key: expected a PKCS #8 key")
        );
        assert_eq!(
            fs::read(folder.path().join("sts.key")).unwrap(),
            b"not a key"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_key_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let state = State::open(Some(folder.path())).unwrap();
        state
            .write_pem("sts.key", &[("PRIVATE KEY", b"x")])
            .unwrap();
        let path = folder.path().join("sts.key");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state.read_pem("sts.key", ["PRIVATE KEY"], "a key").is_err());
    }
}
