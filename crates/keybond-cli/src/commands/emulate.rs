//! `keybond emulate`.

use std::{path::Path, process::ExitCode};

use keybond_emulator::{Emulator, EmulatorError, Scenario, Shell};
use serde_json::json;

use super::{print_json, write_out};
use crate::{
    args::{EmulateArgs, ShellArg},
    failure::{Failure, Kind},
};

pub(crate) async fn run(args: &EmulateArgs, json: bool) -> Result<ExitCode, Failure> {
    let (imds, sts, vault, renegotiating) = args.ports;
    let mut builder = Emulator::builder()
        .ports(imds, sts, vault)
        .renegotiating_vault_port(renegotiating);
    if let Some(dir) = &args.state {
        builder = builder.state_dir(dir);
    }
    if let Some(file) = &args.scenario {
        builder = builder.scenario(scenario(file)?);
    }
    let emulator = builder.start().await?;
    if json {
        print_json(&json!({
            "imds": emulator.imds_url(),
            "sts": emulator.sts_url(),
            "vault": emulator.vault_url(),
            "renegotiating_vault": emulator.renegotiating_vault_url(),
            "env": emulator.env().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        }))?;
    } else if let Some(shell) = args.print_env {
        write_out(lines(&emulator, shell).as_bytes())?;
    } else {
        let text = format!(
            "Azure on loopback; nothing here is trusted by the real one. End it with Ctrl-C.\n\
             metadata  {}\ntokens    {}\nvault     {}\nvault     {} (asks by renegotiation)\n\n\
             Point a client here:\n{}",
            emulator.imds_url(),
            emulator.sts_url(),
            emulator.vault_url(),
            emulator.renegotiating_vault_url(),
            lines(&emulator, ShellArg::Sh),
        );
        write_out(text.as_bytes())?;
    }
    wait_for_end().await?;
    emulator.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

fn scenario(file: &Path) -> Result<Scenario, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::io(&format!("cannot read {}", file.display()), &error))?;
    text.parse().map_err(|error: EmulatorError| {
        Failure::new(
            Kind::Usage,
            "usage",
            format!("{}: {error}", file.display()),
            "Correct the line; docs/emulator.md lists the events.",
        )
    })
}

fn lines(emulator: &Emulator, shell: ShellArg) -> String {
    emulator.env_lines(match shell {
        ShellArg::Sh => Shell::Sh,
        ShellArg::Powershell => Shell::PowerShell,
        ShellArg::Docker => Shell::Docker,
    })
}

/// Ends at Ctrl-C and, where there is one, at SIGTERM.
async fn wait_for_end() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io("cannot wait for a signal", &error);
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(failed),
            _ = terminated.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.map_err(failed)
}

impl From<EmulatorError> for Failure {
    fn from(error: EmulatorError) -> Self {
        Self::new(
            Kind::Failed,
            error.code(),
            error.to_string(),
            error.remedy(),
        )
    }
}
