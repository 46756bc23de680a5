//! The token service's refusals, in its own form.

use http::StatusCode;
use serde_json::json;

use crate::{clock::timestamp, http_io::Reply, world::random_guid};

/// A refusal with its AADSTS number.
#[derive(Debug)]
pub(super) struct Refusal {
    code: u32,
    error: String,
    description: String,
    status: u16,
}

impl Refusal {
    /// `400` with this OAuth error; `code` 0 stands for none.
    pub(super) fn new(code: u32, error: &str, description: impl Into<String>) -> Self {
        Self {
            code,
            error: error.to_owned(),
            description: description.into(),
            status: 400,
        }
    }

    /// `401 invalid_client`.
    pub(super) fn client(code: u32, description: &str) -> Self {
        Self::new(code, "invalid_client", description).with_status(401)
    }

    /// `404`.
    pub(super) fn no_such_path() -> Self {
        Self::new(900_561, "invalid_request", "There is nothing here.").with_status(404)
    }

    #[must_use]
    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(super) fn into_reply(self, now: u64, correlation: &str) -> Reply {
        let trace = random_guid().unwrap_or_default();
        let timestamp = timestamp(now);
        let prefix = match self.code {
            0 => String::new(),
            code => format!("AADSTS{code}: "),
        };
        let mut body = json!({
            "error": self.error,
            "error_description": format!(
                "{prefix}{} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}",
                self.description
            ),
            "timestamp": timestamp,
            "trace_id": trace,
            "correlation_id": correlation,
        });
        if self.code != 0 {
            body["error_codes"] = json!([self.code]);
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        Reply::json(status, body).with_header("x-ms-request-id", &trace)
    }
}
