//! What the TLS layer gives.

use super::{Entry, Retry, TLS, entry};
use crate::leg::Leg;

/// The legs on which the client certificate may be needed in the first handshake.
const ASKED: &[Leg] = &[Leg::Token, Leg::Resource];

const KEY_OR_CERTIFICATE: &[&str] = &[
    "The certificate was revoked or has expired.",
    "The certificate is of another identity or issuer than the server expects.",
];

pub(super) const TABLE: &[Entry] = &[
    entry(
        "tls_client_identity_invalid",
        TLS,
        Retry::No,
        "Key and certificate do not make a client identity.",
        &["The certificate is of another key, or cannot be read."],
        &["Have the key certified again."],
    ),
    entry(
        "tls_host_invalid",
        TLS,
        Retry::No,
        "The name of the server is no host name or address.",
        &["A typo in the URL."],
        &["Correct the host."],
    ),
    entry(
        "tls_trust_roots_invalid",
        TLS,
        Retry::No,
        "The certificates by which servers are trusted cannot be read.",
        &[
            "KEYBOND_CA_FILE names a file that is missing or is no PEM.",
            "The system has no roots.",
        ],
        &["Correct KEYBOND_CA_FILE, or install the system's certificates (ca-certificates)."],
    ),
    entry(
        "tls_setup_failed",
        TLS,
        Retry::No,
        "The TLS library refused its configuration.",
        &["A build with other libraries than the tested ones."],
        &["Report it with the text of the error."],
    ),
    entry(
        "tls_server_untrusted",
        TLS,
        Retry::No,
        "Nobody who is trusted here vouches for the server's certificate.",
        &[
            "A proxy that opens TLS.",
            "An emulator or private server whose authority is not known here.",
        ],
        &[
            "Name the authority in KEYBOND_CA_FILE if it is yours; otherwise take the proxy out of the way.",
        ],
    ),
    entry(
        "tls_server_host_mismatch",
        TLS,
        Retry::No,
        "The server's certificate is for another name, or not the one that was named beforehand.",
        &[
            "Another server answers at this address.",
            "The cluster's certificate was renewed after IDENTITY_SERVER_THUMBPRINT was set.",
        ],
        &[
            "Check the name in the URL; in Service Fabric restart the service so that it gets the new thumbprint.",
        ],
    ),
    entry(
        "tls_server_certificate_expired",
        TLS,
        Retry::No,
        "The time of the server's certificate is over or has not come.",
        &[
            "This machine's clock is wrong.",
            "The server's certificate was not renewed.",
        ],
        &["Check this machine's clock, then tell the server's operator."],
    ),
    entry(
        "tls_client_certificate_required",
        TLS,
        Retry::No,
        "The server wants a client certificate and was shown none.",
        &["The server asks only after the request (renegotiation)."],
        &["Give the resource a rule that connects on demand."],
    ),
    entry(
        "tls_client_certificate_not_requested",
        ASKED,
        Retry::No,
        "The server asked for no client certificate in the first handshake, under none of the TLS versions that the error names. Nothing was sent: without the certificate a bound token is worth nothing.",
        &[
            "Something on the way ends TLS, such as a proxy, gateway or load balancer.",
            "A resource that asks only when it has read the request (renegotiation), or asks nobody.",
        ],
        &[
            "Reach the server past what ends TLS; the certificate that it showed tells who that is.",
            "Give a resource that asks later a rule that connects on demand; have any other made to ask for client certificates, under TLS 1.2 or 1.3.",
        ],
    ),
    entry(
        "tls_client_certificate_refused",
        TLS,
        Retry::No,
        "The server does not accept the client certificate.",
        KEY_OR_CERTIFICATE,
        &["Have the key certified anew (`renew`); then look at what the server expects."],
    ),
    entry(
        "tls_alert_received",
        TLS,
        Retry::Depends,
        "The server ended the handshake with an alert; the error names it.",
        &[
            "The server's TLS version or cipher suites do not fit.",
            "The server has trouble of its own.",
        ],
        &["Look up the alert (RFC 8446 §6.2), and the server's log."],
    ),
    entry(
        "tls_handshake_timed_out",
        TLS,
        Retry::Later,
        "The handshake was not finished in time.",
        &[
            "A slow server or key device.",
            "Something on the way holds packets back.",
        ],
        &["Try again; if it stays, look at the times of the legs."],
    ),
    entry(
        "tls_key_failed",
        TLS,
        Retry::Depends,
        "The held key did not sign in the handshake.",
        &["The device is busy, was reset or took too long."],
        &["Follow the remedy in the error; it is the key's own."],
    ),
    entry(
        "tls_no_common_signature_scheme",
        TLS,
        Retry::No,
        "Server and key have no signature scheme in common.",
        &["A TPM that cannot sign in the way that TLS 1.3 asks for."],
        &["Use TLS 1.2 for this server if it allows it, or another key store."],
    ),
    entry(
        "tls_renegotiation_refused",
        TLS,
        Retry::No,
        "A renegotiation was refused: a second one, another server certificate, or one at a wrong time.",
        &["Something on the way changes servers within one connection."],
        &["Reach the resource directly; report it if the server is honest."],
    ),
    entry(
        "tls_on_demand_unsupported",
        TLS,
        Retry::No,
        "This build cannot show a certificate after the handshake (renegotiation).",
        &["The TLS stack of this platform does not have it."],
        &["Use a build with s2n, or a resource that asks in the first handshake."],
    ),
    entry(
        "tls_connection_closed",
        TLS,
        Retry::Later,
        "The server closed the connection in the middle.",
        &[
            "The server restarts.",
            "The server does not like the client certificate and does not say so.",
        ],
        &["Try again; if it stays, have the key certified anew."],
    ),
    entry(
        "tls_protocol_error",
        TLS,
        Retry::No,
        "What arrived is not the TLS that was agreed.",
        &[
            "The port speaks something else than TLS.",
            "Something on the way changes bytes.",
        ],
        &["Check host and port, and what stands between."],
    ),
    entry(
        "tls_io_error",
        TLS,
        Retry::Depends,
        "The connection broke below TLS.",
        &["A reset by the server or by a firewall."],
        &["Try again; if it stays, check the way to the host."],
    ),
];
