//! The body of a request, from the command line, a file or standard input; the latter two as they come.

use std::{
    fs::File,
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::progress::Counter;
use crate::failure::Failure;

/// Bytes read at a time, and how many such pieces may wait to be sent.
const PIECE: usize = 64 * 1024;
const WAITING: usize = 4;

/// What `-d` names.
pub(super) enum Data {
    Whole(Bytes),
    Stream(ReadBody),
}

impl Data {
    /// `@file`, `@-` for standard input, or the text itself.
    pub(super) fn open(data: &str) -> Result<Self, Failure> {
        Ok(match data.strip_prefix('@') {
            None => Self::Whole(Bytes::copy_from_slice(data.as_bytes())),
            Some("-") => Self::Stream(ReadBody::of(io::stdin(), None)),
            Some(name) => {
                let open = || {
                    let file = File::open(name)?;
                    let metadata = file.metadata()?;
                    // A pipe or a device says nothing about how much comes; files of the kernel say nothing at all.
                    let length = Some(metadata.len()).filter(|len| metadata.is_file() && *len > 0);
                    Ok((file, length))
                };
                let (file, length) = open().map_err(|error| Failure::io(name, &error))?;
                Self::Stream(ReadBody::of(file, length))
            }
        })
    }
}

/// Bytes that a thread of their own reads: a terminal that nobody types at holds up nobody.
pub(super) struct ReadBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: Option<u64>,
    counter: Option<Counter>,
}

impl ReadBody {
    fn of(mut source: impl Read + Send + 'static, length: Option<u64>) -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        thread::spawn(move || {
            loop {
                let mut piece = vec![0; PIECE];
                let read = match source.read(&mut piece) {
                    Ok(0) => return,
                    Ok(count) => {
                        piece.truncate(count);
                        Ok(piece.into())
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let last = read.is_err();
                if sender.blocking_send(read).is_err() || last {
                    return;
                }
            }
        });
        Self {
            pieces,
            left: length,
            counter: None,
        }
    }

    pub(super) fn counted_by(mut self, counter: Counter) -> Self {
        self.counter = Some(counter.of(self.left));
        self
    }
}

impl Body for ReadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = match piece {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Some(Err(error)),
                None if self.left.is_some_and(|left| left > 0) => {
                    return Some(Err(io::Error::other(
                        "the file became shorter while it was sent",
                    )));
                }
                None => return None,
            };
            if let Some(left) = &mut self.left {
                match left.checked_sub(piece.len() as u64) {
                    Some(rest) => *left = rest,
                    None => {
                        let text = "the file became longer while it was sent";
                        return Some(Err(io::Error::other(text)));
                    }
                }
            }
            if let Some(counter) = &mut self.counter {
                counter.count(piece.len());
            }
            Some(Ok(Frame::data(piece)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_the_kernel_has_a_body() {
        let expected = std::fs::read("/proc/version").unwrap();
        let Data::Stream(mut body) = Data::open("@/proc/version").unwrap() else {
            panic!("a file is streamed");
        };
        assert!(!body.is_end_stream());
        let mut read = Vec::new();
        while let Some(piece) = body.pieces.recv().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(read, expected);
    }
}
