//! The token service: tokens bound to the certificate of the connection, and the keys to verify
//! them.

mod refusal;

use http::Method;
use serde_json::{Map, Value, json};

use crate::{
    attestation,
    error::EmulatorError,
    fabric,
    fault::{FaultKind, Leg},
    http_io::{Reply, Request},
    identity::Identity,
    jwt::thumbprint,
    service::{internal, method_not_allowed},
    world::{World, issuer, random_guid},
    x509::Certificate,
};
use refusal::Refusal;

/// What a request asks for: everything that is not published is taken for a token request.
pub(crate) fn leg(method: &Method, path: &str) -> Leg {
    if path.starts_with(attestation::PREFIX) {
        Leg::Attestation
    } else if path == fabric::PATH {
        Leg::Fabric
    } else if method == Method::GET
        && (path.contains("/discovery/") || path.contains("/.well-known/"))
    {
        Leg::Discovery
    } else {
        Leg::Token
    }
}

/// Answers a request to the token service.
pub(crate) fn answer(world: &World, request: &Request, faults: &[FaultKind]) -> Reply {
    let correlation = request
        .header("client-request-id")
        .map(str::to_owned)
        .or_else(|| random_guid().ok())
        .unwrap_or_default();
    let reply = match route(world, request, faults) {
        Ok(reply) => reply,
        Err(refusal) => refusal.into_reply(world.clock.epoch(), &correlation),
    };
    reply
        .with_header("client-request-id", &correlation)
        .with_header("cache-control", "no-store, no-cache")
}

/// Whom and what a token is for.
pub(crate) struct TokenRequest<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) audience: &'a str,
    /// `x5t#S256` of the certificate it is bound to.
    pub(crate) binding: Option<&'a str>,
    /// Client capabilities, `xms_cc`.
    pub(crate) capabilities: &'a [String],
}

/// A signed token.
pub(crate) fn make_token(
    world: &World,
    request: &TokenRequest<'_>,
) -> Result<String, EmulatorError> {
    let now = world.clock.epoch();
    let identity = request.identity;
    let mut claims = json!({
        "aud": request.audience,
        "iss": issuer(&world.settings.tenant_id),
        "iat": now,
        "nbf": now,
        "exp": now + world.token_lifetime(),
        "appid": identity.client_id,
        "azp": identity.client_id,
        "appidacr": "2",
        "idtyp": "app",
        "oid": identity.object_id,
        "sub": identity.object_id,
        "tid": world.settings.tenant_id,
        "uti": random_guid()?,
        "ver": "2.0",
    });
    if let Some(resource_id) = &identity.resource_id {
        claims["xms_mirid"] = resource_id.as_str().into();
    }
    if let Some(binding) = request.binding {
        claims["cnf"] = json!({ "x5t#S256": binding });
        claims["xms_tb"] = "mtls_pop".into();
    }
    if !request.capabilities.is_empty() {
        claims["xms_cc"] = request.capabilities.into();
    }
    world.signer.sign(&claims)
}

fn route(world: &World, request: &Request, faults: &[FaultKind]) -> Result<Reply, Refusal> {
    let (tenant, rest) = request
        .path
        .trim_start_matches('/')
        .split_once('/')
        .ok_or_else(Refusal::no_such_path)?;
    let allowed = match rest {
        "oauth2/v2.0/token" => Method::POST,
        "discovery/v2.0/keys" | "v2.0/.well-known/openid-configuration" => Method::GET,
        _ => return Err(Refusal::no_such_path()),
    };
    if request.method != allowed {
        return Ok(method_not_allowed(&request.method, allowed.as_str()));
    }
    if !tenant.eq_ignore_ascii_case(&world.settings.tenant_id) {
        return Err(Refusal::new(
            90002,
            "invalid_request",
            format!("Tenant '{tenant}' not found."),
        ));
    }
    match rest {
        "oauth2/v2.0/token" => token(world, request, faults),
        "discovery/v2.0/keys" => Ok(Reply::ok(world.signer.key_set())),
        _ => Ok(configuration(world)),
    }
}

fn configuration(world: &World) -> Reply {
    let base = format!("{}/{}", world.addresses().sts, world.settings.tenant_id);
    Reply::ok(json!({
        "issuer": issuer(&world.settings.tenant_id),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["tls_client_auth"],
        "tls_client_certificate_bound_access_tokens": true,
    }))
}

fn token(world: &World, request: &Request, faults: &[FaultKind]) -> Result<Reply, Refusal> {
    for fault in faults {
        if let FaultKind::Aadsts {
            code,
            error,
            status,
        } = fault
        {
            return Err(Refusal::new(*code, error, "A fault was injected.").with_status(*status));
        }
    }
    let form = Form::read(request)?;
    let (identity, binding) = client(world, request, form.required("client_id")?)?;
    if form.required("grant_type")? != "client_credentials" {
        return Err(Refusal::new(
            70003,
            "unsupported_grant_type",
            "The only grant type here is 'client_credentials'.",
        ));
    }
    let bound = match form.required("token_type")?.to_ascii_lowercase().as_str() {
        "mtls_pop" => true,
        "bearer" => false,
        _ => {
            return Err(Refusal::new(
                90013,
                "invalid_request",
                "The parameter 'token_type' must be 'mtls_pop' or 'bearer'.",
            ));
        }
    };
    let scope = form.required("scope")?;
    let audience = scope
        .strip_suffix("/.default")
        .filter(|resource| !resource.is_empty() && !resource.contains([' ', '\t']))
        .ok_or_else(|| {
            Refusal::new(
                70011,
                "invalid_scope",
                format!("The scope '{scope}' must be one resource followed by '/.default'."),
            )
        })?;
    let refused =
        |unbound: &String| unbound.trim_end_matches('/') == audience.trim_end_matches('/');
    if bound && world.settings.unbound_resources.iter().any(refused) {
        return Err(Refusal::new(
            392_196,
            "invalid_request",
            format!("The resource '{audience}' does not accept certificate-bound tokens."),
        ));
    }
    let capabilities = form.capabilities()?;
    let token = make_token(
        world,
        &TokenRequest {
            identity,
            audience,
            binding: bound.then_some(&*binding),
            capabilities: &capabilities,
        },
    );
    let token = match token {
        Ok(token) => token,
        Err(error) => return Ok(internal(&error)),
    };
    let lifetime = world.token_lifetime();
    let token_type = if bound && !faults.contains(&FaultKind::WrongTokenType) {
        "mtls_pop"
    } else {
        "Bearer"
    };
    Ok(Reply::ok(json!({
        "token_type": token_type,
        "expires_in": lifetime,
        "ext_expires_in": lifetime,
        "refresh_in": lifetime / 2,
        "access_token": token,
    })))
}

/// The identity whose certificate the connection presented, and the certificate's `x5t#S256`.
fn client<'a>(
    world: &'a World,
    request: &Request,
    client_id: &str,
) -> Result<(&'a Identity, String), Refusal> {
    let der = request.certificate.as_deref().ok_or_else(|| {
        Refusal::client(
            392_200,
            "Client certificate is missing from the request: the token endpoint needs mutual TLS.",
        )
    })?;
    let certificate = Certificate::parse(der)
        .ok()
        .filter(|certificate| world.authority.issued(certificate))
        .ok_or_else(|| {
            Refusal::client(
                700_027,
                "The client certificate was not issued by the emulator's authority.",
            )
        })?;
    let binding = thumbprint(der);
    if let Some(code) = world.revoked(&binding) {
        return Err(Refusal::client(
            code,
            "The client certificate has been revoked.",
        ));
    }
    if world.token_time_is_over(&binding) {
        return Err(Refusal::client(
            1_000_901,
            "The time in which the client certificate may be used for tokens is over \
             (token_not_after).",
        ));
    }
    if !certificate.valid_at(world.clock.epoch()) {
        return Err(Refusal::client(
            1_000_502,
            "The provided certificate is not within its specified validity time range.",
        ));
    }
    let same = |own: &Option<String>, other: &str| {
        own.as_deref()
            .is_some_and(|own| own.eq_ignore_ascii_case(other))
    };
    if !same(&certificate.domain_component, &world.settings.tenant_id) {
        return Err(Refusal::client(
            700_027,
            "The client certificate's DC is not the tenant id of the request.",
        ));
    }
    if !same(&certificate.common_name, client_id) {
        return Err(Refusal::client(
            700_027,
            "The client certificate's CN is not the client id of the request.",
        ));
    }
    let identity = world
        .settings
        .identities
        .iter()
        .find(|identity| identity.client_id.eq_ignore_ascii_case(client_id))
        .ok_or_else(|| {
            Refusal::new(
                700_016,
                "unauthorized_client",
                format!("Application with identifier '{client_id}' was not found."),
            )
        })?;
    Ok((identity, binding))
}

/// The parameters of a token request.
struct Form(Map<String, Value>);

impl Form {
    fn read(request: &Request) -> Result<Self, Refusal> {
        const FORM: &str = "application/x-www-form-urlencoded";
        if request.media_type() != FORM {
            return Err(Refusal::new(
                900_561,
                "invalid_request",
                format!("Content-Type must be {FORM}."),
            ));
        }
        let mut form = Map::new();
        for (name, value) in url::form_urlencoded::parse(&request.body) {
            // Whoever proves itself by the connection has nothing else to prove.
            if matches!(
                &*name,
                "client_assertion" | "client_assertion_type" | "client_secret" | "req_cnf"
            ) {
                return Err(Refusal::new(
                    90013,
                    "invalid_request",
                    format!("The parameter '{name}' does not belong to this request."),
                ));
            }
            if form
                .insert(name.clone().into_owned(), value.into_owned().into())
                .is_some()
            {
                return Err(Refusal::new(
                    90013,
                    "invalid_request",
                    format!("The parameter '{name}' is given twice."),
                ));
            }
        }
        Ok(Self(form))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    fn required(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| {
                Refusal::new(
                    900_144,
                    "invalid_request",
                    format!("The request body must contain the following parameter: '{name}'."),
                )
            })
    }

    /// The values of `{"access_token":{"xms_cc":{"values":[…]}}}` in `claims`.
    fn capabilities(&self) -> Result<Vec<String>, Refusal> {
        let Some(claims) = self.get("claims") else {
            return Ok(Vec::new());
        };
        let claims: Map<String, Value> = serde_json::from_str(claims).map_err(|_| {
            Refusal::new(
                900_134,
                "invalid_request",
                "The parameter 'claims' must be a JSON object.",
            )
        })?;
        let values = claims
            .get("access_token")
            .and_then(|token| token["xms_cc"]["values"].as_array());
        Ok(values
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect())
    }
}
