//! What the emulator logs, and what it must not.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use keybond_emulator::{Emulator, Fault, FaultKind, Leg};
use support::{Client, csr::ClientKey};
use tracing::level_filters::LevelFilter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_names_legs_and_outcomes_and_no_secret_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // This runtime has one thread, so that the whole emulator logs here.
    let _log = tracing::subscriber::set_default(subscriber);

    let azure = Emulator::builder()
        .secret("mine", "the-secret-value")
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let csr = client.request("").await.base64(&key);
    let credential = client.enrol("", &key).await;
    let token = client.token(client.system(), &credential).await;
    client.secret(Some(&credential), &token, &[]).await.unwrap();
    client.secret(None, &token, &[]).await.unwrap();
    client.issue("", &csr[..csr.len() - 4]).await.unwrap();
    azure
        .inject(Fault::new(Leg::Vault, FaultKind::Reset).times(1))
        .unwrap();
    client
        .secret(Some(&credential), &token, &[])
        .await
        .err()
        .unwrap();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for said in [
        "emulator started",
        "leg=\"metadata\" status=200",
        "leg=\"token\" status=200",
        "leg=\"vault\" status=401",
        "CSR refused",
    ] {
        assert!(log.contains(said), "{said} is not in the log:\n{log}");
    }
    let secrets = [
        token.split('.').nth(1).unwrap(),
        token.rsplit('.').next().unwrap(),
        &csr[100..140],
        "the-secret-value",
        "opened by a bound token",
        &credential.issued["certificate"].as_str().unwrap()[100..140],
    ];
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
