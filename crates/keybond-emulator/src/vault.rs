//! A vault that opens only to a token and the certificate it is bound to.

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    counters::Event,
    fault::FaultKind,
    http_io::{Reply, Request},
    jwt::thumbprint,
    service::{internal, method_not_allowed},
    state::Secret,
    world::{World, issuer, random_guid},
    x509::Certificate,
};

/// The audience of tokens for a vault.
pub(crate) const AUDIENCE: &str = "https://vault.azure.net";

/// No certificate on the connection.
const NO_CERTIFICATE: &str = "Client certificate required for using MTLS_POP token";
/// A vault that is not told about the bound token never asks for the certificate.
const NOT_ASKED: &str = "MtlsMissingClientCertificate";
/// The certificate is not the one the token names.
const OTHER_CERTIFICATE: &str = "[MtlsCnfClaimRequestDataValidationFailed]";

/// Where bodies are summed up: the emulator's own, to see that uploads arrive as they were sent.
pub(crate) const CHECKSUM: &str = "/checksum";

/// Values with more bytes than this are refused.
const VALUE_LIMIT: usize = 25 * 1024;

/// Whether a vault that asks by renegotiation asks for this request.
pub(crate) fn wants_certificate(world: &World, headers: &HeaderMap) -> bool {
    !world.settings.require_token_bound_header
        || headers
            .get("x-ms-tokenboundauth")
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// Answers a request to the vault of this URL.
pub(crate) fn answer(world: &World, own: &str, request: &Request, faults: &[FaultKind]) -> Reply {
    let reply = match try_answer(world, own, request, faults) {
        Ok(reply) | Err(reply) => reply,
    };
    reply
        .with_header("x-ms-request-id", &random_guid().unwrap_or_default())
        .with_header("cache-control", "no-cache")
}

fn try_answer(
    world: &World,
    own: &str,
    request: &Request,
    faults: &[FaultKind],
) -> Result<Reply, Reply> {
    authorize(world, request)?;
    for fault in faults {
        if let FaultKind::ClaimsChallenge { claims } = fault {
            let challenge = format!(
                "{}, error=\"insufficient_claims\", claims=\"{}\"",
                challenge(world),
                STANDARD.encode(claims)
            );
            return Err(refusal(
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "More claims are needed.",
            )
            .with_header("www-authenticate", &challenge));
        }
    }
    let known = matches!(
        request.query.as_slice(),
        [(name, version)] if name == "api-version" && matches!(version.as_str(), "7.4" | "7.5" | "7.6")
    );
    if !known {
        return Err(bad_parameter(
            "The only query parameter is api-version, which must be 7.4, 7.5 or 7.6.",
        ));
    }
    if request.path == CHECKSUM {
        return checksum(request);
    }
    let mut parts = request
        .path
        .strip_prefix("/secrets/")
        .unwrap_or("")
        .splitn(2, '/');
    let (name, version) = (parts.next().unwrap_or(""), parts.next());
    let named = !name.is_empty()
        && name.len() <= 127
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !named {
        return Err(refusal(
            StatusCode::NOT_FOUND,
            "NotFound",
            "The path must be /secrets/{name}[/{version}].",
        ));
    }
    match request.method {
        Method::GET => get(
            world,
            own,
            name,
            version.filter(|version| !version.is_empty()),
        ),
        Method::PUT if version.is_none() => put(world, own, name, request),
        _ => Err(method_not_allowed(&request.method, "GET, PUT")),
    }
}

fn checksum(request: &Request) -> Result<Reply, Reply> {
    if request.method != Method::POST {
        return Err(method_not_allowed(&request.method, "POST"));
    }
    let sum = digest::digest(&digest::SHA256, &request.body);
    let hex: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Reply::ok(
        json!({ "bytes": request.body.len(), "sha256": hex }),
    ))
}

fn get(world: &World, own: &str, name: &str, version: Option<&str>) -> Result<Reply, Reply> {
    match world.secret(name) {
        Some(secret) if version.is_none_or(|version| version == secret.version) => {
            Ok(bundle(own, name, &secret))
        }
        _ => Err(refusal(
            StatusCode::NOT_FOUND,
            "SecretNotFound",
            &format!("A secret with (name/id) {name} was not found in this key vault."),
        )),
    }
}

fn put(world: &World, own: &str, name: &str, request: &Request) -> Result<Reply, Reply> {
    #[derive(Deserialize)]
    struct Body {
        value: String,
    }

    let body: Body = serde_json::from_slice(&request.body)
        .map_err(|error| bad_parameter(&format!("The body is not as expected: {error}")))?;
    if body.value.len() > VALUE_LIMIT {
        return Err(bad_parameter("The value has more than 25 KiB."));
    }
    let secret = world
        .set_secret(name, &body.value)
        .map_err(|error| internal(&error))?;
    Ok(bundle(own, name, &secret))
}

fn bundle(own: &str, name: &str, secret: &Secret) -> Reply {
    Reply::ok(json!({
        "value": secret.value,
        "id": format!("{own}/secrets/{name}/{}", secret.version),
        "attributes": {
            "enabled": true,
            "created": secret.created,
            "updated": secret.updated,
            "recoveryLevel": "Purgeable",
        },
    }))
}

/// Lets only a valid token pass, over the connection of the certificate it is bound to.
fn authorize(world: &World, request: &Request) -> Result<(), Reply> {
    let denied = |message: &str| {
        refusal(StatusCode::UNAUTHORIZED, "Unauthorized", message)
            .with_header("www-authenticate", &challenge(world))
    };
    let (scheme, token) = request
        .header("authorization")
        .and_then(|value| value.split_once(' '))
        .ok_or_else(|| denied("AKV10000: Request is missing a Bearer or PoP token."))?;
    let bearer = world.settings.accept_bearer_tokens && scheme.eq_ignore_ascii_case("bearer");
    if !bearer && !scheme.eq_ignore_ascii_case("mtls_pop") {
        return Err(denied(
            "The emulator's vault accepts only the scheme mtls_pop and bound tokens.",
        ));
    }
    let claims = world.signer.verify(token.trim()).ok_or_else(|| {
        denied("Error validating token: it was not signed by the emulator's token service.")
    })?;
    if claims["iss"] != issuer(&world.settings.tenant_id).as_str() {
        return Err(denied("AKV10032: Invalid issuer."));
    }
    let now = world.clock.epoch();
    let number = |name: &str| claims[name].as_u64().unwrap_or_default();
    if now < number("nbf") || now >= number("exp") {
        return Err(denied(
            "[TokenExpired] Error validating token: it is not within its lifetime.",
        ));
    }
    let audience = claims["aud"].as_str().unwrap_or_default();
    let own = world.addresses();
    if ![AUDIENCE, &own.vault, &own.renegotiating_vault].contains(&audience.trim_end_matches('/')) {
        return Err(denied(&format!(
            "AKV10022: Invalid audience. Expected {AUDIENCE}, found: {audience}."
        )));
    }
    if bearer {
        return match &claims["cnf"] {
            Value::Null => Ok(()),
            _ => Err(denied("The token is bound: its scheme is mtls_pop.")),
        };
    }
    let Value::String(bound) = &claims["cnf"]["x5t#S256"] else {
        return Err(denied(
            "The token is not bound to a certificate (claim cnf is missing).",
        ));
    };
    if !wants_certificate(world, &request.headers) {
        return Err(denied(&format!(
            "{NOT_ASKED}: without the header x-ms-tokenboundauth: true a vault does not ask for \
             the client certificate"
        )));
    }
    let Some(presented) = request.certificate.as_deref() else {
        return Err(denied(NO_CERTIFICATE));
    };
    if thumbprint(presented) != *bound {
        world.counting.event(Event::MixedBinding);
        return Err(denied(&format!(
            "{OTHER_CERTIFICATE} The certificate of the connection is not the one that the \
             token's cnf claim names."
        )));
    }
    let valid = Certificate::parse(presented).is_ok_and(|certificate| certificate.valid_at(now));
    if !valid {
        return Err(denied(
            "The client certificate is not within its specified validity time range.",
        ));
    }
    Ok(())
}

fn challenge(world: &World) -> String {
    format!(
        "Bearer authorization=\"{}/{}\", resource=\"{AUDIENCE}\"",
        world.addresses().sts,
        world.settings.tenant_id
    )
}

fn bad_parameter(message: &str) -> Reply {
    refusal(StatusCode::BAD_REQUEST, "BadParameter", message)
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Reply {
    Reply::json(
        status,
        json!({ "error": { "code": code, "message": message } }),
    )
}
