//! A resource's demand for other claims in the token: `WWW-Authenticate: Bearer …, claims="…"`.

use ::http::{HeaderMap, header::WWW_AUTHENTICATE};

/// A token is asked for with at most so many bytes of somebody else's text.
const LONGEST: usize = 8 * 1024;

/// The claims that a 401 demands.
pub(super) fn claims(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|challenge| challenge.to_str().ok())
        .find_map(parameter)
        .map(unquoted)
        .filter(|claims| !claims.is_empty() && claims.len() <= LONGEST)
}

/// The quoted value of the parameter `claims` (RFC 9110 §11.2); quotes in other values do not end them.
fn parameter(challenge: &str) -> Option<&str> {
    let mut rest = challenge;
    while let Some(equals) = rest.find('=') {
        let name = rest[..equals].trim_end();
        let name = name.rsplit([' ', ',', '\t']).next().unwrap_or_default();
        let value = rest[equals + 1..].trim_start();
        let Some(quoted) = value.strip_prefix('"') else {
            rest = value;
            continue;
        };
        let end = closing_quote(quoted)?;
        if name.eq_ignore_ascii_case("claims") {
            return Some(&quoted[..end]);
        }
        rest = &quoted[end + 1..];
    }
    None
}

/// The text that was quoted: a backslash stands before a character that means itself (RFC 9110 §5.6.4).
fn unquoted(quoted: &str) -> String {
    let mut characters = quoted.chars();
    std::iter::from_fn(|| match characters.next() {
        Some('\\') => characters.next(),
        other => other,
    })
    .collect()
}

fn closing_quote(quoted: &str) -> Option<usize> {
    let mut escaped = false;
    quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_among_other_parameters_and_nowhere_else() {
        for (challenge, claims) in [
            (
                r#"Bearer authorization="https://x/y", error="insufficient_claims", claims="eyJ9""#,
                Some("eyJ9"),
            ),
            (r#"Bearer claims = "eyJ9""#, Some("eyJ9")),
            (r#"PoP nonce="n", Bearer realm="", Claims="e=""#, Some("e=")),
            (r#"Bearer realm="a claims=\"x\" b", error="e""#, None),
            (r#"Bearer noclaims="x""#, None),
            (r#"Bearer claims="not closed"#, None),
            (r#"Bearer claims="""#, None),
            (r#"Bearer claims="{\"a\":\"\\\\\"}""#, Some(r#"{"a":"\\"}"#)),
            ("Bearer claims=token", None),
            ("Bearer", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, "Negotiate".parse().unwrap());
            headers.append(WWW_AUTHENTICATE, challenge.parse().unwrap());
            assert_eq!(super::claims(&headers).as_deref(), claims, "{challenge}");
        }
    }
}
