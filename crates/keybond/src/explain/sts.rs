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

/// The published five: the token service does not accept what stands behind the certificate.
const fn attestation(
    code: &'static str,
    meaning: &'static str,
    causes: &'static [&'static str],
) -> Entry {
    entry(
        code,
        TOKEN,
        Retry::No,
        meaning,
        causes,
        &[
            "Keybond attests and certifies the key anew by itself; if it stays, give the operator the trace id.",
            "Look at what the attestation service says about this machine.",
        ],
    )
    .token_service()
}

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
    attestation(
        "AADSTS1000610",
        "The attestation behind the certificate is not within its time, or the certificate was revoked.",
        &[
            "The certificate was revoked by an operator.",
            "The attestation was old when the certificate was issued.",
            "A clock is wrong.",
        ],
    ),
    attestation(
        "AADSTS1000611",
        "The attestation behind the certificate is of an issuer that is not accepted.",
        &["The metadata service names another attestation service than the tenant trusts."],
    ),
    attestation(
        "AADSTS1000612",
        "A claim of the attestation behind the certificate has a value that is not accepted.",
        &["The machine no longer fulfils the policy: secure boot, isolation of the key, a patch level."],
    ),
    attestation(
        "AADSTS1000613",
        "The attestation names keys (`jku`) that are not accepted.",
        &["The attestation is of another service than the one expected."],
    ),
    attestation(
        "AADSTS1000614",
        "The signature of the attestation behind the certificate is not valid.",
        &["The attestation service changed its keys.", "Something changed the attestation on the way."],
    ),
    refused(
        "AADSTS500181",
        "The certificate of the connection is not the current one of this identity.",
        &[
            "The token is bound to an older certificate over the same key.",
            "Old and new certificates were mixed up.",
        ],
    ),
    refused(
        "AADSTS1000901",
        "The time in which the certificate may be used for tokens is over (`token_not_after`).",
        &["Renewal failed for long; the certificate itself may still be valid."],
    ),
    entry(
        "AADSTS700016",
        TOKEN,
        Retry::Later,
        "The token service does not know the client id that the certificate is for.",
        &[
            "The identity was deleted and made anew under its name: the new one has another client id.",
            "The identity is new, and the token service does not know it everywhere yet.",
            "The identity was deleted, or is of another tenant.",
        ],
        &[
            "An identity that was made anew is noticed, and certified under its new client id, by keybond itself; it asks once a minute at most.",
            "If the identity is named by its client id, look whether there still is one of that id: no other identity ever gets it.",
            "If it is new, ask again in a few minutes.",
        ],
    )
    .token_service(),
    entry(
        "AADSTS392200",
        TOKEN,
        Retry::No,
        "The token service saw no client certificate.",
        &[
            "Something that ends TLS before the token service asks for the certificate and does not pass it on.",
            "Another client than keybond met the token service under TLS 1.3, where it is documented not to ask yet. Keybond sends nothing unless it was asked, and turns to TLS 1.2.",
        ],
        &[
            "Take what ends TLS out of the way; limit other clients to TLS 1.2. A new certificate does not help.",
            "If nothing stands between, give the operator the trace id.",
        ],
    )
    .token_service(),
];
