//! A key in a device takes part in few handshakes at a time, those included in which a server asks late.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use keybond::{
    Environment, ManagedIdentity, ResourceRule,
    keys::{KeyProvider, StoreId},
    tls::{
        BoxFuture, ClientIdentity, Leg, TlsConn, TlsConnector, TlsError, TlsVersion, TrustRoots,
        default_connector,
    },
};
use keybond_emulator::{Emulator, Fault, FaultKind};
use keybond_testkit::stores::{Op, ScriptedStore};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time::timeout};

const RESOURCE: &str = "https://vault.azure.net";
const CALLS: usize = 12;
const AT_A_TIME: u32 = 4;
const SOON: Duration = Duration::from_secs(30);

struct Env(Vec<(&'static str, String)>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    }
}

/// The platform's connector, and a permit for every connection to a server that may ask late.
struct Counting {
    connector: Arc<dyn TlsConnector>,
    made: Arc<Semaphore>,
}

impl TlsConnector for Counting {
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        self.connect_up_to(tcp, host, leg, TlsVersion::Tls13, identity)
    }

    fn connect_up_to<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
        leg: Leg,
        newest: TlsVersion,
        identity: Option<Arc<ClientIdentity>>,
    ) -> BoxFuture<'a, Result<Box<dyn TlsConn>, TlsError>> {
        if leg == Leg::OnDemand {
            self.made.add_permits(1);
        }
        self.connector
            .connect_up_to(tcp, host, leg, newest, identity)
    }
}

struct Scene {
    azure: Emulator,
    device: ScriptedStore,
    client: ManagedIdentity,
    made: Arc<Semaphore>,
    calls: JoinSet<u16>,
}

impl Scene {
    /// A client that has its token and no connection yet.
    async fn new(rule: ResourceRule) -> Self {
        let azure = Emulator::builder().start().await.unwrap();
        let device = ScriptedStore::new(StoreId::Tpm2).stocked();
        let made = Arc::new(Semaphore::new(0));
        let roots = TrustRoots::from_pem(azure.ca_pem()).unwrap();
        let client = ManagedIdentity::builder()
            .key_provider(KeyProvider::builder().store(device.clone()).build())
            .tls(Arc::new(Counting {
                connector: default_connector(&roots).unwrap(),
                made: Arc::clone(&made),
            }))
            .environment(Arc::new(Env(azure.env())))
            .resource_rule(rule.resource(RESOURCE).on_demand())
            .build()
            .unwrap();
        client.token(RESOURCE).await.unwrap();
        Self {
            azure,
            device,
            client,
            made,
            calls: JoinSet::new(),
        }
    }

    /// Many calls at once.
    fn call(&mut self) {
        let vault = self.azure.renegotiating_vault_url();
        let url = format!(
            "{}/secrets/demo?api-version=7.4",
            vault.trim_end_matches('/')
        );
        for _ in 0..CALLS {
            let calling = self.client.get(&url).send();
            self.calls.spawn(async move {
                let response = calling.await.unwrap();
                let status = response.status().as_u16();
                response.bytes().await.unwrap();
                status
            });
        }
    }

    async fn connections(&self, count: u32) {
        let made = timeout(SOON, self.made.acquire_many(count)).await;
        made.expect("connections are made").unwrap().forget();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_ask_late_wait_for_few_signatures_at_a_time() {
    let mut scene = Scene::new(ResourceRule::new("localhost").token_bound_header()).await;
    let signing = scene.device.hang(Op::Sign);
    scene.call();
    signing.reached().await;
    scene.connections(AT_A_TIME).await;
    // However long the device takes.
    let another = timeout(Duration::from_secs(4), scene.made.acquire()).await;
    assert!(another.is_err(), "one more than the device can serve");
    signing.open();
    while let Some(status) = scene.calls.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}

/// A server that does not ask is not waited for: others may need the key meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_ask_holds_up_nobody() {
    // Without the header a vault does not ask.
    let mut scene = Scene::new(ResourceRule::new("localhost")).await;
    let slow = FaultKind::Slow { millis: 60_000 };
    let leg = keybond_emulator::Leg::Vault;
    scene.azure.inject(Fault::new(leg, slow)).unwrap();
    scene.call();
    scene.connections(CALLS as u32).await;
    assert!(
        scene.calls.try_join_next().is_none(),
        "nobody has an answer"
    );
}
