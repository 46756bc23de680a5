//! Calls to resources: a bound token over mutual TLS with the binding that it belongs to.

mod rules;

use std::{fmt, sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use keybond_tls::TlsInfo;
use url::Url;

pub use self::rules::ResourceRule;
pub(crate) use self::rules::ResourceRules;
use crate::{
    client::ManagedIdentity,
    error::{At, Error},
    http::{Ask, Opened, Via},
    leg::{Done, Leg},
    token::{AccessToken, TokenType},
};

/// How long a resource may be silent in the middle of its answer.
const IDLE: Duration = Duration::from_secs(30);

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

/// Asks a resource to expect a bound token.
const TOKEN_BOUND: &str = "x-ms-tokenboundauth";

/// A request to a resource that is being put together.
#[must_use]
pub struct RequestBuilder {
    client: ManagedIdentity,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
    resource: Option<String>,
    problem: Option<Error>,
}

impl RequestBuilder {
    pub(crate) fn new(client: ManagedIdentity, method: Method, url: &str) -> Self {
        Self {
            client,
            method,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
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
        self.body = body.into();
        self
    }

    /// The resource (or scope) that the token is for, where the host alone does not tell.
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Gets or reuses the token, connects with its binding and sends. Redirects are not followed.
    ///
    /// # Errors
    /// [`Error`] names the leg; a status other than a redirect is an answer, not an error.
    pub async fn send(self) -> Result<Response, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let url = parse(&self.url)?;
        let shared = Arc::clone(&self.client.shared);
        let rule = shared
            .rules
            .find(url.host_str().unwrap_or_default(), self.resource.as_deref());
        let resource = self
            .resource
            .as_deref()
            .or_else(|| rule.and_then(|rule| rule.resource.as_deref()))
            .ok_or_else(|| {
                Error::configuration(
                    "resource",
                    "the host does not tell which resource it is: name it",
                )
            })?;
        let token = self.client.token(resource).await?;

        let mut headers = self.headers;
        headers.insert(header::AUTHORIZATION, authorization(&token)?);
        if rule.is_some_and(|rule| rule.token_bound_header) {
            headers.insert(
                HeaderName::from_static(TOKEN_BOUND),
                HeaderValue::from_static("true"),
            );
        }
        let leg = rule.map_or(keybond_tls::Leg::FirstHandshake, |rule| rule.leg);
        let binding = token.bound_to();
        let ask = Ask {
            method: self.method,
            url,
            headers,
            body: self.body,
            via: Via::Tls(leg, Arc::clone(binding.client_identity())),
        };
        let way = shared.acquisition()?;
        let at = At::new(Leg::Resource, &way.id);
        let calling = async {
            let opened = way
                .deadline
                .bound(Leg::Resource, &way.id, shared.imds.net.open(&ask, &at))
                .await??;
            let outcome = format!(
                "HTTP {} from {}",
                opened.status.as_u16(),
                ask.url.host_str().unwrap_or_default()
            );
            let tls = opened.tls();
            Ok(Done {
                value: opened,
                outcome,
                tls,
            })
        };
        let opened = Box::pin(way.leg(Leg::Resource, calling)).await?;
        Ok(Response {
            at: at.with_status(opened.status.as_u16()),
            limit: shared.response_limit,
            token,
            opened,
        })
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

/// A resource's answer.
pub struct Response {
    opened: Opened,
    token: Arc<AccessToken>,
    at: At,
    limit: usize,
}

impl Response {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.opened.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.opened.headers
    }

    /// The token that was used, with its binding.
    pub fn token(&self) -> &Arc<AccessToken> {
        &self.token
    }

    /// Facts about the connection as of now.
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.opened.tls()
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the client's response limit, [`Error::Unreachable`] if the connection
    /// breaks or is silent for 30 s.
    pub async fn bytes(mut self) -> Result<Bytes, Error> {
        self.opened.read(self.limit, IDLE, &self.at).await
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
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

fn authorization(token: &AccessToken) -> Result<HeaderValue, Error> {
    let text = format!("{} {}", TokenType::MtlsPop, token.secret());
    let mut value = crate::http::header_value("authorization", &text)?;
    value.set_sensitive(true);
    Ok(value)
}
