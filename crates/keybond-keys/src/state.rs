//! The state directory: the only place where keybond keeps files.
//!
//! 1. The directory is 0700 and everything in it 0600, owned by the user that runs keybond; anything else is
//!    refused when it is opened, symbolic links included.
//! 2. A file is replaced as a whole: temporary file, fsync, rename, fsync of the directory. A crash leaves
//!    the old state or the new one.
//! 3. What cannot be understood is set aside under another name, never deleted.

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

#[cfg(unix)]
mod platform {
    use std::{
        fs::{self, File, Metadata, OpenOptions},
        io,
        os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        path::Path,
    };

    pub(super) fn create_private_dirs(path: &Path) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
    }

    pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
    }

    pub(super) fn is_symlink_refusal(error: &io::Error) -> bool {
        error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
    }

    /// The mode it is made with says it already.
    #[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
    pub(super) fn make_private(_file: &File) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn check_private_dir(_path: &Path, metadata: &Metadata) -> Result<(), String> {
        private(metadata)
    }

    pub(super) fn check_private(_file: &File, metadata: &Metadata) -> Result<(), String> {
        private(metadata)
    }

    fn private(metadata: &Metadata) -> Result<(), String> {
        let me = rustix::process::geteuid().as_raw();
        if metadata.uid() != me {
            return Err(format!(
                "it belongs to user {}, keybond runs as user {me}",
                metadata.uid()
            ));
        }
        let open = metadata.mode() & 0o077;
        if open != 0 {
            return Err(format!(
                "its mode {:04o} lets others in; `chmod go-rwx` mends that",
                metadata.mode() & 0o7777
            ));
        }
        Ok(())
    }

    pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(windows)]
mod platform {
    //! On Windows an access list says whose a file is.
    use std::{
        fs::{File, Metadata, OpenOptions},
        io,
        os::windows::fs::OpenOptionsExt as _,
        path::Path,
    };

    use keybond_cng::{CngError, acl};

    const GENERIC_READ: u32 = 0x8000_0000;
    const GENERIC_WRITE: u32 = 0x4000_0000;
    /// Links are opened themselves, not what they point to.
    const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

    pub(super) fn create_private_dirs(path: &Path) -> io::Result<()> {
        acl::create_private_dir(path).map_err(other)
    }

    pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options
            .access_mode(GENERIC_READ | GENERIC_WRITE | acl::PRIVATE_ACCESS)
            .custom_flags(OPEN_REPARSE_POINT)
            .open(path)
    }

    pub(super) fn make_private(file: &File) -> io::Result<()> {
        acl::make_private(file).map_err(other)
    }

    pub(super) fn is_symlink_refusal(_error: &io::Error) -> bool {
        false
    }

    pub(super) fn check_private_dir(path: &Path, metadata: &Metadata) -> Result<(), String> {
        let directory = acl::open_directory(path).map_err(|error| error.to_string())?;
        check_private(&directory, metadata)
    }

    pub(super) fn check_private(file: &File, _metadata: &Metadata) -> Result<(), String> {
        match acl::stranger(file) {
            Ok(None) => Ok(()),
            Ok(Some(stranger)) => Err(stranger),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn sync_directory(_path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn other(error: CngError) -> io::Error {
        match error.kind() {
            keybond_cng::ErrorKind::PermissionDenied => {
                io::Error::new(io::ErrorKind::PermissionDenied, error)
            }
            _ => io::Error::other(error),
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn fresh() -> (tempfile::TempDir, StateDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path().join("a/b")).unwrap();
        (parent, dir)
    }

    #[test]
    fn directories_and_files_are_private() {
        let (_parent, dir) = fresh();
        dir.write("x", b"one").unwrap();
        dir.write("x", b"two").unwrap();
        assert_eq!(dir.read("x").unwrap().unwrap(), b"two");
        assert_eq!(dir.read("y").unwrap(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(dir.path()), mode(&dir.path().join("x"))),
            (0o700, 0o600)
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "temporary files are left"
        );
    }

    #[test]
    fn writers_of_one_file_do_not_mix() {
        let (_parent, dir) = fresh();
        std::thread::scope(|scope| {
            for byte in b'a'..b'e' {
                let dir = &dir;
                scope.spawn(move || {
                    for _ in 0..50 {
                        dir.write("x", &[byte; 9_000]).unwrap();
                        let read = dir.read("x").unwrap().unwrap();
                        assert!(read.len() == 9_000 && read.iter().all(|b| *b == read[0]));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_open_modes_are_refused() {
        let (parent, dir) = fresh();
        dir.write("real", b"x").unwrap();
        symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        assert!(matches!(
            dir.read("link"),
            Err(StateError::NotTrusted { .. })
        ));
        fs::set_permissions(dir.path().join("real"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = dir.read("real").unwrap_err().to_string();
        assert!(error.contains("0640"), "{error}");
        symlink(dir.path(), parent.path().join("dirlink")).unwrap();
        assert!(matches!(
            StateDir::open(parent.path().join("dirlink")),
            Err(StateError::NotTrusted { .. })
        ));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateError::NotTrusted { .. })
        ));
    }

    #[test]
    fn what_is_set_aside_is_kept_under_a_name_of_its_own() {
        let (_parent, dir) = fresh();
        let now = UNIX_EPOCH + std::time::Duration::from_secs(1_000);
        for content in ["one", "two"] {
            dir.write("key.pem", content.as_bytes()).unwrap();
            dir.set_aside("key.pem", "corrupt", now).unwrap().unwrap();
        }
        assert_eq!(dir.read("key.pem").unwrap(), None);
        assert_eq!(dir.read("key.pem.1000.corrupt").unwrap().unwrap(), b"one");
        assert_eq!(dir.read("key.pem.1000-1.corrupt").unwrap().unwrap(), b"two");
        assert_eq!(dir.set_aside("key.pem", "corrupt", now).unwrap(), None);
    }

    #[test]
    fn one_holder_of_a_lock_at_a_time() {
        let (_parent, dir) = fresh();
        let held = dir.try_lock("k.lock").unwrap().unwrap();
        assert!(dir.try_lock("k.lock").unwrap().is_none());
        drop(held);
        assert!(dir.try_lock("k.lock").unwrap().is_some());
    }
}
