//! The variables that keybond reads: which are set, and their values kept out of what is shown to others.

use serde_json::Value;
use url::{Url, form_urlencoded};

/// Every variable that the command, its libraries and the sources of tokens are configured by.
const VARIABLES: [(&str, Holds); 25] = [
    ("KEYBOND_LOG", Holds::KnownWords),
    ("KEYBOND_MIN_STRENGTH", Holds::KnownWords),
    ("KEYBOND_STORES", Holds::KnownWords),
    ("KEYBOND_INTEROP", Holds::KnownWords),
    ("KEYBOND_STATE_DIR", Holds::Anything),
    ("KEYBOND_TPM", Holds::Anything),
    ("KEYBOND_PKCS11", Holds::Anything),
    ("KEYBOND_PKCS11_PIN", Holds::Anything),
    ("KEYBOND_CA_FILE", Holds::Anything),
    ("AZURE_POD_IDENTITY_AUTHORITY_HOST", Holds::Anything),
    ("MSAL_MI_IMDSV2_ALLOWED_HOSTS", Holds::Anything),
    ("MSAL_MI_DISABLE_IMDS_V2", Holds::KnownWords),
    ("MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE", Holds::KnownWords),
    ("IDENTITY_ENDPOINT", Holds::Anything),
    ("IDENTITY_HEADER", Holds::Anything),
    ("IDENTITY_SERVER_THUMBPRINT", Holds::Anything),
    ("IMDS_ENDPOINT", Holds::Anything),
    ("MSI_ENDPOINT", Holds::Anything),
    ("MSI_SECRET", Holds::Anything),
    ("DEFAULT_IDENTITY_CLIENT_ID", Holds::Anything),
    ("SSL_CERT_FILE", Holds::Anything),
    ("SSL_CERT_DIR", Holds::Anything),
    ("XDG_STATE_HOME", Holds::Anything),
    ("HOME", Holds::Anything),
    ("LOCALAPPDATA", Holds::Anything),
];

/// Shorter ones say nothing, and stand in every text.
const SHORTEST: usize = 4;

/// What a variable's value may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Words of keybond's own, which the report has to use.
    KnownWords,
    Anything,
}

/// The variables that are set.
pub(super) struct Variables {
    names: Vec<&'static str>,
    /// What must not be shown, the longest first, with the variable that holds it.
    hidden: Vec<(String, &'static str)>,
}

impl Variables {
    pub(super) fn of_process() -> Self {
        Self::read(|name| {
            let value = std::env::var_os(name)?;
            Some(value.to_string_lossy().into_owned())
        })
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let mut names = Vec::new();
        let mut hidden = Vec::new();
        for (name, holds) in VARIABLES {
            let Some(value) = get(name).filter(|value| !value.is_empty()) else {
                continue;
            };
            names.push(name);
            if holds == Holds::Anything {
                hidden.extend(pieces(&value).into_iter().map(|piece| (piece, name)));
            }
        }
        hidden.sort_by_key(|(piece, _)| std::cmp::Reverse(piece.len()));
        Self { names, hidden }
    }

    /// Their names, never their values.
    pub(super) fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Puts the variable's name in the place of its value, wherever it stands in the document.
    pub(super) fn hide_values(&self, document: &mut Value) {
        match document {
            Value::String(text) => {
                for (piece, name) in &self.hidden {
                    if text.contains(piece) {
                        *text = without(text, piece, &format!("<{name}>"));
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_values(item)),
            Value::Object(members) => members.values_mut().for_each(|item| self.hide_values(item)),
            _ => {}
        }
    }
}

/// A value as it is, and those parts of it that may stand alone in a report or an error.
fn pieces(value: &str) -> Vec<String> {
    let separates = |c: char| c.is_whitespace() || matches!(c, ';' | '&' | '?' | ',' | '@');
    let mut pieces = vec![value.to_owned()];
    for part in value.split(separates) {
        pieces.push(part.to_owned());
        // What a query or a PKCS#11 URI says; the names in it are nobody's secret.
        if let Some((_, said)) = part.split_once('=') {
            pieces.push(said.to_owned());
            pieces
                .extend(form_urlencoded::parse(part.as_bytes()).map(|(_, said)| said.into_owned()));
        }
        // `unix:/path`, `file:/path`; the host of a URL comes below.
        if let Some((_, rest)) = part.split_once(':')
            && !rest.starts_with("//")
        {
            pieces.push(rest.to_owned());
        }
    }
    if let Ok(url) = Url::parse(value) {
        pieces.push(url.as_str().to_owned());
        pieces.extend(url.password().map(str::to_owned));
        if let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) {
            pieces.push(format!("{}://{host}:{port}", url.scheme()));
            pieces.push(format!("{host}:{port}"));
            if url.path().len() > 1 {
                pieces.push(url.path().to_owned());
            }
        }
    }
    let mut pieces: Vec<String> = pieces
        .iter()
        .map(|piece| piece.trim().trim_end_matches('/'))
        .filter(|piece| piece.len() >= SHORTEST)
        // As it stands in text and, where that differs, in quotation marks.
        .flat_map(|piece| [piece.to_owned(), piece.escape_debug().to_string()])
        .collect();
    pieces.sort();
    pieces.dedup();
    pieces
}

/// The text with `name` in the place of `piece`, but not where that is the middle of a word.
fn without(text: &str, piece: &str, name: &str) -> String {
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (begins, ends) = (word(piece.chars().next()), word(piece.chars().next_back()));
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(piece) {
        let (before, from) = rest.split_at(at);
        let after = &from[piece.len()..];
        let last = before.chars().next_back().or(shown.chars().next_back());
        let inside = begins && word(last) || ends && word(after.chars().next());
        // A long one is no word of prose, whatever stands beside it.
        shown.push_str(before);
        shown.push_str(if inside && piece.len() < 12 {
            piece
        } else {
            name
        });
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use serde_json::json;

    use super::*;

    fn variables(set: &[(&str, &str)]) -> Variables {
        Variables::read(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_variable_of_the_command_line_is_known() {
        fn of(command: &clap::Command, names: &mut Vec<String>) {
            let variables = command.get_arguments().filter_map(clap::Arg::get_env);
            names.extend(variables.map(|name| name.to_string_lossy().into_owned()));
            command.get_subcommands().for_each(|verb| of(verb, names));
        }
        let mut names = Vec::new();
        of(&crate::args::Cli::command(), &mut names);
        assert!(!names.is_empty());
        for name in names {
            assert!(VARIABLES.iter().any(|(known, _)| *known == name), "{name}");
        }
    }

    #[test]
    fn names_are_told_and_values_are_not() {
        let variables = variables(&[
            (
                "IDENTITY_ENDPOINT",
                "http://127.0.0.1:81/msi/token?code=s3cr3t",
            ),
            ("KEYBOND_PKCS11_PIN", "1234"),
            ("KEYBOND_MIN_STRENGTH", "hardware"),
            ("KEYBOND_TPM", "unix:/run/tpm"),
            (
                "KEYBOND_PKCS11",
                "pkcs11:token=of%20ada?module-path=/opt/hsm.so",
            ),
            ("HOME", "/home/ada"),
            ("MSI_SECRET", ""),
        ]);
        assert_eq!(
            variables.names(),
            [
                "KEYBOND_MIN_STRENGTH",
                "KEYBOND_TPM",
                "KEYBOND_PKCS11",
                "KEYBOND_PKCS11_PIN",
                "IDENTITY_ENDPOINT",
                "HOME"
            ]
        );
        let mut document = json!({
            "floor": "hardware",
            "lines": ["app at http://127.0.0.1:81: no answer", "code is s3cr3t", "PIN 1234, id 91234"],
            "deep": { "file": "/home/ada/.local", "socket": "cannot open /run/tpm", "n": 1234 },
            "token": "`of ada` by /opt/hsm.so: no such token",
        });
        variables.hide_values(&mut document);
        assert_eq!(
            document,
            json!({
                "floor": "hardware",
                "lines": [
                    "app at <IDENTITY_ENDPOINT>: no answer",
                    "code is <IDENTITY_ENDPOINT>",
                    "PIN <KEYBOND_PKCS11_PIN>, id 91234"
                ],
                "deep": { "file": "<HOME>/.local", "socket": "cannot open <KEYBOND_TPM>", "n": 1234 },
                "token": "`<KEYBOND_PKCS11>` by <KEYBOND_PKCS11>: no such token",
            })
        );
    }

    #[test]
    fn a_value_that_contains_another_goes_first() {
        let variables = variables(&[("HOME", "/home/ada"), ("SSL_CERT_FILE", "/home/ada/ca.pem")]);
        let mut document = json!("/home/ada/ca.pem and /home/ada/x");
        variables.hide_values(&mut document);
        assert_eq!(document, "<SSL_CERT_FILE> and <HOME>/x");
    }

    #[test]
    fn paths_in_quotation_marks_are_hidden_too() {
        let variables = variables(&[("LOCALAPPDATA", r"C:\Users\ada")]);
        let mut document = json!(r#"open "C:\\Users\\ada\\keybond""#);
        variables.hide_values(&mut document);
        assert_eq!(document, r#"open "<LOCALAPPDATA>\\keybond""#);
    }
}
