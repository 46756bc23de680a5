//! What `-v` prints: legs, connections and headers, and never a secret.

use http::Method;
use keybond::{LegReport, Response};
use url::Url;

/// Answers may hand out secrets of their own in these.
const SECRET: [&str; 3] = [
    "set-cookie",
    "authentication-info",
    "proxy-authentication-info",
];

/// One leg in a line: `token 12.3 ms  200  TLS 1.3, PS256`.
pub(crate) fn describe(report: &LegReport) -> String {
    let mut line = format!(
        "{:<10} {:>8.1} ms  {}",
        report.leg.to_string(),
        report.elapsed.as_secs_f64() * 1e3,
        report.outcome
    );
    if let Some(tls) = &report.tls {
        line.push_str(&format!("  {} {}", tls.version, tls.cipher_suite));
        if let Some(scheme) = tls.client_signature {
            line.push_str(&format!(", client signed {scheme}"));
        }
        if tls.renegotiations > 0 {
            line.push_str(", renegotiated");
        }
    }
    line
}

/// The request in a line, the certificate it was sent with, and the head of the answer.
pub(super) fn exchange(method: &Method, url: &str, response: &Response) {
    // Queries hold signatures and keys more often than one thinks.
    let place = Url::parse(url).map_or_else(
        |_| String::new(),
        |url| format!("{}{}", url.host_str().unwrap_or_default(), url.path()),
    );
    eprintln!("> {method} {place}");
    if let Some(binding) = response.token().binding() {
        let shown = match response.tls_info() {
            Some(tls) if tls.client_signature.is_some() => "shown",
            Some(tls) if tls.certificate_requested => "asked for, not shown",
            _ => "not asked for",
        };
        eprintln!(
            "* certificate x5t#S256 {}, version {}, {shown}; key {} in {}",
            binding.x5t_s256(),
            binding.version(),
            binding.key().id(),
            binding.key().store()
        );
    }
    eprintln!("< {}", response.status());
    for (name, value) in headers(response) {
        let value = if SECRET.contains(&name.as_str()) {
            "<redacted>"
        } else {
            &value
        };
        eprintln!("< {name}: {value}");
    }
}

/// The answer's headers as text.
pub(super) fn headers(response: &Response) -> Vec<(String, String)> {
    response
        .headers()
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect()
}
