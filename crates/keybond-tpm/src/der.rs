//! The few pieces of DER (X.690) that key files and public keys need.

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;

/// AlgorithmIdentifier of rsaEncryption with NULL parameters (RFC 8017 A.1).
pub(crate) const RSA_ENCRYPTION: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

/// Encodes one value.
pub(crate) fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    match content.len() {
        short @ ..=0x7f => out.push(short as u8),
        _ => {
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (length.len() - zeros) as u8);
            out.extend_from_slice(&length[zeros..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// Encodes a SEQUENCE of encoded values.
pub(crate) fn sequence(values: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, &values.concat())
}

/// Encodes a non-negative INTEGER given in big endian.
pub(crate) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut content = Vec::with_capacity(bytes.len() + 1);
    match bytes.get(zeros) {
        Some(first) if first & 0x80 == 0 => {}
        _ => content.push(0),
    }
    content.extend_from_slice(&bytes[zeros..]);
    value(INTEGER, &content)
}

/// Takes the next value if it has this tag; `None` if it has not, or its length is not in the shortest form or
/// runs beyond the end. At most 65535 bytes.
pub(crate) fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&[found, first], rest) = input.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        ..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            (length >= 0x80).then_some((usize::from(length), rest))?
        }
        0x82 => {
            let (&bytes, rest) = rest.split_first_chunk()?;
            let length = u16::from_be_bytes(bytes);
            (length >= 0x100).then_some((usize::from(length), rest))?
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some(content)
}

/// Reads the content of a non-negative INTEGER of at most 32 bits.
pub(crate) fn small(content: &[u8]) -> Option<u32> {
    let digits = match content {
        [0, next, ..] if next & 0x80 != 0 => &content[1..],
        [first, ..] if first & 0x80 == 0 && (*first != 0 || content.len() == 1) => content,
        _ => return None,
    };
    (digits.len() <= 4).then(|| {
        digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | u32::from(*digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_round_trip_in_the_shortest_form_only() {
        for length in [0, 1, 127, 128, 255, 256, 65535] {
            let encoded = value(OCTET_STRING, &vec![7; length]);
            let mut rest = &encoded[..];
            assert_eq!(take(&mut rest, OCTET_STRING).unwrap().len(), length);
            assert!(rest.is_empty());
        }
        for bad in [
            &[4, 0x81, 1, 0][..],
            &[4, 0x82, 0, 1, 0],
            &[4, 0x80, 0, 0],
            &[4, 2, 0],
            &[4],
            &[],
        ] {
            assert!(take(&mut &bad[..], OCTET_STRING).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn integers_are_unsigned_and_shortest() {
        for number in [0, 1, 127, 128, 255, 256, 0x4000_0001, 0x8100_0001, u32::MAX] {
            let encoded = unsigned(&number.to_be_bytes());
            assert_eq!(
                small(take(&mut &encoded[..], INTEGER).unwrap()),
                Some(number)
            );
        }
        for bad in [&[][..], &[0x80], &[0, 1], &[1, 2, 3, 4, 5], &[0, 0]] {
            assert_eq!(small(bad), None, "{bad:?}");
        }
    }
}
