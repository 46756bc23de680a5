//! A handshake with a held key in memory against one of bare rustls with a key of its own: as rustls comes, and held to
//! the group that s2n prefers. Both sides offer one version, the same.

use std::{sync::Arc, time::Instant};

use keybond_tls::{Leg, TlsConnector as _, TlsVersion};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{default_provider, kx_group::SECP256R1},
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio_rustls::TlsConnector;

use crate::{
    pki::{Pki, memory_key},
    report,
    rustls_server::RustlsServer,
};

const ROUNDS: usize = 30;
const EACH: usize = 20;

/// What a round measures.
const WHO: usize = 3;

pub(crate) async fn compare(version: &'static SupportedProtocolVersion) {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, version).await;
    let connector = pki.connector();
    let identity = pki.identity_of(memory_key().await);
    let newest = match version.version {
        ProtocolVersion::TLSv1_2 => TlsVersion::Tls12,
        _ => TlsVersion::Tls13,
    };
    let mut p256 = default_provider();
    p256.kx_groups = vec![SECP256R1];
    let rivals = [default_provider(), p256]
        .map(|provider| TlsConnector::from(Arc::new(bare(&pki, version, provider))));
    let name = ServerName::try_from("localhost").unwrap();
    let mut times: [Vec<f64>; WHO] = Default::default();
    // In short bursts, so that all meet the same disturbances.
    for _ in 0..ROUNDS {
        for (who, times) in times.iter_mut().enumerate() {
            for _ in 0..EACH {
                let tcp = server.dial().await;
                tcp.set_nodelay(true).unwrap();
                let started = Instant::now();
                if who == 0 {
                    let (leg, identity) = (Leg::FirstHandshake, Some(Arc::clone(&identity)));
                    let (client, served) = tokio::join!(
                        connector.connect_up_to(tcp, "localhost", leg, newest, identity),
                        server.accept()
                    );
                    drop((client.unwrap(), served.unwrap()));
                } else {
                    let (client, served) =
                        tokio::join!(rivals[who - 1].connect(name.clone(), tcp), server.accept());
                    drop((client.unwrap(), served.unwrap()));
                }
                times.push(started.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let [ours, bare, p256] = times.map(undisturbed);
    for (what, theirs, bound) in [("bare rustls", bare, 1.15), ("rustls on P-256", p256, 1.15)] {
        let what = format!(
            "handshake {:?} {ours:.3} ms, {what} {theirs:.3} ms",
            version.version
        );
        report(&what, ours / theirs, bound, "x");
    }
}

/// The lower quartile: a busy machine interrupts more than half of the handshakes, and not each side as often.
fn undisturbed(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn bare(
    pki: &Pki,
    version: &'static SupportedProtocolVersion,
    provider: CryptoProvider,
) -> ClientConfig {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let certificate = pki.certify_public(&key.subject_public_key_info());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(pki.ca_der.clone())).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
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
