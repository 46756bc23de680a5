//! Codes of MSAL that keybond never gives, for those who come with its runbook.

use super::{Entry, Retry, entry};
use crate::leg::Leg;

pub(super) const TABLE: &[Entry] = &[
    entry(
        "mtls_pop_requires_keyguard",
        &[Leg::Key],
        Retry::No,
        "MSAL binds tokens to KeyGuard keys only. Keybond uses the strongest key there is, down to the floor.",
        &["The machine has no KeyGuard: VBS is off, or it is not Windows."],
        &["Here the floor decides: see `minimum_strength` and KEYBOND_MIN_STRENGTH."],
    )
    .msal(Some("min_strength_not_met")),
    entry(
        "credential_guard_requires_cng",
        &[Leg::Attestation],
        Retry::No,
        "MSAL attests CNG keys only.",
        &["The key is not in a Windows key store."],
        &["Here the attestation provider says which keys it can attest."],
    )
    .msal(Some("attestation_failed")),
    entry(
        "credential_guard_not_available",
        &[Leg::Key],
        Retry::No,
        "KeyGuard is not there. MSAL's tests know this code; its product code does not give it.",
        &["VBS or Credential Guard is off."],
        &["Run `keybond doctor` and read what the `keyguard` store says."],
    )
    .msal(Some("min_strength_not_met")),
    entry(
        "attestationmodule_load_failure",
        &[Leg::Attestation],
        Retry::No,
        "MSAL could not load AttestationClientLib.dll.",
        &["The library is not beside the program, or of another architecture."],
        &["Here the attestation provider says what it misses."],
    )
    .msal(Some("attestation_failed")),
    entry(
        "mtls_not_supported_for_managed_identity",
        &[],
        Retry::No,
        "MSAL does bound tokens of managed identities on Windows only. Keybond does them on Linux, too.",
        &["The program ran on Linux, macOS or the old .NET Framework."],
        &["Nothing: use keybond."],
    )
    .msal(None),
    entry(
        "service_not_available",
        &[Leg::Metadata, Leg::Issue, Leg::Token],
        Retry::Later,
        "A service answered 5xx to every try.",
        &["The service is overloaded or restarting."],
        &["Wait a minute. Here the error keeps the HTTP status."],
    )
    .msal(Some("managed_identity_request_failed")),
    entry(
        "cannot_switch_between_imds_versions_for_preview",
        &[],
        Retry::No,
        "Old previews of MSAL could not use both versions of the metadata service in one process.",
        &["A bearer token was asked for before a bound one."],
        &["Nothing: both can be asked for at any time."],
    )
    .msal(None),
];
