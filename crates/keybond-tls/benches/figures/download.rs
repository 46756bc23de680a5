//! A gibibyte from Apache, which asks for the certificate first, against curl.

use std::{fs::File, process::Command, time::Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use keybond_testkit::{Apache, Site};
use keybond_tls::{Leg, TlsConnector as _};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use tokio::net::TcpStream;

use crate::{
    median,
    pki::{Pki, memory_key},
    report,
};

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 3;

pub(crate) async fn a_gibibyte() {
    let pki = Pki::new();
    let apache = Apache::start(Site {
        protocol: "TLSv1.2",
        certificate: &pki.server.pem,
        key: &pki.server.key.serialize_pem(),
        client_authority: &pki.ca_pem,
        hinted_authority: None,
    })
    .unwrap();
    let big = File::create(apache.documents().join("secure/big")).unwrap();
    big.set_len(SIZE).unwrap();
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let certificate = pki.certify_public(&key.subject_public_key_info());
    let files = [
        ("--cacert", pki.file("ca.pem", &pki.ca_pem)),
        ("--cert", pki.file("client.der", "")),
        ("--key", pki.file("client.key", &key.serialize_pem())),
    ];
    std::fs::write(&files[1].1, certificate).unwrap();
    let identity = pki.identity_of(memory_key().await);
    let connector = pki.connector();

    let (mut ours, mut curls) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let tcp = TcpStream::connect(apache.address()).await.unwrap();
        let identity = Some(std::sync::Arc::clone(&identity));
        let connection = connector.connect(tcp, "localhost", Leg::OnDemand, identity);
        let io = TokioIo::new(connection.await.unwrap());
        let (mut sender, driver) = handshake(io).await.unwrap();
        let driving = tokio::spawn(driver);
        let request = Request::get("/secure/big").header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
        }
        assert_eq!(received, SIZE);
        ours.push(started.elapsed().as_secs_f64());
        drop(sender);
        drop(driving.await);

        let started = Instant::now();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--output", "/dev/null", "--http1.1"]);
        curl.args(["--cert-type", "DER"]);
        for (option, file) in &files {
            curl.arg(option).arg(file);
        }
        assert!(
            curl.arg(apache.url("/secure/big"))
                .status()
                .unwrap()
                .success()
        );
        curls.push(started.elapsed().as_secs_f64());
    }
    let (ours, curl) = (median(ours), median(curls));
    let what = format!("1 GiB download {ours:.2} s, curl {curl:.2} s");
    report(&what, ours / curl, 1.1, "x");
}
