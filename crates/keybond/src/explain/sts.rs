//! Numbers of the token service that matter for bound tokens.

use super::{Entry, Retry, entry};
use crate::leg::Leg;

/// How the token service writes its numbers.
pub(super) const PREFIX: &str = "AADSTS";

const TOKEN: &[Leg] = &[Leg::Token];
const RENEW: &[&str] =
    &["Have the key certified anew (`renew`); if it stays, give the operator the correlation id."];

const fn refused(
    code: &'static str,
    meaning: &'static str,
    causes: &'static [&'static str],
) -> Entry {
    entry(code, TOKEN, Retry::No, meaning, causes, RENEW).token_service()
}

const REVOKED: &[&str] = &[
    "The certificate was revoked, by an operator or because its key was reported.",
    "The identity's credentials were reset.",
];
const REVOKED_MEANING: &str = "The certificate is not accepted any more (one of the five codes of revocation, 1000610 to 1000614).";

pub(super) const TABLE: &[Entry] = &[
    entry(
        "AADSTS392196",
        TOKEN,
        Retry::No,
        "The resource takes no bound tokens.",
        &["The resource is not ready for mtls_pop; Azure Resource Manager answers so."],
        &["Use another resource, or ask for a bearer token knowingly. No setting of the client helps."],
    )
    .token_service(),
    entry(
        "AADSTS3921996",
        TOKEN,
        Retry::No,
        "The tenant has not been admitted to bound tokens.",
        &["Bound tokens are given to listed tenants only."],
        &["Have the tenant admitted. No setting of the client helps."],
    )
    .token_service(),
    refused("AADSTS1000610", REVOKED_MEANING, REVOKED),
    refused("AADSTS1000611", REVOKED_MEANING, REVOKED),
    refused("AADSTS1000612", REVOKED_MEANING, REVOKED),
    refused("AADSTS1000613", REVOKED_MEANING, REVOKED),
    refused("AADSTS1000614", REVOKED_MEANING, REVOKED),
    refused(
        "AADSTS500181",
        "The certificate shown in the handshake is not accepted.",
        &["The certificate is revoked, expired or of an issuer that is not trusted."],
    ),
    refused(
        "AADSTS1000901",
        "The certificate cannot be used for this request.",
        &["The certificate belongs to another identity, or its time is over."],
    ),
];
