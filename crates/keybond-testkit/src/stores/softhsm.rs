//! A PKCS#11 token in software (SoftHSM 2), behind a module that fails on command.
//!
//! SoftHSM finds its files through the environment, so a test that uses it runs in a process of its own:
//! [`SoftHsm::scenario`] starts the test binary again for it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const HOME: &str = "KEYBOND_SOFTHSM_HOME";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const SHIM: &str = include_str!("pkcs11_shim.c");

/// The user PIN of every token.
const PIN: &str = "271828";

/// Faults of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleFault {
    /// None.
    None,
    /// Every call hangs.
    HangAll,
    /// Signing hangs.
    HangSign,
    /// Signing ends the process.
    CrashSign,
    /// The PIN is locked.
    PinLocked,
    /// The token was pulled out.
    Removed,
    /// There are no sessions left.
    Busy,
    /// PSS parameters are refused.
    NoPss,
}

/// A directory with SoftHSM's configuration and tokens.
pub struct SoftHsm {
    home: PathBuf,
}

#[allow(
    clippy::expect_used,
    clippy::print_stderr,
    reason = "without SoftHSM and a C compiler the test cannot go on, and nothing hides that"
)]
impl SoftHsm {
    /// Runs `body` in a process of its own with a token called `keybond` and the user PIN in a file.
    ///
    /// `test` is the full name of the calling test, by which the new process finds it.
    pub fn scenario(test: &str, body: impl FnOnce(&Self)) {
        if let Some(home) = env::var_os(HOME) {
            return body(&Self { home: home.into() });
        }
        let home = tempfile::tempdir().expect("a directory");
        let hsm = Self {
            home: home.path().to_owned(),
        };
        hsm.prepare();
        let child = hsm.spawn(test, &[]);
        let output = child.wait_with_output().expect("the scenario's process");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{test}\n{out}\n{err}");
        assert!(out.contains("1 passed"), "no test is called {test}\n{out}");
        let table: Vec<_> = out.lines().filter(|line| line.starts_with('|')).collect();
        eprintln!("{}", table.join("\n"));
    }

    fn prepare(&self) {
        fs::create_dir(self.home.join("tokens")).expect("a directory");
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            self.home.join("tokens").display()
        );
        fs::write(self.home.join("softhsm2.conf"), conf).expect("SoftHSM's configuration");
        fs::write(self.home.join("shim.c"), SHIM).expect("the shim's source");
        fs::write(self.home.join("fault"), "").expect("the fault file");
        self.set_pin(PIN);
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-o", "shim.so", "shim.c", "-ldl"])
            .current_dir(&self.home)
            .status();
        assert!(compiled.expect("a C compiler").success());
        self.add_token("keybond");
    }

    /// Makes one more token.
    pub fn add_token(&self, label: &str) {
        let mut command = Command::new("softhsm2-util");
        command
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", "31415926", "--pin", PIN]);
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        let output = command.output().expect("softhsm2-util");
        assert!(output.status.success(), "{output:?}");
    }

    /// Starts the test binary once more for `test`, as another process that uses the same tokens.
    pub fn spawn(&self, test: &str, environment: &[(&str, &str)]) -> Child {
        let mut command = Command::new(env::current_exe().expect("the test binary"));
        command
            .args(["--exact", test, "--nocapture"])
            .env(HOME, &self.home)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command.spawn().expect("the test binary")
    }

    fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("SOFTHSM2_CONF", self.home.join("softhsm2.conf").into()),
            ("KEYBOND_SHIM_MODULE", MODULE.into()),
            ("KEYBOND_SHIM_FAULT", self.home.join("fault").into()),
        ]
    }

    /// The URI of the token `label`, with its PIN.
    pub fn uri(&self, label: &str) -> String {
        format!(
            "pkcs11:token={label}?module-path={}&pin-source={}",
            self.home.join("shim.so").display(),
            self.home.join("pin").display()
        )
    }

    /// Changes what the PIN file says (the token's PIN stays).
    pub fn set_pin(&self, pin: &str) {
        fs::write(self.home.join("pin"), format!("{pin}\n")).expect("the PIN file");
    }

    /// Puts the right PIN back into the file.
    pub fn restore_pin(&self) {
        self.set_pin(PIN);
    }

    /// Lets the module fail from now on.
    pub fn fault(&self, fault: ModuleFault) {
        let word = match fault {
            ModuleFault::None => "",
            ModuleFault::HangAll => "hang-all",
            ModuleFault::HangSign => "hang-sign",
            ModuleFault::CrashSign => "crash-sign",
            ModuleFault::PinLocked => "pin-locked",
            ModuleFault::Removed => "removed",
            ModuleFault::Busy => "busy",
            ModuleFault::NoPss => "no-pss",
        };
        // Replaced as a whole: the module reads it at any time.
        fs::write(self.home.join("fault.new"), word).expect("the fault file");
        fs::rename(self.home.join("fault.new"), self.home.join("fault")).expect("the fault file");
    }

    /// Where configuration, tokens and PIN lie.
    pub fn home(&self) -> &Path {
        &self.home
    }
}
