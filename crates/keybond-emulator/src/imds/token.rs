//! Version 1: a bearer token for whoever asks from this machine.

use http::StatusCode;
use serde_json::json;

use super::{
    identity, invalid,
    query::{Query, Rules},
};
use crate::{
    http_io::{Reply, Request},
    service::internal,
    sts::{TokenRequest, make_token},
    world::World,
};

/// `GET /metadata/identity/oauth2/token`
pub(super) fn answer(world: &World, request: &Request) -> Result<Reply, Reply> {
    let query = Query::read(
        request,
        &Rules {
            version: "api-version",
            versions: &["2018-02-01", "2019-08-01", "2019-11-01", "2020-06-01"],
            resource_id: Some("msi_res_id"),
            others: &["resource", "bypass_cache"],
        },
    )?;
    let resource = query
        .get("resource")
        .filter(|resource| !resource.is_empty())
        .ok_or_else(|| invalid("Required query variable 'resource' is missing"))?;
    let identity = identity(world, &query)?;
    let now = world.clock.epoch();
    let lifetime = world.token_lifetime();
    let token = make_token(
        world,
        &TokenRequest {
            identity,
            audience: resource,
            binding: None,
            capabilities: &[],
        },
    )
    .map_err(|error| internal(&error))?;
    Ok(Reply::json(
        StatusCode::OK,
        json!({
            "access_token": token,
            "client_id": identity.client_id,
            "expires_in": lifetime.to_string(),
            "expires_on": (now + lifetime).to_string(),
            "ext_expires_in": lifetime.to_string(),
            "not_before": now.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        }),
    ))
}
