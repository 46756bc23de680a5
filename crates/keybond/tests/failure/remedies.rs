//! Remedies beyond the stories: claims, throttling, attestation, a dead key, and what is no reason for any.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, Error,
    KeyProvider, Leg,
    keys::{
        ExportAttempt, KeyName, KeyProperties, KeyStore, MemoryStore, Reason, SignatureScheme,
        StoreId, StoredKey, Unavailable,
    },
    tls::BoxFuture,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    cloud::Cloud,
    support::{
        Bench, NOW, RESOURCE,
        azure::Service,
        server::{Asked, Reply},
    },
    witness::Meter,
};

const OTHER: &str = "https://other.example";
const CLAIMS: &str = r#"{"access_token":{"nbf":{"essential":true,"value":"1781481600"}}}"#;

/// A parameter of a token request.
fn parameter(asked: &Asked, name: &str) -> Option<String> {
    url::form_urlencoded::parse(&asked.body)
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// Refuses the next token requests with this, so many times.
fn refuse_tokens(bench: &Bench, times: usize, refusal: Reply) {
    let left = AtomicUsize::new(times);
    bench.azure.twist_one(Service::Token, move |honest| {
        let refused = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if refused.is_ok() {
            refusal.clone()
        } else {
            honest
        }
    });
}

fn invalid_client() -> Reply {
    Reply::status(401, r#"{"error":"invalid_client"}"#)
}

#[tokio::test]
async fn a_claims_challenge_gets_a_new_certificate_first_and_then_a_token_with_the_claims() {
    let bench = Bench::new().await;
    let builder = bench.builder().client_capabilities(["cp1"]);
    let client = builder.build().unwrap();
    let old = client.token(RESOURCE).await.unwrap();
    bench.reports.lock().unwrap().clear();

    let new = client.token_for_claims(RESOURCE, CLAIMS).await.unwrap();
    let legs = bench.legs();
    let last: Vec<_> = legs.iter().rev().take(2).rev().collect();
    assert_eq!(last, [&Leg::Issue, &Leg::Token]);
    let issued = bench.azure.asked(Service::Issue);
    assert!(!issued[0].target.contains("bypass_cache"));
    assert!(issued[1].target.ends_with("&bypass_cache=true"));
    let tokens = bench.azure.asked(Service::Token);
    let sent: Vec<Value> = tokens
        .iter()
        .map(|asked| serde_json::from_str(&parameter(asked, "claims").unwrap()).unwrap())
        .collect();
    let capabilities = json!({"values": ["cp1"]});
    assert_eq!(sent[0], json!({"access_token": {"xms_cc": capabilities}}));
    let mut expected: Value = serde_json::from_str(CLAIMS).unwrap();
    expected["access_token"]["xms_cc"] = capabilities;
    assert_eq!(sent[1], expected);

    let versions = (
        old.binding().unwrap().version(),
        new.binding().unwrap().version(),
    );
    assert_eq!(versions, (1, 2));
    // It takes the place of the one that the resource did not want any more.
    let cached = client.token(RESOURCE).await.unwrap();
    assert_eq!(cached.binding().unwrap().version(), 2);
    assert_eq!(bench.azure.count(Service::Token), 2);
}

#[tokio::test]
async fn the_same_challenge_to_many_costs_one_certificate_and_challenges_without_end_a_few() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.token_for_claims(RESOURCE, CLAIMS).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let counts = || {
        (
            bench.azure.count(Service::Issue),
            bench.azure.count(Service::Token),
        )
    };
    assert_eq!(counts(), (2, 2));
    // A resource that is never content: three in a row, then the certificate in use has to do.
    for _ in 0..5 {
        client.token_for_claims(RESOURCE, CLAIMS).await.unwrap();
    }
    assert_eq!(counts(), (4, 7));
    let error = client.token_for_claims(RESOURCE, "[]").await.unwrap_err();
    assert_eq!(error.field(), Some("claims"));
}

#[tokio::test]
async fn a_challenge_of_a_token_that_was_replaced_costs_nothing() {
    let bench = Bench::new().await;
    let client = bench.client();
    let counts = || {
        (
            bench.azure.count(Service::Issue),
            bench.azure.count(Service::Token),
        )
    };
    let first = client.token(RESOURCE).await.unwrap();
    let other = client.token(OTHER).await.unwrap();
    assert_eq!(counts(), (1, 2));
    let second = client.token_after_challenge(&first, CLAIMS).await.unwrap();
    assert_eq!(second.resource(), RESOURCE);
    assert_eq!(second.binding().unwrap().version(), 2);
    assert_eq!(counts(), (2, 3));
    // Whoever was challenged with the first one, too, and comes late takes the second.
    for claims in [CLAIMS, r#"{"access_token":{}}"#] {
        let late = client.token_after_challenge(&first, claims).await.unwrap();
        assert_eq!(late.secret(), second.secret());
    }
    assert_eq!(counts(), (2, 3));
    // Another resource's token of the old certificate: a new token, with the certificate that is there.
    let new = client.token_after_challenge(&other, CLAIMS).await.unwrap();
    assert_eq!(new.resource(), OTHER);
    assert_ne!(new.secret(), other.secret());
    assert_eq!(new.binding().unwrap().version(), 2);
    assert_eq!(counts(), (2, 4));
    // The one that is in use is challenged: that is news.
    let third = client.token_after_challenge(&second, CLAIMS).await.unwrap();
    assert_eq!(third.binding().unwrap().version(), 3);
    assert_eq!(counts(), (3, 5));
    let error = client
        .token_after_challenge(&first, "[]")
        .await
        .unwrap_err();
    assert_eq!(error.field(), Some("claims"));
}

/// A resource's word is no reason to be left without a certificate, should there be no other now.
#[tokio::test]
async fn a_challenge_gives_up_nothing_before_the_next_certificate_is_there() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    bench
        .azure
        .twist_one(Service::Issue, |_| Reply::status(403, "{}"));
    let error = client.token_for_claims(RESOURCE, CLAIMS).await.unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Issue));
    assert_eq!(client.credential().await.unwrap().version(), 1);
}

#[tokio::test]
async fn whoever_asks_again_after_a_caller_went_away_shares_its_run() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (arriving, closed) = (Arc::clone(&arrived), Arc::clone(&gate));
    bench.azure.twist_one(Service::Issue, move |honest| {
        arriving.add_permits(1);
        Reply::Gated(Arc::clone(&closed), Box::new(honest))
    });
    let caller = tokio::spawn({
        let client = client.clone();
        async move { client.token_for_claims(RESOURCE, CLAIMS).await }
    });
    arrived.acquire().await.unwrap().forget();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    let mut again = pin!(client.token_for_claims(RESOURCE, CLAIMS));
    tokio::select! {
        biased;
        _ = &mut again => unreachable!("the gate is closed"),
        () = std::future::ready(()) => {}
    }
    gate.add_permits(2);
    again.await.unwrap();
    assert_eq!(bench.azure.count(Service::Issue), 2);
    assert_eq!(bench.azure.count(Service::Token), 2);
}

#[tokio::test]
async fn throttling_stands_for_its_resource_and_starves_no_other() {
    let bench = Bench::new().await;
    let client = bench.client();
    let throttling = Arc::new(AtomicBool::new(true));
    let throttled = Arc::clone(&throttling);
    bench.azure.twist(move |service, asked, honest| {
        let scope = format!("{RESOURCE}/.default");
        let hit = service == Service::Token && parameter(asked, "scope").unwrap() == scope;
        if hit && throttled.load(Ordering::SeqCst) {
            Reply::status(429, "{}").with_header("retry-after", "20")
        } else {
            honest
        }
    });
    for _ in 0..3 {
        let error = client.token(RESOURCE).await.unwrap_err();
        assert_eq!(error.http_status(), Some(429));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(20)));
        assert!(error.retryable());
        let error = client.token_for_claims(RESOURCE, CLAIMS).await.unwrap_err();
        assert_eq!(error.http_status(), Some(429));
    }
    assert_eq!(bench.azure.count(Service::Token), 1, "asked once");
    client.token(OTHER).await.unwrap();
    assert_eq!(bench.azure.count(Service::Token), 2);

    throttling.store(false, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(19));
    assert!(client.token(RESOURCE).await.is_err());
    bench.clock.advance(Duration::from_secs(2));
    client.token(RESOURCE).await.unwrap();
    assert_eq!(bench.azure.count(Service::Token), 3);
}

/// Attests for eight hours, and remembers how it was asked.
#[derive(Default)]
struct Attester(Mutex<Vec<bool>>);

impl AttestationProvider for Attester {
    fn attest<'a>(
        &'a self,
        request: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        let mut asked = self.0.lock().unwrap();
        asked.push(request.fresh);
        let claims = json!({"exp": NOW.as_secs() + 8 * 3600, "n": asked.len()});
        let payload = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        Box::pin(async move { Ok(AttestationToken::new(format!("e30.{payload}.c2ln"))) })
    }
}

#[tokio::test]
async fn an_attestation_is_kept_while_it_holds_and_dropped_when_it_is_refused() {
    let bench = Bench::new().await;
    let attester = Arc::new(Attester::default());
    let client = bench
        .builder()
        .attestation(attester.clone())
        .build()
        .unwrap();
    let asked = || attester.0.lock().unwrap().clone();
    client.token(RESOURCE).await.unwrap();
    client.renew().await.unwrap();
    assert_eq!(asked(), [false], "the second certificate used the first's");
    bench.clock.advance(Duration::from_secs(8 * 3600 - 299));
    client.renew().await.unwrap();
    assert_eq!(
        asked(),
        [false, false],
        "in its last minutes it is not used"
    );

    refuse_tokens(&bench, 1, invalid_client());
    client.token(OTHER).await.unwrap();
    assert_eq!(asked(), [false, false, true]);
    let sent: Vec<Value> = bench
        .azure
        .asked(Service::Issue)
        .iter()
        .map(|asked| {
            serde_json::from_slice::<Value>(&asked.body).unwrap()["attestation_token"].clone()
        })
        .collect();
    assert_eq!(sent[0], sent[1]);
    assert_ne!(sent[1], sent[2]);
    assert_ne!(sent[2], sent[3]);
}

/// A store in memory whose keys die when they are told to.
#[derive(Clone, Default)]
struct Mortal {
    made: Arc<AtomicU32>,
    dead_below: Arc<AtomicU32>,
}

impl KeyStore for Mortal {
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
        let key = MemoryStore.create(name)?;
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let dead_below = Arc::clone(&self.dead_below);
        Ok(Box::new(MortalKey {
            key,
            number,
            dead_below,
        }))
    }

    fn delete(&self, _: &KeyName) -> Result<bool, Unavailable> {
        Ok(false)
    }

    fn outlives_process(&self) -> bool {
        false
    }
}

struct MortalKey {
    key: Box<dyn StoredKey>,
    number: u32,
    dead_below: Arc<AtomicU32>,
}

impl StoredKey for MortalKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.key.public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.key.schemes()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        if self.number < self.dead_below.load(Ordering::SeqCst) {
            let words = "the key is gone since the reboot";
            return Err(Unavailable::new(StoreId::Memory, Reason::Dead, words));
        }
        self.key.sign_digest(scheme, digest)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.key.properties()
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.key.attempt_export()
    }
}

#[tokio::test]
async fn a_dead_key_is_found_out_by_its_signature_and_replaced_with_its_certificate() {
    let bench = Bench::new().await;
    let meter = Meter::default();
    let _listening = meter.listen();
    let store = Mortal::default();
    let keys = KeyProvider::builder().store(store.clone()).build();
    let client = bench.builder().key_provider(keys).build().unwrap();
    let old = client.token(RESOURCE).await.unwrap();

    // The handshake would fail in the signature; here the connection breaks, twice.
    store.dead_below.store(1, Ordering::SeqCst);
    refuse_tokens(&bench, 2, Reply::HangUp);
    let new = client.token(OTHER).await.unwrap();
    let key = |token: &keybond::AccessToken| token.binding().unwrap().key().id();
    assert_ne!(key(&old), key(&new));
    assert_eq!(store.made.load(Ordering::SeqCst), 2, "one new key");
    assert_eq!(bench.azure.count(Service::Issue), 2, "one new certificate");
    assert_eq!(
        meter.count("keybond_remedies_total{outcome=replaced,remedy=prove_key}"),
        1
    );
}

#[tokio::test]
async fn each_number_for_a_refused_certificate_is_cured_and_no_other_is() {
    for (number, cured) in [
        (0, true),
        (1_000_610, true),
        (1_000_611, true),
        (1_000_612, true),
        (1_000_613, true),
        (1_000_614, true),
        (500_181, true),
        (1_000_901, true),
        (392_196, false),
        (3_921_996, false),
        (700_016, false),
    ] {
        let cloud = Cloud::start().await;
        let client = cloud.client();
        cloud.play(&format!(
            r#"fault {{"leg":"token","kind":{{"aadsts":{{"code":{number}}}}},"times":1}}"#
        ));
        let ended = client.token(cloud.resource()).await;
        assert_eq!(ended.is_ok(), cured, "{number}");
        let counters = cloud.azure.counters();
        let expected = if cured { (2, 2, 1) } else { (1, 1, 0) };
        assert_eq!(
            (counters.token, counters.issue, counters.issue_bypass_cache),
            expected,
            "{number}"
        );
        if let Err(error) = ended {
            assert!(!error.retryable(), "{number}");
            assert!(keybond::explain(&format!("AADSTS{number}")).is_some() || number == 700_016);
        }
    }
}

#[tokio::test]
async fn a_remedy_that_fails_says_why_and_loses_nothing() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    bench.azure.twist(|service, _, honest| match service {
        Service::Token => invalid_client(),
        Service::Issue => Reply::status(403, r#"{"error":"no"}"#),
        _ => honest,
    });
    let error = client.token(OTHER).await.unwrap_err();
    assert_eq!(error.leg(), Some(Leg::Issue));
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    client.token(RESOURCE).await.unwrap();
    bench.azure.untwist();
    let token = client.token(OTHER).await.unwrap();
    assert!(token.is_confirmed());
}
