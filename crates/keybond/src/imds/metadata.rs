//! Platform metadata: the machine's ids, the identity's, and where keys are attested.

use std::sync::Arc;

use serde_json::Value;
use url::Url;

use super::{Imds, METADATA_PATH, V2, check_server, refusal, retry::Family};
use crate::{
    csr::CuId,
    error::{At, Error},
    http::Deadline,
    json::Object,
    leg::{Done, Leg},
};

/// What the metadata service says about this machine and the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) client_id: String,
    pub(crate) tenant_id: String,
    pub(crate) cu_id: CuId,
    pub(crate) attestation_endpoint: Url,
}

impl Imds {
    pub(crate) async fn metadata(
        &self,
        correlation_id: &Arc<str>,
        deadline: Deadline,
    ) -> Result<Done<Metadata>, Error> {
        let at = At::new(Leg::Metadata, correlation_id);
        let ask = self.ask(METADATA_PATH, V2, correlation_id, true, None)?;
        let (answer, attempts) = self.persist(&ask, &at, deadline, Family::Metadata).await?;
        let at = answer.place(at, &ask);
        match answer.status.as_u16() {
            200 => {}
            404 => {
                // A proxy's 404 says nothing about the service.
                check_server(&answer.headers, &at)?;
                return Err(Error::V1Only { at });
            }
            _ => return Err(refusal(&answer, at, &ask)),
        }
        check_server(&answer.headers, &at)?;
        let metadata = read(&answer.body, &at)?;
        self.check_asked_client(&at, "clientId", &metadata.client_id)?;
        let outcome = format!(
            "client {} in tenant {}{}",
            metadata.client_id,
            metadata.tenant_id,
            super::attempts(attempts)
        );
        Ok(Done::new(metadata, outcome))
    }
}

fn read(body: &[u8], at: &At) -> Result<Metadata, Error> {
    let object = Object::parse(body, at)?;
    let cu_id = object.object("cuId")?;
    let id = |name: &str| match cu_id.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if id.is_empty() => Ok(None),
        Some(Value::String(id)) => Ok(Some(id.clone())),
        Some(_) => Err(object.unexpected("cuId", "an object of strings")),
    };
    let cu_id = CuId {
        vm_id: id("vmId")?,
        vmss_id: id("vmssId")?,
    };
    if cu_id.is_empty() {
        return Err(object.unexpected("cuId", "an object with vmId or vmssId"));
    }
    let attestation_endpoint = Url::parse(object.text("attestationEndpoint")?)
        .map_err(|_| object.unexpected("attestationEndpoint", "an absolute URL"))?;
    Ok(Metadata {
        client_id: object.uuid("clientId")?.to_owned(),
        tenant_id: object.uuid("tenantId")?.to_owned(),
        cu_id,
        attestation_endpoint,
    })
}
