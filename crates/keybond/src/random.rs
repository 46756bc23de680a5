//! Request ids: random UUIDs.

use crate::error::Error;

/// Where random bytes come from.
pub trait Random: Send + Sync + 'static {
    /// Sixteen random bytes; `None` if the source fails.
    fn bytes16(&self) -> Option<[u8; 16]>;
}

/// The cryptography library's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SecureRandom;

impl Random for SecureRandom {
    fn bytes16(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// A random UUID (RFC 9562 §5.4, version 4), lower case with dashes.
pub(crate) fn uuid(random: &dyn Random) -> Result<String, Error> {
    let mut bytes = random
        .bytes16()
        .ok_or_else(|| Error::configuration("random", "the random generator failed"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    Ok(text)
}

/// A number from -1 to 1, spread evenly; 0 if the generator fails, for nothing secret hangs on it.
pub(crate) fn jitter(random: &dyn Random) -> f64 {
    let bytes = random.bytes16().unwrap_or([0x80; 16]);
    let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    f64::from(number) / f64::from(1_u32 << 31) - 1.0
}

/// Whether `text` has the form of a UUID: 8-4-4-4-12 hexadecimal digits.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Option<[u8; 16]>);

    impl Random for Fixed {
        fn bytes16(&self) -> Option<[u8; 16]> {
            self.0
        }
    }

    #[test]
    fn version_and_variant_are_set_whatever_the_bytes() {
        let ones = uuid(&Fixed(Some([0xff; 16]))).unwrap();
        assert_eq!(ones, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let zeros = uuid(&Fixed(Some([0; 16]))).unwrap();
        assert_eq!(zeros, "00000000-0000-4000-8000-000000000000");
        assert!(is_uuid(&ones) && is_uuid(&zeros));
        assert_ne!(uuid(&SecureRandom).unwrap(), uuid(&SecureRandom).unwrap());
    }

    #[test]
    fn a_failing_generator_is_an_error() {
        assert_eq!(
            uuid(&Fixed(None)).unwrap_err().code(),
            "invalid_configuration"
        );
    }

    #[test]
    fn near_uuids_are_none() {
        for text in [
            "",
            "00000000-0000-4000-8000-00000000000",
            "00000000-0000-4000-8000-0000000000000",
            "00000000_0000-4000-8000-000000000000",
            "g0000000-0000-4000-8000-000000000000",
            "{0000000-0000-4000-8000-00000000000}",
        ] {
            assert!(!is_uuid(text), "{text}");
        }
    }
}
