//! The support bundle: everything that a ticket needs, and nothing to steal.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use keybond_testkit::Swtpm;
use serde_json::Value;

const KEYBOND: &str = env!("CARGO_BIN_EXE_keybond");
const RESOURCE: &str = "https://vault.azure.net";
const IMDS: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";

/// Variables that are set for the command beside those of the emulator. Not all of them are keybond's.
const PLANTED: [(&str, &str); 6] = [
    ("IDENTITY_HEADER", "header-secret/of+app=service"),
    ("MSI_SECRET", "header-secret-of-learning"),
    (
        "IDENTITY_SERVER_THUMBPRINT",
        "00112233445566778899AABBCCDDEEFF00112233",
    ),
    ("KEYBOND_PKCS11_PIN", "pin-of-the-token"),
    ("AZURE_CLIENT_SECRET", "secret-of-somebody-else"),
    ("MSAL_MI_DISABLE_IMDS_V2", "treu-is-a-typo"),
];

/// Azure in another process, with a witness between its metadata service and the command.
struct Azure {
    child: Child,
    imds: String,
    env: BTreeMap<String, String>,
    witness: Witness,
    // Kept open: the emulator must not find its output closed.
    _stdout: ChildStdout,
}

impl Azure {
    fn start() -> Self {
        let mut child = Command::new(KEYBOND)
            .args(["emulate", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut text = Vec::new();
        // One object, printed when the servers listen.
        let addresses: Value = loop {
            let mut chunk = [0; 4096];
            let count = stdout.read(&mut chunk).unwrap();
            assert_ne!(count, 0, "it ended early");
            text.extend_from_slice(&chunk[..count]);
            if let Ok(addresses) = serde_json::from_slice(&text) {
                break addresses;
            }
        };
        let mut env: BTreeMap<String, String> =
            serde_json::from_value(addresses["env"].clone()).unwrap();
        let imds = addresses["imds"].as_str().unwrap().to_owned();
        let witness = Witness::start(imds.strip_prefix("http://").unwrap().trim_end_matches('/'));
        env.insert(IMDS.into(), format!("http://{}", witness.address));
        Self {
            child,
            imds,
            env,
            witness,
            _stdout: stdout,
        }
    }

    fn doctor(&self, state: &Path, arguments: &[&str]) -> Output {
        self.keybond(state, &[&["doctor"], arguments].concat())
    }

    fn keybond(&self, state: &Path, arguments: &[&str]) -> Output {
        Command::new(KEYBOND)
            .args(arguments)
            .env("KEYBOND_TPM", "off")
            .env_remove("KEYBOND_MIN_STRENGTH")
            .envs(&self.env)
            .envs(PLANTED)
            .env("KEYBOND_STATE_DIR", state)
            .output()
            .unwrap()
    }

    fn admin(&self, arguments: &[&str], what: &str) -> Value {
        let url = format!("{}/_emulator/{what}", self.imds);
        let curl = Command::new("curl")
            .args(["-s", "--fail"])
            .args(arguments)
            .arg(&url)
            .output()
            .unwrap();
        assert!(curl.status.success(), "{url}");
        serde_json::from_slice(&curl.stdout).unwrap()
    }

    /// The correlation ids that the services were told, by leg.
    fn correlation_ids(&self) -> BTreeMap<String, Vec<String>> {
        let counters = self.admin(&[], "counters");
        serde_json::from_value(counters["correlation_ids"].clone()).unwrap()
    }

    /// What must not be in a bundle: values of variables, and what went to and came from the metadata service.
    fn secrets(&self, state: &Path) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add("KEYBOND_STATE_DIR", state.to_str().unwrap());
        let planted = PLANTED.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (name, value) in self.env.clone().into_iter().chain(planted) {
            secrets.add(&name, &value);
        }
        for member in ["csr", "certificate"] {
            let sent = self.witness.members(member);
            assert!(!sent.is_empty(), "no {member} was seen");
            for base64 in sent {
                secrets.add_pieces(member, &base64);
                let der = BASE64_STANDARD.decode(&base64).unwrap();
                let hex: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
                secrets.add_pieces(member, &hex);
            }
        }
        secrets
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes bytes on and remembers them, by connection and direction.
struct Witness {
    address: String,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Witness {
    fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (upstream, kept) = (upstream.to_owned(), Arc::clone(&seen));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(&upstream).unwrap();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, to) in [(client, server), back] {
                    let kept = Arc::clone(&kept);
                    thread::spawn(move || pass(from, to, &kept));
                }
            }
        });
        Self { address, seen }
    }

    /// The strings that were sent, in either direction, as this member of a JSON object.
    fn members(&self, name: &str) -> Vec<String> {
        let start = format!("\"{name}\":\"");
        let seen = self.seen.lock().unwrap();
        let texts = seen.iter().map(|bytes| String::from_utf8_lossy(bytes));
        let of_text = |text: std::borrow::Cow<'_, str>| -> Vec<String> {
            let values = text.split(&start).skip(1);
            values
                .map(|rest| rest.split('"').next().unwrap().to_owned())
                .collect()
        };
        texts.flat_map(of_text).collect()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let index = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let mut chunk = [0; 8192];
    while let Ok(count) = from.read(&mut chunk)
        && count > 0
    {
        kept.lock().unwrap()[index].extend_from_slice(&chunk[..count]);
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// What must not be found, by name.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &str) {
        assert!(secret.len() >= 8, "{name} is too short: {secret}");
        self.0.push((name.to_owned(), secret.to_owned()));
    }

    /// Text that may be cut anywhere.
    fn add_pieces(&mut self, name: &str, secret: &str) {
        for piece in secret.as_bytes().chunks_exact(40) {
            self.add(name, std::str::from_utf8(piece).unwrap());
        }
    }

    /// Those that a text holds, in any usual encoding, and words as long as no prose has them.
    fn found_in(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (name, secret) in &self.0 {
            let base64 = BASE64_STANDARD.encode(secret);
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            let forms = BTreeSet::from([
                secret.clone(),
                base64.trim_end_matches('=').to_owned(),
                BASE64_URL_SAFE_NO_PAD.encode(secret),
                url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
                hex,
            ]);
            let there = forms.into_iter().filter(|form| text.contains(form));
            found.extend(there.map(|form| format!("{name}: {form}")));
        }
        // The beginning of every JWT, as it is and in base64; of every PEM.
        for beginning in ["eyJ", "ZXlK", "-----BEGIN"] {
            if text.contains(beginning) {
                found.push(format!("something that begins with {beginning}"));
            }
        }
        let of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '_');
        let words = text.split(|c| !of_word(c));
        // A key's id, SHA-256 in hexadecimal digits, has 64.
        let long = words.filter(|word| word.len() > 64);
        found.extend(long.map(|word| format!("a long word: {word}")));
        found
    }

    fn assert_absent(&self, text: &str) {
        let found = self.found_in(text);
        assert!(found.is_empty(), "{found:#?}\n{text}");
    }
}

/// A directory that nobody but its owner may open.
fn private_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn ids(legs: &Value) -> BTreeSet<&str> {
    let legs = legs.as_array().unwrap().iter();
    legs.map(|leg| leg["correlation_id"].as_str().unwrap())
        .collect()
}

fn legs(way: &Value) -> Vec<&str> {
    let legs = way["legs"].as_array().unwrap().iter();
    legs.map(|leg| leg["leg"].as_str().unwrap()).collect()
}

#[test]
fn story_15_the_bundle_has_the_ids_of_all_legs_and_nothing_to_steal() {
    let azure = Azure::start();
    let dir = private_dir();
    let (state, file) = (dir.path().join("state"), dir.path().join("ticket.json"));
    let name = file.to_str().unwrap();
    let output = azure.doctor(&state, &["--bundle", name, "--try", RESOURCE]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    // Whoever sits there still reads what doctor says.
    assert!(String::from_utf8_lossy(&output.stdout).contains("identity source"));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let text = fs::read_to_string(&file).unwrap();
    azure.secrets(&state).assert_absent(&text);
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let way = &bundle["way"];
    assert_eq!(legs(way), ["key", "metadata", "csr", "issue", "token"]);
    assert_eq!(way["legs"][4]["stage"], "MIv2.STS.mTLS.Token");
    assert_eq!(way["token"]["token_type"], "mtls_pop");
    assert_eq!(way["error"], Value::Null);
    assert_eq!(ids(&way["legs"]).len(), 1, "one way has one id");

    let told: BTreeSet<&str> = ids(&way["legs"])
        .union(&ids(&bundle["probes"]))
        .copied()
        .collect();
    let seen = azure.correlation_ids();
    for leg in ["probe", "metadata", "issue", "token"] {
        assert!(!seen[leg].is_empty(), "{leg}");
    }
    for (leg, ids) in &seen {
        for id in ids {
            assert!(told.contains(id.as_str()), "{leg} {id} is not in:\n{text}");
        }
    }
    let way_id = way["legs"][0]["correlation_id"].as_str().unwrap();
    let lines = bundle["log"]["lines"].as_array().unwrap();
    for leg in legs(way) {
        let line = format!("leg{{leg={leg} ");
        let tells = |text: &str| text.contains(&line) && text.contains(way_id);
        assert!(
            lines.iter().any(|text| tells(text.as_str().unwrap())),
            "{leg}"
        );
    }

    assert_eq!(bundle["kill_switch"]["on"], false);
    assert_eq!(bundle["key"]["store"], "memory");
    assert_eq!(bundle["capabilities"]["bound_tokens"], true);
    assert_eq!(bundle["doctor"]["source"]["source"], "imds_v2");
    assert_eq!(bundle["certificates"], Value::Array(vec![]));
    let set: Vec<String> = serde_json::from_value(bundle["variables_set"].clone()).unwrap();
    for name in ["IDENTITY_HEADER", "KEYBOND_PKCS11_PIN", IMDS] {
        assert!(set.iter().any(|known| known == name), "{set:?}");
    }
    // The address of the metadata service is the variable's.
    let endpoint = bundle["doctor"]["source"]["endpoint"].as_str().unwrap();
    assert_eq!(endpoint, format!("<{IMDS}>/"));
}

#[test]
fn story_15_a_way_that_fails_yields_a_bundle_too() {
    let azure = Azure::start();
    let dir = private_dir();
    azure.admin(&["--data", "aadsts 700027"], "scenario");
    let state = dir.path().join("state");
    let output = azure.doctor(&state, &["--bundle", "-", "--try", RESOURCE]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    azure.secrets(&state).assert_absent(&text);
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let way = &bundle["way"];
    let last = way["legs"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["leg"], &last["succeeded"], &last["status"]),
        (&"token".into(), &false.into(), &401.into())
    );
    assert_eq!(last["code"], way["error"]["code"]);
    assert!(last["trace_id"].is_string(), "{last:#}");
    assert_eq!(way["token"], Value::Null);
    for id in &azure.correlation_ids()["token"] {
        assert!(ids(&way["legs"]).contains(id.as_str()));
    }
}

#[test]
fn story_15_without_being_asked_no_way_is_tried() {
    let azure = Azure::start();
    let dir = private_dir();
    let state = dir.path().join("state");
    let output = azure.doctor(&state, &["--bundle", "-"]);
    let bundle: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(bundle["way"], serde_json::json!({ "tried": false }));
    assert_eq!(bundle["key"], Value::Null);
    let counters = azure.admin(&[], "counters");
    assert_eq!(
        (&counters["issue"], &counters["token"]),
        (&0.into(), &0.into())
    );

    // The switch of an operator is told, a file that is there is not replaced.
    fs::write(state.join("disable-imds-v2"), "").unwrap();
    let output = azure.doctor(&state, &["--bundle", "-"]);
    let bundle: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(bundle["kill_switch"]["on"], true, "{bundle:#}");
    let file = dir.path().join("ticket.json");
    fs::write(&file, "mine").unwrap();
    let output = azure.doctor(&state, &["--bundle", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_bundle_that_is_interrupted_leaves_nothing() {
    // Takes the connection and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (dir, state) = (private_dir(), private_dir());
    let mut doctor = Command::new(KEYBOND)
        .args(["doctor", "--try", RESOURCE, "--bundle"])
        .arg(dir.path().join("ticket.json"))
        .env(IMDS, format!("http://{}", silent.local_addr().unwrap()))
        .env("KEYBOND_TPM", "off")
        .env("KEYBOND_STATE_DIR", state.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _asked = silent.accept().unwrap();
    let interrupt = Command::new("kill")
        .args(["-INT", &doctor.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    assert_eq!(doctor.wait().unwrap().signal(), Some(2));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn story_15_settings_that_cannot_be_used_are_in_the_bundle() {
    let secret = "http://user:password-in-the-url@203.0.113.9/path-of-the-url";
    let dir = private_dir();
    let output = Command::new(KEYBOND)
        .args(["doctor", "--bundle", "-", "--try", RESOURCE])
        .env(IMDS, secret)
        .env("KEYBOND_TPM", "off")
        .env("KEYBOND_STATE_DIR", dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut secrets = Secrets::default();
    for secret in [
        secret,
        "password-in-the-url",
        "203.0.113.9",
        "path-of-the-url",
    ] {
        secrets.add(IMDS, secret);
    }
    secrets.assert_absent(&text);
    let bundle: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle["kill_switch"], "unknown");
    let code = &bundle["capabilities"]["error"]["code"];
    assert_eq!((code, &bundle["way"]["error"]["code"]), (code, code));
    assert!(code.is_string(), "{text}");
}

#[test]
fn story_15_kept_certificates_are_named_and_kept_tokens_are_not() {
    let azure = Azure::start();
    let tpm = Swtpm::start().unwrap();
    let state = tpm.dir().join("keybond");
    let address = tpm.address();
    for _ in 0..2 {
        let got = azure.keybond(&state, &["token", RESOURCE, "--tpm", &address]);
        assert_eq!(
            got.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&got.stderr)
        );
    }
    let counters = azure.admin(&[], "counters");
    assert_eq!(counters["token"], 1, "the second one found it");
    let token = kept_token(&state);
    let with_tpm = ["--tpm", &address, "--bundle", "-"];
    let tried = azure.doctor(&state, &[&with_tpm[..], &["--try", RESOURCE]].concat());
    let tried: Value = serde_json::from_slice(&tried.stdout).unwrap();
    assert_eq!(tried["key"]["store"], "tpm2", "{tried:#}");
    let counters = azure.admin(&[], "counters");
    assert_eq!(counters["token"], 2, "what was kept tries nothing");
    let mut secrets = azure.secrets(&state);
    for part in token.split('.') {
        secrets.add("token", part);
    }
    secrets.assert_absent(&tried.to_string());

    let output = azure.doctor(&state, &with_tpm);
    let text = String::from_utf8(output.stdout).unwrap();
    secrets.assert_absent(&text);
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let kept = &bundle["certificates"][0];
    assert_eq!(kept["x5t#S256"], tried["way"]["token"]["x5t#S256"]);
    assert_eq!(kept["key_id"], tried["key"]["key_id"]);
    assert_eq!(
        kept["not_after"],
        tried["way"]["token"]["certificate_not_after"]
    );
    assert_eq!(bundle["certificates"].as_array().unwrap().len(), 1);
}

/// The token in the state directory.
fn kept_token(state: &Path) -> String {
    let mut files = fs::read_dir(state.join("tokens")).unwrap().flatten();
    let record = files.find(|file| file.path().extension().is_some_and(|kind| kind == "json"));
    let record: Value = serde_json::from_slice(&fs::read(record.unwrap().path()).unwrap()).unwrap();
    record["access_token"].as_str().unwrap().to_owned()
}

#[test]
fn the_search_finds_what_is_there() {
    let mut secrets = Secrets::default();
    secrets.add("secret", "a/secret+value");
    for text in [
        "x a/secret+value y",
        "YS9zZWNyZXQrdmFsdWU=",
        "a%2Fsecret%2Bvalue",
        "612f7365637265742b76616c7565",
        "eyJhbGciOiJub25lIn0",
        &"QUJD".repeat(17),
    ] {
        assert_eq!(secrets.found_in(text).len(), 1, "{text}");
    }
    assert!(secrets.found_in("a secret value").is_empty());
}
