//! `keybond emulate` in a process of its own, and the command pointed at it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
};

pub const KEYBOND: &str = env!("CARGO_BIN_EXE_keybond");

/// A running `keybond emulate`.
pub struct Azure {
    child: Child,
    pub env: BTreeMap<String, String>,
}

impl Azure {
    pub fn start() -> Self {
        let mut child = Command::new(KEYBOND)
            .args(["emulate", "--print-env", "sh"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut env = BTreeMap::new();
        // The lines come when the servers listen; the renegotiating vault's is the last.
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, value) = line
                .strip_prefix("export ")
                .unwrap()
                .split_once('=')
                .unwrap();
            env.insert(name.to_owned(), value.trim_matches('\'').to_owned());
            if name == "KEYBOND_DEMO_RENEGOTIATING_VAULT_URL" {
                break;
            }
        }
        Self { child, env }
    }

    pub fn keybond(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(KEYBOND);
        command
            .args(arguments)
            .envs(&self.env)
            .env("KEYBOND_TPM", "off")
            .env_remove("KEYBOND_MIN_STRENGTH");
        command
    }

    pub fn secret_url(&self) -> String {
        format!(
            "{}/secrets/demo?api-version=7.4",
            self.env["KEYBOND_DEMO_VAULT_URL"]
        )
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn ok(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
