//! Calls to resources: a bound token over mutual TLS with the binding that it belongs to.

mod challenge;
mod key;
pub(crate) mod pool;
mod response;
mod rules;
mod send;
mod service;
mod timeouts;

use std::fmt;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use bytes::Bytes;
use hyper::body::Body;
use url::Url;

pub(crate) use self::rules::ResourceRules;
use self::send::{Call, CallBody, TOKEN_BOUND, send};
pub use self::{
    response::{Response, ResponseBody},
    rules::{ClientCertificate, ResourceRule},
    service::ResourceService,
    timeouts::Timeouts,
};
use crate::{
    client::ManagedIdentity,
    error::Error,
    http::body::{BoxError, Outgoing},
};

/// Headers that the client alone sets.
const RESERVED: [&str; 8] = [
    "authorization",
    "connection",
    "content-length",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    TOKEN_BOUND,
];

/// A request to a resource that is being put together.
#[must_use]
pub struct RequestBuilder {
    client: ManagedIdentity,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: CallBody,
    resource: Option<String>,
    timeouts: Timeouts,
    problem: Option<Error>,
}

impl RequestBuilder {
    pub(crate) fn new(client: ManagedIdentity, method: Method, url: &str) -> Self {
        Self {
            timeouts: client.shared.timeouts,
            client,
            method,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: CallBody::Whole(Bytes::new()),
            resource: None,
            problem: None,
        }
    }

    /// Adds a header. `Authorization`, `Host` and those of the connection are the client's own: naming one is
    /// an error of [`RequestBuilder::send`], as is a name or value that no header may have.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName, Error: fmt::Display>,
        V: TryInto<HeaderValue, Error: fmt::Display>,
    {
        let header = name
            .try_into()
            .map_err(|error| error.to_string())
            .and_then(|name| Ok((name, value.try_into().map_err(|error| error.to_string())?)));
        let refused = match header {
            Ok((name, _)) if RESERVED.contains(&name.as_str()) => {
                format!("`{name}` is set by the client alone")
            }
            Ok((name, value)) => {
                self.headers.append(name, value);
                return self;
            }
            Err(problem) => problem,
        };
        self.problem
            .get_or_insert(Error::configuration("header", refused));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = CallBody::Whole(body.into());
        self
    }

    /// Sets a body that is sent as it comes. It is sent at most once: where a request would be repeated, one with
    /// such a body fails, or its refusal is the answer.
    pub fn body_stream<B>(mut self, body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.body = CallBody::Stream(Outgoing::stream(body));
        self
    }

    /// The resource (or scope) that the token is for, where the host alone does not tell.
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// How long each part may take; the client's unless set.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Gets or reuses the token, gets or reuses a connection of its binding, and sends. Redirects are not followed.
    ///
    /// # Errors
    /// [`Error`] names the leg; a status other than a redirect is an answer, not an error.
    pub async fn send(self) -> Result<Response, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let call = Call {
            method: self.method,
            url: parse(&self.url)?,
            headers: self.headers,
            body: self.body,
            resource: self.resource,
            timeouts: self.timeouts,
        };
        Box::pin(send(&self.client, call)).await
    }
}

impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBuilder")
            .field("method", &self.method)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

fn parse(text: &str) -> Result<Url, Error> {
    let refuse = |problem: &str| Error::configuration("url", problem);
    let url = Url::parse(text).map_err(|error| refuse(&format!("is no URL: {error}")))?;
    if url.scheme() != "https" {
        return Err(refuse("is not https: a bound token needs mutual TLS"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("contains a user name or password"));
    }
    Ok(url)
}
