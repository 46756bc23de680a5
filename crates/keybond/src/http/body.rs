//! The body of a request on its way out, watched: what is still to come decides what may be done when sending fails.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, SizeHint};

/// An error of somebody else's body.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// How far a body has come. Both sides only look; nothing is decided by two flags together.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    ended: AtomicBool,
    waiting: AtomicBool,
}

impl Progress {
    /// Whether all of it was handed over.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether the next part is being waited for: then it is not the server who is silent.
    pub(crate) fn waits_for_source(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }
}

/// A request's body.
pub(crate) struct Outgoing {
    content: Content,
    progress: Arc<Progress>,
}

enum Content {
    Whole(Full<Bytes>),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

impl Outgoing {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::new(Content::Whole(Full::new(bytes)))
    }

    pub(crate) fn stream<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::new(Content::Stream(body.map_err(Into::into).boxed_unsync()))
    }

    fn new(content: Content) -> Self {
        let body = Self {
            content,
            progress: Arc::default(),
        };
        body.look();
        body
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn look(&self) {
        if self.is_end_stream() {
            self.progress.ended.store(true, Ordering::Release);
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = match &mut this.content {
            Content::Whole(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Content::Stream(body) => Pin::new(body).poll_frame(context),
        };
        let waiting = polled.is_pending();
        this.progress.waiting.store(waiting, Ordering::Release);
        match &polled {
            Poll::Ready(None) => this.progress.ended.store(true, Ordering::Release),
            Poll::Ready(Some(Ok(_))) => this.look(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(body) => body.is_end_stream(),
            Content::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(body) => body.size_hint(),
            Content::Stream(body) => body.size_hint(),
        }
    }
}
