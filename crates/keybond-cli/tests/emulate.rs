//! `keybond emulate` with a scenario, in a process of its own, and its vault that renegotiates.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io::Read as _,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

const KEYBOND: &str = env!("CARGO_BIN_EXE_keybond");

struct Azure {
    child: Child,
    addresses: Value,
    // Kept open: the emulator must not find its output closed.
    _stdout: ChildStdout,
}

impl Azure {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(KEYBOND)
            .args(["emulate", "--json"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // The addresses are printed, as one object, when the servers listen.
        let mut text = Vec::new();
        let addresses = loop {
            let mut chunk = [0; 4096];
            let count = stdout.read(&mut chunk).unwrap();
            assert_ne!(count, 0, "it ended early");
            text.extend_from_slice(&chunk[..count]);
            if let Ok(addresses) = serde_json::from_slice(&text) {
                break addresses;
            }
        };
        Self {
            child,
            addresses,
            _stdout: stdout,
        }
    }

    fn admin(&self, what: &str) -> Value {
        let url = format!(
            "{}/_emulator/{what}",
            self.addresses["imds"].as_str().unwrap()
        );
        let output = Command::new("curl").args(["-s", &url]).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_scenario_from_a_file_is_played_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scenario");
    std::fs::write(
        &file,
        "# Busy.\n410 metadata for 60s\nafter 2h: revoke once\n",
    )
    .unwrap();
    let azure = Azure::start(&["--scenario", file.to_str().unwrap()]);
    let faults = azure.admin("faults");
    assert_eq!(faults[0]["leg"], "metadata");
    assert_eq!(faults[0]["kind"]["status"]["status"], 410);
    assert_eq!(azure.admin("scenario")[0]["event"], "revoke once");
}

#[test]
fn the_vault_that_renegotiates_opens_to_the_command() {
    let azure = Azure::start(&[]);
    let env: BTreeMap<String, String> =
        serde_json::from_value(azure.addresses["env"].clone()).unwrap();
    let vault = &env["KEYBOND_DEMO_RENEGOTIATING_VAULT_URL"];
    assert_eq!(azure.addresses["renegotiating_vault"], vault.as_str());
    let output = Command::new(KEYBOND)
        .args(["call", &format!("{vault}/secrets/demo?api-version=7.4")])
        .args(["--resource", "https://vault.azure.net"])
        .envs(&env)
        .env("KEYBOND_TPM", "off")
        .env_remove("KEYBOND_MIN_STRENGTH")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["value"], "opened by a bound token");
    let counters = azure.admin("counters");
    assert_eq!(
        (&counters["renegotiations"], &counters["vault"]),
        (&1.into(), &1.into())
    );
}
