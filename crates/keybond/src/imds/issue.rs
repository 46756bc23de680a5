//! The credential: a certificate request goes in, a certificate and the token service's address come out.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Serialize;
use url::Url;

use super::{ISSUE_PATH, Imds, V2, check_same, metadata::Metadata, refusal, retry::Family};
use crate::{
    csr::Csr,
    environment::Environment,
    error::{At, Error},
    hosts::StsHosts,
    http::Deadline,
    json::Object,
    leg::{Done, Leg},
};

/// What was issued. The certificate itself is not checked yet.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: Vec<u8>,
    pub(crate) token_endpoint: Url,
    /// Where the answer came from, for the errors of later checks.
    pub(crate) at: At,
}

#[derive(Serialize)]
struct Body<'a> {
    csr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation_token: Option<&'a str>,
}

/// What a certificate is asked for with.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) csr: &'a Csr,
    pub(crate) attestation_token: Option<&'a str>,
    /// Whether the service must issue a new certificate instead of one that it has kept.
    pub(crate) bypass_cache: bool,
}

/// Which token services may be used.
pub(crate) struct Allowed<'a> {
    pub(crate) hosts: &'a StsHosts,
    pub(crate) environment: &'a dyn Environment,
}

impl Imds {
    pub(crate) async fn issue(
        &self,
        metadata: &Metadata,
        request: Request<'_>,
        allowed: Allowed<'_>,
        correlation_id: &Arc<str>,
        deadline: Deadline,
    ) -> Result<Done<Issued>, Error> {
        let at = At::new(Leg::Issue, correlation_id);
        let body = serde_json::to_vec(&Body {
            csr: request.csr.to_base64(),
            attestation_token: request.attestation_token,
        })
        .map_err(|error| Error::configuration("csr", error.to_string()))?;
        let mut ask = self.ask(
            ISSUE_PATH,
            V2,
            correlation_id,
            true,
            Some(Bytes::from(body)),
        )?;
        if request.bypass_cache {
            ask.url
                .query_pairs_mut()
                .append_pair("bypass_cache", "true");
        }
        let (answer, attempts) = self.persist(&ask, &at, deadline, Family::Issue).await?;
        let at = answer.place(at, &ask);
        if answer.status.as_u16() != 200 {
            return Err(refusal(&answer, at, &ask));
        }
        let issued = read(&answer.body, metadata, &allowed, &at)?;
        let outcome = format!(
            "a certificate of {} bytes, tokens at {}{}",
            issued.certificate.len(),
            issued.token_endpoint.host_str().unwrap_or_default(),
            super::attempts(attempts)
        );
        Ok(Done::new(issued, outcome))
    }
}

fn read(body: &[u8], metadata: &Metadata, allowed: &Allowed<'_>, at: &At) -> Result<Issued, Error> {
    const ENDPOINT: &str = "mtls_authentication_endpoint";
    let object = Object::parse(body, at)?;
    check_same(
        at,
        "client_id",
        &metadata.client_id,
        object.uuid("client_id")?,
    )?;
    check_same(
        at,
        "tenant_id",
        &metadata.tenant_id,
        object.uuid("tenant_id")?,
    )?;
    if !["SystemAssigned", "UserAssigned"].contains(&object.text("identity_type")?) {
        return Err(object.unexpected("identity_type", "SystemAssigned or UserAssigned"));
    }
    let base = allowed
        .hosts
        .check(at, ENDPOINT, object.text(ENDPOINT)?, allowed.environment)?;
    let certificate = BASE64_STANDARD
        .decode(object.text("certificate")?)
        .map_err(|_| object.unexpected("certificate", "a certificate in base64"))?;
    Ok(Issued {
        certificate,
        token_endpoint: token_endpoint(base, &metadata.tenant_id),
        at: at.clone(),
    })
}

/// `{base}/{tenant}/oauth2/v2.0/token`.
fn token_endpoint(mut base: Url, tenant_id: &str) -> Url {
    let path = base.path().trim_end_matches('/');
    let path = format!("{path}/{tenant_id}/oauth2/v2.0/token");
    base.set_path(&path);
    base
}
