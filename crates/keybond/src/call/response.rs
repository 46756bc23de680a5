//! A resource's answer, whole or in parts.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use keybond_tls::TlsInfo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::Lease;
use crate::{
    error::{At, Error},
    http::{Deadline, body::Progress},
    time,
    token::AccessToken,
};

/// A resource's answer.
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) token: Arc<AccessToken>,
    pub(super) limit: usize,
    pub(super) body: ResponseBody,
}

impl Response {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The token that was used, with its binding.
    pub fn token(&self) -> &Arc<AccessToken> {
        &self.token
    }

    /// Facts about the connection as of now.
    pub fn tls_info(&self) -> Option<TlsInfo> {
        self.body.lease.tls()
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the client's response limit, [`Error::Unreachable`] if the connection
    /// breaks or is silent for too long.
    pub async fn bytes(mut self) -> Result<Bytes, Error> {
        let limit = self.limit;
        let at = self.body.at.clone();
        let too_large = || Error::TooLarge {
            at: at.clone(),
            limit,
        };
        // An announced length is believed only to refuse.
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(part) = self.chunk().await? {
            if part.len() > limit - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&part);
        }
        Ok(body.freeze())
    }

    /// The next part of the body, as it arrives; `None` is its end. There is no limit on the whole.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the connection breaks or is silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The body alone, as a stream of parts without a limit on the whole.
    pub fn into_body(self) -> ResponseBody {
        self.body
    }
}

impl From<Response> for ::http::Response<ResponseBody> {
    fn from(response: Response) -> Self {
        let mut other = Self::new(response.body);
        *other.status_mut() = response.status;
        *other.headers_mut() = response.headers;
        other.extensions_mut().insert(response.token);
        other
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// The body of a resource's answer. When it is read to its end, its connection serves the next request; when it is
/// dropped before, the connection is closed.
pub struct ResponseBody {
    incoming: Incoming,
    lease: Lease,
    upload: Arc<Progress>,
    idle: Duration,
    deadline: Option<Deadline>,
    alarm: Pin<Box<Sleep>>,
    at: At,
}

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        lease: Lease,
        upload: Arc<Progress>,
        idle: Duration,
        deadline: Option<Deadline>,
        at: At,
    ) -> Self {
        let mut body = Self {
            incoming,
            lease,
            upload,
            idle,
            deadline,
            alarm: Box::pin(sleep_until(Instant::now())),
            at,
        };
        body.rearm();
        body.release(body.incoming.is_end_stream());
        body
    }

    fn rearm(&mut self) {
        let mut until = time::after(Instant::now(), self.idle);
        if let Some(deadline) = &self.deadline {
            until = until.min(deadline.at);
        }
        self.alarm.as_mut().reset(until);
    }

    fn release(&mut self, at_end: bool) {
        // An answer may come before the request was sent whole; such a connection serves nobody else.
        if at_end && self.upload.has_ended() {
            self.lease.release();
        }
    }

    fn late(&self) -> Error {
        match &self.deadline {
            Some(deadline) if Instant::now() >= deadline.at => {
                deadline.exceeded(self.at.leg, &self.at.correlation_id)
            }
            _ => self.lease.silent(&self.at, self.idle),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.rearm();
                this.release(this.incoming.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(this.lease.broken(&this.at, &error))))
            }
            Poll::Ready(None) => {
                // One of unknown length shows its end in no other way.
                this.release(true);
                Poll::Ready(None)
            }
            Poll::Pending if this.alarm.as_mut().poll(context).is_ready() => {
                Poll::Ready(Some(Err(this.late())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
