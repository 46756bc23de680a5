//! The binding: a held key and its certificate, with everything that is used together with them.

pub(crate) mod anew;
pub(crate) mod cache;
pub(crate) mod certificate;
pub(crate) mod keeping;
pub(crate) mod mint;
pub(crate) mod store;

use std::{fmt, sync::Arc, time::SystemTime};

use keybond_keys::{HeldKey, Strength};
use keybond_tls::ClientIdentity;
use url::Url;
use x509_cert::{Certificate, der::Decode as _};

use self::certificate::Facts;
use crate::lifecycle::Life;

/// One version of an identity's credential: key, certificate and where tokens are for it.
///
/// A token, the connection it is used on and the certificate shown there all come from one binding. A renewal
/// makes another binding with a higher version and leaves this one as it is.
pub struct Binding {
    version: u64,
    facts: Facts,
    client_id: String,
    tenant_id: String,
    token_endpoint: Url,
    attested: bool,
    life: Life,
    identity: Arc<ClientIdentity>,
}

impl Binding {
    /// The version: higher for every certificate that this client gets, from 1 on.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        self.identity.chain().first().map_or(&[], Vec::as_slice)
    }

    /// The certificate and those that were issued with it (DER), the client's own first.
    pub fn certificate_chain(&self) -> &[Vec<u8>] {
        self.identity.chain()
    }

    /// The certificate's hash as tokens state it (RFC 8705 §3.1): SHA-256 of the DER, in base64url without
    /// padding.
    pub fn x5t_s256(&self) -> &str {
        &self.facts.x5t_s256
    }

    /// The certificate's subject as RFC 4514 writes it.
    pub fn subject(&self) -> String {
        Certificate::from_der(self.certificate_der())
            .map(|certificate| certificate.tbs_certificate().subject().to_string())
            .unwrap_or_default()
    }

    /// When the certificate's time begins.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// When the next certificate is asked for: a day before this one ends, or halfway if it lives less than
    /// two days; up to a tenth of that time earlier or later.
    pub fn renew_on(&self) -> SystemTime {
        self.life.refresh_on
    }

    /// Whether the key was attested for it.
    pub fn is_attested(&self) -> bool {
        self.attested
    }

    /// The identity's client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The identity's tenant.
    pub fn tenant_id(&self) -> &str {
        &self.tenant_id
    }

    /// Where tokens are asked for over mutual TLS with this certificate.
    pub fn token_endpoint(&self) -> &str {
        self.token_endpoint.as_str()
    }

    /// The key.
    pub fn key(&self) -> &Arc<HeldKey> {
        self.identity.key()
    }

    /// What the key was shown to be.
    pub fn strength(&self) -> Strength {
        self.key().strength()
    }

    /// Key and certificate as the TLS layer takes them.
    pub fn client_identity(&self) -> &Arc<ClientIdentity> {
        &self.identity
    }

    pub(crate) fn life(&self) -> &Life {
        &self.life
    }

    pub(crate) fn token_url(&self) -> &Url {
        &self.token_endpoint
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("tenant_id", &self.tenant_id)
            .field("x5t_s256", &self.facts.x5t_s256)
            .field("key", self.key())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Binding {
    /// A binding for tests of what is kept: its certificate says nothing.
    pub(crate) async fn of_version(version: u64, life: Life) -> Arc<Self> {
        let keys = keybond_keys::KeyProvider::in_memory();
        let key = keys.get_or_create_key().await.unwrap();
        let spki = rcgen::SubjectPublicKeyInfo::from_der(key.public_key().spki_der()).unwrap();
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let issuer = rcgen::Issuer::new(params.clone(), rcgen::KeyPair::generate().unwrap());
        let certificate = params.signed_by(&spki, &issuer).unwrap();
        Arc::new(Self {
            version,
            facts: Facts {
                not_before: life.obtained,
                not_after: life.usable_until,
                x5t_s256: String::new(),
            },
            client_id: String::new(),
            tenant_id: String::new(),
            token_endpoint: "https://login.example/".parse().unwrap(),
            attested: false,
            life,
            identity: Arc::new(ClientIdentity::new(vec![certificate.der().to_vec()], key).unwrap()),
        })
    }
}
