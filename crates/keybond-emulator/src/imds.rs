//! The Instance Metadata Service: versions 2 and 1 of managed identity, and a little instance
//! metadata.

mod issue;
mod metadata;
mod query;
mod token;

use http::{HeaderMap, Method, StatusCode};

use crate::{
    fault::{FaultKind, Leg},
    http_io::{Reply, Request},
    identity::{Identity, Profile},
    service::method_not_allowed,
    world::World,
};

/// What the service calls itself; clients look for `IMDS` in it.
const SERVER: &str = "IMDS/150.870.65.1854";

const METADATA: &str = "/metadata/identity/getplatformmetadata";
const ISSUE: &str = "/metadata/identity/issuecredential";
const TOKEN: &str = "/metadata/identity/oauth2/token";
const COMPUTE: &str = "/metadata/instance/compute";
const LOCATION: &str = "/metadata/instance/compute/location";

/// What a request asks for; `None` for a path the service does not have.
pub(crate) fn leg(path: &str, headers: &HeaderMap) -> Option<Leg> {
    let probe = !headers.contains_key("metadata");
    Some(match path {
        METADATA if probe => Leg::Probe,
        METADATA => Leg::Metadata,
        ISSUE => Leg::Issue,
        TOKEN if probe => Leg::V1Probe,
        TOKEN => Leg::V1Token,
        COMPUTE | LOCATION => Leg::Compute,
        _ => return None,
    })
}

/// Answers a request to the service.
pub(crate) fn answer(
    world: &World,
    leg: Option<Leg>,
    request: &Request,
    faults: &[FaultKind],
) -> Reply {
    match try_answer(world, leg, request, faults) {
        Ok(reply) | Err(reply) => reply,
    }
}

/// Puts the service's name on a reply.
pub(crate) fn sign_off(reply: Reply, faults: &[FaultKind]) -> Reply {
    if faults.contains(&FaultKind::NoServerHeader) {
        reply
    } else if faults.contains(&FaultKind::WrongServerHeader) {
        reply.with_header("server", "Microsoft-IIS/10.0")
    } else {
        reply.with_header("server", SERVER)
    }
}

fn try_answer(
    world: &World,
    leg: Option<Leg>,
    request: &Request,
    faults: &[FaultKind],
) -> Result<Reply, Reply> {
    let version_2 = request.path == METADATA || request.path == ISSUE;
    let leg = leg
        .filter(|_| !(version_2 && world.settings.profile == Profile::V1Only))
        .ok_or_else(|| Reply::error(StatusCode::NOT_FOUND, "not_found", "Not found"))?;
    if request.headers.contains_key("x-forwarded-for") {
        return Err(invalid(
            "Requests with an X-Forwarded-For header are not served",
        ));
    }
    if !request
        .header("metadata")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    {
        return Err(invalid("Required metadata header not specified"));
    }
    let allowed = if leg == Leg::Issue {
        Method::POST
    } else {
        Method::GET
    };
    if request.method != allowed {
        return Err(method_not_allowed(&request.method, allowed.as_str()));
    }
    if version_2
        && !request
            .header("x-ms-client-request-id")
            .is_some_and(is_guid)
    {
        return Err(invalid(
            "Required header x-ms-client-request-id not specified, or not a GUID",
        ));
    }
    match leg {
        Leg::Issue => issue::answer(world, request, faults),
        Leg::V1Token | Leg::V1Probe => token::answer(world, request),
        Leg::Compute => metadata::compute(world, request),
        _ => metadata::platform(world, request),
    }
}

/// `400 invalid_request`, as the service words it.
fn invalid(description: impl Into<String>) -> Reply {
    Reply::error(StatusCode::BAD_REQUEST, "invalid_request", description)
}

/// The identity a query selects, or the refusal for one that is not assigned.
fn identity<'a>(world: &'a World, query: &query::Query<'_>) -> Result<&'a Identity, Reply> {
    crate::identity::select(&world.settings.identities, query.selector.as_ref()).ok_or_else(|| {
        Reply::error(
            StatusCode::BAD_REQUEST,
            "identity_not_found",
            "Identity not found",
        )
    })
}

fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}
