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
    Kept(PathBuf),
    Fleeting(tempfile::TempDir),
}

const CA_FILE: &str = "ca.pem";
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
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(folder)
            .map_err(failed(folder, "making the folder"))?;
        Ok(Self::Kept(folder.to_owned()))
    }

    /// Where the authority's certificate is written.
    pub(crate) fn ca_file(&self) -> PathBuf {
        match self {
            Self::Kept(folder) => folder.join(CA_FILE),
            Self::Fleeting(folder) => folder.path().join(CA_FILE),
        }
    }

    /// A DER document kept as PEM, if it is there.
    pub(crate) fn read_pem(
        &self,
        name: &str,
        label: &'static str,
        expected: &'static str,
    ) -> Result<Option<Vec<u8>>, EmulatorError> {
        let Some((path, text)) = self.read(name)? else {
            return Ok(None);
        };
        match decode_pem(&text, label) {
            Some(der) => Ok(Some(der)),
            None => Err(EmulatorError::CorruptState { path, expected }),
        }
    }

    /// Keeps a document as PEM; the CA file is written in any case, keys only if state is kept.
    pub(crate) fn write_pem(
        &self,
        name: &str,
        label: &str,
        der: &[u8],
    ) -> Result<(), EmulatorError> {
        let folder = match self {
            Self::Kept(folder) => folder,
            Self::Fleeting(folder) if name == CA_FILE => folder.path(),
            Self::Fleeting(_) => return Ok(()),
        };
        write(&folder.join(name), pem(label, der).as_bytes())
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
        let Self::Kept(folder) = self else {
            return Ok(());
        };
        let path = folder.join(SECRETS_FILE);
        let text = serde_json::to_vec_pretty(secrets)
            .map_err(io::Error::from)
            .map_err(failed(&path, "writing"))?;
        write(&path, &text)
    }

    fn read(&self, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, EmulatorError> {
        let Self::Kept(folder) = self else {
            return Ok(None);
        };
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(text) => {
                private(&path, name)?;
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

fn decode_pem(text: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let body = text
        .trim()
        .strip_prefix(&format!("-----BEGIN {label}-----"))?
        .strip_suffix(&format!("-----END {label}-----"))?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).ok()
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
fn private(path: &Path, name: &str) -> Result<(), EmulatorError> {
    use std::os::unix::fs::PermissionsExt;

    let mode = fs::metadata(path)
        .map_err(failed(path, "reading its mode"))?
        .permissions()
        .mode();
    if name != CA_FILE && mode & 0o077 != 0 {
        return Err(EmulatorError::State {
            path: path.to_owned(),
            what: "others may read this file (it must have mode 0600)",
            cause: io::ErrorKind::PermissionDenied.into(),
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn private(_: &Path, _: &str) -> Result<(), EmulatorError> {
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
        let der = [7_u8; 100];
        assert_eq!(
            decode_pem(pem("CERTIFICATE", &der).as_bytes(), "CERTIFICATE").unwrap(),
            der
        );
        assert!(decode_pem(pem("PRIVATE KEY", &der).as_bytes(), "CERTIFICATE").is_none());
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(Some(folder.path())).unwrap();
        write(&folder.path().join("sts.key"), b"not a key").unwrap();
        let refusal = state
            .read_pem("sts.key", "PRIVATE KEY", "a PKCS #8 key")
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
        state.write_pem("sts.key", "PRIVATE KEY", b"x").unwrap();
        let path = folder.path().join("sts.key");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state.read_pem("sts.key", "PRIVATE KEY", "a key").is_err());
    }
}
