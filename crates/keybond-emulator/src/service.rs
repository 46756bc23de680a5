//! What befalls a request before and after the service that answers it: counting, faults, bounds.

use std::{sync::Arc, time::Duration};

use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::{
    admin, attestation,
    counters::Event,
    fabric,
    fault::{FaultKind, Leg},
    http_io::{Content, Reply, ReplyBody, Request},
    imds,
    server::{Hangup, Peer},
    sts, vault,
    world::World,
};

/// Requests with more bytes than this in their body are refused.
const BODY_LIMIT: usize = 128 * 1024;
/// The same where bodies are only summed up.
const CHECKSUM_LIMIT: usize = 64 * 1024 * 1024;
/// How long a client may take to send a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Which of the three servers was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Imds,
    Sts,
    Vault,
    /// A vault that asks for the certificate by renegotiation.
    RenegotiatingVault,
    /// The trap for those who follow redirects.
    Honeypot,
}

impl Role {
    /// The server's name in logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Imds => "imds",
            Self::Sts => "sts",
            Self::Vault => "vault",
            Self::RenegotiatingVault => "renegotiating vault",
            Self::Honeypot => "honeypot",
        }
    }

    /// The leg whose faults befall connections, before there are requests.
    const fn connection_leg(self) -> Option<Leg> {
        match self {
            Self::Sts => Some(Leg::Token),
            Self::Vault | Self::RenegotiatingVault => Some(Leg::Vault),
            Self::Imds | Self::Honeypot => None,
        }
    }
}

/// Whether a connection's TLS handshake, which has begun, is to go on.
pub(crate) fn admit(world: &World, role: Role) -> bool {
    world.catch_up();
    if role == Role::Honeypot {
        world.counting.event(Event::HoneypotConnection);
    }
    let struck = role
        .connection_leg()
        .is_some_and(|leg| world.faults.strikes_handshake(leg, world.clock.epoch()));
    if struck {
        world.counting.event(Event::HandshakeReset);
    }
    !struck
}

/// Answers one request.
pub(crate) async fn answer(
    world: Arc<World>,
    role: Role,
    request: hyper::Request<Incoming>,
    peer: Peer,
) -> Result<Response<ReplyBody>, Hangup> {
    world.catch_up();
    let path = request.uri().path().to_owned();
    if role == Role::Honeypot {
        return Ok(trapped(&world, request, &peer).await.into_response());
    }
    if role == Role::Imds && admin::owns(&path) {
        let reply = match read(request, &peer).await {
            Ok(request) => admin::answer(&world, &request),
            Err(refusal) => refusal,
        };
        return Ok(reply.into_response());
    }

    let leg = match role {
        Role::Imds => imds::leg(&path, request.headers()),
        Role::Sts => Some(sts::leg(request.method(), &path)),
        Role::Vault | Role::RenegotiatingVault => Some(Leg::Vault),
        Role::Honeypot => None,
    };
    let faults = match leg {
        Some(leg) => {
            world.counting.request(leg, world.clock.now());
            world.faults.strike(leg, world.clock.epoch())
        }
        None => Vec::new(),
    };
    if role == Role::RenegotiatingVault
        && vault::wants_certificate(&world, request.headers())
        && peer.ask_certificate().await?
    {
        world.counting.event(Event::Renegotiation);
    }
    // Read before anything else befalls it: what was asked for counts, whatever is answered.
    let request = read(request, &peer).await;
    if let (Some(leg), Ok(request)) = (leg, &request) {
        world.counting.content(leg, request);
    }
    for fault in &faults {
        if let FaultKind::Slow { millis } = fault {
            tokio::time::sleep(Duration::from_millis(*millis)).await;
        }
    }
    if faults.contains(&FaultKind::Reset) {
        return Err(peer.reset());
    }
    let name = leg.map_or("none", Leg::name);
    let mut reply = match faults.iter().find_map(|fault| instead(&world, role, fault)) {
        Some(reply) => reply,
        None => match request {
            Ok(request) => match role {
                Role::Sts if leg == Some(Leg::Attestation) => attestation::answer(&world, &request),
                Role::Sts if leg == Some(Leg::Fabric) => fabric::answer(&world, &request),
                Role::Sts => sts::answer(&world, &request, &faults),
                Role::Vault => vault::answer(&world, &world.addresses().vault, &request, &faults),
                Role::RenegotiatingVault => {
                    let own = world.addresses().renegotiating_vault;
                    vault::answer(&world, &own, &request, &faults)
                }
                _ => imds::answer(&world, leg, &request, &faults),
            },
            Err(refusal) => refusal,
        },
    };
    if let Content::Json(value) = &mut reply.content
        && reply.status == StatusCode::OK
    {
        for fault in &faults {
            edit(value, fault);
        }
    }
    if role == Role::Imds {
        reply = imds::sign_off(reply, &faults);
    }
    tracing::info!(leg = name, status = reply.status.as_u16(), "answered");
    Ok(reply.into_response())
}

/// Counts who fell into the trap, and whether there was something to steal.
async fn trapped(world: &World, request: hyper::Request<Incoming>, peer: &Peer) -> Reply {
    world.counting.event(Event::HoneypotRequest);
    let request = read(request, peer).await;
    let credential = request.as_ref().is_ok_and(|request| {
        request.certificate.is_some()
            || request.headers.contains_key("authorization")
            || !request.body.is_empty()
    });
    if credential || request.is_err() {
        world.counting.event(Event::HoneypotCredential);
    }
    Reply::error(
        StatusCode::FORBIDDEN,
        "honeypot",
        "A client that comes here followed a redirect or an endpoint it must not follow",
    )
}

/// The reply of a fault that takes the place of the service.
fn instead(world: &World, role: Role, fault: &FaultKind) -> Option<Reply> {
    const JSON: &str = "application/json; charset=utf-8";
    Some(match fault {
        FaultKind::Status {
            status,
            retry_after,
        } => refusal(*status, *retry_after),
        FaultKind::Throttle { retry_after, .. } => refusal(429, *retry_after),
        FaultKind::Garbage => Reply::bytes(StatusCode::OK, JSON, "<html>not what you asked for"),
        FaultKind::NotUtf8 => {
            Reply::bytes(StatusCode::OK, JSON, &b"{\"client_id\":\"\xff\xfe\"}"[..])
        }
        FaultKind::HugeBody { bytes } => Reply {
            content: Content::Endless(*bytes),
            ..Reply::ok(Value::Null)
        },
        FaultKind::Redirect { status, location } => {
            // Of the same scheme as the leg, so that whoever follows at all follows there.
            let honeypot = world.addresses().honeypot;
            let trap = match role {
                Role::Imds => honeypot.http,
                _ => honeypot.https,
            };
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::TEMPORARY_REDIRECT);
            Reply::bytes(status, "text/plain", "")
                .with_header("location", location.as_deref().unwrap_or(&trap))
        }
        _ => return None,
    })
}

fn refusal(status: u16, retry_after: Option<u32>) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reason = status.canonical_reason().unwrap_or("a fault was injected");
    let reply = Reply::error(status, "injected_fault", reason);
    match retry_after {
        Some(seconds) => reply.with_header("retry-after", &seconds.to_string()),
        None => reply,
    }
}

/// Alters one field of a JSON answer.
fn edit(answer: &mut Value, fault: &FaultKind) {
    let (field, value) = match fault {
        FaultKind::MissingField { field } => (field, None),
        FaultKind::EmptyField { field } => (field, Some(Value::from(""))),
        FaultKind::SetField { field, value } => (field, Some(value.clone())),
        _ => return,
    };
    let (parents, last) = field.rsplit_once('.').unwrap_or(("", field));
    let mut object = answer;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        match object.get_mut(parent) {
            Some(inner) => object = inner,
            None => return,
        }
    }
    if let Some(object) = object.as_object_mut() {
        match value {
            Some(value) => object.insert(last.to_owned(), value),
            None => object.remove(last),
        };
    }
}

/// Reads a request in full, within bounds.
async fn read(request: hyper::Request<Incoming>, peer: &Peer) -> Result<Request, Reply> {
    let (head, body) = request.into_parts();
    let limit = match head.uri.path() {
        vault::CHECKSUM => CHECKSUM_LIMIT,
        _ => BODY_LIMIT,
    };
    let collected = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, limit).collect())
        .await
        .map_err(|_| {
            Reply::error(
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request",
                "The body did not arrive in time",
            )
        })?;
    let body = collected
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                Reply::error(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "invalid_request",
                    format!("The body has more than {limit} bytes"),
                )
            } else {
                Reply::error(
                    StatusCode::BAD_REQUEST,
                    "invalid_request",
                    "The body could not be read",
                )
            }
        })?
        .to_bytes();
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: url::form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes())
            .into_owned()
            .collect(),
        headers: head.headers,
        body,
        certificate: peer.certificate(),
    })
}

/// The refusal of a method, naming those that are allowed.
pub(crate) fn method_not_allowed(method: &Method, allowed: &str) -> Reply {
    Reply::error(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request",
        format!("Method {method} is not allowed; allowed: {allowed}"),
    )
    .with_header("allow", allowed)
}

/// The answer to a failure of the emulator itself.
pub(crate) fn internal(error: &crate::EmulatorError) -> Reply {
    tracing::error!(%error, "the emulator failed");
    Reply::error(
        StatusCode::INTERNAL_SERVER_ERROR,
        "server_error",
        error.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_removed_emptied_and_replaced() {
        let mut answer = json!({ "a": 1, "cuId": { "vmId": "x" } });
        let field = |field: &str| field.to_owned();
        edit(
            &mut answer,
            &FaultKind::EmptyField {
                field: field("cuId.vmId"),
            },
        );
        edit(&mut answer, &FaultKind::MissingField { field: field("a") });
        edit(
            &mut answer,
            &FaultKind::SetField {
                field: field("b"),
                value: json!([1]),
            },
        );
        edit(
            &mut answer,
            &FaultKind::MissingField {
                field: field("no.where"),
            },
        );
        assert_eq!(answer, json!({ "cuId": { "vmId": "" }, "b": [1] }));
    }
}
