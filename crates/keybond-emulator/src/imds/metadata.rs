//! Platform metadata, the first leg of version 2, and instance metadata.

use http::StatusCode;
use serde_json::json;

use super::{
    LOCATION, identity,
    query::{Query, Rules},
};
use crate::{
    attestation,
    http_io::{Reply, Request},
    world::World,
};

/// `GET /metadata/identity/getplatformmetadata`
pub(super) fn platform(world: &World, request: &Request) -> Result<Reply, Reply> {
    let query = Query::read(
        request,
        &Rules {
            version: "cred-api-version",
            versions: &["2.0"],
            resource_id: Some("mi_res_id"),
            others: &[],
        },
    )?;
    let identity = identity(world, &query)?;
    let settings = &world.settings;
    let endpoint = match &settings.attestation_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => attestation::endpoint(world),
    };
    Ok(Reply::ok(json!({
        "clientId": identity.client_id,
        "tenantId": settings.tenant_id,
        "cuId": settings.cu_id(),
        "attestationEndpoint": endpoint,
    })))
}

/// `GET /metadata/instance/compute` and its `location`.
pub(super) fn compute(world: &World, request: &Request) -> Result<Reply, Reply> {
    let query = Query::read(
        request,
        &Rules {
            version: "api-version",
            versions: &["2020-06-01", "2021-02-01"],
            resource_id: None,
            others: &["format"],
        },
    )?;
    let location = world.settings.location.as_str();
    if request.path == LOCATION {
        if query.get("format") != Some("text") {
            return Err(super::invalid("A single value needs format=text"));
        }
        return Ok(Reply::bytes(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            location.to_owned(),
        ));
    }
    Ok(Reply::ok(json!({
        "location": location,
        "name": "keybond-emulator",
        "osType": world.settings.os_type,
        "securityProfile": { "securityType": world.settings.security_type },
        "vmId": world.settings.vm_id,
    })))
}
