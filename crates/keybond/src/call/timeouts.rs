//! How long a call may take.

use std::time::Duration;

/// How long each part of a call to a resource may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Until a connection is made: handshake and the key's signature included, waiting for a key in a device, too.
    /// 30 s unless set.
    pub connect: Duration,
    /// How long the resource may be silent, while it is sent to, until it answers, and within its answer. The time
    /// in which a streamed body has nothing to send is not counted. 30 s unless set.
    pub idle: Duration,
    /// From the call of `send` to the last byte of the answer, the way to the token included. No limit unless set.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            total: None,
        }
    }
}

impl Timeouts {
    /// Sets [`Timeouts::connect`].
    #[must_use]
    pub fn connect(mut self, limit: Duration) -> Self {
        self.connect = limit;
        self
    }

    /// Sets [`Timeouts::idle`].
    #[must_use]
    pub fn idle(mut self, limit: Duration) -> Self {
        self.idle = limit;
        self
    }

    /// Sets [`Timeouts::total`].
    #[must_use]
    pub fn total(mut self, limit: Duration) -> Self {
        self.total = Some(limit);
        self
    }
}
