//! What may be printed of a text that came over the network: it can forge lines of a log, be endless, and echo
//! what was sent.

use ::http::HeaderMap;
use url::Url;

/// Characters that are kept at most.
const LENGTH: usize = 400;

/// The longest word that is kept. A UUID has 36 characters, a SHA-256 in base64 43; what is longer may be a
/// token, a certificate request or a key.
const WORD: usize = 48;

/// What is sent in headers and is shorter than this is no secret (`Metadata: true`).
const SECRET: usize = 8;

/// The text without control characters, without words that are long enough to be credentials, and without any
/// of `sent`.
pub(crate) fn printable(text: &str, sent: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in sent.iter().filter(|secret| secret.len() >= SECRET) {
        text = text.replace(&**secret, "<redacted>");
    }
    let mut kept = String::new();
    let mut rest = &*text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        if word == 0 {
            kept.push(if first.is_control() { ' ' } else { first });
            rest = &rest[first.len_utf8()..];
        } else {
            match word {
                ..=WORD => kept.push_str(&rest[..word]),
                long => kept.push_str(&format!("<{long} characters>")),
            }
            rest = &rest[word..];
        }
    }
    kept.chars().take(LENGTH).collect()
}

/// Query parameters that are the protocols' own. What else is in a query, the environment put there.
const OWN: [&str; 10] = [
    "api-version",
    "bypass_cache",
    "client_id",
    "clientid",
    "cred-api-version",
    "mi_res_id",
    "msi_res_id",
    "object_id",
    "principalId",
    "resource",
];

/// What of a request must not come back: headers that are secrets, as they stand and without the scheme before
/// them; and of the URL what a variable of the environment put there.
pub(crate) fn secrets_in(headers: &HeaderMap, url: &Url) -> Vec<String> {
    let headers = headers
        .values()
        .filter(|value| value.is_sensitive())
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| [Some(value), value.split_once(' ').map(|(_, bare)| bare)])
        .flatten();
    let decoded = url
        .query_pairs()
        .filter(|(name, _)| !OWN.contains(&&**name));
    let query = url.query().unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        !OWN.contains(&name)
    });
    let raw = query.filter_map(|pair| pair.split_once('=').map(|(_, value)| value));
    headers
        .chain([url.path()])
        .chain(raw)
        .map(str::to_owned)
        .chain(decoded.map(|(_, value)| value.into_owned()))
        .collect()
}

/// The alphabets of base64, base64url, percent encoding and JWTs.
fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=' | '.' | '%')
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn prose_numbers_and_ids_are_kept() {
        let text = "AADSTS500011: The resource principal named https://vault.azure.net was not found. \
                    Trace ID: 8b8b0c1e-1f6a-4f9e-9d5b-0d3b8f0a1b2c";
        assert_eq!(printable(text, &[]), text);
    }

    #[test]
    fn controls_length_and_long_words_are_not() {
        assert_eq!(printable("a\r\nb\u{7f}", &[]), "a  b ");
        let jwt = format!("no: {0}.{0}.{0}!", "aB0_".repeat(10));
        assert_eq!(printable(&jwt, &[]), "no: <122 characters>!");
        assert_eq!(printable(&"é ".repeat(500), &[]).chars().count(), 400);
        let edge = "x".repeat(48);
        assert_eq!(printable(&edge, &[]), edge);
    }

    #[test]
    fn what_was_sent_is_not_echoed() {
        let mut headers = HeaderMap::new();
        for (name, text) in [
            ("secret", "hush-hush"),
            ("authorization", "Basic a key with spaces"),
            ("metadata", "true"),
        ] {
            let mut value = HeaderValue::from_static(text);
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert("accept", HeaderValue::from_static("everything"));
        let url = Url::parse("http://127.0.0.1/msi/secret-path?code=a%2Bcode&resource=https://a.b")
            .unwrap();
        let echo = "true everything hush-hush; a key with spaces; GET /msi/secret-path?code=a%2Bcode (a+code)";
        assert_eq!(
            printable(echo, &secrets_in(&headers, &url)),
            "true everything <redacted>; <redacted>; GET <redacted>?code=<redacted> (a+code)"
        );
        let longer = url.as_str().replace("a%2Bcode", "a%2Blonger%2Bcode");
        let secrets = secrets_in(&HeaderMap::new(), &Url::parse(&longer).unwrap());
        assert_eq!(
            printable("https://a.b a+longer+code", &secrets),
            "https://a.b <redacted>"
        );
    }
}
