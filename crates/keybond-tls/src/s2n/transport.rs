//! The bridge between s2n's C callbacks and a tokio socket: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    ptr, slice,
    task::{Context, Poll, ready},
};

use s2n_tls::{connection::Connection, error::Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::records::Records;

/// Bytes read from the socket at a time: a whole record of the largest size.
const INBOUND: usize = 16 * 1024 + 512;

/// Bytes of a flight that are gathered at most.
const FLIGHT: usize = 16 * 1024;

/// A socket with a read buffer, as s2n's callbacks need it.
pub(super) struct Transport<S> {
    pub(super) socket: S,
    records: Records,
    inbound: Vec<u8>,
    start: usize,
    end: usize,
    /// Messages of a handshake that are to leave together; s2n would send each by itself.
    flight: Vec<u8>,
    gathers: bool,
    error: Option<io::Error>,
    lost: Option<io::Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            records: Records::default(),
            inbound: Vec::new(),
            start: 0,
            end: 0,
            flight: Vec::new(),
            gathers: false,
            error: None,
            lost: None,
        }
    }

    /// Whether s2n has been given whole records only.
    pub(super) fn at_record_boundary(&self) -> bool {
        self.records.at_boundary()
    }

    /// The socket's own error behind the last failure, if it was one.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Why nothing that is sent arrives any more, if the peer is gone.
    ///
    /// A peer that refuses something says why, closes, and resets the connection for what comes after. So a send
    /// that fails in this way is no end yet: what was sent counts as gone, and s2n goes on to read what the peer
    /// said. When nothing is left to read, reading fails with this error.
    pub(super) fn lost(&self) -> Option<io::Error> {
        self.lost.as_ref().map(again)
    }

    /// Lets s2n work: while `work` runs, the connection reads from and writes to this transport. `gathers`: what it
    /// writes leaves when `work` has returned, or when more is read, in one piece.
    pub(super) fn drive<R>(
        &mut self,
        connection: &mut Connection,
        context: &mut Context<'_>,
        gathers: bool,
        work: impl FnOnce(&mut Connection) -> Poll<Result<R, Error>>,
    ) -> Poll<Result<R, Error>> {
        connection.set_waker(Some(context.waker()))?;
        self.gathers = gathers;
        let mut wire = Wire {
            transport: self,
            context,
        };
        let wire: *mut c_void = (&raw mut wire).cast();
        let attached = Attached(connection);
        attached.0.set_receive_callback(Some(receive::<S>))?;
        attached.0.set_send_callback(Some(send::<S>))?;
        // SAFETY: `wire` outlives `attached`, whose drop takes the pointers back, also when `work` panics.
        unsafe {
            attached.0.set_receive_context(wire)?;
            attached.0.set_send_context(wire)?;
        }
        let worked = work(attached.0);
        drop(attached);
        // What does not leave now is tried again before anything else is sent or read.
        let _ = self.poll_flight(context);
        worked
    }

    /// Sends what was gathered.
    pub(super) fn poll_flight(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.flight.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(context, &self.flight)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(sent) => drop(self.flight.drain(..sent)),
                Err(error) if is_reset(&error) => {
                    self.lost = Some(error);
                    self.flight.clear();
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        // An idle connection keeps no buffer.
        self.flight = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, most: usize) -> Poll<io::Result<&[u8]>> {
        if self.start == self.end {
            // The peer may not answer before it has the whole flight.
            let _ = self.poll_flight(context);
            if self.inbound.is_empty() {
                self.inbound = vec![0; INBOUND];
            }
            let mut buffer = ReadBuf::new(&mut self.inbound);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) => (self.start, self.end) = (0, buffer.filled().len()),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.lost().unwrap_or(error))),
                Poll::Pending => {
                    // An idle connection keeps no buffer.
                    self.inbound = Vec::new();
                    return Poll::Pending;
                }
            }
        }
        if self.start == self.end
            && let Some(lost) = self.lost()
        {
            return Poll::Ready(Err(lost));
        }
        let from = self.start;
        self.start += most.min(self.end - from);
        let bytes = &self.inbound[from..self.start];
        let checked = self.records.advance(bytes);
        Poll::Ready(checked.map(|()| bytes).map_err(io::Error::other))
    }

    fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.lost.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.gathers && self.flight.len() < FLIGHT {
            self.flight.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_flight(context))?;
        if self.lost.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let sent = match ready!(Pin::new(&mut self.socket).poll_write(context, bytes)) {
            Ok(sent) => sent,
            Err(error) if is_reset(&error) => {
                self.lost = Some(error);
                return Poll::Ready(Ok(bytes.len()));
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        if sent == 0 && !bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(sent))
    }
}

/// Whether an error of a send says that the peer is gone. Reading then always ends soon, with data, the end or an
/// error.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

/// What the callbacks see: a transport and the task that drives it now.
struct Wire<'a, 'b, S> {
    transport: &'a mut Transport<S>,
    context: &'a mut Context<'b>,
}

/// A connection whose callbacks point to a [`Wire`] until this is dropped.
struct Attached<'a>(&'a mut Connection);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // Setting a pointer in a live connection cannot fail.
        let _ = self.0.set_receive_callback(None);
        let _ = self.0.set_send_callback(None);
        // SAFETY: a null context is never read, since there are no callbacks any more.
        unsafe {
            let _ = self.0.set_receive_context(ptr::null_mut());
            let _ = self.0.set_send_context(ptr::null_mut());
        }
    }
}

unsafe extern "C" fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    wire: *mut c_void,
    buffer: *mut u8,
    len: u32,
) -> c_int {
    // SAFETY: `drive::<S>` set this pointer to a `Wire<S>` that lives and is not used otherwise until it returns.
    let wire = unsafe { &mut *wire.cast::<Wire<'_, '_, S>>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let bytes = match wire.transport.poll_receive(wire.context, len as usize) {
            Poll::Ready(Ok(bytes)) => bytes,
            Poll::Ready(Err(error)) => return Err(Some(error)),
            Poll::Pending => return Err(None),
        };
        // SAFETY: s2n gives `len` writable bytes, and `poll_receive` returns at most as many, from elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, bytes.len()) };
        Ok(bytes.len())
    }));
    answer(wire, outcome)
}

unsafe extern "C" fn send<S: AsyncRead + AsyncWrite + Unpin>(
    wire: *mut c_void,
    buffer: *const u8,
    len: u32,
) -> c_int {
    // SAFETY: as in `receive`.
    let wire = unsafe { &mut *wire.cast::<Wire<'_, '_, S>>() };
    // SAFETY: s2n gives `len` initialised bytes that nobody changes during the call.
    let bytes = unsafe { slice::from_raw_parts(buffer, len as usize) };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        match wire.transport.poll_send(wire.context, bytes) {
            Poll::Ready(Ok(sent)) => Ok(sent),
            Poll::Ready(Err(error)) => Err(Some(error)),
            Poll::Pending => Err(None),
        }
    }));
    answer(wire, outcome)
}

/// What a callback returns: a count, or -1 with the cause in `errno` as `read(2)` and `write(2)` do.
fn answer<S>(
    wire: &mut Wire<'_, '_, S>,
    outcome: std::thread::Result<Result<usize, Option<io::Error>>>,
) -> c_int {
    // A panic that crossed C would end the process.
    let outcome = outcome.unwrap_or_else(|_| Err(Some(io::Error::other("the socket panicked"))));
    let code = match outcome {
        Ok(count) => return c_int::try_from(count).unwrap_or(c_int::MAX),
        Err(None) => EAGAIN,
        Err(Some(error)) => {
            wire.transport.error = Some(error);
            EIO
        }
    };
    // SAFETY: the C library's pointer to this thread's own errno is always valid.
    unsafe { *errno() = code };
    -1
}

const EAGAIN: c_int = if cfg!(target_vendor = "apple") {
    35
} else {
    11
};
const EIO: c_int = 5;

// SAFETY: these are the declarations of the C libraries: int *f(void).
unsafe extern "C" {
    #[cfg_attr(windows, link_name = "_errno")]
    #[cfg_attr(target_vendor = "apple", link_name = "__error")]
    #[cfg_attr(
        not(any(windows, target_vendor = "apple")),
        link_name = "__errno_location"
    )]
    fn errno() -> *mut c_int;
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_flight_leaves_before_what_comes_later_however_narrow_the_way() {
        let (near, mut far) = duplex(64);
        let mut transport = Transport::new(near);
        let sending = async {
            transport.gathers = true;
            for message in [[1; 100], [2; 100]] {
                let sent = poll_fn(|context| transport.poll_send(context, &message)).await;
                assert_eq!(sent.unwrap(), 100);
            }
            assert_eq!(transport.flight.len(), 200, "it is gathered");
            transport.gathers = false;
            let sent = poll_fn(|context| transport.poll_send(context, &[3; 10])).await;
            assert_eq!(sent.unwrap(), 10);
            assert_eq!(transport.flight.capacity(), 0);
        };
        let mut received = [0; 210];
        let (read, ()) = tokio::join!(far.read_exact(&mut received), sending);
        read.unwrap();
        assert_eq!(
            received.to_vec(),
            [vec![1; 100], vec![2; 100], vec![3; 10]].concat()
        );
    }
}
