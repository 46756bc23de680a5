//! The second leg of version 2: a signing request in, a certificate out.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{
    identity, invalid,
    query::{Query, Rules},
};
use crate::{
    attestation::{self, AttestationRule},
    csr::{Csr, CsrRules},
    der::DerError,
    fault::FaultKind,
    http_io::{Reply, Request},
    identity::Identity,
    jwt::thumbprint,
    service::internal,
    world::World,
    x509::{LeafRequest, stranger_key},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IssueRequest {
    csr: String,
    #[serde(default)]
    attestation_token: Option<String>,
}

/// `POST /metadata/identity/issuecredential`
pub(super) fn answer(
    world: &World,
    request: &Request,
    faults: &[FaultKind],
) -> Result<Reply, Reply> {
    let query = Query::read(
        request,
        &Rules {
            version: "cred-api-version",
            versions: &["2.0"],
            resource_id: Some("mi_res_id"),
            others: &["bypass_cache"],
        },
    )?;
    let fresh = match query.get("bypass_cache") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(invalid("'bypass_cache' must be 'true' or 'false'")),
    };
    let identity = identity(world, &query)?;
    if request.media_type() != "application/json" {
        return Err(invalid("Content-Type must be application/json"));
    }
    let asked: IssueRequest = serde_json::from_slice(&request.body)
        .map_err(|error| invalid(format!("The body is not as expected: {error}")))?;
    let attested = asked
        .attestation_token
        .as_deref()
        .is_some_and(|token| !token.is_empty());
    let rule = world.attestation();
    match rule {
        AttestationRule::Required | AttestationRule::Checked if !attested => {
            return Err(invalid(
                "Attestation Token is missing / empty in the issue credential request",
            ));
        }
        AttestationRule::Refused if attested => {
            return Err(invalid("The attestation token is not accepted"));
        }
        _ => {}
    }
    let der = decode(&asked.csr)?;
    let csr = Csr::parse(
        &der,
        &CsrRules {
            client_id: identity.client_id.clone(),
            tenant_id: world.settings.tenant_id.clone(),
            cu_id: world.settings.cu_id_json(),
        },
    )
    .map_err(|error| refused_csr(&error))?;
    let flaw = asked
        .attestation_token
        .filter(|_| rule == AttestationRule::Checked)
        .and_then(|token| attestation::flaw_code(world, &token, &csr.public_key));
    certify(world, identity, &csr, fresh, flaw, faults).map_err(|error| internal(&error))
}

/// One line of standard base64.
fn decode(text: &str) -> Result<Vec<u8>, Reply> {
    if text.starts_with("-----") {
        return Err(invalid(
            "csr: expected base64 of the DER in one line, not PEM",
        ));
    }
    STANDARD.decode(text).map_err(|error| {
        invalid(format!(
            "csr: expected standard base64 with padding in one line: {error}"
        ))
    })
}

/// The refusal, with the offset: the one place where the emulator says more than the real service.
fn refused_csr(error: &DerError) -> Reply {
    tracing::info!(offset = error.offset, field = error.field, "CSR refused");
    Reply::json(
        StatusCode::BAD_REQUEST,
        json!({
            "error": "invalid_request",
            "error_description": format!("csr: {error}"),
            "csr": {
                "offset": error.offset,
                "field": error.field,
                "expected": error.expected,
                "found": error.found.map(|byte| format!("0x{byte:02x}")),
            },
        }),
    )
}

fn certify(
    world: &World,
    identity: &Identity,
    csr: &Csr,
    fresh: bool,
    flaw: Option<u32>,
    faults: &[FaultKind],
) -> Result<Reply, crate::EmulatorError> {
    const STRANGER: &str = "a0000000-0000-4000-8000-0000000000ff";
    const HOUR: Duration = Duration::from_secs(3600);
    const BACKDATED: Duration = Duration::from_secs(300);

    let now = world.clock.now();
    let lifetime = world.certificate_lifetime();
    let (mut not_before, mut not_after) = (now - BACKDATED, now + lifetime);
    let (mut client_id, mut tenant_id) = (&*identity.client_id, &*world.settings.tenant_id);
    let mut public_key = csr.public_key.clone();
    let addresses = world.addresses();
    let mut endpoint = addresses.sts;
    for fault in faults {
        match fault {
            FaultKind::WrongKey => public_key = stranger_key(&public_key),
            FaultKind::WrongClientId => client_id = STRANGER,
            FaultKind::WrongTenantId => tenant_id = STRANGER,
            FaultKind::Expired => (not_before, not_after) = (now - 2 * HOUR, now - HOUR),
            FaultKind::NotYetValid => (not_before, not_after) = (now + HOUR, now + HOUR + lifetime),
            FaultKind::HttpStsEndpoint => {
                endpoint.clone_from(&addresses.honeypot.http);
            }
            FaultKind::ForeignStsEndpoint { host } => endpoint = format!("https://{host}"),
            _ => {}
        }
    }
    let certificate = world.authority.issue(&LeafRequest {
        client_id,
        tenant_id,
        public_key: &public_key,
        not_before,
        not_after,
    })?;
    let name = thumbprint(&certificate);
    world.note_issued(name.clone(), &identity.client_id, fresh);
    if let Some(code) = flaw {
        world.revoke(&name, code);
    }
    Ok(Reply::ok(json!({
        "client_id": identity.client_id,
        "tenant_id": world.settings.tenant_id,
        "certificate": STANDARD.encode(&certificate),
        "identity_type": identity.kind.name(),
        "mtls_authentication_endpoint": endpoint,
    })))
}
