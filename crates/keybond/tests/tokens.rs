//! Tokens that the processes of one user share: who finds what another got, when nobody may, and what happens to files
//! that make no sense.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use keybond::{
    Clock, KeyProvider, ManagedIdentity, MemoryCertificates, ResourceRule,
    keys::{StateDir, Verdict},
};
use support::{
    RESOURCE,
    azure::Service,
    machine::{Machine, provider},
    server::Reply,
};
use tokio::sync::Semaphore;

const ELSEWHERE: &str = "https://elsewhere.example";

/// What a challenge demands.
const CLAIMS: &str = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#;

trait Kept {
    fn records(&self) -> Vec<PathBuf>;
    fn record(&self) -> PathBuf;
    fn set_aside(&self, why: &str) -> usize;
    /// How often the token service was asked.
    fn asked(&self) -> usize;
    /// Lets every token be another one: their order is written into them.
    fn number_tokens(&self);
}

impl Kept for Machine {
    fn records(&self) -> Vec<PathBuf> {
        let mut files = self.files_in("tokens");
        files.retain(|file| file.extension().is_some_and(|kind| kind == "json"));
        files
    }

    fn record(&self) -> PathBuf {
        let records = self.records();
        assert_eq!(records.len(), 1, "{records:?}");
        records[0].clone()
    }

    fn set_aside(&self, why: &str) -> usize {
        let aside = |file: &&PathBuf| file.extension().is_some_and(|kind| kind == why);
        self.files_in("tokens").iter().filter(aside).count()
    }

    fn asked(&self) -> usize {
        self.bench.azure.count(Service::Token)
    }

    fn number_tokens(&self) {
        let number = std::sync::atomic::AtomicUsize::new(0);
        self.bench
            .azure
            .twist_one(Service::Token, move |honest| numbered(honest, &number));
    }
}

fn numbered(honest: Reply, number: &std::sync::atomic::AtomicUsize) -> Reply {
    let number = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    honest.map_member("access_token", |token| format!("{token}{number:04}").into())
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

/// What the clock shows, in seconds since 1970.
fn now(machine: &Machine) -> u64 {
    let since = machine.bench.clock.now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[tokio::test]
async fn another_process_finds_the_token_and_asks_nobody() {
    let machine = Machine::new().await;
    let first = machine.token().await;
    let sent = machine.bench.azure.total();
    machine.bench.azure.twist(|_, _, _| Reply::HangUp);
    let second = machine.token().await;
    assert_eq!(second.secret(), first.secret());
    assert_eq!(second.expires_on(), first.expires_on());
    assert_eq!(second.resource(), RESOURCE);
    assert!(second.is_confirmed());
    let (one, two) = (first.binding().unwrap(), second.binding().unwrap());
    assert_eq!(one.x5t_s256(), two.x5t_s256());
    assert_eq!(one.key().id(), two.key().id());
    assert_eq!(machine.bench.azure.total(), sent, "nobody was asked");
    let told = {
        let reports = machine.bench.reports.lock().unwrap();
        reports.last().unwrap().outcome.clone()
    };
    assert!(told.contains("kept in"), "{told}");
    assert!(!told.contains(first.secret()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for file in machine.files_in("tokens") {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        assert_eq!(mode(&machine.state().join("tokens")), 0o700);
    }
}

#[tokio::test]
async fn what_makes_another_token_is_not_found() {
    let machine = Machine::new().await;
    machine.token().await;
    let other = machine.process().build().unwrap();
    other.token(ELSEWHERE).await.unwrap();
    assert_eq!(machine.asked(), 2, "another resource");
    let capable = || machine.process().client_capabilities(["cp1"]);
    capable().build().unwrap().token(RESOURCE).await.unwrap();
    assert_eq!(machine.asked(), 3, "other capabilities");
    capable().build().unwrap().token(RESOURCE).await.unwrap();
    machine.token().await;
    assert_eq!(machine.asked(), 3);
    assert_eq!(machine.records().len(), 3);
}

#[tokio::test]
async fn after_a_rotation_nobody_finds_the_token_of_the_old_certificate() {
    let machine = Machine::new().await;
    let running = machine.process().build().unwrap();
    let old = running.token(RESOURCE).await.unwrap();
    running.credential().await.unwrap();
    let renewed = running.renew().await.unwrap();
    for _ in 0..2 {
        let token = machine.token().await;
        assert_ne!(token.secret(), old.secret());
        assert_eq!(token.binding().unwrap().x5t_s256(), renewed.x5t_s256());
    }
    assert_eq!(machine.asked(), 2, "one for each certificate");
    // The old certificate's gave way.
    machine.record();
}

#[tokio::test]
async fn a_challenged_token_is_not_found_and_one_with_claims_not_kept() {
    let machine = Machine::new().await;
    machine.number_tokens();
    let client = machine.process().build().unwrap();
    let challenged = client.token(RESOURCE).await.unwrap();
    let with_claims = client.token_for_claims(RESOURCE, CLAIMS).await.unwrap();
    assert!(machine.records().is_empty());
    let next = machine.token().await;
    assert_ne!(next.secret(), challenged.secret());
    assert_ne!(next.secret(), with_claims.secret());
    assert_eq!(machine.asked(), 3);
    let text = fs::read_to_string(machine.record()).unwrap();
    assert!(!text.contains(with_claims.secret()));
}

/// Where no new certificate may be had, the challenged token goes with its record all the same.
#[tokio::test]
async fn a_challenge_that_gets_no_new_certificate_drops_the_token_too() {
    let machine = Machine::new().await;
    machine.number_tokens();
    let policy = keybond::RemedyPolicy {
        new_certificates: 0,
        ..keybond::RemedyPolicy::default()
    };
    let client = machine.process().remedy_policy(policy).build().unwrap();
    let challenged = client.token(RESOURCE).await.unwrap();
    client.token_for_claims(RESOURCE, CLAIMS).await.unwrap();
    assert_eq!(machine.issued(), 1);
    let next = machine.token().await;
    assert_ne!(next.secret(), challenged.secret());
}

#[tokio::test]
async fn a_refused_certificate_takes_its_tokens_along() {
    let machine = Machine::new().await;
    let client = machine.process().build().unwrap();
    let first = client.token(RESOURCE).await.unwrap();
    let rejected = first.binding().unwrap().x5t_s256().to_owned();
    let body = r#"{"error":"invalid_client","error_description":"AADSTS1000610: no","error_codes":[1000610]}"#;
    let once = std::sync::atomic::AtomicBool::new(true);
    machine
        .bench
        .azure
        .twist(move |service, _, honest| match service {
            Service::Token if once.swap(false, std::sync::atomic::Ordering::SeqCst) => {
                Reply::status(400, body)
            }
            _ => honest,
        });
    let second = client.token(ELSEWHERE).await.unwrap();
    assert_ne!(second.binding().unwrap().x5t_s256(), rejected);
    for record in machine.records() {
        let text = fs::read_to_string(record).unwrap();
        assert!(!text.contains(&rejected), "{text}");
    }
}

#[tokio::test]
async fn a_token_that_a_resource_refused_is_not_found() {
    let machine = Machine::new().await;
    let rule = || {
        let host = machine.bench.azure.url("");
        let host = host.trim_start_matches("https://").trim_end_matches('/');
        ResourceRule::new(host.split(':').next().unwrap()).resource(RESOURCE)
    };
    let client = machine.process().resource_rule(rule()).build().unwrap();
    client.token(RESOURCE).await.unwrap();
    machine.record();
    machine
        .bench
        .azure
        .twist_one(Service::Resource, |_| Reply::status(401, ""));
    let url = machine.bench.azure.url("/secret");
    assert_eq!(client.get(&url).send().await.unwrap().status(), 401);
    assert!(machine.records().is_empty());
}

#[tokio::test]
async fn what_must_not_be_kept_is_not() {
    // A key in memory; a certificate that is not kept beyond the process; the settings.
    let machine = Machine::new().await;
    let memory = KeyProvider::in_memory();
    let unshared: [(&str, ManagedIdentity); 4] = [
        (
            "a key in memory",
            machine.process().key_provider(memory).build().unwrap(),
        ),
        (
            "a certificate in memory",
            machine
                .process()
                .certificate_store(Arc::new(MemoryCertificates::new()))
                .build()
                .unwrap(),
        ),
        (
            "the builder",
            machine.process().share_tokens(false).build().unwrap(),
        ),
        (
            "no directory",
            machine
                .bench
                .builder()
                .key_provider(provider(&machine.device))
                .build()
                .unwrap(),
        ),
    ];
    for (why, client) in &unshared {
        client.token(RESOURCE).await.unwrap();
        assert!(machine.files_in("tokens").is_empty(), "{why}");
    }
}

#[tokio::test]
async fn the_variable_and_the_setting_let_nothing_be_kept_or_found() {
    let variable = "MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE";
    let machine = Machine::new().await;
    machine.bench.env.set(variable, "1");
    machine.token().await;
    assert!(machine.files_in("tokens").is_empty());

    let machine = Machine::new().await;
    machine.token().await;
    machine.record();
    let private = machine.process().share_tokens(false).build().unwrap();
    private.token(RESOURCE).await.unwrap();
    machine.bench.env.set(variable, "true");
    machine.token().await;
    assert_eq!(machine.asked(), 3);
}

#[tokio::test]
async fn a_bearer_token_is_never_in_files() {
    let machine = Machine::new().await;
    let bearer = "a-bearer-token-of-version-one";
    machine.bench.azure.twist_one(Service::Resource, move |_| {
        Reply::json(&serde_json::json!({
            "access_token": bearer, "token_type": "Bearer", "expires_in": "3600",
            "expires_on": (support::NOW.as_secs() + 3600).to_string(),
        }))
    });
    let client = machine.process().build().unwrap();
    client.token(RESOURCE).await.unwrap();
    let got = client.bearer_token(RESOURCE).await.unwrap();
    assert_eq!(got.secret(), bearer);
    for folder in ["tokens", "certs", "."] {
        for file in machine.files_in(folder) {
            let content = fs::read(&file).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&content).contains(bearer),
                "{}",
                file.display()
            );
        }
    }
    machine.record();
}

/// Nothing shows what such a token is bound to, so it may be bound to nothing.
#[tokio::test]
async fn a_token_that_does_not_show_its_certificate_is_not_kept() {
    let machine = Machine::new().await;
    machine.bench.azure.twist_one(Service::Token, |honest| {
        honest.with_member("access_token", "opaque".into())
    });
    assert!(!machine.token().await.is_confirmed());
    machine.token().await;
    assert_eq!(machine.asked(), 2);
    assert!(machine.records().is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_set_aside_and_asked_for_anew() {
    let machine = Machine::new().await;
    machine.token().await;
    let record = machine.record();
    let honest = fs::read_to_string(&record).unwrap();
    let half = &honest[..honest.len() / 2];
    let obtained = format!("\"obtained\": {}", now(&machine));
    let mut asked = 1;
    let changes = [
        ("{", "["),
        (&*honest, half),
        (&*honest, ""),
        ("\"version\": 1", "\"version\": 2"),
        ("\"expires_in\": 86399", "\"expires_in\": 0"),
        ("\"expires_in\": 86399", "\"expires_in\": 99999999"),
        (
            "\"expires_in\": 86399",
            "\"expires_in\": \"eyJ0b3Bfc2VjcmV0\"",
        ),
        (&*obtained, "\"obtained\": 18446744073709551615"),
        ("\"access_token\": \"", "\"access_token\": \" "),
        ("\"access_token\": \"", "\"access_token\": \"opaque."),
        ("\"x5t#S256\": \"", "\"x5t#S256\": \"A"),
    ];
    for (from, to) in changes {
        fs::write(&record, &honest).unwrap();
        change(&record, from, to);
        machine.token().await;
        asked += 1;
        assert_eq!(machine.asked(), asked, "{to}");
        assert_eq!(machine.set_aside("corrupt"), asked - 1, "{to}");
    }
    let kept: Vec<String> = machine
        .files_in("tokens")
        .iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "corrupt"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert!(kept.contains(&honest.replace('{', "[")), "as it was");

    // A record that makes sense, and is for something else.
    let tenant = support::TENANT.to_owned();
    for (from, to) in [
        (&machine.bench.azure.imds(), "http://127.0.0.1:1"),
        (&support::CLIENT.to_owned(), support::OTHER),
        (&tenant, support::OTHER),
        (&RESOURCE.to_owned(), ELSEWHERE),
        (&"\"attested\": false".to_owned(), "\"attested\": true"),
        (
            &"\"client_capabilities\": []".to_owned(),
            "\"client_capabilities\": [\"cp1\"]",
        ),
    ] {
        let before = machine.set_aside("foreign");
        fs::write(&record, &honest).unwrap();
        change(&record, from, to);
        machine.token().await;
        asked += 1;
        assert_eq!(machine.asked(), asked, "{to}");
        assert_eq!(machine.set_aside("foreign"), before + 1, "{to}");
    }
}

/// A file that was carried from one name to another: the certificate decides, not the name.
#[tokio::test]
async fn the_token_of_another_certificate_is_not_believed() {
    let machine = Machine::new().await;
    let running = machine.process().build().unwrap();
    running.token(RESOURCE).await.unwrap();
    let old = fs::read_to_string(machine.record()).unwrap();
    running.renew().await.unwrap();
    let fresh = machine.token().await;
    fs::write(machine.record(), old).unwrap();
    let next = machine.token().await;
    assert_eq!(
        next.binding().unwrap().x5t_s256(),
        fresh.binding().unwrap().x5t_s256()
    );
    assert_eq!((machine.asked(), machine.set_aside("foreign")), (3, 1));
}

#[cfg(unix)]
#[tokio::test]
async fn what_somebody_else_could_have_written_is_not_believed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let machine = Machine::new().await;
    machine.token().await;
    let record = machine.record();
    fs::set_permissions(&record, fs::Permissions::from_mode(0o606)).unwrap();
    machine.token().await;
    assert_eq!((machine.asked(), machine.set_aside("untrusted")), (2, 1));

    let elsewhere = machine.state().join("elsewhere");
    fs::rename(&record, &elsewhere).unwrap();
    symlink(&elsewhere, &record).unwrap();
    machine.token().await;
    assert_eq!((machine.asked(), machine.set_aside("untrusted")), (3, 2));
    assert!(elsewhere.exists(), "what the link leads to is left alone");

    // Only an administrator can give a file away.
    if std::os::unix::fs::chown(&record, Some(65_534), None).is_ok() {
        machine.token().await;
        assert_eq!((machine.asked(), machine.set_aside("untrusted")), (4, 3));
    }
    let asked = machine.asked();

    // A folder that others can enter is not used at all, and nobody is kept from a token.
    let folder = machine.state().join("tokens");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    machine.token().await;
    machine.token().await;
    assert_eq!(machine.asked(), asked + 2);
    assert_eq!(machine.issued(), 1);
}

#[tokio::test]
async fn what_was_kept_passes_the_clock_again() {
    let machine = Machine::new().await;
    machine.number_tokens();
    machine.token().await;
    let record = machine.record();
    let obtained = format!("\"obtained\": {}", now(&machine));
    // Within what clocks may be apart.
    change(
        &record,
        &obtained,
        &format!("\"obtained\": {}", now(&machine) + 299),
    );
    machine.token().await;
    assert_eq!(machine.asked(), 1);
    // From the future: it may have ended long ago.
    change(
        &record,
        &format!("\"obtained\": {}", now(&machine) + 299),
        &format!("\"obtained\": {}", now(&machine) + 301),
    );
    machine.token().await;
    assert_eq!(machine.asked(), 2);
    // Past its refresh time, and over.
    for seconds in [43_200 + 301, 2 * 86_400] {
        machine.bench.clock.advance(Duration::from_secs(seconds));
        let before = machine.asked();
        machine.token().await;
        machine.token().await;
        assert_eq!(machine.asked(), before + 1, "{seconds}");
        machine.record();
    }
}

/// The first one whose token is due asks; the others find what it got when theirs are due.
#[tokio::test]
async fn a_refresh_is_shared_too() {
    let machine = Machine::new().await;
    machine.number_tokens();
    let clients: Vec<_> = (0..5).map(|_| machine.process().build().unwrap()).collect();
    let mut old = Vec::new();
    for client in &clients {
        old.push(client.token(RESOURCE).await.unwrap().secret().to_owned());
    }
    assert_eq!(machine.asked(), 1);
    machine
        .bench
        .clock
        .advance(Duration::from_secs(43_200 + 301));
    let mut fresh = Vec::new();
    for client in &clients {
        let now_in_use = loop {
            let token = client.token(RESOURCE).await.unwrap();
            if token.secret() != old[0] {
                break token;
            }
            tokio::task::yield_now().await;
        };
        fresh.push(now_in_use.secret().to_owned());
    }
    fresh.dedup();
    assert_eq!((fresh.len(), machine.asked()), (1, 2));
}

/// A clock that was set back makes every token one from the future. One asks, and the others do not ask as well.
#[tokio::test]
async fn a_clock_set_back_costs_one_request() {
    let machine = Machine::new().await;
    machine.number_tokens();
    let clients: Vec<_> = (0..3).map(|_| machine.process().build().unwrap()).collect();
    for client in &clients {
        client.credential().await.unwrap();
    }
    machine.bench.clock.advance(Duration::from_secs(7_200));
    let old = clients[0]
        .token(RESOURCE)
        .await
        .unwrap()
        .secret()
        .to_owned();
    for client in &clients[1..] {
        client.token(RESOURCE).await.unwrap();
    }
    machine.bench.clock.set_back(Duration::from_secs(7_200));
    for client in &clients {
        while client.token(RESOURCE).await.unwrap().secret() == old {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(machine.asked(), 2);
}

/// A token that is due is better than none.
#[tokio::test]
async fn a_token_that_is_due_is_used_while_the_token_service_is_down() {
    let machine = Machine::new().await;
    let first = machine.token().await;
    machine
        .bench
        .clock
        .advance(Duration::from_secs(43_200 + 301));
    machine.bench.azure.twist_one(Service::Token, |_| {
        Reply::status(429, "{}").with_header("retry-after", "600")
    });
    let client = machine.process().build().unwrap();
    let token = client.token(RESOURCE).await.unwrap();
    assert_eq!(token.secret(), first.secret());
    // The service asked to wait, and it is not asked meanwhile.
    let asked = machine.asked();
    machine.bench.clock.advance(Duration::from_secs(599));
    client.token(RESOURCE).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(machine.asked(), asked);
    // A refusal of the client is another matter.
    machine.bench.azure.twist_one(Service::Token, |_| {
        Reply::status(400, r#"{"error":"unauthorized_client"}"#)
    });
    let refused = machine.process().build().unwrap().token(RESOURCE).await;
    assert_eq!(refused.unwrap_err().http_status(), Some(400));
}

#[tokio::test]
async fn switched_off_means_that_nothing_is_found_either() {
    let machine = Machine::new().await;
    machine.token().await;
    let switch = machine.state().join("disable-imds-v2");
    fs::write(&switch, "").unwrap();
    let off = machine.process().build().unwrap().token(RESOURCE).await;
    assert_eq!(
        off.unwrap_err().code(),
        "mtls_pop_administratively_disabled"
    );
    fs::remove_file(switch).unwrap();
    machine.token().await;
    assert_eq!(machine.asked(), 1);
}

#[tokio::test]
async fn one_asks_and_the_others_find_what_it_got() {
    let machine = Machine::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let reached = Arc::new(Semaphore::new(0));
    let (shut, signal) = (Arc::clone(&gate), Arc::clone(&reached));
    machine
        .bench
        .azure
        .twist_one(Service::Token, move |honest| {
            signal.add_permits(1);
            Reply::Gated(Arc::clone(&shut), Box::new(honest))
        });
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let client = machine.process().build().unwrap();
            tokio::spawn(async move { client.token(RESOURCE).await.unwrap() })
        })
        .collect();
    reached.acquire().await.unwrap().forget();
    gate.add_permits(8);
    for asked in asking {
        asked.await.unwrap();
    }
    assert_eq!((machine.issued(), machine.asked()), (1, 1));
}

/// A holder that was stopped keeps its lock: it is waited for, for half of what the caller has, and then not.
#[tokio::test]
async fn a_lock_that_nobody_gives_back_costs_time_and_no_token() {
    let machine = Machine::new().await;
    machine.token().await;
    let lock = machine
        .files_in("tokens")
        .into_iter()
        .find(|file| file.extension().is_some_and(|kind| kind == "lock"));
    let lock = lock.unwrap().file_name().unwrap().to_owned();
    fs::remove_file(machine.record()).unwrap();
    let folder = StateDir::open(machine.state().join("tokens")).unwrap();
    let held = folder.try_lock(lock.to_str().unwrap()).unwrap().unwrap();
    let client = machine
        .process()
        .deadline(Duration::from_secs(4))
        .build()
        .unwrap();
    let began = std::time::Instant::now();
    client.token(RESOURCE).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(machine.asked(), 2);
    drop(held);
}

#[tokio::test]
async fn a_dead_keys_tokens_go_with_it() {
    let machine = Machine::new().await;
    let keys = provider(&machine.device);
    let client = machine
        .process()
        .key_provider(keys.clone())
        .build()
        .unwrap();
    let token = client.token(RESOURCE).await.unwrap();
    let record = machine.record();
    let dead = token.binding().unwrap().key().clone();
    machine.device.kill();
    let verdict = keys.report_failure(&dead, "a signature failed").await;
    assert!(matches!(verdict, Ok(Verdict::Replaced(_))), "{verdict:?}");
    while record.exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn tokens_that_ended_are_swept_when_another_is_kept() {
    let machine = Machine::new().await;
    machine.token().await;
    machine.bench.clock.advance(Duration::from_secs(86_400));
    let client = machine.process().build().unwrap();
    client.token(ELSEWHERE).await.unwrap();
    let text = fs::read_to_string(machine.record()).unwrap();
    assert!(text.contains(ELSEWHERE), "{text}");
}

#[tokio::test]
async fn an_adopted_token_must_be_of_a_host_that_is_still_allowed() {
    let machine = Machine::new().await;
    let client = machine.process().build().unwrap();
    client.token(RESOURCE).await.unwrap();
    machine
        .process()
        .build()
        .unwrap()
        .token(ELSEWHERE)
        .await
        .unwrap();
    machine
        .bench
        .env
        .set("MSAL_MI_IMDSV2_ALLOWED_HOSTS", "other.example");
    // The binding is in use already; the token is kept, and is not believed.
    let refused = client.token(ELSEWHERE).await.unwrap_err();
    assert_eq!(refused.code(), "host_not_allowed");
}
