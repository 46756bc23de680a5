//! Requests, answers and times of the SDK and ours.

use std::time::{SystemTime, UNIX_EPOCH};

use azure_core::{
    error::{Error, ErrorKind, ResultExt as _},
    http::{
        AsyncRawResponse, Body, Request,
        headers::{HeaderName, HeaderValue, Headers},
    },
    time::OffsetDateTime,
};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use keybond::{HeaderMap, Method, StatusCode};

/// Bytes of a body that are held at most.
pub(crate) const BODY_LIMIT: usize = 64 << 20;

/// The scope of a token request. Tokens of managed identities are for one resource.
pub(crate) fn one_scope<'a>(scopes: &[&'a str]) -> azure_core::Result<&'a str> {
    match scopes {
        [scope] => Ok(scope),
        _ => Err(Error::with_message(
            ErrorKind::Credential,
            format!(
                "a token of a managed identity is for exactly one scope, not for {}",
                scopes.len()
            ),
        )),
    }
}

pub(crate) fn moment(time: SystemTime) -> azure_core::Result<OffsetDateTime> {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    OffsetDateTime::from_unix_timestamp(seconds.try_into().unwrap_or(i64::MAX)).with_context(
        ErrorKind::DataConversion,
        "the token's expiry is out of range",
    )
}

pub(crate) fn method(request: &Request) -> azure_core::Result<Method> {
    Method::from_bytes(request.method().as_ref().as_bytes())
        .with_context(ErrorKind::DataConversion, "the method cannot be sent")
}

/// The whole body. A stream is read from a copy, so that the request can be sent again.
pub(crate) async fn body(request: &Request) -> azure_core::Result<Bytes> {
    let mut stream = match request.body().clone() {
        Body::Bytes(bytes) => return Ok(bytes),
        Body::SeekableStream(stream) => stream,
    };
    stream.reset().await?;
    let mut body = BytesMut::new();
    while let Some(part) = stream.try_next().await? {
        if body.len() + part.len() > BODY_LIMIT {
            return Err(too_large("request"));
        }
        body.extend_from_slice(&part);
    }
    Ok(body.freeze())
}

pub(crate) fn answer(status: StatusCode, headers: &HeaderMap, body: Bytes) -> AsyncRawResponse {
    let mut converted = Headers::new();
    for name in headers.keys() {
        // The SDK knows one value per name; lists are joined as RFC 9110 §5.2 has it.
        let values: Vec<_> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        converted.insert(
            HeaderName::from(name.as_str().to_owned()),
            HeaderValue::from(values.join(", ")),
        );
    }
    AsyncRawResponse::from_bytes(status.as_u16().into(), converted, body)
}

pub(crate) fn too_large(what: &str) -> Error {
    Error::with_message(
        ErrorKind::Other,
        format!("the body of the {what} is longer than {BODY_LIMIT} bytes"),
    )
}
