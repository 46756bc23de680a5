//! Where credentials may go: the metadata service on loopback or link-local addresses only, the token
//! service over https to hosts that are known or were named.

use std::net::IpAddr;

use url::{Host, Url};

use crate::{
    environment::{self, Environment},
    error::{At, Error, Malformation},
    identity::Identity,
    printable::printable,
};

/// Azure's metadata service: link-local, reachable from the machine alone.
const IMDS: &str = "http://169.254.169.254";

/// Azure's token services for mutual TLS, cloud by cloud. A host is one of these or a name below one.
const STS_SUFFIXES: [&str; 6] = [
    "mtlsauth.microsoft.com",
    "mtlsauth.microsoftonline.us",
    "mtlsauth.partner.microsoftonline.cn",
    "mtlsauth.sovcloud-identity.fr",
    "mtlsauth.sovcloud-identity.de",
    "mtlsauth.sovcloud-identity.sg",
];

/// The address of the metadata service.
#[derive(Clone, Debug)]
pub(crate) struct ImdsEndpoint(Url);

impl ImdsEndpoint {
    /// The one that was named, else the one in the environment, else Azure's.
    pub(crate) fn choose(named: Option<&str>, env: &dyn Environment) -> Result<Self, Error> {
        if let Some(named) = named {
            return Self::parse("imds_endpoint", named);
        }
        match environment::non_empty(env, environment::AUTHORITY_HOST) {
            Some(named) => Self::parse(environment::AUTHORITY_HOST, &named),
            None => Self::parse("imds_endpoint", IMDS),
        }
    }

    fn parse(field: &'static str, text: &str) -> Result<Self, Error> {
        // The value itself is not repeated: people put user names and passwords into URLs.
        let refuse = |problem: &str| Error::configuration(field, problem);
        let url = Url::parse(text).map_err(|error| refuse(&format!("is no URL: {error}")))?;
        if url.scheme() != "http" {
            return Err(refuse("is no http URL: the metadata service has no TLS"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("contains a user name or password"));
        }
        let local = match url.host() {
            Some(Host::Ipv4(ip)) => is_local(ip.into()),
            Some(Host::Ipv6(ip)) => is_local(ip.into()),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if !local {
            return Err(refuse(
                "is neither a loopback nor a link-local address, and credentials go nowhere else in clear",
            ));
        }
        Ok(Self(url))
    }

    /// The URL of one of its operations. A path or query of the endpoint itself is replaced.
    pub(crate) fn url(&self, path: &str, version: (&str, &str), identity: &Identity) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url.set_fragment(None);
        url.query_pairs_mut()
            .clear()
            .append_pair(version.0, version.1)
            .extend_pairs(identity.selector());
        url
    }

    /// The address itself, for reports.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Scheme, host and port: what is said of an address that somebody else named. The rest may hold anything.
fn place_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    printable(&format!("{}://{host}{port}", url.scheme()), &[])
}

/// Whether an address leads no farther than this machine or its own link.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_local(ip.into()),
            None => ip.is_loopback() || ip.is_unicast_link_local(),
        },
    }
}

/// Whether an address belongs to a private network (RFC 1918), as platforms give to their own endpoints.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some_and(|ip| ip.is_private()),
    }
}

/// The token services that may be used.
#[derive(Clone, Debug, Default)]
pub(crate) struct StsHosts(pub(crate) Vec<String>);

impl StsHosts {
    /// The base URL of a token service as the metadata service names it, if credentials may go there.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no URL, [`Error::Host`] if nothing may be sent there.
    pub(crate) fn check(
        &self,
        at: &At,
        field: &'static str,
        text: &str,
        env: &dyn Environment,
    ) -> Result<Url, Error> {
        let url = Url::parse(text).map_err(|_| {
            at.malformed(
                field,
                Malformation::Unexpected {
                    expected: "an absolute URL",
                },
            )
        })?;
        let refuse = |problem| Error::Host {
            at: at.clone(),
            field: field.into(),
            address: place_of(&url),
            problem,
        };
        if url.scheme() != "https" {
            return Err(refuse("credentials go over https only"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it contains a user name or password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("it contains a query or fragment"));
        }
        let host = url.host_str().unwrap_or_default();
        let azure = url.port().is_none()
            && STS_SUFFIXES.iter().any(|suffix| {
                host.strip_suffix(suffix)
                    .is_some_and(|below| below.is_empty() || below.ends_with('.'))
            });
        if azure || self.names(host, url.port(), env) {
            return Ok(url);
        }
        Err(refuse(
            "it is neither one of Azure's token services nor among the hosts that are allowed",
        ))
    }

    /// Whether configuration or environment names exactly this host, with any port or with this one.
    fn names(&self, host: &str, port: Option<u16>, env: &dyn Environment) -> bool {
        let from_env = environment::non_empty(env, environment::ALLOWED_HOSTS).unwrap_or_default();
        let named = self.0.iter().map(String::as_str).chain(from_env.split(','));
        let with_port = port.map(|port| format!("{host}:{port}"));
        named.map(str::trim).any(|entry| {
            !entry.is_empty()
                && (entry.eq_ignore_ascii_case(host)
                    || with_port
                        .as_deref()
                        .is_some_and(|full| entry.eq_ignore_ascii_case(full)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::leg::Leg;

    struct Env(&'static [(&'static str, &'static str)]);

    impl Environment for Env {
        fn get(&self, name: &str) -> Option<String> {
            let (_, value) = self.0.iter().find(|(key, _)| *key == name)?;
            Some((*value).to_owned())
        }
    }

    const NONE: Env = Env(&[]);

    #[test]
    fn the_endpoint_is_named_or_from_the_environment_or_azures() {
        let env = Env(&[(
            environment::AUTHORITY_HOST,
            "http://127.0.0.1:8080/some/path",
        )]);
        let chosen = |named, env: &Env| {
            ImdsEndpoint::choose(named, env).unwrap().url(
                "/metadata/x",
                ("v", "1"),
                &Identity::SystemAssigned,
            )
        };
        assert_eq!(
            chosen(Some("http://[::1]:9"), &env).as_str(),
            "http://[::1]:9/metadata/x?v=1"
        );
        assert_eq!(
            chosen(None, &env).as_str(),
            "http://127.0.0.1:8080/metadata/x?v=1"
        );
        assert_eq!(
            chosen(None, &NONE).as_str(),
            "http://169.254.169.254/metadata/x?v=1"
        );
    }

    #[test]
    fn an_endpoint_beyond_the_link_is_refused() {
        for text in [
            "http://10.0.0.4",
            "http://imds.example",
            "http://localhost.example",
            "https://169.254.169.254",
            "http://user@127.0.0.1",
            "http://[::ffff:10.0.0.4]",
            "127.0.0.1:80",
            "",
        ] {
            let env = [(environment::AUTHORITY_HOST, text)];
            let refused = ImdsEndpoint::choose(Some(text), &NONE).unwrap_err();
            assert_eq!(refused.field(), Some("imds_endpoint"), "{text}");
            if !text.is_empty() {
                let refused = ImdsEndpoint::parse(env[0].0, env[0].1).unwrap_err();
                assert_eq!(refused.field(), Some(environment::AUTHORITY_HOST), "{text}");
            }
        }
    }

    #[test]
    fn selectors_are_named_as_v2_names_them_and_encoded() {
        let endpoint = ImdsEndpoint::choose(None, &NONE).unwrap();
        let url = |identity: &Identity| {
            let url = endpoint.url("/p", ("cred-api-version", "2.0"), identity);
            url.query().unwrap().to_owned()
        };
        let uuid = "0a0a0a0a-0000-4000-8000-00000000000f";
        assert_eq!(url(&Identity::SystemAssigned), "cred-api-version=2.0");
        assert_eq!(
            url(&Identity::client_id(uuid).unwrap()),
            format!("cred-api-version=2.0&client_id={uuid}")
        );
        assert_eq!(
            url(&Identity::object_id(uuid).unwrap()),
            format!("cred-api-version=2.0&object_id={uuid}")
        );
        assert_eq!(
            url(&Identity::resource_id("/subscriptions/s/x&client_id=y#z").unwrap()),
            "cred-api-version=2.0&mi_res_id=%2Fsubscriptions%2Fs%2Fx%26client_id%3Dy%23z"
        );
    }

    #[test]
    fn token_services_are_azures_or_named_exactly() {
        let at = At::new(Leg::Issue, &Arc::from("id"));
        let hosts = StsHosts(vec!["sts.local".into()]);
        let env = Env(&[(environment::ALLOWED_HOSTS, "127.0.0.1:8443, other.local,,")]);
        for good in [
            "https://westeurope.mtlsauth.microsoft.com",
            "https://mtlsauth.microsoft.com/",
            "https://uksouth.MTLSAUTH.microsoft.com",
            "https://x.mtlsauth.sovcloud-identity.fr",
            "https://sts.local:444",
            "https://other.local",
            "https://127.0.0.1:8443",
        ] {
            assert!(hosts.check(&at, "f", good, &env).is_ok(), "{good}");
        }
        for bad in [
            "http://westeurope.mtlsauth.microsoft.com",
            "https://westeurope.mtlsauth.microsoft.com:8443",
            "https://evilmtlsauth.microsoft.com",
            "https://mtlsauth.microsoft.com.evil.example",
            "https://mtlsauth.microsoft.com@evil.example",
            "https://westeurope.mtlsauth.microsoft.com?x=1",
            "https://sub.sts.local",
            "https://127.0.0.1:8444",
            "https://localhost",
        ] {
            let refused = hosts.check(&at, "f", bad, &env).unwrap_err();
            assert_eq!(refused.code(), "host_not_allowed", "{bad}");
            let text = refused.to_string();
            assert!(!text.contains('@') && !text.contains('?'), "{text}");
        }
        let refused = hosts.check(&at, "f", "mtlsauth.microsoft.com", &env);
        assert_eq!(refused.unwrap_err().code(), "response_field_invalid");
    }
}
