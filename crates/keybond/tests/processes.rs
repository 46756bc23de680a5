//! Several processes and one state directory: one certificate, and a valid state whoever is killed when.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use keybond::{
    Identity, ManagedIdentity,
    keys::{KeyProvider, StateDir},
    tls::TrustRoots,
};
use keybond_emulator::{Emulator, Fault, FaultKind, Leg};
use keybond_testkit::stores::FileStore;
use serde_json::Value;
use x509_cert::{Certificate, der::DecodePem as _};

const HOME: &str = "KEYBOND_TEST_HOME";
const ROLE: &str = "KEYBOND_TEST_ROLE";
const WHO: &str = "KEYBOND_TEST_CLIENT_ID";
const RESOURCE: &str = "https://vault.azure.net";

/// Not a test of its own: what the child processes of the tests below do.
#[test]
fn child() {
    let (Some(home), Ok(role)) = (env::var_os(HOME), env::var(ROLE)) else {
        return;
    };
    let home = PathBuf::from(home);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut roots = TrustRoots::empty();
        roots
            .add_pem(fs::read(home.join("ca.pem")).unwrap())
            .unwrap();
        let tls = keybond::tls::default_connector(&roots).unwrap();
        let client = || {
            let keys = StateDir::open(home.join("keys")).unwrap();
            let keys = KeyProvider::builder()
                .store(FileStore::new(keys))
                .state_dir(StateDir::open(home.join("state")).unwrap())
                .build();
            let mut builder = ManagedIdentity::builder()
                .key_provider(keys)
                .tls(Arc::clone(&tls))
                .state_directory(home.join("state"))
                .deadline(Duration::from_secs(120));
            if let Ok(id) = env::var(WHO) {
                builder = builder.identity(Identity::client_id(&id).unwrap());
            }
            builder.build().unwrap()
        };
        match &*role {
            "writer" => loop {
                // A process that starts, reads what is there, and leaves a new certificate.
                let client = client();
                client.credential().await.unwrap();
                client.renew().await.unwrap();
            },
            _ => {
                let began = Instant::now();
                let client = client();
                let binding = client.credential().await.unwrap();
                println!("waited {}", began.elapsed().as_millis());
                if role == "caller" {
                    client.token(RESOURCE).await.unwrap();
                }
                println!("certificate {}", binding.x5t_s256());
            }
        }
    });
}

/// A machine: Azure on loopback and a directory that all processes share.
struct Machine {
    azure: Emulator,
    home: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Machine {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let identities = [
            keybond_emulator::Identity::system_assigned(id(1), id(11)),
            keybond_emulator::Identity::user_assigned(id(2), id(12), "/subscriptions/s/two"),
            keybond_emulator::Identity::user_assigned(id(3), id(13), "/subscriptions/s/three"),
        ];
        let azure = runtime
            .block_on(Emulator::builder().identities(identities).start())
            .unwrap();
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("ca.pem"), azure.ca_pem()).unwrap();
        Self {
            azure,
            home,
            runtime,
        }
    }

    fn spawn(&self, role: &str, client_id: Option<&str>) -> Child {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture"])
            .envs(self.azure.env())
            .env(HOME, self.home.path())
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(id) = client_id {
            command.env(WHO, id);
        }
        command.spawn().unwrap()
    }

    fn certs(&self) -> PathBuf {
        self.home.path().join("state/certs")
    }
}

fn id(number: u32) -> String {
    format!("a0000000-0000-4000-8000-{number:012}")
}

/// What a child said, by name; nothing if it was killed before.
fn said(child: Child) -> Vec<(String, String)> {
    let output = child.wait_with_output().unwrap();
    let lines = BufReader::new(&output.stdout[..]).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| {
            let at = line.find("waited ").or_else(|| line.find("certificate "))?;
            let (name, value) = line[at..].split_once(' ')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn certificate_of(child: Child) -> Option<String> {
    let said = said(child);
    said.into_iter()
        .find_map(|(name, value)| (name == "certificate").then_some(value))
}

fn number(variable: &str, otherwise: usize) -> usize {
    env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// Every record says what its certificate says; no file was ever set aside; PEM files are whole.
fn assert_valid(certs: &Path) -> usize {
    let mut records = 0;
    let Ok(entries) = fs::read_dir(certs) else {
        return 0;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        // Names may vanish while others write.
        let Ok(content) = fs::read(&path) else {
            continue;
        };
        if name.starts_with('.') || name.ends_with(".lock") {
            continue;
        }
        let text = String::from_utf8(content).unwrap();
        if name.ends_with(".pem") {
            Certificate::from_pem(&text).unwrap();
        } else if name.ends_with(".name.json") {
            let record: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(record["client_id"], id(1));
        } else {
            assert!(name.ends_with(".json"), "{name} was set aside");
            let record: Value = serde_json::from_str(&text).unwrap();
            let leaf = record["chain"][0].as_str().unwrap();
            let hash = digest(&SHA256, &BASE64_STANDARD.decode(leaf).unwrap());
            assert_eq!(record["x5t#S256"], BASE64_URL_SAFE_NO_PAD.encode(hash));
            records += 1;
        }
    }
    records
}

/// A generator that gives the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn killed_at_any_instant_the_state_is_valid() {
    let kills = number("KEYBOND_KILLS", 50);
    let machine = Machine::new();
    let mut dice = Dice(0x5eed_0001);
    let mut writers: Vec<Child> = (0..8).map(|_| machine.spawn("writer", None)).collect();
    let mut records = 0;
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(dice.roll(250)));
        let victim = usize::try_from(dice.roll(8)).unwrap();
        let mut killed = std::mem::replace(&mut writers[victim], machine.spawn("writer", None));
        assert!(
            killed.try_wait().unwrap().is_none(),
            "a writer failed by itself"
        );
        killed.kill().unwrap();
        killed.wait().unwrap();
        records = assert_valid(&machine.certs());
        if kill % 10 == 9 {
            // Whatever was left behind, the next process gets a token in time.
            let began = Instant::now();
            assert!(certificate_of(machine.spawn("caller", None)).is_some());
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{:?}",
                began.elapsed()
            );
        }
    }
    for mut writer in writers {
        writer.kill().unwrap();
        writer.wait().unwrap();
    }
    assert_eq!(assert_valid(&machine.certs()), 1);
    assert_eq!(records, 1);
    let issued = machine.azure.counters().issue;
    println!("{kills} kills of 8 processes, {issued} certificates issued, 1 record, valid");
    assert!(issued > 8, "the writers wrote");
    machine.runtime.block_on(machine.azure.shutdown());
}

#[test]
fn many_cold_processes_ask_for_one_certificate_of_each_identity() {
    let workers = number("KEYBOND_WORKERS", 12);
    let machine = Machine::new();
    let ids = [None, Some(id(2)), Some(id(3))];
    let children: Vec<_> = (0..workers)
        .flat_map(|_| ids.iter())
        .map(|id| machine.spawn("caller", id.as_deref()))
        .collect();
    let mut certificates = Vec::new();
    let mut waits: Vec<u128> = Vec::new();
    for child in children {
        for (name, value) in said(child) {
            match &*name {
                "waited" => waits.push(value.parse().unwrap()),
                _ => certificates.push(value),
            }
        }
    }
    assert_eq!(certificates.len(), workers * ids.len(), "all got a token");
    certificates.sort();
    certificates.dedup();
    let counters = machine.azure.counters();
    waits.sort_unstable();
    println!(
        "{workers} processes × 3 identities: {} issued, {} metadata, at most {} requests to IMDS a second, \
         waited {} ms (median) {} ms (99 %)",
        counters.issue,
        counters.metadata,
        counters.imds_peak_per_second,
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
    );
    assert_eq!((certificates.len(), counters.issue), (3, 3));
    assert_eq!(counters.metadata, 3);
    // Five a second for each identity's one asker.
    assert!(counters.imds_peak_per_second <= 15);
    machine.runtime.block_on(machine.azure.shutdown());
}

#[test]
fn a_killed_asker_blocks_nobody() {
    let machine = Machine::new();
    // The key is there; what is killed is in the middle of asking for a certificate.
    let mute = Fault::new(Leg::Issue, FaultKind::Slow { millis: 3_600_000 }).times(1);
    machine.azure.inject(mute).unwrap();
    let mut asker = machine.spawn("caller", None);
    let give_up = Instant::now() + Duration::from_secs(60);
    while machine.azure.counters().issue == 0 {
        assert!(Instant::now() < give_up && asker.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let waiting = machine.spawn("caller", None);
    asker.kill().unwrap();
    asker.wait().unwrap();
    let killed = Instant::now();
    assert!(certificate_of(waiting).is_some());
    let took = killed.elapsed();
    println!("the next one was done {took:?} after the kill");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(machine.azure.counters().issue, 2);
    machine.runtime.block_on(machine.azure.shutdown());
}
