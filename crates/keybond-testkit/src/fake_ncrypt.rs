//! The machine behind the fake `ncrypt.dll` of `keybond-fake-ncrypt`, under Wine.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Starts a program, again if need be: a busy Wine sometimes does not wait long enough for a new process, and
/// says ERROR_INTERNAL_ERROR.
///
/// # Errors
/// The operating system's, for any other reason or the fifth time.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut attempts = 1;
    loop {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(1359) && attempts < 5 => attempts += 1,
            other => return other,
        }
    }
}

/// Tests change the machine; one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The fake machine: its directory, emptied. One test at a time has it.
pub struct FakeNcrypt {
    directory: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl FakeNcrypt {
    /// A machine without any key, as `config` says: settings of the library, separated by blanks.
    ///
    /// # Panics
    /// Without `KEYBOND_FAKE_NCRYPT`, or if its directory cannot be emptied.
    pub fn new(config: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = PathBuf::from(
            env::var_os("KEYBOND_FAKE_NCRYPT").expect("set by `cargo xtask windows`"),
        );
        let empty = || {
            fs::create_dir_all(&directory)?;
            for entry in fs::read_dir(&directory)? {
                fs::remove_file(entry?.path())?;
            }
            Ok::<_, io::Error>(())
        };
        empty().unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let machine = Self {
            directory,
            _turn: turn,
        };
        machine.becomes(config);
        machine
    }

    /// Changes the machine under running programs.
    ///
    /// # Panics
    /// If its configuration cannot be written.
    pub fn becomes(&self, config: &str) {
        // As a whole, since other processes read it.
        let new = self.directory.join("config.new");
        fs::write(&new, config.replace(' ', "\n"))
            .and_then(|()| fs::rename(&new, self.directory.join("config")))
            .unwrap_or_else(|error| panic!("{}: {error}", new.display()));
    }

    /// What was done to keys, in order: `finalize <name>`, `delete <name>`.
    pub fn calls(&self) -> Vec<String> {
        self.lines("calls")
    }

    /// What was signed, in order: `PSS <name>`, `PKCS1 <name>`.
    pub fn signatures(&self) -> Vec<String> {
        self.lines("signatures")
    }

    /// Empties both lists.
    pub fn forget_calls(&self) {
        for log in ["calls", "signatures"] {
            // It is not there if nothing was done.
            let _ = fs::remove_file(self.directory.join(log));
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "key"))
            .count()
    }

    /// Where files of the test may be, for other processes to see.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn lines(&self, log: &str) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join(log)).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}
