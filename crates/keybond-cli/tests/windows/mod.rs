//! The command, with a state directory of its own.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A user of the command.
pub(crate) struct Keybond {
    home: tempfile::TempDir,
}

/// What `keybond doctor` says.
pub(crate) struct Doctor(Value);

impl Keybond {
    pub(crate) fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keybond"));
        command
            .args(arguments)
            .env("KEYBOND_STATE_DIR", self.home.path().join("state"))
            // Nobody listens there: whether this is Azure is known at once.
            .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = keybond_testkit::spawn(&mut command).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The answer of a command that must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn key(&self) -> Value {
        self.json(&["key", "show", "--json"])
    }

    pub(crate) fn doctor(&self) -> Doctor {
        let output = self.run(&["doctor", "--json"]);
        // No source of identity is within reach.
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{said}");
        Doctor(serde_json::from_slice(&output.stdout).unwrap())
    }
}

impl Doctor {
    fn outcome(&self, store: &str) -> &Value {
        let stores = self.0["stores"].as_array().unwrap();
        let entry = stores.iter().find(|entry| entry["store"] == store);
        &entry.unwrap_or_else(|| panic!("no {store}: {}", self.0))["outcome"]
    }

    pub(crate) fn is_available(&self, store: &str) -> bool {
        self.outcome(store) == "available"
    }

    /// Why a store has no key to offer.
    pub(crate) fn refusal(&self, store: &str) -> &Value {
        let outcome = self.outcome(store);
        assert!(outcome["skipped"].is_object(), "{store}: {outcome}");
        &outcome["skipped"]
    }
}
