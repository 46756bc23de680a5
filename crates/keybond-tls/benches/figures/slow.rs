//! Eight handshakes at once with a key that takes a second for a signature, on one thread with a heartbeat.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use keybond_keys::{
    ExportAttempt, KeyName, KeyProperties, KeyProvider, KeyStore, MemoryStore, SignatureScheme,
    StoreId, StoredKey, Unavailable,
};
use keybond_tls::{Leg, TlsConnector as _};
use rustls::version::{TLS12, TLS13};

use crate::{pki::Pki, report, rustls_server::RustlsServer};

const BEAT: Duration = Duration::from_millis(2);

pub(crate) fn eight_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for version in [&TLS13, &TLS12] {
        let (mut whole, mut stall) = (f64::MAX, f64::MAX);
        // The machine's other work stalls a heartbeat, too; the layer's own stalls come every time.
        for _ in 0..3 {
            let (took, gap) = runtime.block_on(once(version));
            whole = whole.min(took);
            stall = stall.min(gap);
        }
        let what = format!("8 handshakes {:?}, key takes 1 s", version.version);
        report(&what, whole, 1.2, "s");
        report(
            "  longest stall of a 2 ms heartbeat meanwhile",
            stall * 1e3,
            20.0,
            "ms",
        );
    }
}

async fn once(version: &'static rustls::SupportedProtocolVersion) -> (f64, f64) {
    let pki = Pki::new();
    let provider = KeyProvider::builder().store(Slow).build();
    let identity = pki.identity_of(provider.get_or_create_key().await.unwrap());
    let connector = Arc::new(pki.connector());
    let address = serve_elsewhere(pki, version);
    let heartbeat = tokio::spawn(async {
        let mut longest = Duration::ZERO;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1100) {
            let before = Instant::now();
            tokio::time::sleep(BEAT).await;
            longest = longest.max(before.elapsed().saturating_sub(BEAT));
        }
        longest
    });
    let started = Instant::now();
    let mut connecting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (connector, identity) = (Arc::clone(&connector), Arc::clone(&identity));
        connecting.spawn(async move {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            connector
                .connect(tcp, "localhost", Leg::FirstHandshake, Some(identity))
                .await
                .map(drop)
                .unwrap();
        });
    }
    while let Some(connected) = connecting.join_next().await {
        connected.unwrap();
    }
    let took = started.elapsed();
    (took.as_secs_f64(), heartbeat.await.unwrap().as_secs_f64())
}

/// The server has a thread of its own: what it computes is not the client's stall.
fn serve_elsewhere(
    pki: Pki,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::net::SocketAddr {
    let (ready, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let server = Arc::new(RustlsServer::start(&pki, version).await);
            ready.send(server.address).unwrap();
            let mut serving = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let server = Arc::clone(&server);
                serving.spawn(async move { drop(server.accept().await.unwrap()) });
            }
            while serving.join_next().await.is_some() {}
        });
    });
    address.recv().unwrap()
}

/// Keys in memory that take their time.
struct Slow;

struct SlowKey(Box<dyn StoredKey>);

impl KeyStore for Slow {
    fn id(&self) -> StoreId {
        StoreId::Memory
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn open(&self, _: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        Ok(None)
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        Ok(Box::new(SlowKey(MemoryStore.create(name)?)))
    }

    fn delete(&self, _: &KeyName) -> Result<bool, Unavailable> {
        Ok(false)
    }

    fn outlives_process(&self) -> bool {
        false
    }
}

impl StoredKey for SlowKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.0.public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        thread::sleep(Duration::from_secs(1));
        self.0.sign_digest(scheme, digest)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.0.properties()
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.0.attempt_export()
    }

    fn is_quick(&self) -> bool {
        false
    }
}
