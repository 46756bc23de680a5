//! The ids by which a service finds an exchange in its own logs.

use std::sync::Arc;

use ::http::HeaderMap;
use serde_json::Value;

use crate::random::is_uuid;

/// Where services put them: the member of a refusal's body, and the header.
const TRACE: (&str, &str) = ("trace_id", "x-ms-request-id");
const CORRELATION: (&str, &str) = ("correlation_id", "client-request-id");

/// What a service calls an exchange. Only values with the form of a UUID are taken over: they come from the
/// network and are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIds {
    trace_id: Option<Box<str>>,
    correlation_id: Option<Box<str>>,
}

impl ServiceIds {
    /// The service's own id of the exchange.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// The correlation id under which the service logged it.
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// Takes the ids of an answer from its body, else from its headers; `None` if it has none. What was sent
    /// as a secret is no id, whatever its form.
    pub(crate) fn of(headers: &HeaderMap, body: &[u8], sent: &[String]) -> Option<Arc<Self>> {
        let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let find = |(member, header): (&str, &str)| {
            let stated = body.get(member).and_then(Value::as_str);
            let header = headers.get(header).and_then(|value| value.to_str().ok());
            [stated, header]
                .into_iter()
                .flatten()
                .find(|id| is_uuid(id) && !sent.iter().any(|secret| secret == id))
                .map(|id| id.to_ascii_lowercase().into_boxed_str())
        };
        let ids = Self {
            trace_id: find(TRACE),
            correlation_id: find(CORRELATION),
        };
        (ids != Self::default()).then(|| Arc::new(ids))
    }
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    const ONE: &str = "8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c";
    const TWO: &str = "11111111-2222-4333-8444-555555555555";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    ::http::HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn the_body_goes_before_the_headers() {
        let body = format!(r#"{{"trace_id":"{}"}}"#, ONE.to_ascii_uppercase());
        let both = headers(&[("x-ms-request-id", TWO), ("client-request-id", TWO)]);
        let ids = ServiceIds::of(&both, body.as_bytes(), &[]).unwrap();
        assert_eq!(
            (ids.trace_id(), ids.correlation_id()),
            (Some(ONE), Some(TWO))
        );
        let ids = ServiceIds::of(&both, b"no JSON", &[]).unwrap();
        assert_eq!(ids.trace_id(), Some(TWO));
        assert_eq!(
            ServiceIds::of(&both, b"", &[TWO.to_owned()]),
            None,
            "a secret"
        );
    }

    #[test]
    fn what_is_no_uuid_is_left_out() {
        for id in [
            "",
            "x",
            "8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c\\n",
            "eyJhbGciOiJub25lIn0.e30.c2ln",
        ] {
            let body = format!(r#"{{"trace_id":"{id}","correlation_id":"{id}"}}"#);
            assert_eq!(
                ServiceIds::of(&HeaderMap::new(), body.as_bytes(), &[]),
                None,
                "{id}"
            );
        }
        let body = format!(r#"{{"trace_id":["{ONE}"]}}"#);
        assert_eq!(
            ServiceIds::of(&HeaderMap::new(), body.as_bytes(), &[]),
            None
        );
        assert_eq!(ServiceIds::of(&HeaderMap::new(), b"[]", &[]), None);
    }
}
