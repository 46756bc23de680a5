//! Requests as the services see them and replies as they write them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

/// A request, read in full.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Decoded pairs, in order.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// DER of the certificate the client proved to own.
    pub(crate) certificate: Option<Arc<[u8]>>,
}

impl Request {
    /// A header's text, if it is there once and readable.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    }

    /// The media type without its parameters, in lower case.
    pub(crate) fn media_type(&self) -> String {
        self.header("content-type")
            .and_then(|value| value.split(';').next())
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase()
    }
}

/// A reply before it is written.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) content: Content,
}

/// What a reply carries.
#[derive(Debug)]
pub(crate) enum Content {
    Json(Value),
    Bytes(&'static str, Bytes),
    /// So many bytes, made while they are sent.
    Endless(u64),
}

impl Reply {
    pub(crate) fn json(status: StatusCode, value: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::Json(value),
        }
    }

    pub(crate) fn ok(value: Value) -> Self {
        Self::json(StatusCode::OK, value)
    }

    pub(crate) fn bytes(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::Bytes(kind, bytes.into()),
        }
    }

    /// An error in the form of OAuth and of the Instance Metadata Service.
    pub(crate) fn error(status: StatusCode, error: &str, description: impl Into<String>) -> Self {
        Self::json(
            status,
            json!({ "error": error, "error_description": description.into() }),
        )
    }

    /// Adds a header; one that cannot be written is left out.
    #[must_use]
    pub(crate) fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        let (kind, body) = match self.content {
            Content::Json(value) => (
                "application/json; charset=utf-8",
                ReplyBody::Whole(Some(value.to_string().into())),
            ),
            Content::Bytes(kind, bytes) => (kind, ReplyBody::Whole(Some(bytes))),
            Content::Endless(left) => ("application/json; charset=utf-8", ReplyBody::Endless(left)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// The body of a reply on its way out.
pub(crate) enum ReplyBody {
    Whole(Option<Bytes>),
    Endless(u64),
}

/// Endless bodies are sent in pieces of this many bytes.
const PIECE: &[u8] = &[b' '; 64 * 1024];

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Whole(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()),
            Self::Endless(0) => None,
            Self::Endless(left) => {
                let piece = PIECE
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece as u64;
                Some(Bytes::from_static(&PIECE[..piece]))
            }
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Endless(left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Endless(left) => *left,
        })
    }
}
