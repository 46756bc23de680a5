//! PKCS#11 URIs (RFC 7512), as far as they name a token and a key in it.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where a key is: `pkcs11:token=build;object=vm?module-path=/usr/lib/….so&pin-source=/run/pin`.
///
/// Understood are the path attributes `token`, `serial`, `manufacturer`, `model`, `object` and `type=private`,
/// and the query attributes `module-path` and `pin-source` (a path or a `file:` URI). Everything else is an
/// error: an attribute that is ignored could name another key than the one meant. `pin-value` is refused since
/// it would put the PIN on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pkcs11Uri {
    /// The module: a shared library, as an absolute path.
    pub module_path: PathBuf,
    /// The token's label.
    pub token: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The token's manufacturer.
    pub manufacturer: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The label of the private key.
    pub object: Option<String>,
    /// A file with the PIN.
    pub pin_source: Option<PathBuf>,
}

/// A PKCS#11 URI that cannot be used; names the attribute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PKCS#11 URI: `{attribute}`: {problem}")]
pub struct InvalidPkcs11Uri {
    attribute: String,
    problem: &'static str,
}

impl FromStr for Pkcs11Uri {
    type Err = InvalidPkcs11Uri;

    fn from_str(text: &str) -> Result<Self, InvalidPkcs11Uri> {
        let rest = text
            .strip_prefix("pkcs11:")
            .ok_or_else(|| invalid("scheme", "expected `pkcs11:`"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        let attributes = path.split(';').chain(query.split('&'));
        for attribute in attributes.filter(|attribute| !attribute.is_empty()) {
            let (name, value) = attribute
                .split_once('=')
                .ok_or_else(|| invalid(attribute, "expected name=value"))?;
            if seen.contains(&name) {
                return Err(invalid(name, "given twice"));
            }
            seen.push(name);
            // Not even a wrong PIN is repeated in the error.
            if name == "pin-value" {
                return Err(invalid(
                    name,
                    "a PIN does not belong here; use `pin-source`",
                ));
            }
            let value = decode(value).ok_or_else(|| invalid(name, "broken %-encoding"))?;
            uri.set(name, value)?;
        }
        if uri.module_path.as_os_str().is_empty() {
            return Err(invalid(
                "module-path",
                "missing: which module is to be loaded?",
            ));
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(invalid(
                "token",
                "missing: name the token by label or `serial`",
            ));
        }
        Ok(uri)
    }
}

impl Pkcs11Uri {
    fn set(&mut self, name: &str, value: String) -> Result<(), InvalidPkcs11Uri> {
        if value.is_empty() {
            return Err(invalid(name, "empty"));
        }
        match name {
            "token" => self.token = Some(value),
            "serial" => self.serial = Some(value),
            "manufacturer" => self.manufacturer = Some(value),
            "model" => self.model = Some(value),
            "object" => self.object = Some(value),
            "type" if value == "private" => {}
            "type" => return Err(invalid(name, "expected `private`")),
            "module-path" => {
                self.module_path = PathBuf::from(value);
                if !self.module_path.is_absolute() {
                    return Err(invalid(name, "expected an absolute path"));
                }
            }
            "pin-source" => self.pin_source = Some(pin_file(&value)?),
            _ => return Err(invalid(name, "not understood")),
        }
        Ok(())
    }
}

fn pin_file(value: &str) -> Result<PathBuf, InvalidPkcs11Uri> {
    let path = value.strip_prefix("file:").unwrap_or(value);
    // file://host/… only without a host.
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        let problem = "expected the absolute path of a file (commands are not run)";
        return Err(invalid("pin-source", problem));
    }
    Ok(path)
}

fn decode(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(out).ok()
}

fn invalid(attribute: &str, problem: &'static str) -> InvalidPkcs11Uri {
    InvalidPkcs11Uri {
        attribute: attribute.to_owned(),
        problem,
    }
}

impl fmt::Display for Pkcs11Uri {
    /// What the token is called, for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("token", &self.token),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ];
        let named = parts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} `{}`", value.as_ref()?)));
        f.write_str(&named.collect::<Vec<_>>().join(", "))
    }
}

// The paths in them are absolute on Unix only.
#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_module_token_key_and_pin() {
        let uri: Pkcs11Uri =
            "pkcs11:token=My%20token;object=vm;type=private?module-path=/m.so&pin-source=file:///run/p"
                .parse()
                .unwrap();
        assert_eq!(uri.token.as_deref(), Some("My token"));
        assert_eq!(uri.object.as_deref(), Some("vm"));
        assert_eq!(uri.module_path, PathBuf::from("/m.so"));
        assert_eq!(uri.pin_source, Some(PathBuf::from("/run/p")));
        assert_eq!(uri.to_string(), "token `My token`");
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_the_attribute() {
        for (uri, attribute) in [
            ("token=a", "scheme"),
            ("pkcs11:token=a", "module-path"),
            ("pkcs11:?module-path=/m", "token"),
            ("pkcs11:token=a;token=b?module-path=/m", "token"),
            ("pkcs11:token=%4?module-path=/m", "token"),
            ("pkcs11:token=%ff?module-path=/m", "token"),
            ("pkcs11:token=?module-path=/m", "token"),
            ("pkcs11:token=a;slot-id=1?module-path=/m", "slot-id"),
            ("pkcs11:token=a;type=cert?module-path=/m", "type"),
            ("pkcs11:token=a?module-path=m.so", "module-path"),
            (
                "pkcs11:token=a?module-path=/m&pin-source=|cat",
                "pin-source",
            ),
            ("pkcs11:token=a?module-path=/m&pin-value=1234", "pin-value"),
            ("pkcs11:token", "token"),
        ] {
            let error = uri.parse::<Pkcs11Uri>().unwrap_err();
            assert_eq!(error.attribute, attribute, "{uri}");
            assert!(!error.to_string().contains("1234"), "{error}");
        }
    }
}
