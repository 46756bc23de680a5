//! A TPM behind a Unix socket.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket,
        socket_with,
    },
};

use super::{Fault, stream::Stream};

/// Connects without ever blocking longer than the deadline.
pub(super) fn connect(path: &Path, deadline: Instant) -> Result<Stream<UnixStream>, Fault> {
    let address = SocketAddrUnix::new(path)?;
    let mut pause = Duration::from_millis(1);
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect_socket(&socket, &address) {
            Ok(()) => return Ok(Stream::new(UnixStream::from(socket))),
            // The listener's backlog is full; there is no event for its end (unix(7)).
            Err(Errno::AGAIN) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(Fault::TimedOut),
                left => {
                    thread::sleep(pause.min(left));
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
            },
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}
