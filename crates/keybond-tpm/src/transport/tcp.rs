//! A TPM behind a TCP socket. Traffic is in the clear: only for test beds.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    time::Instant,
};

use super::{Fault, stream::Stream};

/// Connects to the first address of the host that accepts.
pub(super) fn connect(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Stream<TcpStream>, Fault> {
    let mut last = Fault::Io(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::TimedOut);
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(Stream::new(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => last = Fault::TimedOut,
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
