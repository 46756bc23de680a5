//! What certificates and the requests for them give.

use super::{Entry, Retry, entry};
use crate::leg::Leg;

const ISSUED: &[Leg] = &[Leg::Issue];
const FOREIGN: &[&str] = &[
    "Something else answers for the metadata service.",
    "Answers of two requests were mixed up on the way.",
];
const DO_NOT_USE: &[&str] =
    &["Do not use the certificate; find out what answers as the metadata service."];
const CLOCK: &[&str] = &["Check this machine's clock, then the issuer's."];

pub(super) const TABLE: &[Entry] = &[
    entry(
        "invalid_certificate",
        ISSUED,
        Retry::No,
        "What was issued is no certificate that can be read or used.",
        FOREIGN,
        DO_NOT_USE,
    )
    .shared(),
    entry(
        "certificate_for_another_key",
        ISSUED,
        Retry::No,
        "The certificate certifies another key than the one in the request.",
        FOREIGN,
        DO_NOT_USE,
    ),
    entry(
        "certificate_for_another_client",
        ISSUED,
        Retry::No,
        "The certificate names another client than the one that asked.",
        FOREIGN,
        DO_NOT_USE,
    ),
    entry(
        "certificate_for_another_tenant",
        ISSUED,
        Retry::No,
        "The certificate names another tenant than the identity's.",
        FOREIGN,
        DO_NOT_USE,
    ),
    entry(
        "certificate_expired",
        ISSUED,
        Retry::No,
        "The certificate's time is over.",
        &[
            "This machine's clock is ahead.",
            "The issuer gave an old certificate.",
        ],
        CLOCK,
    ),
    entry(
        "certificate_not_yet_valid",
        ISSUED,
        Retry::No,
        "The certificate's time has not come.",
        &["This machine's clock is behind."],
        CLOCK,
    ),
    entry(
        "certificate_not_for_clients",
        ISSUED,
        Retry::No,
        "The certificate must not be used to authenticate a client; `field` names the extension.",
        FOREIGN,
        DO_NOT_USE,
    ),
    entry(
        "invalid_csr_subject",
        &[Leg::Csr],
        Retry::No,
        "An id for the certificate request has the wrong form.",
        &["A client, tenant or machine id is no UUID."],
        &["Correct the id that the error names."],
    ),
    entry(
        "unsupported_key_size",
        &[Leg::Csr],
        Retry::No,
        "The key is not an RSA key of 2048 bits, the only kind that is certified.",
        &["A key made by another program was found under keybond's name."],
        &["Have the store make a new key, or use another key name."],
    ),
];
