//! UTF-16 strings as Windows wants them.

use crate::{codes::Hresult, error::CngError};

/// A string with exactly one NUL, at its end.
pub(crate) struct Wide(Vec<u16>);

impl Wide {
    /// # Errors
    /// `NTE_INVALID_PARAMETER` if `text` holds a NUL: Windows would see another name than we do.
    pub(crate) fn new(text: &str) -> Result<Self, CngError> {
        if text.contains('\0') {
            return Err(CngError::new(
                "a name with a NUL",
                Hresult::from_bits(0x8009_0027),
            ));
        }
        Ok(Self(text.encode_utf16().chain([0]).collect()))
    }

    /// Valid as long as `self`.
    pub(crate) fn as_ptr(&self) -> *const u16 {
        self.0.as_ptr()
    }

    /// For structures that are declared mutable but only read.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u16 {
        self.0.as_mut_ptr()
    }

    /// With the NUL.
    pub(crate) fn len_bytes(&self) -> u32 {
        (self.0.len() * 2) as u32
    }
}

/// The text before the first NUL, or of the whole slice.
pub(crate) fn text(units: &[u16]) -> String {
    let end = units
        .iter()
        .position(|unit| *unit == 0)
        .unwrap_or(units.len());
    String::from_utf16_lossy(&units[..end])
}

/// # Safety
/// `start` is null or points to UTF-16 that ends with NUL.
pub(crate) unsafe fn c_text(start: *const u16) -> String {
    if start.is_null() {
        return String::new();
    }
    let mut len = 0;
    // SAFETY: the caller promises a NUL at the end.
    while unsafe { *start.add(len) } != 0 {
        len += 1;
    }
    // SAFETY: all of these units were just read.
    text(unsafe { std::slice::from_raw_parts(start, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nul_and_only_at_the_end() {
        let wide = Wide::new("Ü€😀").unwrap();
        assert_eq!(wide.0, [0xdc, 0x20ac, 0xd83d, 0xde00, 0]);
        assert_eq!(wide.len_bytes(), 10);
        assert_eq!(text(&wide.0), "Ü€😀");
        assert!(Wide::new("a\0b").is_err());
    }
}
