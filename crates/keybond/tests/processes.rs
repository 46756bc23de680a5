//! Several processes and one state directory: one certificate and one token of each kind for all of them, and a valid
//! state whoever is killed when.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
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
use keybond_emulator::{Counters, Emulator, Fault, FaultKind, Leg};
use keybond_testkit::stores::FileStore;
use serde_json::Value;
use x509_cert::{Certificate, der::DecodePem as _};

const HOME: &str = "KEYBOND_TEST_HOME";
const ROLE: &str = "KEYBOND_TEST_ROLE";
const WHO: &str = "KEYBOND_TEST_CLIENT_ID";
const RESOURCE: &str = "https://vault.azure.net";
const OTHER: &str = "https://storage.azure.com";

/// What one client's rate towards the metadata service allows in a second, if it is not set: five at once, and five.
const IMDS_RATE: u64 = 10;

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
        let keys = || {
            let keys = StateDir::open(home.join("keys")).unwrap();
            KeyProvider::builder()
                .store(FileStore::new(keys))
                .state_dir(StateDir::open(home.join("state")).unwrap())
                .build()
        };
        let client = |keys: KeyProvider, id: Option<&str>| {
            let mut builder = ManagedIdentity::builder()
                .key_provider(keys)
                .tls(Arc::clone(&tls))
                .state_directory(home.join("state"))
                .deadline(Duration::from_secs(120));
            if let Some(id) = id {
                builder = builder.identity(Identity::client_id(id).unwrap());
            }
            builder.build().unwrap()
        };
        match &*role {
            "writer" => loop {
                // A process that starts, reads what is there, and leaves a new certificate and a token of it.
                let client = client(keys(), None);
                client.token(RESOURCE).await.unwrap();
                client.renew().await.unwrap();
                client.token(RESOURCE).await.unwrap();
            },
            "worker" => {
                let keys = keys();
                let clients = identities().map(|id| client(keys.clone(), id.as_deref()));
                tell("ready", "");
                // Everybody begins at once: when the parent lets go.
                std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
                let began = Instant::now();
                let asking: Vec<_> = clients
                    .into_iter()
                    .flat_map(|client| [RESOURCE, OTHER].map(|resource| (client.clone(), resource)))
                    .map(|(client, resource)| {
                        tokio::spawn(async move {
                            let token = client.token(resource).await.unwrap();
                            (token, began.elapsed().as_millis())
                        })
                    })
                    .collect();
                for asked in asking {
                    let (token, waited) = asked.await.unwrap();
                    tell("certificate", token.binding().unwrap().x5t_s256());
                    tell("token", &hash(token.secret()));
                    tell("waited", &waited.to_string());
                }
            }
            _ => {
                let id = env::var(WHO).ok();
                let client = client(keys(), id.as_deref());
                let binding = client.credential().await.unwrap();
                client.token(RESOURCE).await.unwrap();
                tell("certificate", binding.x5t_s256());
            }
        }
    });
}

/// One line for the parent.
fn tell(name: &str, value: &str) {
    println!("\n{name} {value}");
}

fn hash(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
}

/// The client ids of the machine's identities; its own has no need of one.
fn identities() -> [Option<String>; 3] {
    [None, Some(id(2)), Some(id(3))]
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
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(id) = client_id {
            command.env(WHO, id);
        }
        command.spawn().unwrap()
    }

    fn state(&self) -> PathBuf {
        self.home.path().join("state")
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
            let (name, value) = line.split_once(' ')?;
            let known = ["certificate", "token", "waited"].contains(&name);
            known.then(|| (name.to_owned(), value.to_owned()))
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

/// Every record says what its certificate or its token says; no file was ever set aside; PEM files are whole. The
/// answer is how many certificates and how many tokens there are.
fn assert_valid(state: &Path) -> (usize, usize) {
    let mut certificates = 0;
    for (name, text) in files(&state.join("certs")) {
        if name.ends_with(".pem") {
            Certificate::from_pem(&text).unwrap();
            continue;
        }
        assert!(name.ends_with(".json"), "{name} was set aside");
        let record: Value = serde_json::from_str(&text).unwrap();
        if name.ends_with(".name.json") {
            assert_eq!(record["client_id"], id(1));
            continue;
        }
        let leaf = record["chain"][0].as_str().unwrap();
        let hash = digest(&SHA256, &BASE64_STANDARD.decode(leaf).unwrap());
        assert_eq!(record["x5t#S256"], BASE64_URL_SAFE_NO_PAD.encode(hash));
        certificates += 1;
    }
    let mut tokens = 0;
    for (name, text) in files(&state.join("tokens")) {
        assert!(name.ends_with(".json"), "{name} was set aside");
        let record: Value = serde_json::from_str(&text).unwrap();
        let token = record["access_token"].as_str().unwrap();
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 3, "{name}");
        let claims = BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["cnf"]["x5t#S256"], record["x5t#S256"], "{name}");
        assert_eq!(claims["aud"], record["resource"], "{name}");
        tokens += 1;
    }
    (certificates, tokens)
}

/// The finished files of a folder that may be written at the same time.
fn files(folder: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            // Names may vanish while others write.
            let content = fs::read_to_string(entry.path()).ok()?;
            let finished = !name.starts_with('.') && !name.ends_with(".lock");
            finished.then_some((name, content))
        })
        .collect()
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
        records = assert_valid(&machine.state()).0;
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
    let (certificates, tokens) = assert_valid(&machine.state());
    assert_eq!((records, certificates), (1, 1));
    let counters = machine.azure.counters();
    let (issued, asked) = (counters.issue, counters.token);
    println!(
        "{kills} kills of 8 processes, {issued} certificates issued and {asked} tokens, \
         {certificates} certificate and {tokens} tokens kept, valid"
    );
    assert!(issued > 8 && asked > 8, "the writers wrote");
    assert!(tokens >= 1);
    // What gives way goes: of 8 writers each may have left one on its way.
    assert!(tokens <= 9, "{tokens} tokens of one resource");
    machine.runtime.block_on(machine.azure.shutdown());
}

/// Processes that know nothing and begin at once, each with three identities and two resources.
#[test]
fn many_cold_processes_ask_once_for_each_certificate_and_each_token() {
    let workers = number("KEYBOND_WORKERS", 200);
    let machine = Machine::new();
    let mut children: Vec<_> = (0..workers)
        .map(|_| machine.spawn("worker", None))
        .collect();
    for child in &mut children {
        let mut line = String::new();
        let mut told = BufReader::with_capacity(1, child.stdout.as_mut().unwrap());
        while line.trim() != "ready" {
            line.clear();
            assert_ne!(told.read_line(&mut line).unwrap(), 0, "a worker ended");
        }
    }
    let began = Instant::now();
    for child in &mut children {
        drop(child.stdin.take());
    }
    let (mut certificates, mut tokens, mut waits) = (Vec::new(), Vec::new(), Vec::<u128>::new());
    for child in children {
        for (name, value) in said(child) {
            match &*name {
                "waited" => waits.push(value.parse().unwrap()),
                "token" => tokens.push(value),
                _ => certificates.push(value),
            }
        }
    }
    let took = began.elapsed();
    assert_eq!(waits.len(), workers * 6, "all got their tokens");
    for found in [&mut certificates, &mut tokens] {
        found.sort();
        found.dedup();
    }
    let counters = machine.azure.counters();
    waits.sort_unstable();
    println!(
        "{workers} processes × 3 identities × 2 resources in {took:?}: {} certificates issued, {} metadata, \
         {:?} tokens, at most {} requests to IMDS a second; waited {} ms (median) {} ms (99 %)",
        counters.issue,
        counters.metadata,
        counters.token_by_resource,
        counters.imds_peak_per_second,
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
    );
    assert_eq!((certificates.len(), counters.issue), (3, 3));
    assert_eq!(counters.metadata, 3);
    assert_eq!(tokens.len(), 6);
    for resource in [RESOURCE, OTHER] {
        assert_eq!(counters.token_by_resource[resource], 3, "{resource}");
    }
    // Each client keeps a pace of its own. All of them together stay below that of one, for one asks for each
    // identity, twice, and nobody asks for anything else.
    let at_most = 2 * u64::try_from(identities().len()).unwrap();
    assert!(counters.imds_peak_per_second <= at_most.min(IMDS_RATE));
    assert_eq!(assert_valid(&machine.state()), (3, 6));
    machine.runtime.block_on(machine.azure.shutdown());
}

/// Kills whoever asks, when the service has its question, and has another process finish.
fn kill_the_asker(leg: Leg, asked: impl Fn(&Counters) -> u64) {
    let machine = Machine::new();
    let mute = Fault::new(leg, FaultKind::Slow { millis: 3_600_000 }).times(1);
    machine.azure.inject(mute).unwrap();
    let mut asker = machine.spawn("caller", None);
    let give_up = Instant::now() + Duration::from_secs(60);
    while asked(&machine.azure.counters()) == 0 {
        assert!(Instant::now() < give_up && asker.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let waiting = machine.spawn("caller", None);
    asker.kill().unwrap();
    asker.wait().unwrap();
    let killed = Instant::now();
    assert!(certificate_of(waiting).is_some());
    let took = killed.elapsed();
    println!("the next one was done {took:?} after the kill in the {leg:?} leg");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(asked(&machine.azure.counters()), 2);
    assert_eq!(assert_valid(&machine.state()), (1, 1));
    machine.runtime.block_on(machine.azure.shutdown());
}

#[test]
fn a_killed_asker_for_a_certificate_blocks_nobody() {
    kill_the_asker(Leg::Issue, |counters| counters.issue);
}

#[test]
fn a_killed_asker_for_a_token_blocks_nobody() {
    kill_the_asker(Leg::Token, |counters| counters.token);
}
