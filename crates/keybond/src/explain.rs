//! The runbook: what every error code means, and what to do about it. One table, printed by
//! `keybond explain CODE` and written to `docs/errors.md`.

mod certificate;
mod command;
mod keys;
mod msal;
mod print;
mod services;
mod sources;
mod sts;
mod tls;
mod tpm;

use std::{fmt, sync::LazyLock};

pub use self::print::markdown;
use crate::leg::Leg;

/// What the runbook says about one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The code, as the `code` methods of the error types give it; `AADSTS…` for the token service's own.
    pub code: &'static str,
    /// Who gives it.
    pub origin: Origin,
    /// The legs on which it happens; none if it ends a request before its first leg.
    pub legs: &'static [Leg],
    /// Whether the same request may succeed a little later.
    pub retry: Retry,
    /// What it means.
    pub meaning: &'static str,
    /// What usually causes it, most likely first.
    pub causes: &'static [&'static str],
    /// What to do, in this order.
    pub actions: &'static [&'static str],
}

/// Who gives a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Keybond alone.
    Keybond,
    /// Published with MSAL; keybond gives it for the same trouble.
    Shared,
    /// MSAL alone. It is listed for those who come with MSAL's runbook.
    Msal {
        /// The code that keybond gives instead; `None` if the trouble cannot happen here.
        instead: Option<&'static str>,
    },
    /// The token service, in the numeric codes of its refusal.
    TokenService,
}

/// Whether asking again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The answer stays the same until somebody changes something.
    No,
    /// The same request may succeed a little later.
    Later,
    /// It depends on the case; the error's `retryable` tells.
    Depends,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::No => "no",
            Self::Later => "yes, later",
            Self::Depends => "it depends",
        })
    }
}

/// What the runbook says about a code: one of [`Error::code`](crate::Error::code), of the key, TPM, TLS, CSR and
/// proof-of-possession errors, of the command and its emulator, of MSAL, or a number of the token service
/// (`AADSTS392196` or `392196`).
/// Upper and lower case are the same.
///
/// ```
/// let entry = keybond::explain("min_strength_not_met").unwrap();
/// println!("{entry}");
/// assert!(keybond::explain("392196").unwrap().meaning.contains("bound"));
/// assert!(keybond::explain("no_such_code").is_none());
/// ```
pub fn explain(code: &str) -> Option<&'static Entry> {
    let code = code.trim();
    let is = |name: &str| code.eq_ignore_ascii_case(name);
    catalogue().iter().find(|entry| {
        is(entry.code)
            || entry
                .code
                .strip_prefix(sts::PREFIX)
                .is_some_and(|number| number == code)
    })
}

/// Every entry of the runbook, in alphabetical order.
pub fn catalogue() -> &'static [Entry] {
    static ALL: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        let tables = [
            services::TABLE,
            sources::TABLE,
            certificate::TABLE,
            keys::TABLE,
            tls::TABLE,
            tpm::TABLE,
            command::TABLE,
            msal::TABLE,
            sts::TABLE,
        ];
        let mut all = tables.concat();
        all.sort_by_key(|entry| (entry.code.starts_with(sts::PREFIX), entry.code));
        all
    });
    &ALL
}

/// An entry of keybond's own; the tables mark the published ones.
const fn entry(
    code: &'static str,
    legs: &'static [Leg],
    retry: Retry,
    meaning: &'static str,
    causes: &'static [&'static str],
    actions: &'static [&'static str],
) -> Entry {
    Entry {
        code,
        origin: Origin::Keybond,
        legs,
        retry,
        meaning,
        causes,
        actions,
    }
}

impl Entry {
    const fn shared(mut self) -> Self {
        self.origin = Origin::Shared;
        self
    }

    const fn msal(mut self, instead: Option<&'static str>) -> Self {
        self.origin = Origin::Msal { instead };
        self
    }

    const fn token_service(mut self) -> Self {
        self.origin = Origin::TokenService;
        self
    }
}

/// The legs that go over TLS.
const TLS: &[Leg] = &[Leg::Token, Leg::Bearer, Leg::Resource];

/// The legs on which a service's answer is read.
const ANSWERED: &[Leg] = &[Leg::Metadata, Leg::Issue, Leg::Token, Leg::Bearer];

/// The legs on which the key signs.
const SIGNING: &[Leg] = &[Leg::Key, Leg::Csr, Leg::Token, Leg::Resource];
