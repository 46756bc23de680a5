//! A DER reader that knows where it is: every refusal names the offset in the whole input.

use std::fmt;

/// Where DER was refused: which byte was expected at which offset, and what stood there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerError {
    /// Bytes from the beginning of the input.
    pub offset: usize,
    /// The field being read.
    pub field: &'static str,
    /// What was expected there.
    pub expected: String,
    /// The byte that was found; `None` at the end of the input or of the enclosing value, or where
    /// the fault is in a value as a whole.
    pub found: Option<u8>,
}

impl fmt::Display for DerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            field,
            expected,
            found,
        } = self;
        write!(f, "byte {offset}: {field}: expected {expected}")?;
        match found {
            Some(byte) => write!(f, ", found 0x{byte:02x}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DerError {}

/// A window into the input; offsets are those of the whole input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    whole: &'a [u8],
    position: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(whole: &'a [u8]) -> Self {
        Self {
            whole,
            position: 0,
            end: whole.len(),
        }
    }

    /// The offset of the next byte.
    pub(crate) fn offset(&self) -> usize {
        self.position
    }

    /// The next byte, if the window has one.
    pub(crate) fn peek(&self) -> Option<u8> {
        (self.position < self.end).then(|| self.whole[self.position])
    }

    /// Everything that is left in the window.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.whole[self.position..self.end]
    }

    /// The bytes of the whole input from `start` up to here.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        &self.whole[start..self.position]
    }

    /// A refusal at the next byte.
    pub(crate) fn refuse(&self, field: &'static str, expected: impl Into<String>) -> DerError {
        DerError {
            offset: self.position,
            field,
            expected: expected.into(),
            found: self.peek(),
        }
    }

    /// One byte, which must be `expected`.
    pub(crate) fn byte(
        &mut self,
        expected: u8,
        field: &'static str,
        name: &str,
    ) -> Result<(), DerError> {
        if self.peek() != Some(expected) {
            return Err(self.refuse(field, format!("0x{expected:02x} ({name})")));
        }
        self.position += 1;
        Ok(())
    }

    /// Exactly these bytes; the refusal points at the first that differs.
    pub(crate) fn bytes(&mut self, expected: &[u8], field: &'static str) -> Result<(), DerError> {
        for byte in expected {
            if self.peek() != Some(*byte) {
                return Err(self.refuse(field, format!("0x{byte:02x}")));
            }
            self.position += 1;
        }
        Ok(())
    }

    /// The content of the next value, which must have this tag and a minimal, definite length.
    pub(crate) fn value(
        &mut self,
        tag: u8,
        field: &'static str,
        name: &str,
    ) -> Result<Self, DerError> {
        self.byte(tag, field, name)?;
        let length = self.length(field)?;
        let inner = Self {
            whole: self.whole,
            position: self.position,
            end: self.position + length,
        };
        self.position = inner.end;
        Ok(inner)
    }

    /// Any value: its tag and content.
    pub(crate) fn any(&mut self, field: &'static str) -> Result<(u8, Self), DerError> {
        let tag = self
            .peek()
            .ok_or_else(|| self.refuse(field, "a DER value"))?;
        Ok((tag, self.value(tag, field, "any")?))
    }

    /// Refuses anything left in the window.
    pub(crate) fn finish(&self, field: &'static str) -> Result<(), DerError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.refuse(field, "nothing more")),
        }
    }

    fn length(&mut self, field: &'static str) -> Result<usize, DerError> {
        let start = *self;
        let first = self.next(field, "a length byte")?;
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81..=0x83 => {
                let mut length = 0_usize;
                for _ in 0..first - 0x80 {
                    length = length << 8 | usize::from(self.next(field, "a length byte")?);
                }
                let minimal = match first {
                    0x81 => 0x80,
                    0x82 => 0x100,
                    _ => 0x1_0000,
                };
                if length < minimal {
                    return Err(start.refuse(field, "the shortest form of the length (DER)"));
                }
                length
            }
            _ => return Err(start.refuse(field, "a definite length below 16 MiB (DER)")),
        };
        let left = self.end - self.position;
        if length > left {
            return Err(start.refuse(
                field,
                format!("a length of at most {left}, the bytes that are there, not {length}"),
            ));
        }
        Ok(length)
    }

    fn next(&mut self, field: &'static str, expected: &str) -> Result<u8, DerError> {
        let byte = self.peek().ok_or_else(|| self.refuse(field, expected))?;
        self.position += 1;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_offset_in_the_whole_input() {
        let input = [0x30, 0x04, 0x30, 0x02, 0x05, 0x00];
        let mut outer = Reader::new(&input)
            .value(0x30, "outer", "SEQUENCE")
            .unwrap();
        let mut inner = outer.value(0x30, "inner", "SEQUENCE").unwrap();
        let refusal = inner.value(0x02, "version", "INTEGER").unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "byte 4: version: expected 0x02 (INTEGER), found 0x05"
        );
        outer.finish("outer").unwrap();
    }

    #[test]
    fn lengths_must_be_minimal_definite_and_inside() {
        for (input, offset) in [
            (&[0x30, 0x81, 0x01, 0x00][..], 1),
            (&[0x30, 0x82, 0x00, 0x80][..], 1),
            (&[0x30, 0x80, 0x00, 0x00][..], 1),
            (&[0x30, 0x84, 0, 0, 0, 0][..], 1),
            (&[0x30, 0x05, 0x00][..], 1),
            (&[0x30, 0x82, 0x01][..], 3),
            (&[0x30][..], 1),
            (&[][..], 0),
        ] {
            let refusal = Reader::new(input)
                .value(0x30, "value", "SEQUENCE")
                .unwrap_err();
            assert_eq!(refusal.offset, offset, "{input:02x?}: {refusal}");
        }
    }
}
