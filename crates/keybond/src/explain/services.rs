//! What the metadata service, the token service and the way to them give.

use super::{ANSWERED, Entry, Retry, entry};
use crate::leg::Leg;

const ASKED: &[Leg] = &[Leg::Probe, Leg::Metadata, Leg::Issue, Leg::Bearer];
const EVERY: &[Leg] = &[
    Leg::Probe,
    Leg::Metadata,
    Leg::Key,
    Leg::Csr,
    Leg::Attestation,
    Leg::Issue,
    Leg::Token,
    Leg::Bearer,
    Leg::Resource,
];

pub(super) const TABLE: &[Entry] = &[
    entry(
        "invalid_configuration",
        &[],
        Retry::No,
        "A setting, an argument or a variable cannot be used. Nothing was sent.",
        &[
            "A typo in an id, a URL or a resource.",
            "A required setting is missing.",
        ],
        &["Correct the setting that the error names in `field`."],
    ),
    entry(
        "mtls_pop_administratively_disabled",
        &[
            Leg::Probe,
            Leg::Metadata,
            Leg::Attestation,
            Leg::Issue,
            Leg::Token,
        ],
        Retry::No,
        "An operator of this machine switched bound tokens off. The machine itself could do them.",
        &[
            "`MSAL_MI_DISABLE_IMDS_V2` is `true` or `1`.",
            "The file `disable-imds-v2` is in the state directory.",
        ],
        &[
            "Ask the operator why, then unset the variable or delete the file; no restart is needed.",
            "If a token that is bound to nothing will do, ask for a bearer token knowingly.",
        ],
    ),
    entry(
        "managed_identity_unreachable_network",
        ASKED,
        Retry::Depends,
        "No connection to the source of tokens on this machine, or it broke.",
        &[
            "This is no Azure machine.",
            "A firewall, VPN or container network keeps the link-local address away.",
            "The service is restarting.",
        ],
        &[
            "Run `keybond doctor`: it says which probe ended how.",
            "On a developer's machine start the emulator and point AZURE_POD_IDENTITY_AUTHORITY_HOST to it.",
        ],
    )
    .shared(),
    entry(
        "managed_identity_request_failed",
        ASKED,
        Retry::Depends,
        "The source of tokens refused the request, in its own words.",
        &[
            "The identity is not assigned to this machine (400).",
            "An attestation token is required and none was sent (400).",
            "The service is overloaded or restarting (410, 429, 5xx).",
            "The challenge of Azure Arc named a key file that must not be read.",
        ],
        &[
            "Read the description in the error.",
            "Check which identities are assigned to this machine.",
            "If the status is 410, 429 or 5xx, wait a minute.",
        ],
    )
    .shared(),
    entry(
        "managed_identity_response_parse_failure",
        ANSWERED,
        Retry::No,
        "The answer is no JSON object.",
        &[
            "Something else answers at this address: a proxy, a portal, another service.",
        ],
        &["Find out what answers: `curl` the address that the error names."],
    )
    .shared(),
    entry(
        "server_header_invalid",
        &[Leg::Metadata],
        Retry::No,
        "The answer does not come from the metadata service: its `Server` header is missing or another's.",
        &["A proxy or another service on the link answers for the metadata service."],
        &["Keep proxies away from 169.254.169.254 and find out what answers there."],
    ),
    entry(
        "response_not_utf8",
        ANSWERED,
        Retry::No,
        "The answer is not UTF-8.",
        &["Something else answers at this address, or changes answers on the way."],
        &["Find out what stands between this machine and the service."],
    ),
    entry(
        "response_field_missing",
        ANSWERED,
        Retry::No,
        "A required part of the answer is missing; `field` names it.",
        &[
            "The service is another one, or of a version that is not known here.",
            "The answer was changed on the way.",
        ],
        &["Compare the service's version with the one expected; give its operator the correlation id."],
    ),
    entry(
        "response_field_empty",
        ANSWERED,
        Retry::No,
        "A required part of the answer is empty; `field` names it.",
        &["The service has not been set up completely."],
        &["Give the service's operator the correlation id."],
    ),
    entry(
        "response_field_invalid",
        &[Leg::Metadata, Leg::Attestation, Leg::Issue, Leg::Token, Leg::Bearer],
        Retry::No,
        "A part of the answer is not what was agreed; `field` names it.",
        &["The service is another one, or of a version that is not known here."],
        &["Give the service's operator the correlation id."],
    ),
    entry(
        "request_body_failed",
        &[Leg::Resource],
        Retry::Depends,
        "The body of a request to a resource could not be sent.",
        &[
            "What the body is read from failed.",
            "The request would have to be sent again, and a streamed body cannot be.",
        ],
        &["Look at the source of the body, or give the body as a whole."],
    ),
    entry(
        "panicked",
        EVERY,
        Retry::No,
        "The work panicked, and panicked again when it was tried once more.",
        &[
            "A fault of an attestation provider, a key store or another part that the program gave the library.",
            "A fault of the library.",
        ],
        &["Look at the panic's own message on standard error, and report it to whoever wrote the code that it names."],
    ),
    entry(
        "response_too_large",
        &[Leg::Metadata, Leg::Issue, Leg::Token, Leg::Bearer, Leg::Resource],
        Retry::No,
        "The answer is longer than an honest one can be, or than the response limit of the client.",
        &[
            "Something else answers at this address.",
            "The resource really answers that much.",
        ],
        &["For a resource: raise the response limit. Otherwise find out what answers."],
    ),
    entry(
        "redirect_refused",
        &[Leg::Metadata, Leg::Issue, Leg::Token, Leg::Bearer, Leg::Resource],
        Retry::No,
        "The service tried to send the request elsewhere. It was not followed, so nothing leaked.",
        &[
            "A captive portal or proxy on the way.",
            "A resource that lives at another address.",
        ],
        &["For a resource: ask its new address yourself. Otherwise find out who redirects."],
    ),
    entry(
        "host_not_allowed",
        &[Leg::Metadata, Leg::Issue, Leg::Token, Leg::Attestation, Leg::Bearer],
        Retry::No,
        "An address must not get credentials. Nothing was sent there.",
        &[
            "The metadata service named a token service that is not Azure's.",
            "An emulator's or a private cloud's host was not allowed.",
        ],
        &["If the host is really yours, name it in MSAL_MI_IMDSV2_ALLOWED_HOSTS."],
    ),
    entry(
        "identity_mismatch",
        &[Leg::Metadata, Leg::Issue, Leg::Bearer],
        Retry::No,
        "The service speaks of another identity or tenant than the one that was asked for.",
        &[
            "Identities of the machine changed a moment ago.",
            "Something else answers for the service.",
        ],
        &["Check which identities are assigned to this machine; do not use the answer."],
    ),
    entry(
        "deadline_exceeded",
        EVERY,
        Retry::Later,
        "The time given for the whole way was over; the error names the leg that was under way.",
        &[
            "A slow or restarting service.",
            "A key device that does not answer.",
            "A deadline shorter than the waits between retries.",
            "So many requests to the metadata service that this one's turn would come after the deadline.",
        ],
        &["Look at the times of the legs to see who is slow; raise the deadline if they are honest."],
    ),
    entry(
        "request_timeout",
        &[Leg::Token, Leg::Resource],
        Retry::Later,
        "Nobody answered in time.",
        &["The service is overloaded.", "A firewall drops packets."],
        &["Try again; if it stays, check the way to the host."],
    )
    .shared(),
    entry(
        "service_unreachable",
        &[Leg::Token, Leg::Resource],
        Retry::Depends,
        "The connection was refused, there is no way to the host, or the connection broke.",
        &[
            "A wrong host name.",
            "A firewall.",
            "No name service.",
            "The service, or something on the way to it, restarted in the middle of the request.",
        ],
        &["Check the network, the firewall and the name of the host."],
    ),
    entry(
        "invalid_client",
        &[Leg::Token],
        Retry::No,
        "The token service does not accept the certificate as this client's. If the refusal is one that a new certificate can cure, some were tried; the error says how many.",
        &[
            "The certificate was revoked.",
            "The identity was deleted or made anew.",
            "Old and new certificates were mixed up in a proxy that ends TLS.",
        ],
        &[
            "Have the key certified anew (`renew`).",
            "Look up the numbers in the error, such as AADSTS1000610.",
        ],
    )
    .shared(),
    entry(
        "token_request_refused",
        &[Leg::Token],
        Retry::Depends,
        "The token service refused the request, in its own words.",
        &[
            "The resource does not exist in the tenant.",
            "The resource or the tenant takes no bound tokens.",
            "The token service is overloaded (429, 5xx).",
        ],
        &[
            "Look up the AADSTS number in the error.",
            "Give the token service's operator the correlation id.",
        ],
    ),
    entry(
        "token_type_missing",
        &[Leg::Token],
        Retry::No,
        "The token service does not say of which type the token is. It was not used.",
        &["The token service does not know bound tokens."],
        &["Check which token service answers; a token of unknown type is never used."],
    )
    .shared(),
    entry(
        "token_type_mismatch",
        &[Leg::Token, Leg::Bearer],
        Retry::No,
        "The token is of another type than the one asked for. It was not used.",
        &[
            "The token service gave a bearer token where a bound one was asked for.",
        ],
        &["Have bound tokens enabled for tenant and resource; never use such a token as a bound one."],
    )
    .shared(),
    entry(
        "token_not_bound_to_certificate",
        &[Leg::Token],
        Retry::No,
        "The token states another certificate than the one of this connection, or none.",
        &[
            "A proxy that ends TLS stands before the token service.",
            "The token service is another one.",
        ],
        &["Reach the token service directly; do not use the token."],
    ),
    entry(
        "attestation_failed",
        &[Leg::Attestation],
        Retry::Depends,
        "The key could not be attested. No request without attestation was sent instead.",
        &[
            "The attestation service cannot be reached.",
            "The host fails its policy: secure boot is off, or the key is not isolated.",
        ],
        &[
            "Read what the attestation provider said.",
            "Check that secure boot and the TPM of the machine are on.",
        ],
    )
    .shared(),
];
