//! How resources want to be called, host by host.

use keybond_tls::{Leg, TlsVersion};

use crate::error::Error;

/// How the hosts of a resource want to be called.
///
/// Azure Key Vault, for instance, reads the request before it asks for the client certificate, and wants a
/// header that announces a bound token. Its rules are built in, like those of Managed HSM and Microsoft Graph.
#[derive(Clone, Debug)]
pub struct ResourceRule {
    host: String,
    pub(crate) resource: Option<String>,
    pub(crate) token_bound_header: bool,
    shown: ClientCertificate,
    newest: TlsVersion,
}

/// When a server asks for the client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientCertificate {
    /// In the first handshake. A server that does not ask there under TLS 1.3 is met once more under TLS 1.2; if it
    /// does not ask there either, the call fails and nothing is sent.
    FirstHandshake,
    /// When it has read the request, by a TLS 1.2 renegotiation, once on a connection; or in the first handshake.
    /// TLS 1.3, which has no renegotiation, is not offered.
    OnDemand,
    /// When it has read the request, by post-handshake authentication under TLS 1.3 (RFC 8446 §4.6.2). The TLS
    /// stack here does not have it: calls are refused with an error that says so, before anything is sent.
    PostHandshake,
}

impl ResourceRule {
    /// A rule for one host (`vault.example`) or for all names below one (`*.vault.example`). Without more, the
    /// certificate is shown in the first handshake and no header is added.
    pub fn new(host: &str) -> Self {
        Self {
            host: host.to_ascii_lowercase(),
            resource: None,
            token_bound_header: false,
            shown: ClientCertificate::FirstHandshake,
            newest: TlsVersion::Tls13,
        }
    }

    /// The resource that tokens for these hosts are for.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Adds `x-ms-tokenboundauth: true` to requests.
    #[must_use]
    pub fn token_bound_header(mut self) -> Self {
        self.token_bound_header = true;
        self
    }

    /// Shows the certificate when the server asks for it, in the first handshake or in a TLS 1.2
    /// renegotiation.
    #[must_use]
    pub fn on_demand(self) -> Self {
        self.client_certificate(ClientCertificate::OnDemand)
    }

    /// When the server asks for the certificate; in the first handshake unless set. Whenever it asks, it gets the
    /// certificate, whether or not the issuers it hints at include this one.
    #[must_use]
    pub fn client_certificate(mut self, when: ClientCertificate) -> Self {
        self.shown = when;
        self
    }

    /// The newest TLS version that is offered; TLS 1.3 unless set. Servers that ask for no certificate under TLS 1.3
    /// are found out without it, at the price of one more handshake an hour.
    #[must_use]
    pub fn newest_tls(mut self, version: TlsVersion) -> Self {
        self.newest = version;
        self
    }

    /// How to connect to these hosts.
    pub(crate) fn transport(&self) -> Result<(Leg, TlsVersion), Error> {
        match self.shown {
            ClientCertificate::FirstHandshake => Ok((Leg::FirstHandshake, self.newest)),
            ClientCertificate::OnDemand => Ok((Leg::OnDemand, self.newest)),
            ClientCertificate::PostHandshake => Err(Error::configuration(
                "client_certificate",
                "this TLS stack has no post-handshake authentication: let the server ask in the first handshake, \
                 or later under TLS 1.2 (on demand)",
            )),
        }
    }

    fn covers(&self, host: &str) -> bool {
        match self.host.strip_prefix("*.") {
            Some(parent) => host
                .strip_suffix(parent)
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            None => host == self.host,
        }
    }
}

/// The rules of a client: its own first, then the built-in ones.
#[derive(Clone, Debug)]
pub(crate) struct ResourceRules {
    own: usize,
    rules: Vec<ResourceRule>,
}

impl Default for ResourceRules {
    fn default() -> Self {
        const VAULTS: [&str; 6] = [
            "vault.azure.net",
            "vault.usgovcloudapi.net",
            "vault.azure.cn",
            "managedhsm.azure.net",
            "managedhsm.usgovcloudapi.net",
            "managedhsm.azure.cn",
        ];
        let vaults = VAULTS.into_iter().map(|parent| {
            ResourceRule::new(&format!("*.{parent}"))
                .resource(&format!("https://{parent}"))
                .token_bound_header()
                .on_demand()
        });
        let graph = ["graph.microsoft.com", "mtlstb.graph.microsoft.com"]
            .into_iter()
            .map(|host| ResourceRule::new(host).resource("https://graph.microsoft.com"));
        Self {
            own: 0,
            rules: vaults.chain(graph).collect(),
        }
    }
}

impl ResourceRules {
    /// Adds one of the client's own; the first that covers a host counts.
    pub(crate) fn add(&mut self, rule: ResourceRule) {
        self.rules.insert(self.own, rule);
        self.own += 1;
    }

    /// The rule for a host; for a host that none covers, the one of the resource that was named: a vault
    /// behind another name is still a vault.
    pub(crate) fn find(&self, host: &str, resource: Option<&str>) -> Option<&ResourceRule> {
        let audience =
            resource.map(|named| named.trim_end_matches("/.default").trim_end_matches('/'));
        let named =
            |rule: &&ResourceRule| audience.is_some() && rule.resource.as_deref() == audience;
        let covering = self.rules.iter().find(|rule| rule.covers(host));
        covering.or_else(|| self.rules.iter().find(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vaults_are_known_and_their_lookalikes_are_not() {
        let rules = ResourceRules::default();
        let vault = rules.find("mine.vault.azure.net", None).unwrap();
        assert_eq!(vault.resource.as_deref(), Some("https://vault.azure.net"));
        assert!(vault.token_bound_header);
        assert_eq!(
            vault.transport().unwrap(),
            (Leg::OnDemand, TlsVersion::Tls13)
        );
        let graph = rules.find("mtlstb.graph.microsoft.com", None).unwrap();
        assert!(!graph.token_bound_header);
        assert_eq!(
            graph.transport().unwrap(),
            (Leg::FirstHandshake, TlsVersion::Tls13)
        );
        for host in [
            "vault.azure.net",
            "mine.vault.azure.net.example",
            "evilvault.azure.net",
            "x.graph.microsoft.com",
        ] {
            assert!(rules.find(host, None).is_none(), "{host}");
        }
    }

    #[test]
    fn a_vault_behind_another_name_is_known_by_the_resource_that_is_named() {
        let rules = ResourceRules::default();
        for named in [
            "https://vault.azure.net",
            "https://vault.azure.net/.default",
        ] {
            assert!(
                rules
                    .find("localhost", Some(named))
                    .unwrap()
                    .token_bound_header,
                "{named}"
            );
        }
        assert!(
            rules
                .find("localhost", Some("https://other.example"))
                .is_none()
        );
        let graph = rules
            .find("graph.microsoft.com", Some("https://vault.azure.net"))
            .unwrap();
        assert!(
            !graph.token_bound_header,
            "the host goes before the resource"
        );
    }

    #[test]
    fn versions_are_limited_and_what_the_stack_lacks_is_refused() {
        let rule = ResourceRule::new("x.example").newest_tls(TlsVersion::Tls12);
        let (leg, newest) = rule.transport().unwrap();
        assert_eq!((leg, newest), (Leg::FirstHandshake, TlsVersion::Tls12));
        let rule = rule.client_certificate(ClientCertificate::PostHandshake);
        let error = rule.transport().unwrap_err();
        assert_eq!(error.field(), Some("client_certificate"));
    }

    #[test]
    fn the_clients_own_rules_go_first_in_their_order() {
        let mut rules = ResourceRules::default();
        rules.add(ResourceRule::new("mine.vault.azure.net").resource("first"));
        rules.add(ResourceRule::new("*.vault.azure.net").resource("second"));
        let resource = |host| rules.find(host, None).unwrap().resource.clone().unwrap();
        assert_eq!(resource("mine.vault.azure.net"), "first");
        assert_eq!(resource("other.vault.azure.net"), "second");
        assert_eq!(resource("x.vault.azure.cn"), "https://vault.azure.cn");
    }
}
