//! The server's name: what is asked for, announced (SNI) and looked for in its certificate.

use std::{fmt, net::IpAddr};

use crate::error::TlsError;

/// A server's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A DNS name, lower case, without a final dot.
    Dns(String),
    /// An IP address; it is never announced (RFC 6066 §3).
    Ip(IpAddr),
}

impl Host {
    /// Reads a DNS name or an IP address (IPv6 with or without brackets).
    pub(crate) fn parse(host: &str) -> Result<Self, TlsError> {
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let invalid = |problem| TlsError::InvalidHost {
            host: host.to_owned(),
            problem,
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() || name.len() > 253 {
            return Err(invalid("expected a DNS name of 1 to 253 characters"));
        }
        let label_is_valid = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !name.split('.').all(label_is_valid) {
            return Err(invalid(
                "expected labels of 1 to 63 ASCII letters, digits, `-` or `_`, separated by dots, without port",
            ));
        }
        // "1.2.3" or "0x7f.1" is an address to some programs and a name to others.
        if name
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(invalid("looks like an IP address but is none"));
        }
        Ok(Self::Dns(name.to_ascii_lowercase()))
    }

    /// What to announce in the handshake.
    pub(crate) fn server_name(&self) -> Option<&str> {
        match self {
            Self::Dns(name) => Some(name),
            Self::Ip(_) => None,
        }
    }

    /// Whether a name in a certificate stands for this host (RFC 9525 §6.3): equal, or `*` for the whole
    /// first label; addresses by value.
    pub(crate) fn matches(&self, presented: &str) -> bool {
        match self {
            Self::Ip(ip) => presented.parse::<IpAddr>().is_ok_and(|other| other == *ip),
            Self::Dns(name) => {
                let presented = presented.strip_suffix('.').unwrap_or(presented);
                if presented.eq_ignore_ascii_case(name) {
                    return true;
                }
                let Some(parent) = presented.strip_prefix("*.") else {
                    return false;
                };
                // "*.com" would match half the world.
                parent.contains('.')
                    && name
                        .split_once('.')
                        .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent))
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert_eq!(
            Host::parse("Vault.Test.").unwrap(),
            Host::Dns("vault.test".into())
        );
        assert_eq!(
            Host::parse("[::1]").unwrap(),
            Host::Ip("::1".parse().unwrap())
        );
        assert_eq!(Host::parse("127.0.0.1").unwrap().server_name(), None);
        assert_eq!(
            Host::parse("a_b.test").unwrap().server_name(),
            Some("a_b.test")
        );
    }

    #[test]
    fn what_is_neither_is_refused_with_the_host_in_the_message() {
        let long = "x".repeat(300);
        for bad in [
            "",
            ".",
            "a..b",
            "host:443",
            "bücher.example",
            "a b",
            "1.2.3",
            "a\0b",
            "https://x",
            &long,
        ] {
            let error = Host::parse(bad).unwrap_err();
            assert_eq!(error.code(), "tls_host_invalid", "{bad}");
        }
    }

    #[test]
    fn certificates_match_by_rule() {
        let host = Host::parse("a.vault.test").unwrap();
        for good in ["a.vault.test", "A.VAULT.TEST", "*.vault.test"] {
            assert!(host.matches(good), "{good}");
        }
        for bad in [
            "",
            "vault.test",
            "*.test",
            "b.vault.test",
            "a*.vault.test",
            "*.*.test",
            "*a.vault.test",
        ] {
            assert!(!host.matches(bad), "{bad}");
        }
        assert!(!Host::parse("vault.test").unwrap().matches("*.test"));
        let ip = Host::parse("::1").unwrap();
        assert!(ip.matches("0:0:0:0:0:0:0:1"));
        assert!(!ip.matches("*"));
    }
}
