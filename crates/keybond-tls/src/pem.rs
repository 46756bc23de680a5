//! PEM as people keep it: comments between the blocks, other things beside certificates (RFC 7468 §2).

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The certificates (DER) in `text`, in order. Blocks with other labels are skipped.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut block: Option<(&str, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if let Some(label) = marker(line, "BEGIN") {
            if let Some((open, since, _)) = block {
                return Err(format!(
                    "line {number}: `{open}` of line {since} has no end"
                ));
            }
            block = Some((label, number, String::new()));
        } else if let Some(label) = marker(line, "END") {
            match block.take() {
                Some((open, since, body)) if open == label => {
                    if label == "CERTIFICATE" {
                        let der = STANDARD.decode(body).map_err(|error| {
                            format!("the certificate in line {since} is not base64: {error}")
                        })?;
                        found.push(der);
                    }
                }
                _ => {
                    return Err(format!(
                        "line {number}: end of `{label}` without its beginning"
                    ));
                }
            }
        } else if let Some((_, _, body)) = &mut block {
            body.push_str(line);
        }
    }
    match block {
        Some((open, since, _)) => Err(format!("`{open}` of line {since} has no end")),
        None => Ok(found),
    }
}

/// A certificate as PEM.
pub(crate) fn encode(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut pem = String::with_capacity(body.len() + body.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn marker<'a>(line: &'a str, which: &str) -> Option<&'a str> {
    line.strip_prefix("-----")?
        .strip_prefix(which)?
        .strip_prefix(' ')?
        .strip_suffix("-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_between_other_things() {
        let text = format!(
            "# a root\n{}\n-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\r\n{}",
            encode(&[7; 100]),
            encode(b"x").replace('\n', "\r\n"),
        );
        assert_eq!(
            certificates(text.as_bytes()).unwrap(),
            [vec![7; 100], b"x".to_vec()]
        );
    }

    #[test]
    fn damage_is_named_with_its_line() {
        for (text, expected) in [
            ("-----BEGIN CERTIFICATE-----\nAAAA", "line 1 has no end"),
            ("-----END CERTIFICATE-----", "line 1: end of"),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
                "not base64",
            ),
            (
                "-----BEGIN A-----\n-----BEGIN B-----",
                "line 2: `A` of line 1",
            ),
        ] {
            let problem = certificates(text.as_bytes()).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(certificates(b"nothing here").unwrap().is_empty());
    }
}
