//! An Azure of scripts: metadata service, token service and resource behind one loopback port, spoken to in
//! clear. TLS is passed through; what the client would have shown is recorded instead.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod azure;
pub mod machine;
pub mod server;
pub mod tls;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use keybond::{
    Clock, Environment, Leg, LegReport, ManagedIdentity, ManagedIdentityBuilder, keys::KeyProvider,
};

use self::{azure::Azure, tls::PassThrough};

/// 2026-06-15T00:00:00Z, in the middle of every certificate that is not meant to be otherwise.
pub const NOW: Duration = Duration::from_secs(1_781_481_600);

pub const CLIENT: &str = "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01";
pub const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
pub const OTHER: &str = "11111111-2222-4333-8444-555555555555";
pub const VM: &str = "d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10";
pub const RESOURCE: &str = "https://vault.azure.net";

/// A clock that is set by hand.
pub struct TestClock(Mutex<SystemTime>);

impl TestClock {
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    pub fn set_back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Variables that are set by hand.
#[derive(Default)]
pub struct TestEnv(Mutex<HashMap<String, String>>);

impl TestEnv {
    pub fn set(&self, name: &str, value: &str) {
        self.0.lock().unwrap().insert(name.into(), value.into());
    }
}

impl Environment for TestEnv {
    fn get(&self, name: &str) -> Option<String> {
        self.0.lock().unwrap().get(name).cloned()
    }
}

/// One key for all tests of a file: making one takes a quarter of a second.
static KEYS: LazyLock<KeyProvider> = LazyLock::new(KeyProvider::in_memory);

/// A client and the world around it.
pub struct Bench {
    pub azure: Azure,
    pub tls: Arc<PassThrough>,
    pub clock: Arc<TestClock>,
    pub env: Arc<TestEnv>,
    pub reports: Arc<Mutex<Vec<LegReport>>>,
    pub keys: KeyProvider,
}

impl Bench {
    pub async fn new() -> Self {
        let env = TestEnv::default();
        // Nothing of the machine's own environment is used; the token service is named here.
        env.set("MSAL_MI_IMDSV2_ALLOWED_HOSTS", "127.0.0.1");
        Self {
            azure: Azure::start().await,
            tls: Arc::new(PassThrough::default()),
            clock: Arc::new(TestClock(Mutex::new(UNIX_EPOCH + NOW))),
            env: Arc::new(env),
            reports: Arc::default(),
            keys: KEYS.clone(),
        }
    }

    pub fn builder(&self) -> ManagedIdentityBuilder {
        self.placeless().imds_endpoint(self.azure.imds())
    }

    /// A client that looks for its source in the environment.
    pub fn placeless(&self) -> ManagedIdentityBuilder {
        let reports = Arc::clone(&self.reports);
        ManagedIdentity::builder()
            .key_provider(self.keys.clone())
            .tls(self.tls.clone())
            .environment(self.env.clone())
            .clock(self.clock.clone())
            .on_leg(Arc::new(move |report| {
                reports.lock().unwrap().push(report.clone());
            }))
    }

    pub fn client(&self) -> ManagedIdentity {
        self.builder().build().unwrap()
    }

    /// The legs that ended so far.
    pub fn legs(&self) -> Vec<Leg> {
        let reports = self.reports.lock().unwrap();
        reports.iter().map(|report| report.leg).collect()
    }
}

/// Whatever went wrong in a test, the runbook knows the code and that it happens on that leg.
impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for report in self.reports.lock().unwrap().iter() {
            let Some(code) = report.code else { continue };
            let entry = keybond::explain(code).unwrap_or_else(|| panic!("{code} is not explained"));
            let leg = report.leg;
            assert!(
                entry.legs.contains(&leg),
                "{code} is not explained for the {leg} leg"
            );
        }
    }
}
