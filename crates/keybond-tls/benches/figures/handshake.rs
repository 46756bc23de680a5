//! A handshake with a held key in memory against one of bare rustls with a key of its own.

use std::{sync::Arc, time::Instant};

use keybond_tls::{Leg, TlsConnector as _};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio_rustls::TlsConnector;

use crate::{
    median,
    pki::{Pki, memory_key},
    report,
    rustls_server::RustlsServer,
};

const ROUNDS: usize = 15;
const EACH: usize = 20;

pub(crate) async fn compare(version: &'static SupportedProtocolVersion) {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, version).await;
    let connector = pki.connector();
    let identity = pki.identity_of(memory_key().await);
    let bare = TlsConnector::from(Arc::new(bare(&pki, version)));
    let name = ServerName::try_from("localhost").unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // In short bursts, so that both meet the same disturbances.
    for _ in 0..ROUNDS {
        for _ in 0..EACH {
            let tcp = server.dial().await;
            let started = Instant::now();
            let identity = Some(Arc::clone(&identity));
            let (client, served) = tokio::join!(
                connector.connect(tcp, "localhost", Leg::FirstHandshake, identity),
                server.accept()
            );
            drop((client.unwrap(), served.unwrap()));
            ours.push(started.elapsed().as_secs_f64() * 1e3);
        }
        for _ in 0..EACH {
            let tcp = server.dial().await;
            tcp.set_nodelay(true).unwrap();
            let started = Instant::now();
            let (client, served) = tokio::join!(bare.connect(name.clone(), tcp), server.accept());
            drop((client.unwrap(), served.unwrap()));
            theirs.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let what = format!(
        "handshake {:?} {ours:.2} ms, bare rustls {theirs:.2} ms",
        version.version
    );
    report(&what, ours / theirs, 1.15, "x");
}

fn bare(pki: &Pki, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let certificate = pki.certify_public(&key.subject_public_key_info());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(pki.ca_der.clone())).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    // Neither side resumes.
    config.resumption = Resumption::disabled();
    config
}
