//! A byte stream on which a TPM speaks the raw wire format: swtpm's command channel.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    time::Instant,
};

use rustix::event::PollFlags;

use super::{Fault, Transport, claimed_length, wait};
use crate::wire::HEADER;

/// A socket in non-blocking mode.
pub(super) struct Stream<S>(S);

impl<S: Read + Write + AsFd + Send> Stream<S> {
    /// Wraps a socket that is already non-blocking.
    pub(super) fn new(socket: S) -> Self {
        Self(socket)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), Fault> {
        while !buffer.is_empty() {
            match self.0.read(buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) => self.again(error, PollFlags::IN, deadline)?,
            }
        }
        Ok(())
    }

    /// Refuses a connection on which bytes wait that no command asked for: the next answer would be a wrong one. One
    /// that was closed meanwhile shows here too, before a command is sent in vain.
    fn check_silence(&mut self) -> Result<(), Fault> {
        loop {
            return match self.0.read(&mut [0]) {
                Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {
                    let what = "bytes came that belong to no command";
                    Err(io::Error::new(io::ErrorKind::InvalidData, what).into())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    fn again(&self, error: io::Error, flags: PollFlags, deadline: Instant) -> Result<(), Fault> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => wait(&self.0, flags, deadline),
            _ => Err(error.into()),
        }
    }
}

impl<S: Read + Write + AsFd + Send> Transport for Stream<S> {
    fn send(&mut self, mut command: &[u8], deadline: Instant) -> Result<(), Fault> {
        self.check_silence()?;
        while !command.is_empty() {
            match self.0.write(command) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => command = &command[written..],
                Err(error) => self.again(error, PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, Fault> {
        let mut response = vec![0; HEADER];
        self.read_exact(&mut response, deadline)?;
        response.resize(claimed_length(&response)?, 0);
        self.read_exact(&mut response[HEADER..], deadline)?;
        Ok(response)
    }
}
