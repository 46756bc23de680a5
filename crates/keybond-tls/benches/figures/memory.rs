//! Ten thousand calls on one connection, and what they leave in memory.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, client::conn::http1::handshake, service::service_fn};
use hyper_util::rt::TokioIo;
use keybond_tls::{Leg, TlsConnector as _};
use rustls::version::TLS12;

use crate::{
    pki::{Pki, memory_key},
    report,
    rustls_server::RustlsServer,
};

const CALLS: u32 = 10_000;
const WARM: u32 = 1_000;

pub(crate) async fn ten_thousand_calls() {
    let pki = Pki::new();
    let server = RustlsServer::start(&pki, &TLS12).await;
    let identity = pki.identity_of(memory_key().await);
    let connector = pki.connector();
    let tcp = server.dial().await;
    let (client, served) = tokio::join!(
        connector.connect(tcp, "localhost", Leg::OnDemand, Some(identity)),
        server.accept()
    );
    let answer = service_fn(|_| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(&[7; 2000]))))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(served.unwrap()), answer);
    let serving = tokio::spawn(serving);
    let (mut sender, connection) = handshake(TokioIo::new(client.unwrap())).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut warm = 0.0;
    for call in 0..CALLS {
        if call == WARM {
            warm = resident();
        }
        let request = Request::post("/").header("host", "localhost");
        let request = request
            .body(Full::new(Bytes::from_static(&[8; 500])))
            .unwrap();
        sender.ready().await.unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes().len(),
            2000
        );
    }
    let grown = resident() - warm;
    let what = format!("10,000 calls on one connection: {warm:.1} MiB, and");
    report(&what, grown, 0.5, "MiB");
    drop(sender);
    driving.await.unwrap().unwrap();
    drop(serving.await);
}

/// MiB that this process has in memory.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / 1048576.0
}
