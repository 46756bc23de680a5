//! One module a verb.

pub(crate) mod call;
pub(crate) mod capabilities;
pub(crate) mod cert;
pub(crate) mod csr;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod emulate;
pub(crate) mod explain;
pub(crate) mod key;
pub(crate) mod pop;
pub(crate) mod token;

use std::io::Write as _;

use crate::failure::Failure;

/// Writes bytes to standard output as they are; a closed pipe is the reader's choice, not an error.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::io("standard output", &error)),
    }
}

/// Prints a JSON document, indented, with a line end.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    write_out(format!("{value:#}\n").as_bytes())
}

/// A point in time as people and programs read it: RFC 3339, UTC, whole seconds.
pub(crate) fn rfc3339(at: std::time::SystemTime) -> String {
    let seconds = at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "unknown".into(), |at| at.to_string())
}
