//! PINs: read when they are needed, wiped after use.

use std::{env, fmt, fs, path::PathBuf, sync::Arc};

use zeroize::Zeroizing;

use super::refusal::other;
use crate::refusal::{NativeCode, Reason, Unavailable};

/// A PIN. It is wiped from memory when dropped, and never printed.
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Takes a PIN.
    pub fn new(pin: String) -> Self {
        Self(Zeroizing::new(pin))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(<redacted>)")
    }
}

/// Where a token's PIN comes from. Never from the command line, which every user of the machine can read.
#[derive(Clone)]
pub enum PinSource {
    /// The first line of a file.
    File(PathBuf),
    /// An environment variable, by its name.
    Environment(String),
    /// Somebody to ask, once for each login; an error is its message.
    Prompt(Arc<dyn Fn() -> Result<Pin, String> + Send + Sync>),
}

impl PinSource {
    pub(super) fn read(&self) -> Result<Pin, Unavailable> {
        match self {
            Self::File(path) => {
                let content = fs::read_to_string(path).map_err(|error| {
                    let detail = format!("cannot read the PIN from {}: {error}", path.display());
                    let refusal = other(Reason::PermissionDenied, detail)
                        .with_remedy("Put the PIN into the file that `pin-source` names.");
                    match NativeCode::from_io(&error) {
                        Some(native) => refusal.with_native(native),
                        None => refusal,
                    }
                })?;
                let content = Zeroizing::new(content);
                Ok(Pin::new(content.lines().next().unwrap_or("").to_owned()))
            }
            Self::Environment(name) => env::var(name).map(Pin::new).map_err(|_| {
                let detail = format!("the environment variable {name} with the PIN is not set");
                other(Reason::PermissionDenied, detail)
            }),
            Self::Prompt(ask) => ask().map_err(|error| other(Reason::PermissionDenied, error)),
        }
    }
}

impl fmt::Debug for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Environment(name) => write!(f, "Environment({name})"),
            Self::Prompt(_) => f.write_str("Prompt"),
        }
    }
}
