//! Where the TPM is: `device:/dev/tpmrm0`, `unix:/path/socket`, `tcp:host:port` or `off`.

use std::{fmt, path::PathBuf, str::FromStr};

/// The address of a TPM, as `KEYBOND_TPM` names it.
///
/// Nothing is ever guessed: a socket on which any local user could pose as the TPM is used only when it is named.
///
/// ```
/// use keybond_tpm::TpmAddress;
/// let address: TpmAddress = "device:/dev/tpmrm0".parse()?;
/// assert_eq!(address, TpmAddress::default());
/// assert!("tpmrm0".parse::<TpmAddress>().is_err());
/// # Ok::<(), keybond_tpm::InvalidAddress>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TpmAddress {
    /// A character device of the kernel.
    Device(PathBuf),
    /// A Unix socket on which a TPM speaks the raw wire format, as swtpm does.
    Unix(PathBuf),
    /// A TCP socket of the same kind.
    Tcp {
        /// A host name or IP address.
        host: String,
        /// The port, not 0.
        port: u16,
    },
    /// Do not use a TPM.
    Off,
}

impl Default for TpmAddress {
    /// The kernel's resource manager, `device:/dev/tpmrm0`.
    fn default() -> Self {
        Self::Device("/dev/tpmrm0".into())
    }
}

impl FromStr for TpmAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |field, expected| InvalidAddress {
            given: text.to_owned(),
            field,
            expected,
        };
        if text == "off" {
            return Ok(Self::Off);
        }
        let (kind, rest) = text.split_once(':').ok_or(invalid("kind", KINDS))?;
        let path = || match rest {
            _ if rest.contains('\0') => Err(invalid("path", "a path without NUL")),
            _ if rest.len() > 1 && rest.starts_with('/') => Ok(PathBuf::from(rest)),
            _ => Err(invalid("path", "an absolute path")),
        };
        match kind {
            "device" => Ok(Self::Device(path()?)),
            // sun_path holds 108 bytes with its terminator (unix(7)).
            "unix" if rest.len() > 107 => Err(invalid("path", "at most 107 bytes")),
            "unix" => Ok(Self::Unix(path()?)),
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or(invalid("port", "host:port"))?;
                let host = host
                    .strip_prefix('[')
                    .and_then(|h| h.strip_suffix(']'))
                    .unwrap_or(host);
                if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
                    return Err(invalid("host", "a host name or IP address"));
                }
                let port = match port.parse() {
                    Ok(port) if port != 0 => port,
                    _ => return Err(invalid("port", "a number from 1 to 65535")),
                };
                Ok(Self::Tcp {
                    host: host.to_owned(),
                    port,
                })
            }
            _ => Err(invalid("kind", KINDS)),
        }
    }
}

const KINDS: &str = "device:/path, unix:/path, tcp:host:port or off";

impl fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Off => f.write_str("off"),
        }
    }
}

/// Text that is not a [`TpmAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid TPM address {given:?}: {field}: expected {expected}")]
pub struct InvalidAddress {
    /// The whole text.
    pub given: String,
    /// The part that is wrong: `kind`, `path`, `host` or `port`.
    pub field: &'static str,
    /// What is expected there.
    pub expected: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_survive_a_round_trip() {
        for good in [
            "device:/dev/tpmrm0",
            "unix:/run/swtpm.sock",
            "tcp:127.0.0.1:2321",
            "tcp:[::1]:1",
            "off",
        ] {
            assert_eq!(good.parse::<TpmAddress>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_bad_address_names_the_part_that_is_wrong() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (bad, field) in [
            ("", "kind"),
            ("Off", "kind"),
            ("/dev/tpmrm0", "kind"),
            ("swtpm:path=/x", "kind"),
            ("device:", "path"),
            ("device:/", "path"),
            ("device:dev/tpmrm0", "path"),
            ("unix:/a\0b", "path"),
            (long.as_str(), "path"),
            ("tcp:localhost", "port"),
            ("tcp:localhost:0", "port"),
            ("tcp:localhost:65536", "port"),
            ("tcp::1", "host"),
            ("tcp:a b:1", "host"),
        ] {
            assert_eq!(
                bad.parse::<TpmAddress>().unwrap_err().field,
                field,
                "{bad:?}"
            );
        }
    }
}
