//! Key files on disk: read only what this user owns, write so that a crash leaves the old file or the new.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::{fs::OFlags, process::geteuid};

use crate::{
    error::TpmError,
    keyfile::{KeyBlob, KeyFileError, MAX_PEM},
};

/// What to do when the file to be written exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it as it is; [`KeyFileError::is_already_there`] is true of the error.
    Keep,
    /// Replace it in one step.
    Replace,
}

impl KeyBlob {
    /// Reads a key file. Links are not followed; the file must be a regular one that belongs to this process's
    /// effective user and that nobody else can write.
    ///
    /// # Errors
    /// [`KeyFileError`]; absent is [`KeyFileError::is_not_found`].
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        // NONBLOCK, so that a FIFO in the place of the file cannot hang the process.
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match file {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(untrusted(path, "a symbolic link, which is not followed"));
            }
            other => other.map_err(failed(path, "open"))?,
        };
        let meta = file.metadata().map_err(failed(path, "examine"))?;
        if !meta.is_file() {
            return Err(untrusted(path, "not a regular file"));
        }
        if meta.uid() != geteuid().as_raw() {
            let detail = format!(
                "belongs to user {}, not to {}",
                meta.uid(),
                geteuid().as_raw()
            );
            return Err(untrusted(path, &detail));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(untrusted(path, "writable by others than its owner"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_PEM as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed(path, "read"))?;
        let located = |error| match error {
            KeyFileError::Invalid { field, detail, .. } => KeyFileError::Invalid {
                path: Some(path.to_path_buf()),
                field,
                detail,
            },
            other => other,
        };
        let text = String::from_utf8(bytes)
            .map_err(|_| located(KeyFileError::field("PEM", "expected text".into())))?;
        Self::from_pem(&text).map_err(located)
    }

    /// Writes a key file with mode 0600: to a temporary file beside it, synced, put in place in one step, the
    /// directory synced. After an error the old file, if any, is as it was.
    ///
    /// # Errors
    /// [`TpmError::KeyFile`].
    pub fn save(&self, path: &Path, existing: Existing) -> Result<(), TpmError> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| TpmError::Input {
            field: "path",
            detail: "expected the name of a file".into(),
        })?;
        let mut random = [0u8; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| TpmError::Local {
            what: "name of a temporary file",
            cause: "no randomness".into(),
        })?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{:016x}.tmp", u64::from_be_bytes(random)));
        let temporary = directory.join(temporary);

        let result = write_new(&temporary, self.to_pem().as_bytes())
            .map_err(failed(&temporary, "write"))
            .and_then(|()| match existing {
                Existing::Replace => fs::rename(&temporary, path).map_err(failed(path, "replace")),
                // A hard link fails if the name is taken, unlike a rename.
                Existing::Keep => fs::hard_link(&temporary, path).map_err(failed(path, "create")),
            });
        if result.is_err() || existing == Existing::Keep {
            // Best effort: a left-over temporary file holds nothing that the key file does not hold.
            let _ = fs::remove_file(&temporary);
        }
        result?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed(directory, "sync"))?;
        Ok(())
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn untrusted(path: &Path, detail: &str) -> KeyFileError {
    KeyFileError::Untrusted {
        path: path.to_path_buf(),
        detail: detail.to_owned(),
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> KeyFileError {
    move |cause| KeyFileError::Io {
        path: path.to_path_buf(),
        what,
        cause: cause.into(),
    }
}
