//! The presentation language of TLS (RFC 5246, 4): numbers and vectors with their lengths before
//! them. Reading is strict: whatever is left over or missing is a decode error.

use super::alert::{Alert, Failure};

/// Bytes still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| short("a message ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Failure> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Failure> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u24(&mut self) -> Result<usize, Failure> {
        let bytes = self.bytes(3)?;
        Ok(usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]))
    }

    /// A vector with a length of one byte.
    pub(super) fn vector8(&mut self) -> Result<Input<'a>, Failure> {
        let length = self.u8()?.into();
        self.bytes(length).map(Input)
    }

    /// A vector with a length of two bytes.
    pub(super) fn vector16(&mut self) -> Result<Input<'a>, Failure> {
        let length = self.u16()?.into();
        self.bytes(length).map(Input)
    }

    /// A vector with a length of three bytes.
    pub(super) fn vector24(&mut self) -> Result<Input<'a>, Failure> {
        let length = self.u24()?;
        self.bytes(length).map(Input)
    }

    /// A vector of numbers of two bytes, to its end.
    pub(super) fn numbers(mut self) -> Result<Vec<u16>, Failure> {
        let mut numbers = Vec::new();
        while !self.is_empty() {
            numbers.push(self.u16()?);
        }
        Ok(numbers)
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(short("a message goes on after its end"))
        }
    }
}

/// A vector whose length takes this many bytes; longer ones cannot be written and end up empty.
pub(super) fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let (zeros, length) = length.split_at(length.len() - length_bytes);
    if zeros.iter().any(|byte| *byte != 0) {
        debug_assert!(false, "a vector that is too long");
        return vec![0; length_bytes];
    }
    [length, content].concat()
}

/// A handshake message.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &*vector(3, body)].concat()
}

fn short(what: &'static str) -> Failure {
    Alert::DecodeError.because(what)
}
