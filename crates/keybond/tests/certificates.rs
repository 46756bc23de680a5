//! Certificates that are kept: who may use them, what is checked again, what happens to files that make no sense.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, Clock, Identity,
    KeyProvider, Leg, MemoryCertificates,
    keys::{Reason, StoreId, Verdict},
    tls::BoxFuture,
};
use keybond_testkit::stores::{Op, ScriptedStore};
use support::{
    Bench, CLIENT, OTHER, RESOURCE,
    azure::Service,
    machine::{Machine, provider},
    server::Reply,
};
use tokio::sync::Semaphore;

/// What there is in files.
trait Kept {
    fn files(&self) -> Vec<PathBuf>;
    fn records(&self) -> Vec<PathBuf>;
    fn record(&self) -> PathBuf;
    fn set_aside(&self, why: &str) -> usize;
}

impl Kept for Machine {
    fn files(&self) -> Vec<PathBuf> {
        self.files_in("certs")
    }

    /// The records of certificates.
    fn records(&self) -> Vec<PathBuf> {
        let mut files = self.files();
        files.retain(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            name.ends_with(".json") && !name.ends_with(".name.json")
        });
        files
    }

    fn record(&self) -> PathBuf {
        let records = self.records();
        assert_eq!(records.len(), 1, "{records:?}");
        records[0].clone()
    }

    fn set_aside(&self, why: &str) -> usize {
        let aside = |file: &PathBuf| file.extension().is_some_and(|kind| kind == why);
        self.files().iter().filter(|file| aside(file)).count()
    }
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn a_certificate_that_was_kept_needs_no_metadata_service() {
    let machine = Machine::new().await;
    let first = machine.token().await;
    machine
        .bench
        .azure
        .twist(|service, _, honest| match service {
            Service::Metadata | Service::Issue => Reply::HangUp,
            _ => honest,
        });
    let second = machine.token().await;
    let (first, second) = (first.binding().unwrap(), second.binding().unwrap());
    assert_eq!(first.x5t_s256(), second.x5t_s256());
    assert_eq!(
        (
            second.client_id(),
            second.tenant_id(),
            second.token_endpoint()
        ),
        (first.client_id(), first.tenant_id(), first.token_endpoint())
    );
    assert_eq!(machine.bench.azure.count(Service::Metadata), 1);
    assert_eq!(machine.issued(), 1);

    // For people and openssl: the same certificate in PEM, private like everything else.
    let pem = machine.record().with_extension("pem");
    let text = fs::read_to_string(&pem).unwrap();
    assert!(text.starts_with("-----BEGIN CERTIFICATE-----\n"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        for file in machine.files() {
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.display());
        }
    }
}

#[tokio::test]
async fn however_it_is_named_one_identity_has_one_certificate() {
    let machine = Machine::new().await;
    let names = [
        Identity::SystemAssigned,
        Identity::object_id(OTHER).unwrap(),
        Identity::resource_id("/subscriptions/s/x").unwrap(),
        Identity::client_id(CLIENT).unwrap(),
    ];
    for round in 0..2 {
        let mut hashes = Vec::new();
        for name in &names {
            let process = machine.process().identity(name.clone()).build().unwrap();
            hashes.push(process.credential().await.unwrap().x5t_s256().to_owned());
        }
        hashes.dedup();
        assert_eq!(hashes.len(), 1, "round {round}");
    }
    assert_eq!(machine.issued(), 1);
    // Whose client id a name stands for is asked once; a client id needs no asking.
    assert_eq!(machine.bench.azure.count(Service::Metadata), 3);
}

struct Vouch;

impl AttestationProvider for Vouch {
    fn attest<'a>(
        &'a self,
        _: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        Box::pin(async { Ok(AttestationToken::new("a.b.c")) })
    }
}

#[tokio::test]
async fn attested_or_not_are_two_certificates() {
    let machine = Machine::new().await;
    for _ in 0..2 {
        let plain = machine.process().build().unwrap();
        assert!(!plain.credential().await.unwrap().is_attested());
        let attested = machine.process().attestation(Arc::new(Vouch)).build();
        assert!(attested.unwrap().credential().await.unwrap().is_attested());
    }
    assert_eq!(machine.issued(), 2);
    assert_eq!(machine.records().len(), 2);
}

#[tokio::test]
async fn the_variable_keeps_certificates_out_of_files() {
    let machine = Machine::new().await;
    let name = "MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE";
    machine.bench.env.set(name, "True");
    machine.token().await;
    assert!(machine.files().is_empty());
    // A typo turns nothing off.
    machine.bench.env.set(name, "yes");
    machine.token().await;
    machine.token().await;
    assert_eq!(machine.issued(), 2);
    machine.bench.env.set(name, "1");
    machine.token().await;
    assert_eq!(
        machine.issued(),
        3,
        "what is in files is not looked at either"
    );
}

#[tokio::test]
async fn a_key_in_memory_leaves_no_certificate_behind() {
    let machine = Machine::new().await;
    let process = machine.process().key_provider(KeyProvider::in_memory());
    process.build().unwrap().token(RESOURCE).await.unwrap();
    assert!(machine.files().is_empty());
}

#[tokio::test]
async fn clients_of_one_process_share_through_memory() {
    let bench = Bench::new().await;
    let shared = MemoryCertificates::new();
    for name in [
        Identity::SystemAssigned,
        Identity::client_id(CLIENT).unwrap(),
        Identity::object_id(OTHER).unwrap(),
    ] {
        let client = bench
            .builder()
            .identity(name)
            .certificate_store(Arc::new(shared.clone()))
            .build()
            .unwrap();
        client.token(RESOURCE).await.unwrap();
    }
    assert_eq!(bench.azure.count(Service::Issue), 1);
}

#[tokio::test]
async fn what_makes_no_sense_is_set_aside_and_worked_around() {
    let machine = Machine::new().await;
    machine.token().await;
    let record = machine.record();
    let honest = fs::read_to_string(&record).unwrap();
    let mut issued = 1;
    for (from, to) in [
        ("{", "["),
        ("\"version\": 1", "\"version\": 2"),
        ("\"chain\": [", "\"chain\": [\"!\","),
        ("\"x5t#S256\": \"", "\"x5t#S256\": \"A"),
        (CLIENT, "me"),
    ] {
        change(&record, from, to);
        machine.token().await;
        issued += 1;
        assert_eq!(machine.issued(), issued, "{to}");
        assert_eq!(machine.set_aside("corrupt"), issued - 1, "{to}");
    }
    let kept: Vec<String> = machine
        .files()
        .iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "corrupt"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert!(kept.contains(&honest.replace('{', "[")), "as it was");

    // A record that makes sense, and is for something else.
    for (from, to) in [
        (&machine.bench.azure.imds(), "http://127.0.0.1:1"),
        (&CLIENT.to_owned(), OTHER),
        (&"\"attested\": false".to_owned(), "\"attested\": true"),
    ] {
        let before = machine.set_aside("foreign");
        change(&record, from, to);
        machine.token().await;
        issued += 1;
        assert_eq!(machine.issued(), issued, "{to}");
        assert_eq!(machine.set_aside("foreign"), before + 1, "{to}");
    }
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
    assert_eq!((machine.issued(), machine.set_aside("untrusted")), (2, 1));

    let elsewhere = machine.state().join("elsewhere");
    fs::rename(&record, &elsewhere).unwrap();
    symlink(&elsewhere, &record).unwrap();
    machine.token().await;
    assert_eq!((machine.issued(), machine.set_aside("untrusted")), (3, 2));
    assert!(elsewhere.exists(), "what the link leads to is left alone");

    // A directory that others can enter is not used at all, and nobody is kept from a token.
    fs::set_permissions(machine.state(), fs::Permissions::from_mode(0o755)).unwrap();
    machine.token().await;
    machine.token().await;
    assert_eq!(machine.issued(), 5);
}

#[tokio::test]
async fn what_was_kept_passes_every_check_again() {
    let machine = Machine::new().await;
    machine.token().await;
    let record = machine.record();
    let honest = fs::read_to_string(&record).unwrap();
    let endpoint = machine.bench.azure.url("");
    let sent = machine.bench.azure.count(Service::Token);

    // A host that must not get credentials; a tenant that the certificate does not name.
    for (from, to) in [
        (endpoint.trim_end_matches('/'), "https://evil.example"),
        (support::TENANT, OTHER),
    ] {
        fs::write(&record, honest.replace(from, to)).unwrap();
        machine.token().await;
    }
    assert_eq!(machine.issued(), 3);
    assert_eq!(machine.bench.azure.count(Service::Token), sent + 2);

    // A host that was allowed when it was kept, and is not any more.
    machine
        .bench
        .env
        .set("MSAL_MI_IMDSV2_ALLOWED_HOSTS", "other.example");
    let process = machine.process().build().unwrap();
    let refused = process.token(RESOURCE).await.unwrap_err();
    assert_eq!(refused.code(), "host_not_allowed");
    machine
        .bench
        .env
        .set("MSAL_MI_IMDSV2_ALLOWED_HOSTS", "127.0.0.1");

    // A certificate whose time is over is swept when the next is kept.
    machine
        .bench
        .clock
        .advance(Duration::from_secs(11 * 86_400));
    machine.bench.azure.wish(|wish| wish.until = (2026, 7, 25));
    machine.token().await;
    assert_eq!(machine.records().len(), 1);
}

/// A certificate is not shown in its last seconds, so one that was kept and is that old is of no use.
#[tokio::test]
async fn what_was_kept_until_its_last_seconds_is_not_used() {
    let machine = Machine::new().await;
    let first = machine.token().await;
    let until = first.binding().unwrap().not_after();
    let left = until.duration_since(machine.bench.clock.now()).unwrap();
    machine.bench.clock.advance(left - Duration::from_secs(5));
    machine.bench.azure.wish(|wish| wish.until = (2026, 7, 25));
    let second = machine.token().await;
    assert!(second.binding().unwrap().not_after() > until);
    assert_eq!(machine.issued(), 2);
}

/// The identity is deleted and made anew under its name: the token service does not know the old client any more.
fn make_anew(machine: &Machine) {
    let azure = &machine.bench.azure;
    azure.wish(|wish| wish.client = OTHER.into());
    azure.twist(|service, asked, honest| match service {
        Service::Metadata => honest.with_member("clientId", OTHER.into()),
        Service::Issue => honest.with_member("client_id", OTHER.into()),
        Service::Token if String::from_utf8_lossy(&asked.body).contains(CLIENT) => unknown(),
        _ => honest,
    });
}

fn unknown() -> Reply {
    let body = r#"{"error":"unauthorized_client","error_description":"AADSTS700016: no","error_codes":[700016]}"#;
    Reply::status(400, body)
}

#[tokio::test]
async fn an_identity_that_was_made_anew_gets_its_own_certificate() {
    let machine = Machine::new().await;
    let running = machine.process().build().unwrap();
    running.token(RESOURCE).await.unwrap();
    make_anew(&machine);
    // The token service is the first to say so: whoever has a token that is still good does not ask it.
    for resource in ["https://one.example", "https://two.example", RESOURCE] {
        let process = machine.process().build().unwrap();
        let token = process.token(resource).await.unwrap();
        assert_eq!(token.binding().unwrap().client_id(), OTHER, "{resource}");
    }
    let token = running.token("https://other.example").await.unwrap();
    assert_eq!(token.binding().unwrap().client_id(), OTHER);
    assert_eq!(machine.issued(), 2, "one for each identity");
    machine.record();
}

#[tokio::test]
async fn a_client_that_is_not_known_and_the_same_keeps_its_certificate() {
    let machine = Machine::new().await;
    machine.bench.azure.twist_one(Service::Token, |_| unknown());
    let client = machine.process().build().unwrap();
    for _ in 0..3 {
        let refused = client.token(RESOURCE).await.unwrap_err();
        assert_eq!(refused.code(), "token_request_refused");
    }
    assert_eq!(machine.issued(), 1);
    assert_eq!(machine.bench.azure.count(Service::Metadata), 2);
    machine.bench.azure.untwist();
    client.token(RESOURCE).await.unwrap();
    assert_eq!(machine.issued(), 1);
}

#[tokio::test]
async fn another_keys_certificate_stays_where_it_is() {
    let machine = Machine::new().await;
    machine.token().await;
    let first = machine.record();
    let other = ScriptedStore::new(StoreId::Pkcs11).stocked();
    let process = machine.process().key_provider(provider(&other));
    process.build().unwrap().token(RESOURCE).await.unwrap();
    assert_eq!(machine.records().len(), 2);
    assert!(first.exists());
    let again = machine.process().build().unwrap();
    again.credential().await.unwrap();
    assert_eq!(machine.issued(), 2);
}

#[tokio::test]
async fn a_dead_keys_certificate_and_tokens_are_given_up_and_others_kept() {
    let machine = Machine::new().await;
    // Somebody else's certificate, for a key that lives.
    let other = ScriptedStore::new(StoreId::Pkcs11).stocked();
    let neighbour = machine.process().key_provider(provider(&other));
    neighbour.build().unwrap().token(RESOURCE).await.unwrap();
    let of_others = machine.record();

    let keys = provider(&machine.device);
    let client = machine
        .process()
        .key_provider(keys.clone())
        .build()
        .unwrap();
    let before = client.token(RESOURCE).await.unwrap();
    let dead = before.binding().unwrap().key().clone();
    let of_dead = machine
        .records()
        .into_iter()
        .find(|record| *record != of_others)
        .unwrap();

    machine.device.kill();
    let verdict = keys.report_failure(&dead, "a signature failed").await;
    assert!(matches!(verdict, Ok(Verdict::Replaced(_))), "{verdict:?}");
    // The news takes a moment; the token that comes then is another key's.
    let after = loop {
        let token = client.token(RESOURCE).await.unwrap();
        if token.binding().unwrap().key().id() != dead.id() {
            break token;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(machine.issued(), 3, "one new certificate");
    assert!(after.binding().unwrap().version() > before.binding().unwrap().version());
    while of_dead.exists() {
        tokio::task::yield_now().await;
    }
    assert!(of_others.exists());
}

/// After a reboot the key is another one: what was kept for the old one is found, and not used.
#[tokio::test]
async fn a_key_that_died_while_nobody_ran_costs_one_certificate() {
    let machine = Machine::new().await;
    machine.token().await;
    machine.device.kill();
    let first = machine.token().await;
    let second = machine.token().await;
    let key = |token: &keybond::AccessToken| token.binding().unwrap().key().id();
    assert_eq!(key(&first), key(&second), "one new key");
    assert_eq!(machine.issued(), 2, "one new certificate");
}

/// No connection shows that the key is gone, for there is no certificate to connect with: its signature does.
#[tokio::test]
async fn a_key_that_dies_before_it_is_certified_is_replaced() {
    let machine = Machine::new().await;
    let keys = provider(&machine.device);
    let dead = keys.get_or_create_key().await.unwrap();
    machine.device.kill();
    let client = machine.process().key_provider(keys).build().unwrap();
    let token = client.token(RESOURCE).await.unwrap();
    assert_ne!(token.binding().unwrap().key().id(), dead.id());
    assert_eq!(machine.issued(), 1);

    // A device that is busy shows no death: the failure is told, and the key stays.
    machine
        .device
        .always(Op::Sign, machine.device.refusal(Reason::Busy));
    let failed = client.renew().await.unwrap_err();
    assert_eq!(failed.leg(), Some(Leg::Csr), "{failed}");
    machine.device.heal(Op::Sign);
    let renewed = client.renew().await.unwrap();
    assert_eq!(renewed.key().id(), token.binding().unwrap().key().id());
}

#[tokio::test]
async fn one_asks_and_the_others_find_what_it_kept() {
    let machine = Machine::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let reached = Arc::new(Semaphore::new(0));
    let (shut, signal) = (Arc::clone(&gate), Arc::clone(&reached));
    machine
        .bench
        .azure
        .twist_one(Service::Issue, move |honest| {
            signal.add_permits(1);
            Reply::Gated(Arc::clone(&shut), Box::new(honest))
        });
    let names = [
        Identity::SystemAssigned,
        Identity::SystemAssigned,
        Identity::client_id(CLIENT).unwrap(),
        Identity::object_id(OTHER).unwrap(),
    ];
    let asking: Vec<_> = names
        .into_iter()
        .map(|name| {
            let client = machine.process().identity(name).build().unwrap();
            tokio::spawn(async move { client.credential().await.unwrap() })
        })
        .collect();
    reached.acquire().await.unwrap().forget();
    gate.add_permits(4);
    let mut hashes = Vec::new();
    for asked in asking {
        hashes.push(asked.await.unwrap().x5t_s256().to_owned());
    }
    hashes.dedup();
    assert_eq!((hashes.len(), machine.issued()), (1, 1));
}

#[tokio::test]
async fn a_renewal_finds_what_another_process_has_renewed() {
    let machine = Machine::new().await;
    let [one, other] = [(); 2].map(|()| machine.process().build().unwrap());
    let old = one.credential().await.unwrap();
    other.credential().await.unwrap();
    assert_eq!(machine.issued(), 1);
    machine.bench.azure.wish(|wish| wish.until = (2026, 7, 25));
    machine
        .bench
        .clock
        .advance(Duration::from_secs(19 * 43_200));
    for client in [&one, &other] {
        while client.credential().await.unwrap().x5t_s256() == old.x5t_s256() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(machine.issued(), 2, "the second renewal asked nobody");
}
