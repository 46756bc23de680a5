//! Scenarios, as clients meet them, played without waiting: the tests' own clock moves.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use keybond_emulator::{AttestationFlaw, AttestationRule, Directive, Emulator, Scenario};
use serde_json::{Value, json};
use support::{Answer, Client, Credential, csr::ClientKey, curl};

/// A clock that stands until it is moved.
#[derive(Clone)]
struct Hands {
    start: SystemTime,
    seconds: Arc<AtomicU64>,
}

impl Hands {
    fn new() -> Self {
        Self {
            start: SystemTime::now(),
            seconds: Arc::default(),
        }
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    fn source(&self) -> keybond_emulator::ClockSource {
        let hands = self.clone();
        Arc::new(move || hands.start + Duration::from_secs(hands.seconds.load(Ordering::Relaxed)))
    }
}

async fn emulator(hands: &Hands) -> Emulator {
    let builder = Emulator::builder().clock(hands.source());
    builder.start().await.unwrap()
}

fn scenario(text: &str) -> Scenario {
    text.parse().unwrap()
}

async fn metadata(client: &Client<'_>) -> u16 {
    client.metadata("").await.unwrap().status
}

async fn ask_token(client: &Client<'_>, credential: &Credential) -> Answer {
    let form = client.form(
        client.system(),
        "https://vault.azure.net/.default",
        "mtls_pop",
    );
    client
        .ask_token(Some(credential), &form, &[])
        .await
        .unwrap()
}

#[tokio::test]
async fn steps_come_when_they_are_due_and_last_from_then_on() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let client = Client::new(&azure);
    azure
        .play(&scenario(
            "after 30s: 503 metadata for 10s\n410 for 20s\nafter 1h: throttle 1/s probe",
        ))
        .unwrap();
    assert_eq!(metadata(&client).await, 410, "at once");
    hands.pass(19);
    assert_eq!(metadata(&client).await, 410);
    hands.pass(1);
    assert_eq!(metadata(&client).await, 200);
    // Nobody asked while the step came due: it ends when it should all the same.
    hands.pass(18);
    assert_eq!(metadata(&client).await, 503);
    hands.pass(2);
    assert_eq!(metadata(&client).await, 200);
    assert_eq!(
        azure.steps_to_come(),
        [(3_560, "throttle 1/s probe".to_owned())]
    );
    azure.forget_steps();
    hands.pass(4_000);
    assert_eq!(azure.faults(), []);
}

#[tokio::test]
async fn a_jump_of_the_clock_makes_due_what_lies_in_between() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let begin = azure.now();
    azure
        .play(&scenario(
            "rotate in 90s\nafter 1s: clock +6d\nafter 3d: 410\nafter 4d: clear\nafter 5d: reset vault once",
        ))
        .unwrap();
    hands.pass(1);
    assert_eq!(
        azure.now().duration_since(begin).unwrap(),
        Duration::from_secs(6 * 86_400 + 1)
    );
    assert_eq!(azure.faults().len(), 1, "what came after the clearing");
    assert_eq!(azure.steps_to_come(), []);
    azure.play(&scenario("clock -6d")).unwrap();
    assert_eq!(azure.now(), begin + Duration::from_secs(1));

    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    hands.pass(91);
    let refused = ask_token(&client, &credential).await;
    assert!(refused.description().starts_with("AADSTS1000502"));
}

#[tokio::test]
async fn revoked_certificates_come_back_until_they_are_asked_for_anew() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let get = async |selector: &str| {
        let csr = client.request("").await.base64(&key);
        let issued = client.issue(selector, &csr).await.unwrap().json();
        let der = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            issued["certificate"].as_str().unwrap(),
        );
        client.credential(&key, der.unwrap(), issued)
    };
    let status = async |credential: &Credential| ask_token(&client, credential).await.status;

    let first = get("").await;
    assert_eq!(status(&first).await, 200);
    azure.play(&scenario("revoke")).unwrap();
    let refused = ask_token(&client, &first).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["error"], "invalid_client");
    assert_eq!(refused.json()["error_codes"], json!([1_000_610]));
    assert_eq!(status(&get("").await).await, 401, "what is kept is revoked");
    assert_eq!(status(&get("&bypass_cache=true").await).await, 200);
    assert_eq!(status(&get("").await).await, 200, "now that one is kept");
    assert_eq!(status(&first).await, 401, "revoked for good");

    azure.play(&scenario("revoke twice with 1000612")).unwrap();
    let second = get("&bypass_cache=true").await;
    assert_eq!(
        ask_token(&client, &second).await.json()["error_codes"],
        json!([1_000_612])
    );
    assert_eq!(status(&get("&bypass_cache=true").await).await, 200);

    azure.revoke_until_reissued(None);
    for _ in 0..3 {
        assert_eq!(status(&get("&bypass_cache=true").await).await, 401);
    }
    let counters = azure.counters();
    assert_eq!((counters.issue, counters.issue_bypass_cache), (9, 6));
}

#[tokio::test]
async fn a_certificate_may_get_tokens_for_less_time_than_it_is_valid() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    azure.play(&scenario("token-not-after 2h")).unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    hands.pass(7_200);
    assert_eq!(ask_token(&client, &credential).await.status, 200);
    hands.pass(1);
    let refused = ask_token(&client, &credential).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["error_codes"], json!([1_000_901]));
}

#[tokio::test]
async fn the_token_service_may_not_ask_under_tls_1_3() {
    let azure = Emulator::builder().start().await.unwrap();
    azure.play(&scenario("tls13 does-not-ask")).unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    let form = client.form(client.system(), "x/.default", "mtls_pop");
    let ask = async |arguments: &[&str]| {
        let answer = client.ask_token(Some(&credential), &form, arguments).await;
        answer.unwrap()
    };
    let refused = ask(&[]).await;
    assert_eq!(refused.status, 401);
    assert!(refused.description().contains("certificate is missing"));
    assert_eq!(ask(&["--tls-max", "1.2"]).await.status, 200);
    azure.ask_under_tls13(true);
    assert_eq!(ask(&["--tlsv1.3"]).await.status, 200);
}

#[tokio::test]
async fn handshakes_are_reset_and_counted() {
    /// curl: TLS handshake failed; curl on a reset in it says one of these.
    const BROKEN: [i32; 2] = [35, 56];

    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    azure
        .play(&scenario(
            "reset handshake token twice\nreset handshake vault once",
        ))
        .unwrap();
    let form = client.form(client.system(), "x/.default", "mtls_pop");
    for _ in 0..2 {
        let code = client.ask_token(Some(&credential), &form, &[]).await.err();
        assert!(code.is_some_and(|code| BROKEN.contains(&code)), "{code:?}");
    }
    let counters = azure.counters();
    assert_eq!((counters.token, counters.handshakes_reset), (0, 2));
    assert_eq!(
        client
            .ask_token(Some(&credential), &form, &[])
            .await
            .unwrap()
            .status,
        200
    );
    let code = client.secret(None, "x", &[]).await.err().unwrap();
    assert!(BROKEN.contains(&code), "{code}");
    assert_eq!(client.secret(None, "x", &[]).await.unwrap().status, 401);
    assert_eq!(azure.counters().handshakes_reset, 3);
}

#[tokio::test]
async fn whoever_follows_a_redirect_is_counted_with_what_it_carried() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    azure
        .play(&scenario("redirect token once\nredirect metadata once"))
        .unwrap();
    let form = client.form(client.system(), "x/.default", "mtls_pop");
    let follow = ["--location"];
    let answer = client.ask_token(Some(&credential), &form, &follow).await;
    assert_eq!(
        answer.unwrap().status,
        307,
        "curl --include shows both heads"
    );
    let counters = azure.counters();
    assert_eq!(
        (
            counters.honeypot,
            counters.honeypot_credentials,
            counters.honeypot_connections
        ),
        (1, 1, 1)
    );
    let url = format!("{}{}", azure.imds_url(), support::METADATA);
    let metadata = [
        "-H",
        "Metadata: true",
        "-H",
        support::REQUEST_ID,
        "--location",
        &*url,
    ];
    curl(&metadata).await.unwrap();
    let counters = azure.counters();
    assert_eq!(
        (counters.honeypot, counters.honeypot_credentials),
        (2, 1),
        "a GET without secrets"
    );
}

#[tokio::test]
async fn attestation_can_be_required_and_refused() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let csr = client.request("").await.base64(&ClientKey::new());
    let ask = async |body: Value| {
        let headers = [
            "Metadata: true",
            support::REQUEST_ID,
            "Content-Type: application/json",
        ];
        let answer = client
            .post(support::ISSUE, &body.to_string(), &headers)
            .await;
        answer.unwrap().status
    };
    let plain = json!({ "csr": csr });
    let attested = json!({ "csr": csr, "attestation_token": "a.b.c" });
    for (rule, statuses) in [
        ("optional", (200, 200)),
        ("required", (400, 200)),
        ("refused", (200, 400)),
    ] {
        azure
            .play(&scenario(&format!("attestation {rule}")))
            .unwrap();
        assert_eq!(
            (ask(plain.clone()).await, ask(attested.clone()).await),
            statuses,
            "{rule}"
        );
    }
    azure.set_attestation(AttestationRule::Optional);
    assert_eq!(ask(attested).await, 200);
}

#[tokio::test]
async fn a_certificate_is_as_good_as_its_attestation() {
    use AttestationFlaw::{Claim, Issuer, Jku, Signature, Time};

    let hands = Hands::new();
    let azure = emulator(&hands).await;
    azure.play(&scenario("attestation checked")).unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let csr = client.request("").await.base64(&key);
    let enrol = async |token: &str| {
        let body = json!({ "csr": csr, "attestation_token": token }).to_string();
        let headers = [
            "Metadata: true",
            support::REQUEST_ID,
            "Content-Type: application/json",
        ];
        let issued = client
            .post(support::ISSUE, &body, &headers)
            .await
            .unwrap()
            .json();
        let der = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            issued["certificate"].as_str().unwrap(),
        );
        client.credential(&key, der.unwrap(), issued)
    };
    assert_eq!(
        client.issue("", &csr).await.unwrap().status,
        400,
        "it is required"
    );

    // From the service, over HTTPS, as platform metadata says.
    let metadata = client.metadata("").await.unwrap().json();
    let endpoint = metadata["attestationEndpoint"].as_str().unwrap();
    let evidence = json!({
        "key": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key.public_key())
    });
    let url = format!("{endpoint}/attest/keyguard?api-version=1");
    let data = evidence.to_string();
    let answer = client
        .tls(&url, None, &["--data", &data])
        .await
        .unwrap()
        .json();
    let credential = enrol(answer["token"].as_str().unwrap()).await;
    assert_eq!(ask_token(&client, &credential).await.status, 200);
    assert_eq!(azure.counters().attestation, 1);

    for (flaw, code) in [
        (Time, 1_000_610),
        (Issuer, 1_000_611),
        (Claim, 1_000_612),
        (Jku, 1_000_613),
        (Signature, 1_000_614),
    ] {
        let token = azure.attest(&key.public_key(), Some(flaw)).unwrap();
        let refused = ask_token(&client, &enrol(&token).await).await;
        assert_eq!(refused.json()["error_codes"], json!([code]), "{flaw:?}");
    }
    let old = azure.attest(&key.public_key(), None).unwrap();
    hands.pass(8 * 3600);
    let refused = ask_token(&client, &enrol(&old).await).await;
    assert_eq!(refused.json()["error_codes"], json!([1_000_610]));
    let access = client.token(client.system(), &credential).await;
    let refused = ask_token(&client, &enrol(&access).await).await;
    assert_eq!(refused.status, 401, "an access token states nothing");

    azure.play(&scenario("503 attestation once")).unwrap();
    let answer = client.tls(&url, None, &["--data", &data]).await.unwrap();
    assert_eq!(answer.status, 503);
}

#[tokio::test]
async fn what_tests_assert_on_is_counted() {
    let hands = Hands::new();
    let azure = emulator(&hands).await;
    let client = Client::new(&azure);
    let (own, other) = (
        client.enrol("", &ClientKey::new()).await,
        client.enrol("", &ClientKey::new()).await,
    );
    hands.pass(1);
    for _ in 0..5 {
        client.metadata("").await.unwrap();
    }
    hands.pass(1);
    assert_eq!(azure.counters().imds_peak_per_second, 5, "2 x 2, then 5");

    let token = client.token(client.system(), &own).await;
    azure.play(&scenario("503 token once")).unwrap();
    assert_eq!(ask_token(&client, &own).await.status, 503);
    let form = client.form(client.system(), "https://graph.example/.default", "bearer");
    client.ask_token(Some(&own), &form, &[]).await.unwrap();
    let counters = azure.counters();
    assert_eq!(counters.token_by_resource["https://vault.azure.net"], 2);
    assert_eq!(counters.token_by_resource["https://graph.example"], 1);

    assert_eq!(
        client.secret(Some(&own), &token, &[]).await.unwrap().status,
        200
    );
    assert_eq!(azure.counters().mixed_bindings, 0);
    assert_eq!(
        client
            .secret(Some(&other), &token, &[])
            .await
            .unwrap()
            .status,
        401
    );
    assert_eq!(azure.counters().mixed_bindings, 1);
}

#[tokio::test]
async fn the_same_text_does_at_the_start_and_over_the_admin_endpoint() {
    let azure = Emulator::builder()
        .scenario(scenario("410"))
        .scenario(Scenario::new().after(Duration::from_secs(3_600), Directive::Clear))
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    assert_eq!(metadata(&client).await, 410);
    let post = async |text: &str| client.post("/_emulator/scenario", text, &[]).await.unwrap();
    let answer = post("after 2h: 503 token\nclear").await;
    assert_eq!(answer.status, 200);
    let steps = answer.json();
    assert_eq!(steps.as_array().unwrap().len(), 2);
    assert_eq!(steps[1]["event"], "503 token");
    assert!((7_100..=7_200).contains(&steps[1]["in_seconds"].as_u64().unwrap()));
    assert_eq!(metadata(&client).await, 200);

    let refused = post("clear\n410 for 60").await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.description(),
        "scenario, line 2: expected a duration such as 500ms, 60s, 15m, 2h, 6d or 1d12h, not 60"
    );
    let steps = client.get("/_emulator/scenario", &[]).await.unwrap().json();
    assert_eq!(steps.as_array().unwrap().len(), 2);
    let url = format!("{}/_emulator/scenario", azure.imds_url());
    curl(&["-X", "DELETE", &url]).await.unwrap();
    assert_eq!(azure.steps_to_come(), []);
}
