//! The emulator's own paths, under `/_emulator/` on the IMDS port: what the API of the handle does
//! in-process, for scripts and for clients in other languages.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    EmulatorError,
    env::{self, Shell},
    fault::Fault,
    http_io::{Reply, Request},
    scenario::Scenario,
    service::method_not_allowed,
    state::pem,
    world::World,
};

/// The code for revoked certificates if none is given.
pub(crate) const REVOKED: u32 = 1_000_610;

/// Whether a path is one of these.
pub(crate) fn owns(path: &str) -> bool {
    path.starts_with("/_emulator/")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifetimes {
    certificate_lifetime_seconds: Option<u64>,
    token_lifetime_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    #[serde(rename = "x5t#S256")]
    thumbprint: Option<String>,
    code: Option<u32>,
}

/// Answers a request to one of these paths.
pub(crate) fn answer(world: &World, request: &Request) -> Reply {
    // A web page must not be able to steer the emulator through its visitor's browser.
    if request.headers.contains_key("origin") {
        return Reply::error(StatusCode::FORBIDDEN, "forbidden", "Not from a web page");
    }
    match route(world, request) {
        Ok(reply) | Err(reply) => reply,
    }
}

fn route(world: &World, request: &Request) -> Result<Reply, Reply> {
    let now = world.clock.epoch();
    let path = request.path.strip_prefix("/_emulator").unwrap_or_default();
    match (path, &request.method) {
        ("/counters", &Method::GET) => Ok(done(json!(world.counting.snapshot()))),
        ("/counters", &Method::DELETE) => {
            world.counting.reset();
            Ok(done(json!({})))
        }
        ("/faults", &Method::GET) => Ok(done(json!(world.faults.list(now)))),
        ("/faults", &Method::DELETE) => {
            world.faults.clear();
            Ok(done(json!({})))
        }
        ("/faults", &Method::POST) => {
            let faults = Fault::list_from_json(&request.body).map_err(invalid)?;
            world.faults.inject(faults, now).map_err(invalid)?;
            Ok(done(json!(world.faults.list(now))))
        }
        ("/scenario", &Method::GET) => Ok(steps(world)),
        ("/scenario", &Method::DELETE) => {
            world.script.clear();
            Ok(steps(world))
        }
        ("/scenario", &Method::POST) => {
            let scenario = std::str::from_utf8(&request.body)
                .map_err(|_| EmulatorError::invalid("scenario", "UTF-8", "other bytes"))
                .and_then(str::parse::<Scenario>)
                .map_err(invalid)?;
            world.play(&scenario).map_err(invalid)?;
            Ok(steps(world))
        }
        ("/clock", &Method::GET) => Ok(done(json!({ "epoch": now }))),
        ("/clock", &Method::POST) => {
            let Advance { advance_seconds } = body(request)?;
            world
                .clock
                .advance(Duration::from_secs(advance_seconds))
                .map_err(invalid)?;
            Ok(done(json!({ "epoch": world.clock.epoch() })))
        }
        ("/lifetimes", &Method::POST) => {
            let lifetimes: Lifetimes = body(request)?;
            if let Some(seconds) = lifetimes.certificate_lifetime_seconds {
                world
                    .set_certificate_lifetime(Duration::from_secs(seconds))
                    .map_err(invalid)?;
            }
            if let Some(seconds) = lifetimes.token_lifetime_seconds {
                world
                    .set_token_lifetime(Duration::from_secs(seconds))
                    .map_err(invalid)?;
            }
            Ok(done(json!({
                "certificate_lifetime_seconds": world.certificate_lifetime().as_secs(),
                "token_lifetime_seconds": world.token_lifetime(),
            })))
        }
        ("/revoke", &Method::POST) => {
            let Revoke { thumbprint, code } = body(request)?;
            let code = code.unwrap_or(REVOKED);
            let revoked = match thumbprint {
                Some(thumbprint) => {
                    world.revoke(&thumbprint, code);
                    1
                }
                None => world.revoke_issued(code),
            };
            Ok(done(json!({ "revoked": revoked })))
        }
        ("/ca.pem", &Method::GET) => Ok(Reply::bytes(
            StatusCode::OK,
            "application/x-pem-file",
            pem("CERTIFICATE", world.authority.certificate()),
        )),
        ("/env", &Method::GET) => {
            let shell = match request.query.as_slice() {
                [] => Shell::Sh,
                [(name, shell)] if name == "shell" => shell.parse().map_err(invalid)?,
                _ => {
                    return Err(Reply::error(
                        StatusCode::BAD_REQUEST,
                        "invalid_request",
                        "The only query variable is 'shell'",
                    ));
                }
            };
            Ok(Reply::bytes(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                env::lines(world, shell),
            ))
        }
        ("/counters", method) => Err(method_not_allowed(method, "GET, DELETE")),
        ("/faults" | "/scenario", method) => Err(method_not_allowed(method, "GET, POST, DELETE")),
        ("/clock", method) => Err(method_not_allowed(method, "GET, POST")),
        ("/lifetimes" | "/revoke", method) => Err(method_not_allowed(method, "POST")),
        ("/ca.pem" | "/env", method) => Err(method_not_allowed(method, "GET")),
        _ => Err(Reply::error(
            StatusCode::NOT_FOUND,
            "not_found",
            "The emulator has counters, scenario, faults, clock, lifetimes, revoke, ca.pem and env",
        )),
    }
}

/// The steps of scenarios that are still to come.
fn steps(world: &World) -> Reply {
    let steps: Vec<Value> = world
        .script
        .list(world.clock.epoch())
        .into_iter()
        .map(|(seconds, text)| json!({ "in_seconds": seconds, "event": text }))
        .collect();
    done(json!(steps))
}

fn done(value: Value) -> Reply {
    Reply::ok(value)
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Reply> {
    serde_json::from_slice(&request.body).map_err(|error| {
        Reply::error(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            format!("The body is not as expected: {error}"),
        )
    })
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn invalid(error: EmulatorError) -> Reply {
    Reply::error(StatusCode::BAD_REQUEST, error.code(), error.to_string())
}
