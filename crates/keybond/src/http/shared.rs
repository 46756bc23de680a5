//! A TLS connection that HTTP drives while its facts are read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use keybond_tls::{TlsConn, TlsInfo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Instant,
};

/// When bytes last moved.
#[derive(Debug)]
pub(crate) struct Activity {
    since: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// Something moved now.
    pub(crate) fn note(&self) {
        let milliseconds = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(milliseconds, Ordering::Relaxed);
    }

    /// When something last moved.
    pub(crate) fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// The connection. Its lock is held for single polls only.
#[derive(Clone)]
pub(super) struct SharedConn {
    conn: Arc<Mutex<Box<dyn TlsConn>>>,
    activity: Arc<Activity>,
    turn: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl SharedConn {
    pub(super) fn new(conn: Box<dyn TlsConn>) -> Self {
        Self {
            conn: Arc::new(Mutex::new(conn)),
            activity: Arc::new(Activity::new()),
            turn: Arc::default(),
        }
    }

    /// Keeps the leave to use the key until it has signed on this connection, or until it is given back.
    pub(super) fn hold(&self, turn: OwnedSemaphorePermit) {
        *self.turn() = Some(turn);
    }

    pub(super) fn give_back(&self) {
        drop(self.turn().take());
    }

    pub(super) fn is_renegotiating(&self) -> bool {
        self.lock().is_renegotiating()
    }

    pub(super) fn info(&self) -> TlsInfo {
        self.lock().info()
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn TlsConn>> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.activity.note();
        }
        polled
    }
}

impl AsyncRead for SharedConn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.lock()).poll_read(cx, buf);
        // Whoever waits for an answer reads, and so sees the end of a renegotiation.
        let mut turn = self.turn();
        if turn.is_some() && self.info().client_signature.is_some() {
            *turn = None;
        }
        drop(turn);
        self.noted(polled)
    }
}

impl AsyncWrite for SharedConn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.lock()).poll_write(cx, buf);
        self.noted(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}
