//! Calls as a `tower` service, for HTTP code that is written against it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use ::http::{Request, header};
use bytes::Bytes;
use hyper::body::Body;
use tower_service::Service;

use super::{
    RESERVED, ResponseBody, Timeouts, parse,
    send::{Call, CallBody, send},
};
use crate::{
    client::ManagedIdentity,
    error::Error,
    http::body::{BoxError, Outgoing},
};

/// Sends any [`http::Request`](::http::Request) with a bound token, over mutual TLS with the binding it belongs to.
///
/// The request's URI is absolute (`https://…`). `Authorization`, `x-ms-tokenboundauth` and the headers of the
/// connection are the client's own: those that are given are left out. The answer's extensions hold the token that
/// was used, an `Arc<AccessToken>`. A body is sent as it comes and never twice; limits are the caller's business.
#[derive(Clone)]
pub struct ResourceService {
    client: ManagedIdentity,
    resource: Option<String>,
    timeouts: Timeouts,
}

impl ResourceService {
    pub(crate) fn new(client: ManagedIdentity) -> Self {
        Self {
            timeouts: client.shared.timeouts,
            client,
            resource: None,
        }
    }

    /// The resource (or scope) that tokens are for, where the host alone does not tell.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// How long each part may take; the client's unless set.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }
}

impl<B> Service<Request<B>> for ResourceService
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = ::http::Response<ResponseBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        let (head, body) = request.into_parts();
        let body = if body.is_end_stream() {
            CallBody::Whole(Bytes::new())
        } else {
            CallBody::Stream(Outgoing::stream(body))
        };
        Box::pin(async move {
            let mut headers = head.headers;
            for name in RESERVED {
                headers.remove(name);
            }
            headers.remove(header::EXPECT);
            let call = Call {
                method: head.method,
                url: parse(&head.uri.to_string())?,
                headers,
                body,
                resource: this.resource,
                timeouts: this.timeouts,
            };
            Ok(send(&this.client, call).await?.into())
        })
    }
}

impl fmt::Debug for ResourceService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceService")
            .field("client", &self.client)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}
