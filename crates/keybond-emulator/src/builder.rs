//! How an emulator is set up.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

use crate::{
    attestation::AttestationRule,
    clock::ClockSource,
    emulator::Emulator,
    error::EmulatorError,
    identity::{Identity, Profile},
    scenario::Scenario,
    world::lifetime_seconds,
};

/// The tenant if none is given.
const TENANT: &str = "a0000000-0000-4000-8000-00000000e001";
/// The machine's id if none is given.
const VM: &str = "a0000000-0000-4000-8000-00000000f001";

/// The emulated machine and its surroundings.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) public_host: String,
    pub(crate) tenant_id: String,
    pub(crate) vm_id: Option<String>,
    pub(crate) vmss_id: Option<String>,
    pub(crate) identities: Vec<Identity>,
    pub(crate) profile: Profile,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) token_lifetime: Duration,
    pub(crate) attestation_endpoint: Option<String>,
    pub(crate) attestation: AttestationRule,
    pub(crate) require_token_bound_header: bool,
    pub(crate) accept_bearer_tokens: bool,
    pub(crate) unbound_resources: Vec<String>,
    pub(crate) location: String,
    pub(crate) os_type: String,
    pub(crate) security_type: String,
    pub(crate) secrets: Vec<(String, String)>,
}

impl Settings {
    /// `cuId`: only the members that are set.
    pub(crate) fn cu_id(&self) -> Value {
        let mut members = Map::new();
        for (name, value) in [("vmId", &self.vm_id), ("vmssId", &self.vmss_id)] {
            if let Some(value) = value {
                members.insert(name.into(), value.as_str().into());
            }
        }
        Value::Object(members)
    }

    /// `cuId` as it must stand in a signing request: compact, `vmId` first.
    pub(crate) fn cu_id_json(&self) -> String {
        let members: Vec<String> = [("vmId", &self.vm_id), ("vmssId", &self.vmss_id)]
            .into_iter()
            .filter_map(|(name, value)| {
                let value = Value::from(value.as_deref()?);
                Some(format!("\"{name}\":{value}"))
            })
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

/// Sets up an [`Emulator`]; without any call it has sensible defaults.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(crate) settings: Settings,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) bind: IpAddr,
    pub(crate) ports: [u16; 4],
    pub(crate) clock: ClockSource,
    pub(crate) scenarios: Vec<Scenario>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("state_dir", &self.state_dir)
            .field("bind", &self.bind)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            settings: Settings {
                public_host: "localhost".into(),
                tenant_id: TENANT.into(),
                vm_id: Some(VM.into()),
                vmss_id: None,
                identities: Identity::defaults(),
                profile: Profile::V2,
                certificate_lifetime: Duration::from_secs(7 * 86_400),
                token_lifetime: Duration::from_secs(86_399),
                attestation_endpoint: None,
                attestation: AttestationRule::Optional,
                require_token_bound_header: true,
                accept_bearer_tokens: false,
                unbound_resources: vec!["https://management.azure.com".into()],
                location: "emulated".into(),
                os_type: "Linux".into(),
                security_type: "TrustedLaunch".into(),
                secrets: vec![("demo".into(), "opened by a bound token".into())],
            },
            state_dir: None,
            bind: Ipv4Addr::LOCALHOST.into(),
            ports: [0; 4],
            clock: Arc::new(SystemTime::now),
            scenarios: Vec::new(),
        }
    }
}

impl Builder {
    /// Keeps the authority, the token service's key and the vault's secrets in this folder, which
    /// is made with mode 0700, so that a restart is trusted by the same clients. Without it they
    /// end with the emulator.
    pub fn state_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(folder.into());
        self
    }

    /// The address to listen on; 127.0.0.1 if not given. Anyone who reaches it gets credentials
    /// that are worth nothing outside of the emulator.
    pub fn bind(mut self, address: IpAddr) -> Self {
        self.bind = address;
        self
    }

    /// The ports of IMDS, token service and vault; 0, the default, lets the system choose.
    pub fn ports(mut self, imds: u16, sts: u16, vault: u16) -> Self {
        self.ports[..3].copy_from_slice(&[imds, sts, vault]);
        self
    }

    /// The port of the vault that renegotiates; 0, the default, lets the system choose.
    pub fn renegotiating_vault_port(mut self, port: u16) -> Self {
        self.ports[3] = port;
        self
    }

    /// The host in the URLs of token service and vault, which their certificates carry; `localhost`
    /// if not given.
    pub fn public_host(mut self, host: impl Into<String>) -> Self {
        self.settings.public_host = host.into();
        self
    }

    /// Where time comes from; the system's clock if not given.
    pub fn clock(mut self, clock: ClockSource) -> Self {
        self.clock = clock;
        self
    }

    /// How long certificates are valid (1 second to 10 years); 7 days if not given.
    pub fn certificate_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.certificate_lifetime = lifetime;
        self
    }

    /// How long tokens are valid (1 second to 10 years); 86,399 seconds if not given.
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.token_lifetime = lifetime;
        self
    }

    /// The tenant's id: a GUID.
    pub fn tenant_id(mut self, id: impl Into<String>) -> Self {
        self.settings.tenant_id = id.into();
        self
    }

    /// The identities assigned to the machine; [`Identity::defaults`] if not given.
    pub fn identities(mut self, identities: impl IntoIterator<Item = Identity>) -> Self {
        self.settings.identities = identities.into_iter().collect();
        self
    }

    /// The machine's ids, `vmId` and `vmssId`; at least one. A virtual machine if not given.
    pub fn machine_ids(mut self, vm_id: Option<String>, vmss_id: Option<String>) -> Self {
        self.settings.vm_id = vm_id;
        self.settings.vmss_id = vmss_id;
        self
    }

    /// Which protocols IMDS speaks; both versions if not given.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.settings.profile = profile;
        self
    }

    /// The attestation endpoint that platform metadata names; the emulator's own, at
    /// `/attestation` on the token service's port, if not given.
    pub fn attestation_endpoint(mut self, url: impl Into<String>) -> Self {
        self.settings.attestation_endpoint = Some(url.into());
        self
    }

    /// Whether a certificate is issued only to a request with an attestation token; the token
    /// itself is not looked at ([`attestation`](Self::attestation) can say so). Off if not given.
    pub fn require_attestation(mut self, require: bool) -> Self {
        self.settings.attestation = if require {
            AttestationRule::Required
        } else {
            AttestationRule::Optional
        };
        self
    }

    /// What `issuecredential` says to attestation tokens; [`AttestationRule::Optional`] if not given.
    pub fn attestation(mut self, rule: AttestationRule) -> Self {
        self.settings.attestation = rule;
        self
    }

    /// Plays a scenario as soon as the servers listen. Given more than once, all of them are played.
    pub fn scenario(mut self, scenario: Scenario) -> Self {
        self.scenarios.push(scenario);
        self
    }

    /// Whether the vault needs `x-ms-tokenboundauth: true`, as Key Vault does. On if not given.
    pub fn require_token_bound_header(mut self, require: bool) -> Self {
        self.settings.require_token_bound_header = require;
        self
    }

    /// Whether the vault opens to tokens that are bound to nothing, too, as a vault without a policy about them
    /// does. Off if not given.
    pub fn accept_bearer_tokens(mut self, accept: bool) -> Self {
        self.settings.accept_bearer_tokens = accept;
        self
    }

    /// Resources for which the token service makes no bound tokens (AADSTS392196);
    /// `https://management.azure.com` if not given.
    pub fn unbound_resources(mut self, resources: impl IntoIterator<Item = String>) -> Self {
        self.settings.unbound_resources = resources.into_iter().collect();
        self
    }

    /// What instance metadata says: `osType` and `securityProfile.securityType`; `Linux` and
    /// `TrustedLaunch` if not given.
    pub fn machine_kind(
        mut self,
        os_type: impl Into<String>,
        security_type: impl Into<String>,
    ) -> Self {
        self.settings.os_type = os_type.into();
        self.settings.security_type = security_type.into();
        self
    }

    /// Puts a secret into the vault, unless state kept earlier has one of this name. One named
    /// `demo` is always there.
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.secrets.push((name.into(), value.into()));
        self
    }

    /// Starts the servers on the current tokio runtime.
    ///
    /// # Errors
    /// A setting that makes no sense, a port that is taken, state that cannot be read or written.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn start(self) -> Result<Emulator, EmulatorError> {
        self.check()?;
        Emulator::start(self).await
    }

    fn check(&self) -> Result<(), EmulatorError> {
        let settings = &self.settings;
        self.scenarios.iter().try_for_each(Scenario::check)?;
        lifetime_seconds("certificate_lifetime", settings.certificate_lifetime)?;
        lifetime_seconds("token_lifetime", settings.token_lifetime)?;
        name("tenant_id", &settings.tenant_id)?;
        for identity in &settings.identities {
            name("identities.client_id", &identity.client_id)?;
            name("identities.object_id", &identity.object_id)?;
        }
        for id in [&settings.vm_id, &settings.vmss_id].into_iter().flatten() {
            name("machine_ids", id)?;
        }
        if settings.vm_id.is_none() && settings.vmss_id.is_none() {
            return Err(EmulatorError::invalid(
                "machine_ids",
                "a vmId, a vmssId or both",
                "neither",
            ));
        }
        let host = &settings.public_host;
        if host.is_empty()
            || !host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':'))
        {
            return Err(EmulatorError::invalid(
                "public_host",
                "a host name or address without scheme and port",
                host,
            ));
        }
        Ok(())
    }
}

/// Ids go into certificates as PrintableString: letters, digits and hyphens.
fn name(field: &'static str, value: &str) -> Result<(), EmulatorError> {
    let printable = (1..=64).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if printable {
        Ok(())
    } else {
        Err(EmulatorError::invalid(
            field,
            "1 to 64 letters, digits and hyphens",
            value,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_that_make_no_sense_are_refused_by_name() {
        for (builder, field) in [
            (
                Builder::default().certificate_lifetime(Duration::ZERO),
                "certificate_lifetime",
            ),
            (Builder::default().tenant_id(""), "tenant_id"),
            (Builder::default().machine_ids(None, None), "machine_ids"),
            (Builder::default().public_host("http://x"), "public_host"),
            (
                Builder::default().identities([Identity::system_assigned("a b", "c")]),
                "identities.client_id",
            ),
        ] {
            let refusal = builder.start().await.unwrap_err();
            assert!(refusal.to_string().starts_with(field), "{refusal}");
        }
    }

    #[test]
    fn only_the_populated_ids_are_named() {
        let builder = Builder::default().machine_ids(Some("a".into()), Some("b".into()));
        assert_eq!(
            builder.settings.cu_id_json(),
            r#"{"vmId":"a","vmssId":"b"}"#
        );
        let builder = Builder::default().machine_ids(None, Some("b".into()));
        assert_eq!(builder.settings.cu_id_json(), r#"{"vmssId":"b"}"#);
        assert_eq!(
            builder.settings.cu_id().to_string(),
            builder.settings.cu_id_json()
        );
    }
}
