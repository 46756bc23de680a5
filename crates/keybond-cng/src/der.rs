//! The way to the public key in a certificate (RFC 5280 §4.1).

/// The SubjectPublicKeyInfo of a certificate, with its header.
pub(crate) fn subject_public_key_info(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = value(certificate)?;
    let (_, mut fields, _) = value(certificate)?;
    // The version is optional and tagged; serial number, algorithm, issuer, validity and subject are not.
    let before = if *fields.first()? == 0xa0 { 6 } else { 5 };
    for _ in 0..before {
        fields = value(fields)?.2;
    }
    let (spki, _, _) = value(fields)?;
    (*spki.first()? == 0x30).then_some(spki)
}

/// The first DER value: with its header, its content, and what follows.
fn value(input: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, len) = match *input.get(1..)?.first()? {
        short @ 0..=0x7f => (2, usize::from(short)),
        long @ 0x81..=0x84 => {
            let octets = input.get(2..2 + usize::from(long & 0x7f))?;
            let len = octets
                .iter()
                .fold(0, |len, octet| len << 8 | usize::from(*octet));
            (2 + octets.len(), len)
        }
        _ => return None,
    };
    let (whole, rest) = input.split_at_checked(header.checked_add(len)?)?;
    Some((whole, &whole[header..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_certificate_is_found_and_nothing_shorter_is_taken() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&pair)
            .unwrap();
        let der = certificate.der();
        let spki = subject_public_key_info(der).unwrap();
        assert_eq!(spki, rcgen::PublicKeyData::subject_public_key_info(&pair));
        for len in 0..der.len() {
            assert_eq!(subject_public_key_info(&der[..len]), None, "{len} bytes");
        }
    }
}
