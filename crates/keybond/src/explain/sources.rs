//! What the choice of a source gives.

use super::{Entry, Retry, entry};
use crate::leg::Leg;

const CHOICE: &[Leg] = &[Leg::Probe, Leg::Metadata, Leg::Token, Leg::Bearer];

pub(super) const TABLE: &[Entry] = &[
    entry(
        "mtls_pop_not_supported_for_environment",
        CHOICE,
        Retry::No,
        "The source of tokens here gives bearer tokens only.",
        &[
            "The code runs in App Service, Service Fabric, Machine Learning, Cloud Shell or on an Arc machine.",
            "Variables of such a place are set on a virtual machine.",
        ],
        &[
            "Run on a virtual machine whose metadata service issues credentials.",
            "Or ask for a bearer token knowingly: that is another call, never a fallback.",
            "Unset IDENTITY_ENDPOINT or MSI_ENDPOINT if they are left over.",
        ],
    )
    .shared(),
    entry(
        "mtls_pop_token_not_supported_in_imds_v1",
        &[Leg::Probe, Leg::Metadata],
        Retry::No,
        "The metadata service here has version 1 only, which issues no certificates.",
        &[
            "The host, region or kind of machine does not have version 2 yet.",
            "A proxy for pods answers for the metadata service.",
        ],
        &[
            "Use a machine whose metadata service issues credentials.",
            "Or ask for a bearer token knowingly.",
        ],
    )
    .shared(),
    entry(
        "managed_identity_all_sources_unavailable",
        CHOICE,
        Retry::Depends,
        "No source of managed identity was found here.",
        &[
            "This is no Azure machine.",
            "The metadata service was restarting while it was looked for.",
        ],
        &[
            "Run `keybond doctor`: it says what was looked for and what answered.",
            "If a probe was uncertain, try again.",
        ],
    )
    .shared(),
    entry(
        "user_assigned_managed_identity_not_supported",
        CHOICE,
        Retry::No,
        "The source of tokens here knows the identity of the machine only.",
        &["A user-assigned identity was named in Cloud Shell or on an Azure Arc machine."],
        &["Leave the id out."],
    )
    .shared(),
    entry(
        "user_assigned_managed_identity_not_configurable_at_runtime",
        CHOICE,
        Retry::No,
        "Service Fabric takes the identity from the application's manifest; this kind of id cannot be asked for.",
        &["A client id or resource id was named in Service Fabric."],
        &["Name the object id, or bind the identity to the service in the application's manifest."],
    )
    .shared(),
    entry(
        "invalid_managed_identity_id_type",
        CHOICE,
        Retry::No,
        "This kind of id cannot be asked for at this source.",
        &["An object id or resource id was named in Machine Learning, which knows client ids only."],
        &["Name the identity by the kind of id that the error asks for."],
    )
    .shared(),
    entry(
        "invalid_managed_identity_endpoint",
        CHOICE,
        Retry::No,
        "A variable names an address that cannot be the source's.",
        &[
            "IDENTITY_ENDPOINT, IMDS_ENDPOINT or MSI_ENDPOINT is no URL.",
            "It names a public address in clear, where the secret must not go.",
        ],
        &["Correct or unset the variable that the error names; the platform itself sets it right."],
    )
    .shared(),
];
