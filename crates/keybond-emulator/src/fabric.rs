//! The managed identity token service of a Service Fabric cluster: bearer tokens for whoever has the secret of the
//! environment. It keeps tokens, and gives another only if it is told the hash of the one that it keeps.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use http::{Method, StatusCode};
use serde_json::json;

use crate::{
    error::EmulatorError,
    http_io::{Reply, Request},
    identity::{Selector, select},
    service::internal,
    sts::{TokenRequest, make_token},
    world::{World, random_guid, random_hex},
};

/// Where the service lives on the token service's port.
pub(crate) const PATH: &str = "/fabric/identity/token";

const VERSION: &str = "2020-05-01";

/// What the service knows.
pub(crate) struct Fabric {
    /// What the environment gives to programs of the cluster.
    secret: String,
    /// SHA-1 of the server's certificate.
    thumbprint: String,
    kept: Mutex<HashMap<Asked, Kept>>,
}

/// Client id, resource and capabilities.
type Asked = (String, String, Vec<String>);

struct Kept {
    token: String,
    /// Seconds since 1970.
    expires_on: u64,
}

impl Fabric {
    pub(crate) fn new(server_certificate: &[u8]) -> Result<Self, EmulatorError> {
        let sha1 = digest(&SHA1_FOR_LEGACY_USE_ONLY, server_certificate);
        Ok(Self {
            secret: random_hex(16)?,
            thumbprint: hex(sha1.as_ref()).to_ascii_uppercase(),
            kept: Mutex::default(),
        })
    }
}

/// The environment of a program of the cluster.
pub(crate) fn variables(world: &World) -> Vec<(&'static str, String)> {
    vec![
        (
            "IDENTITY_ENDPOINT",
            format!("{}{PATH}", world.addresses().sts),
        ),
        ("IDENTITY_HEADER", world.fabric.secret.clone()),
        (
            "IDENTITY_SERVER_THUMBPRINT",
            world.fabric.thumbprint.clone(),
        ),
    ]
}

/// Answers a request to the service.
pub(crate) fn answer(world: &World, request: &Request) -> Reply {
    match try_answer(world, request) {
        Ok(reply) | Err(reply) => reply,
    }
}

fn try_answer(world: &World, request: &Request) -> Result<Reply, Reply> {
    if request.method != Method::GET {
        return Err(crate::service::method_not_allowed(&request.method, "GET"));
    }
    match request.header("secret") {
        None => {
            return Err(refusal(
                "SecretHeaderNotFound",
                "Secret is not found in the request headers.",
            ));
        }
        Some(secret) if secret != world.fabric.secret => {
            return Err(refusal(
                "SecretHeaderInvalid",
                "The secret is not the one of this service.",
            ));
        }
        Some(_) => {}
    }
    let query = Query::read(request)?;
    if query.version != Some(VERSION) {
        let expected = format!("The query variable api-version is not {VERSION}.");
        return Err(refusal("InvalidApiVersion", &expected));
    }
    let resource = query.resource.ok_or_else(|| {
        refusal(
            "ArgumentNullOrEmpty",
            "The query variable resource is missing or empty.",
        )
    })?;
    let selector = query.principal.map(Selector::Object);
    let identity = select(&world.settings.identities, selector.as_ref()).ok_or_else(|| {
        refusal(
            "ManagedIdentityNotFound",
            "The application has no such identity.",
        )
    })?;
    let capabilities: Vec<String> = query
        .capabilities
        .map(|list| list.split(',').map(str::to_owned).collect())
        .unwrap_or_default();

    let now = world.clock.epoch();
    let asked = (
        identity.client_id.clone(),
        resource.to_owned(),
        capabilities,
    );
    let mut all = (world.fabric.kept.lock()).unwrap_or_else(PoisonError::into_inner);
    let good = |kept: &&Kept| {
        let refused = |hash| hash == hex(digest(&SHA256, kept.token.as_bytes()).as_ref());
        now < kept.expires_on && !query.refused.is_some_and(refused)
    };
    if all.get(&asked).filter(good).is_none() {
        let request = TokenRequest {
            identity,
            audience: resource,
            binding: None,
            capabilities: &asked.2,
        };
        let kept = Kept {
            token: make_token(world, &request).map_err(|error| internal(&error))?,
            expires_on: now + world.token_lifetime(),
        };
        all.insert(asked.clone(), kept);
    }
    let kept = &all[&asked];
    Ok(Reply::ok(json!({
        "token_type": "Bearer",
        "access_token": kept.token,
        "expires_on": kept.expires_on,
        "resource": resource,
    })))
}

/// The variables of a request, each once, and no other.
#[derive(Default)]
struct Query<'a> {
    version: Option<&'a str>,
    resource: Option<&'a str>,
    principal: Option<&'a str>,
    capabilities: Option<&'a str>,
    refused: Option<&'a str>,
}

impl<'a> Query<'a> {
    fn read(request: &'a Request) -> Result<Self, Reply> {
        let mut query = Self::default();
        for (name, value) in &request.query {
            let place = match &**name {
                "api-version" => &mut query.version,
                "resource" => &mut query.resource,
                "principalId" => &mut query.principal,
                "xms_cc" => &mut query.capabilities,
                "token_sha256_to_refresh" => &mut query.refused,
                _ => {
                    return Err(refusal(
                        "InvalidArgument",
                        &format!("Unsupported query variables: {name}"),
                    ));
                }
            };
            if value.is_empty() || place.replace(value).is_some() {
                let problem = format!("The query variable {name} is empty or given twice.");
                return Err(refusal("ArgumentNullOrEmpty", &problem));
            }
        }
        let sha256 = |hash: &str| {
            hash.len() == 64
                && hash
                    .bytes()
                    .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        };
        if query.refused.is_some_and(|hash| !sha256(hash)) {
            let problem = "token_sha256_to_refresh is no SHA-256 in small hexadecimal digits.";
            return Err(refusal("InvalidArgument", problem));
        }
        Ok(query)
    }
}

/// A refusal in the form of the service.
fn refusal(code: &str, message: &str) -> Reply {
    let correlation = random_guid().unwrap_or_default();
    Reply::json(
        StatusCode::BAD_REQUEST,
        json!({ "error": { "correlationId": correlation, "code": code, "message": message } }),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
