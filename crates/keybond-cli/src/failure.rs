//! How a command fails: what happened, why, what to do, and the exit code.

use std::process::ExitCode;

use keybond_keys::{KeyError, Reason};
use keybond_tls::TlsError;
use serde_json::json;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    code: String,
    message: String,
    remedy: String,
    details: serde_json::Value,
}

/// What the exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 1: it did not work.
    Failed,
    /// 2: it was asked for in the wrong way.
    Usage,
    /// 3: policy or the floor forbids it.
    Refused,
    /// 4: whom it needs cannot be reached.
    Unreachable,
}

impl Failure {
    pub(crate) fn new(
        kind: Kind,
        code: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            code: code.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
            details: serde_json::Value::Null,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, "usage", message, "See `keybond help`.")
    }

    /// A local file or stream that cannot be used.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Self::new(
            Kind::Failed,
            "io",
            format!("{what}: {error}"),
            "Check the path and its permissions.",
        )
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({
            "code": self.code,
            // Further lines repeat for people what the details say to programs.
            "message": self.message.lines().next(),
            "remedy": self.remedy,
            "details": self.details,
        })
    }

    /// Prints the failure to standard error, as text or JSON, and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if json {
            let report = json!({ "error": self.to_json() });
            eprintln!("{report:#}");
        } else {
            let mut lines = self.message.lines();
            eprintln!("error: {}", lines.next().unwrap_or("unknown"));
            for line in lines {
                eprintln!("  {line}");
            }
            if !self.remedy.is_empty() {
                eprintln!("  to do: {}", self.remedy);
            }
            eprintln!("  code:  {}", self.code);
        }
        ExitCode::from(match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
            Kind::Unreachable => 4,
        })
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let kind = match &error {
            KeyError::MinStrengthNotMet { .. } => Kind::Refused,
            // Without a floor nothing but configuration turns a store off.
            KeyError::NoStore { decision }
                if decision
                    .refusals()
                    .any(|refusal| refusal.reason == Reason::DisabledByPolicy) =>
            {
                Kind::Refused
            }
            _ => Kind::Failed,
        };
        let details = match &error {
            KeyError::MinStrengthNotMet {
                have,
                need,
                decision,
            } => {
                json!({ "have": have, "need": need, "decision": **decision })
            }
            KeyError::NoStore { decision } => json!({ "decision": **decision }),
            _ => serde_json::Value::Null,
        };
        Self {
            details,
            ..Self::new(kind, error.code(), error.to_string(), error.remedy())
        }
    }
}

impl From<keybond::CsrError> for Failure {
    fn from(error: keybond::CsrError) -> Self {
        let kind = if error.field().is_some() {
            Kind::Usage
        } else {
            Kind::Failed
        };
        Self::new(kind, error.code(), error.to_string(), error.remedy())
    }
}

impl From<keybond::Error> for Failure {
    fn from(error: keybond::Error) -> Self {
        use keybond::Error;
        let kind = match error {
            Error::Key { cause, .. } => return cause.into(),
            Error::Csr { cause, .. } => return cause.into(),
            Error::Configuration { .. } => Kind::Usage,
            Error::Disabled { .. } | Error::Host { .. } => Kind::Refused,
            Error::Unreachable { .. } | Error::DeadlineExceeded { .. } => Kind::Unreachable,
            _ => Kind::Failed,
        };
        let details = json!({
            "leg": error.leg().map(|leg| leg.to_string()),
            "field": error.field(),
            "status": error.http_status(),
            "correlation_id": error.correlation_id(),
            "trace_id": error.trace_id(),
            "retryable": error.retryable(),
        });
        let mut message = error.to_string();
        for (name, id) in [
            ("correlation id", error.correlation_id()),
            ("trace id", error.trace_id()),
        ] {
            if let Some(id) = id {
                message.push_str(&format!("\n{name}: {id}"));
            }
        }
        Self {
            details,
            ..Self::new(kind, error.code(), message, error.remedy())
        }
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::new(
            Kind::Failed,
            error.code(),
            error.to_string(),
            error.remedy(),
        )
    }
}
