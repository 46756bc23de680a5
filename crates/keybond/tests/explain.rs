//! The runbook holds every code that an error can give, and its page is up to date.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use keybond::{Origin, Retry, catalogue, explain};

/// Every code in the `code` methods of a crate, and the file where it was found. Read from the source, so that
/// a code that somebody adds tomorrow is found without anybody thinking of this test.
fn codes_in(source: &Path, codes: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_in(&path, codes);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for method in text.split("fn code(&self) -> &").skip(1) {
                let end = method.find("\n    }\n").unwrap();
                for code in literals_given(&method[..end]) {
                    codes.insert(code, path.clone());
                }
            }
        }
    }
}

/// The string literals that a method gives, as opposed to those it matches on.
fn literals_given(method: &str) -> Vec<String> {
    method
        .lines()
        .filter_map(|line| {
            let given = match line.rsplit_once("=>") {
                Some((_, given)) => given,
                None => line,
            };
            let given = given.trim().trim_end_matches(',');
            let code = given.strip_prefix('"')?.strip_suffix('"')?;
            Some(code.to_owned())
        })
        .collect()
}

/// Every code that the command makes a failure of: the literal that follows the kind of exit.
fn codes_of_the_command(source: &Path, codes: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_of_the_command(&path, codes);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for call in text.split("::new(").skip(1) {
            let Some(call) = call.trim_start().strip_prefix("Kind::") else {
                continue;
            };
            let (_, argument) = call.split_once(',').unwrap();
            if let Some((code, _)) = argument
                .trim_start()
                .strip_prefix('"')
                .and_then(|argument| argument.split_once('"'))
            {
                codes.insert(code.to_owned(), path.clone());
            }
        }
    }
}

fn all_codes() -> BTreeMap<String, PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut codes = BTreeMap::new();
    for entry in fs::read_dir(crates).unwrap() {
        let source = entry.unwrap().path().join("src");
        if source.is_dir() {
            codes_in(&source, &mut codes);
        }
    }
    codes_of_the_command(&crates.join("keybond-cli/src"), &mut codes);
    codes
}

/// The codes that MSAL publishes for managed identities.
const PUBLISHED: [&str; 23] = [
    "managed_identity_request_failed",
    "managed_identity_response_parse_failure",
    "managed_identity_unreachable_network",
    "managed_identity_all_sources_unavailable",
    "mtls_pop_requires_keyguard",
    "credential_guard_requires_cng",
    "attestation_failed",
    "attestationmodule_load_failure",
    "invalid_certificate",
    "min_strength_not_met",
    "mtls_pop_not_supported_for_environment",
    "mtls_not_supported_for_managed_identity",
    "mtls_pop_token_not_supported_in_imds_v1",
    "token_type_missing",
    "token_type_mismatch",
    "invalid_client",
    "user_assigned_managed_identity_not_supported",
    "user_assigned_managed_identity_not_configurable_at_runtime",
    "invalid_managed_identity_endpoint",
    "invalid_managed_identity_id_type",
    "credential_guard_not_available",
    "service_not_available",
    "request_timeout",
];

#[test]
fn every_published_code_is_given_or_its_successor_named() {
    let codes = all_codes();
    for code in PUBLISHED {
        let entry = explain(code).unwrap_or_else(|| panic!("{code} is not explained"));
        match entry.origin {
            Origin::Shared => assert!(codes.contains_key(code), "nobody gives {code}"),
            Origin::Msal { .. } => assert!(!codes.contains_key(code), "{code} is given"),
            other => panic!("{code} is published, not {other:?}"),
        }
    }
}

#[test]
fn every_code_that_an_error_can_give_is_explained() {
    let codes = all_codes();
    for known in [
        "invalid_configuration",
        "invalid_client",
        "token_type_mismatch",
        "certificate_expired",
        "managed_identity_unreachable_network",
        "min_strength_not_met",
        "tls_alert_received",
        "invalid_csr_subject",
        "pop_invalid_url",
        "tpm_lockout",
        "tpm_key_file_io",
        "emulator_listen_failed",
        "usage",
        "http_status",
    ] {
        assert!(codes.contains_key(known), "the search misses {known}");
    }
    let missing: Vec<_> = codes
        .iter()
        .filter(|(code, _)| explain(code).is_none())
        .collect();
    assert!(missing.is_empty(), "not in the catalogue: {missing:#?}");
}

#[test]
fn no_code_is_explained_that_nobody_gives() {
    let codes = all_codes();
    for entry in catalogue() {
        let given = codes.contains_key(entry.code);
        let expected = matches!(entry.origin, Origin::Keybond | Origin::Shared);
        assert_eq!(given, expected, "{}", entry.code);
        if let Origin::Msal { instead: Some(own) } = entry.origin {
            assert!(codes.contains_key(own), "{} instead of {}", own, entry.code);
        }
    }
}

#[test]
fn entries_are_whole_and_stand_once() {
    for pair in catalogue().windows(2) {
        assert_ne!(pair[0].code, pair[1].code);
    }
    for entry in catalogue() {
        let code = entry.code;
        assert!(
            !entry.causes.is_empty() && !entry.actions.is_empty(),
            "{code}"
        );
        for text in entry
            .causes
            .iter()
            .chain(entry.actions)
            .chain([&entry.meaning])
        {
            assert!(
                text.ends_with('.') && !text.contains('\n'),
                "{code}: {text}"
            );
        }
        assert_eq!(explain(&code.to_ascii_uppercase()), Some(entry));
        assert!(entry.to_string().starts_with(&format!("{code}\n  ")));
    }
}

#[test]
fn numbers_of_the_token_service_are_found_with_and_without_their_prefix() {
    let number = explain(" 3921996 ").unwrap();
    assert_eq!(Some(number), explain("aadsts3921996"));
    assert_eq!(number.origin, Origin::TokenService);
    // What the client itself acts upon is in the runbook.
    for acted_upon in ["700016", "1000610", "500181", "1000901", "392196"] {
        let entry = explain(acted_upon).unwrap();
        assert_eq!(entry.origin, Origin::TokenService, "{acted_upon}");
    }
    assert_eq!(explain("39219"), None);
    assert_eq!(explain(""), None);
}

#[test]
fn an_error_and_its_entry_agree_on_retrying() {
    let error = keybond::Identity::client_id("me").unwrap_err();
    let entry = explain(error.code()).unwrap();
    assert_eq!(entry.retry, Retry::No);
    assert!(!error.retryable());
    assert!(entry.legs.is_empty() && error.leg().is_none());
}

/// `KEYBOND_BLESS=1` writes the page instead.
#[test]
fn the_page_is_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let expected = keybond::catalogue_markdown();
    if std::env::var_os("KEYBOND_BLESS").is_some_and(|value| value == "1") {
        fs::write(&page, &expected).unwrap();
    }
    let found = fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == expected,
        "docs/errors.md is out of date; renew it with\n    \
         KEYBOND_BLESS=1 cargo test -p keybond --test explain"
    );
}
