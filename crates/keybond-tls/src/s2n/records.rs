//! Knows whether the bytes given to s2n so far end with a whole TLS record, and whether they are TLS at all.
//!
//! A connection may be wiped for a renegotiation only after a whole record: s2n forgets half-read ones. And s2n
//! takes the first words of an HTTP server for the head of a long record and waits for its end.

const HEADER: usize = 5;

/// The peer sent something that is no TLS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it sends is not TLS")]
pub(super) struct NotTls;

/// Follows the record headers (RFC 5246 §6.2.1) in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; HEADER],
    have: usize,
    body: usize,
}

impl Records {
    /// Takes note of the next bytes.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) -> Result<(), NotTls> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len());
                self.body -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            // Content types 20 to 24, major version 3.
            if (self.have == 0 && !(20..=24).contains(&first)) || (self.have == 1 && first != 3) {
                return Err(NotTls);
            }
            self.header[self.have] = first;
            self.have += 1;
            bytes = rest;
            if self.have == HEADER {
                self.body = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.have = 0;
            }
        }
        Ok(())
    }

    /// Whether no record is half read.
    pub(super) fn at_boundary(&self) -> bool {
        self.have == 0 && self.body == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_found_however_the_bytes_are_cut() {
        let mut wire = Vec::new();
        let mut ends = vec![0];
        for len in [0_u16, 1, 5, 300, 0, 16384] {
            wire.extend_from_slice(&[23, 3, 3]);
            wire.extend_from_slice(&len.to_be_bytes());
            wire.resize(wire.len() + usize::from(len), 0xff);
            ends.push(wire.len());
        }
        for cut in [1, 2, 5, 7, 100, 4096] {
            let mut records = Records::default();
            let mut at = 0;
            for piece in wire.chunks(cut) {
                records.advance(piece).unwrap();
                at += piece.len();
                assert_eq!(records.at_boundary(), ends.contains(&at), "{cut} {at}");
            }
        }
    }

    #[test]
    fn other_protocols_are_told_apart_by_their_first_bytes() {
        for other in [&b"HTTP/1.1 400"[..], b"220 mail", b"SSH-2.0", &[22, 2]] {
            assert_eq!(Records::default().advance(other), Err(NotTls), "{other:?}");
        }
    }
}
