//! Calls to real servers, with keys in memory, in a TPM and in a PKCS#11 token: Apache httpd, which asks for the
//! certificate when it knows the request, and the emulator's vaults.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http_body::{Body, Frame};
use keybond::{
    Environment, Leg, LegReport, ManagedIdentity, Method, ResourceRule, StatusCode,
    keys::{KeyProvider, MemoryStore, Pkcs11Store, SignatureScheme, StateDir, Strength, Tpm2Store},
    tls::{TlsVersion, TrustRoots, default_connector},
};
use keybond_emulator::{Emulator, Fault, FaultKind, Leg as FaultLeg};
use keybond_testkit::{Apache, Site, Swtpm, stores::SoftHsm};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

const RESOURCE: &str = "https://vault.azure.net";
const UPLOAD: usize = 5_000_000;

struct Env(HashMap<&'static str, String>);

impl Environment for Env {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// Azure, two servers of Apache's that trust its certificates, and what a client trusts.
struct World {
    azure: Emulator,
    tls12: Apache,
    tls13: Apache,
    roots: TrustRoots,
    reports: Arc<Mutex<Vec<LegReport>>>,
}

impl World {
    async fn new() -> Self {
        let azure = Emulator::builder().start().await.unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name
            .push(DnType::CommonName, "authority of the servers");
        let ca_key = KeyPair::generate().unwrap();
        let authority = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap().pem();
        let start = |protocol| {
            Apache::start(Site {
                protocol,
                certificate: &server,
                key: &key.serialize_pem(),
                client_authority: &azure.ca_pem(),
                hinted_authority: Some(&authority),
            })
            .unwrap()
        };
        let (tls12, tls13) = (start("TLSv1.2"), start("TLSv1.3"));
        let roots = TrustRoots::from_pem(format!("{}{authority}", azure.ca_pem())).unwrap();
        Self {
            tls12,
            tls13,
            roots,
            azure,
            reports: Arc::default(),
        }
    }

    /// A client for which `localhost` is a vault unless the test says otherwise.
    fn client(&self, keys: &KeyProvider, rule: ResourceRule) -> ManagedIdentity {
        let reports = Arc::clone(&self.reports);
        ManagedIdentity::builder()
            .key_provider(keys.clone())
            .tls(default_connector(&self.roots).unwrap())
            .environment(Arc::new(Env(self.azure.env().into_iter().collect())))
            .resource_rule(rule.resource(RESOURCE))
            .on_leg(Arc::new(move |report| {
                reports.lock().unwrap().push(report.clone());
            }))
            .build()
            .unwrap()
    }

    fn last_outcome(&self) -> String {
        let reports = self.reports.lock().unwrap();
        let last = reports.iter().rfind(|report| report.leg == Leg::Resource);
        last.unwrap().outcome.clone()
    }
}

fn vault_like() -> ResourceRule {
    ResourceRule::new("localhost")
        .on_demand()
        .token_bound_header()
}

/// A body in pieces of odd sizes, of which nobody knows the length beforehand.
struct Pieces(Vec<u8>, usize);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = (self.1 % 40_000 + 977).min(self.0.len() - self.1);
        if piece == 0 {
            return Poll::Ready(None);
        }
        let data = Bytes::copy_from_slice(&self.0[self.1..self.1 + piece]);
        self.1 += piece;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

fn pattern() -> Vec<u8> {
    (0..UPLOAD as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn text(response: keybond::Response) -> String {
    String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap()
}

/// Every case, with one kind of key.
async fn with(keys: KeyProvider, strength: Strength) {
    let world = World::new().await;
    let client = world.client(&keys, vault_like());
    asks_late(&world, &client, strength).await;
    uploads(&world, &keys).await;
    vaults(&world, &client).await;
    tls13(&world, &client, &keys).await;
}

async fn asks_late(world: &World, client: &ManagedIdentity, strength: Strength) {
    for path in ["/secure/secret", "/open"] {
        for _ in 0..2 {
            let response = client.get(&world.tls12.url(path)).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            let token = response.token();
            assert_eq!(token.strength(), Some(strength));
            let binding = token.binding().unwrap();
            let seen = response.headers()["x-client"].to_str().unwrap().to_owned();
            assert!(seen.contains(binding.client_id()), "{path}: {seen}");
            let tls = response.tls_info().unwrap();
            assert_eq!((tls.version, tls.renegotiations), (TlsVersion::Tls12, 1));
            assert_eq!(tls.client_signature, Some(SignatureScheme::RsaPssSha256));
            response.bytes().await.unwrap();
        }
    }
    // One renegotiation and one signature, for all four.
    assert!(world.last_outcome().ends_with("connection reused"));
}

async fn uploads(world: &World, keys: &KeyProvider) {
    let url = world.tls12.url("/cgi/secure/sum");
    let body = pattern();
    for fresh in [true, false] {
        let client = world.client(keys, vault_like());
        if !fresh {
            let asked = client.get(&world.tls12.url("/secure/secret")).send().await;
            asked.unwrap().bytes().await.unwrap();
        }
        for stream in [true, false] {
            let request = client.request(Method::POST, &url);
            let request = if stream {
                request.body_stream(Pieces(body.clone(), 0))
            } else {
                request.body(body.clone())
            };
            let response = request.send().await.unwrap();
            let asked_before = world.last_outcome().contains("before the body");
            assert_eq!(asked_before, fresh && stream, "{}", world.last_outcome());
            let sum = text(response).await;
            assert!(sum.starts_with(&sha256(&body)), "{sum}");
        }
    }
}

async fn vaults(world: &World, client: &ManagedIdentity) {
    for vault in [
        world.azure.vault_url(),
        world.azure.renegotiating_vault_url(),
    ] {
        let url = format!(
            "{}/secrets/peers?api-version=7.4",
            vault.trim_end_matches('/')
        );
        let value = "x".repeat(20_000);
        let put = client
            .request(Method::PUT, &url)
            .header("content-type", "application/json")
            .body(format!("{{\"value\":\"{value}\"}}"))
            .send()
            .await
            .unwrap();
        assert_eq!(put.status(), StatusCode::OK, "{vault}: {}", text(put).await);
        let got = client.get(&url).send().await.unwrap();
        assert_eq!(got.status(), StatusCode::OK, "{vault}");
        assert!(got.tls_info().unwrap().client_signature.is_some());
        assert!(text(got).await.contains(&value));
    }
}

/// What cannot work is refused at once, with the reason.
async fn tls13(world: &World, client: &ManagedIdentity, keys: &KeyProvider) {
    let calling = client.get(&world.tls13.url("/secure/secret")).send();
    let calling = tokio::time::timeout(Duration::from_secs(20), calling);
    let error = calling.await.unwrap().unwrap_err();
    assert_eq!(error.code(), "tls_on_demand_unsupported", "{error}");
    assert_eq!(error.leg(), Some(Leg::Resource));
    assert!(error.to_string().contains("post-handshake"), "{error}");
    assert!(error.remedy().contains("TLS 1.2"), "{}", error.remedy());

    // In the first handshake Apache does not ask under either version, and nothing is sent.
    let limited = ResourceRule::new("localhost").newest_tls(TlsVersion::Tls12);
    for (rule, apache, said) in [
        (
            ResourceRule::new("localhost"),
            &world.tls13,
            "under TLS 1.3, and it refused TLS 1.2 (alert protocol_version)",
        ),
        (
            ResourceRule::new("localhost"),
            &world.tls12,
            "under TLS 1.2; nothing was sent",
        ),
        (limited, &world.tls12, "under TLS 1.2; nothing was sent"),
    ] {
        let client = world.client(keys, rule);
        let calling = client.get(&apache.url("/secure/secret")).send();
        let error = calling.await.unwrap_err();
        assert_eq!(
            error.code(),
            "tls_client_certificate_not_requested",
            "{error}"
        );
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.remedy().contains("on-demand"), "{}", error.remedy());
    }
}

/// A challenge is followed once: with a new certificate and a token that has the claims. A body that was streamed
/// is not sent again; its refusal is the answer.
#[tokio::test]
async fn a_claims_challenge_is_followed_once() {
    let challenge = FaultKind::ClaimsChallenge {
        claims: r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#.into(),
    };
    for (times, stream, status, version) in [
        (1, false, StatusCode::OK, 2),
        (2, false, StatusCode::UNAUTHORIZED, 2),
        (1, true, StatusCode::UNAUTHORIZED, 1),
    ] {
        let azure = Emulator::builder().start().await.unwrap();
        let fault = Fault::new(FaultLeg::Vault, challenge.clone()).times(times);
        azure.inject(fault).unwrap();
        let client = ManagedIdentity::builder()
            .key_provider(KeyProvider::in_memory())
            .tls(default_connector(&TrustRoots::from_pem(azure.ca_pem()).unwrap()).unwrap())
            .environment(Arc::new(Env(azure.env().into_iter().collect())))
            .resource_rule(ResourceRule::new("localhost").token_bound_header())
            .build()
            .unwrap();
        let vault = azure.vault_url();
        let url = format!("{}/secrets/a?api-version=7.4", vault.trim_end_matches('/'));
        let put = client
            .request(Method::PUT, &url)
            .header("content-type", "application/json")
            .resource(RESOURCE);
        let body = br#"{"value":"x"}"#.to_vec();
        let put = if stream {
            put.body_stream(Pieces(body, 0))
        } else {
            put.body(body)
        };
        let response = put.send().await.unwrap();
        assert_eq!(response.status(), status, "{times} {stream}");
        assert_eq!(response.token().binding().unwrap().version(), version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_in_memory() {
    with(KeyProvider::in_memory(), Strength::Software).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_in_a_tpm() {
    let tpm = Swtpm::start().unwrap();
    let state = StateDir::open(tpm.dir().join("keybond")).unwrap();
    let store = Tpm2Store::new(tpm.address().parse().unwrap(), &state).unwrap();
    let keys = KeyProvider::builder().state_dir(state).store(store).build();
    with(keys, Strength::Hardware).await;
}

#[test]
fn with_a_key_in_a_pkcs11_token() {
    SoftHsm::scenario("with_a_key_in_a_pkcs11_token", |hsm| {
        let keys = KeyProvider::builder()
            .state_dir(StateDir::open(hsm.home().join("state")).unwrap())
            .store(Pkcs11Store::new(hsm.uri("keybond").parse().unwrap()))
            .store(MemoryStore)
            .build();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(with(keys, Strength::Hardware));
    });
}
