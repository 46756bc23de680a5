//! A certificate authority, a server and a client identity for one test.

use std::{path::PathBuf, sync::Arc};

use keybond_keys::{HeldKey, KeyProvider, MemoryStore};
use keybond_tls::{ClientIdentity, TrustRoots};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use tempfile::TempDir;

use crate::Connector;

/// The name in every client certificate.
pub(crate) const CLIENT: &str = "keybond test client";

pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) ca_der: Vec<u8>,
    pub(crate) server: ServerCertificate,
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

pub(crate) struct ServerCertificate {
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
    pub(crate) key: KeyPair,
}

impl Pki {
    /// An authority and a certificate of it for `localhost`, `127.0.0.1` and `::1`.
    pub(crate) fn new() -> Self {
        Self::named("keybond test authority")
    }

    /// [`Pki::new`] with another name for the authority.
    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server = server(&issuer, server_params());
        Self {
            ca_pem: authority.pem(),
            ca_der: authority.der().to_vec(),
            server,
            issuer,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A server certificate of this authority with the parameters changed by `change`.
    pub(crate) fn server_with(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> ServerCertificate {
        let mut params = server_params();
        change(&mut params);
        server(&self.issuer, params)
    }

    /// A connector that trusts this authority alone.
    pub(crate) fn connector(&self) -> Connector {
        Connector::new(&TrustRoots::from_pem(&self.ca_pem).unwrap()).unwrap()
    }

    /// A client certificate (DER) of this authority for `key`.
    pub(crate) fn certify(&self, key: &HeldKey) -> Vec<u8> {
        self.certify_public(key.public_key().spki_der())
    }

    /// A client certificate (DER) of this authority for a public key (SubjectPublicKeyInfo).
    pub(crate) fn certify_public(&self, spki: &[u8]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, CLIENT);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let public = SubjectPublicKeyInfo::from_der(spki).unwrap();
        let certificate = params.signed_by(&public, &self.issuer).unwrap();
        certificate.der().to_vec()
    }

    /// An identity of this authority with `key`.
    pub(crate) fn identity_of(&self, key: Arc<HeldKey>) -> Arc<ClientIdentity> {
        Arc::new(ClientIdentity::new(vec![self.certify(&key)], key).unwrap())
    }

    /// An identity with a new key in memory.
    pub(crate) async fn identity(&self) -> Arc<ClientIdentity> {
        self.identity_of(memory_key().await)
    }

    /// Writes a file for a peer to read.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

pub(crate) async fn memory_key() -> Arc<HeldKey> {
    let provider = KeyProvider::builder().store(MemoryStore).build();
    provider.get_or_create_key().await.unwrap()
}

fn server_params() -> CertificateParams {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn server(issuer: &Issuer<'static, KeyPair>, params: CertificateParams) -> ServerCertificate {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    ServerCertificate {
        der: certificate.der().to_vec(),
        pem: certificate.pem(),
        key,
    }
}
