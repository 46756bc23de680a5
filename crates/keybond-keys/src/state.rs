//! The state directory: the only place where keybond keeps files.
//!
//! 1. The directory is 0700 and everything in it 0600, owned by the user that runs keybond; anything else is
//!    refused when it is opened, symbolic links included.
//! 2. A file is replaced as a whole: temporary file, fsync, rename, fsync of the directory. A crash leaves
//!    the old state or the new one.
//! 3. What cannot be understood is set aside under another name, never deleted.

#[cfg_attr(unix, path = "state/unix.rs")]
#[cfg_attr(windows, path = "state/windows.rs")]
mod platform;
#[cfg(unix)]
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The largest file keybond reads from its state directory, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A directory that belongs to this user alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// A state directory or file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Somebody else could have put it there or could change it.
    #[error("{}: not trusted: {problem}", path.display())]
    NotTrusted {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It is larger than anything keybond writes.
    #[error("{}: larger than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl StateDir {
    /// Opens the directory, making it and its parents (0700) if they are missing.
    ///
    /// # Errors
    /// [`StateError::NotTrusted`] if it is a symbolic link, belongs to another user or is open to others;
    /// [`StateError::Io`] if it cannot be made or examined.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        platform::create_private_dirs(&path)
            .map_err(|source| io_error(&path, "create the directory", source))?;
        let metadata = fs::symlink_metadata(&path)
            .map_err(|source| io_error(&path, "examine the directory", source))?;
        if !metadata.is_dir() {
            return Err(not_trusted(
                &path,
                "it is not a directory (symbolic links are not followed)",
            ));
        }
        platform::check_private_dir(&path, &metadata)
            .map_err(|problem| not_trusted(&path, &problem))?;
        Ok(Self(path))
    }

    /// The directory `name` inside this one, opened in the same way.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn subdirectory(&self, name: &str) -> Result<Self, StateError> {
        Self::open(self.0.join(name))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// [`StateError::NotTrusted`] as for the directory, [`StateError::TooLarge`] beyond 1 MiB, or
    /// [`StateError::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.0.join(name);
        let file = match platform::open_private(OpenOptions::new().read(true), &path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if platform::is_symlink_refusal(&error) => {
                return Err(not_trusted(&path, "it is a symbolic link"));
            }
            Err(source) => return Err(io_error(&path, "open", source)),
        };
        let metadata = file
            .metadata()
            .map_err(|source| io_error(&path, "examine", source))?;
        if !metadata.is_file() {
            return Err(not_trusted(&path, "it is not a regular file"));
        }
        platform::check_private(&file, &metadata)
            .map_err(|problem| not_trusted(&path, &problem))?;
        let mut content = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut content)
            .map_err(|source| io_error(&path, "read", source))?;
        if content.len() as u64 > MAX_FILE {
            return Err(StateError::TooLarge { path });
        }
        Ok(Some(content))
    }

    /// Writes a file as a whole (0600): afterwards it holds `content`, or what it held before.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.0.join(name);
        // Two threads may write the same file at once; the last rename wins, and no write is mixed.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let temporary = self
            .0
            .join(format!(".{name}.{}-{write}.tmp", std::process::id()));
        let written = (|| {
            // A leftover of a killed process with the same number.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = platform::open_private(
                OpenOptions::new().write(true).create_new(true),
                &temporary,
            )?;
            platform::make_private(&file)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            platform::sync_directory(&self.0)
        })();
        written.map_err(|source| {
            // Best effort: the temporary file is harmless, and the first error is the one to report.
            let _ = fs::remove_file(&temporary);
            io_error(&path, "write", source)
        })
    }

    /// Moves a file out of the way, to `<name>.<unix seconds>.<why>`, and returns its new path; `None` if
    /// there is no such file.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn set_aside(
        &self,
        name: &str,
        why: &str,
        now: SystemTime,
    ) -> Result<Option<PathBuf>, StateError> {
        let path = self.0.join(name);
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut target = self.0.join(format!("{name}.{seconds}.{why}"));
        let mut attempt = 1;
        while fs::symlink_metadata(&target).is_ok() {
            target = self.0.join(format!("{name}.{seconds}-{attempt}.{why}"));
            attempt += 1;
        }
        match fs::rename(&path, &target) {
            Ok(()) => {
                platform::sync_directory(&self.0)
                    .map_err(|source| io_error(&self.0, "sync", source))?;
                tracing::warn!(from = %path.display(), to = %target.display(), why, "state file set aside");
                Ok(Some(target))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(&path, "set aside", source)),
        }
    }

    /// Deletes a file; `false` if there was none.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, name: &str) -> Result<bool, StateError> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(io_error(&path, "delete", source)),
        }
    }

    /// Tries to take the lock file `name` for this process; `None` if somebody else has it. The operating
    /// system frees it when its holder ends, however it ends. The file itself stays.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn try_lock(&self, name: &str) -> Result<Option<StateLock>, StateError> {
        let path = self.0.join(name);
        let file = platform::open_private(
            OpenOptions::new().write(true).create(true).truncate(false),
            &path,
        )
        .map_err(|source| io_error(&path, "open the lock file", source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(io_error(&path, "lock", source)),
        }
    }
}

/// A lock on the machine, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

fn not_trusted(path: &Path, problem: &str) -> StateError {
    StateError::NotTrusted {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}
