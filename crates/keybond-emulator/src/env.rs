//! The environment that sends clients to the emulator.

use std::{fmt, str::FromStr};

use crate::{EmulatorError, world::World};

/// Where lines of environment are to be pasted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shell {
    /// A POSIX shell: `export NAME='value'`.
    #[default]
    Sh,
    /// PowerShell: `$env:NAME = 'value'`.
    PowerShell,
    /// Arguments of `docker run`, for a container that shares the host's network.
    Docker,
}

impl Shell {
    /// The name used on command lines: `sh`, `powershell`, `docker`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sh => "sh",
            Self::PowerShell => "powershell",
            Self::Docker => "docker",
        }
    }

    /// One variable.
    fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Sh => format!("export {name}={}", sh_quoted(value)),
            Self::PowerShell => format!("$env:{name} = '{}'", value.replace('\'', "''")),
            Self::Docker => format!("--env {}", sh_quoted(&format!("{name}={value}"))),
        }
    }
}

impl fmt::Display for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Shell {
    type Err = EmulatorError;

    fn from_str(text: &str) -> Result<Self, EmulatorError> {
        [Self::Sh, Self::PowerShell, Self::Docker]
            .into_iter()
            .find(|shell| shell.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| EmulatorError::invalid("shell", "sh, powershell or docker", text))
    }
}

/// Names and values, in the order in which they are printed.
pub(crate) fn variables(world: &World) -> Vec<(&'static str, String)> {
    let addresses = world.addresses();
    vec![
        ("AZURE_POD_IDENTITY_AUTHORITY_HOST", addresses.imds),
        (
            "KEYBOND_CA_FILE",
            world.state.ca_file().display().to_string(),
        ),
        (
            "MSAL_MI_IMDSV2_ALLOWED_HOSTS",
            world.settings.public_host.clone(),
        ),
        ("KEYBOND_DEMO_VAULT_URL", addresses.vault),
        (
            "KEYBOND_DEMO_RENEGOTIATING_VAULT_URL",
            addresses.renegotiating_vault,
        ),
    ]
}

/// The lines to paste, each ended by a line feed.
pub(crate) fn lines(world: &World, shell: Shell) -> String {
    let variables = variables(world);
    let mut lines: Vec<String> = variables
        .iter()
        .map(|(name, value)| shell.line(name, value))
        .collect();
    if shell == Shell::Docker {
        let ca = world.state.ca_file().display().to_string();
        lines.insert(0, "--network host".into());
        lines.push(format!("--volume {}", sh_quoted(&format!("{ca}:{ca}:ro"))));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn sh_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_each_shell() {
        assert_eq!(Shell::Sh.line("A", "it's"), r"export A='it'\''s'");
        assert_eq!(Shell::PowerShell.line("A", "it's"), "$env:A = 'it''s'");
        assert_eq!(Shell::Docker.line("A", "b c"), "--env 'A=b c'");
    }

    #[test]
    fn a_shell_is_known_by_its_name() {
        assert_eq!("PowerShell".parse::<Shell>().unwrap(), Shell::PowerShell);
        assert_eq!(
            "fish".parse::<Shell>().unwrap_err().to_string(),
            "shell: expected sh, powershell or docker, not fish"
        );
    }
}
