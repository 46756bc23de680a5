//! Every fault, as a client meets it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use keybond_emulator::{Emulator, Fault, FaultKind, Leg};
use serde_json::{Value, json};
use support::{Answer, Client, Credential, METADATA, REQUEST_ID, csr::ClientKey};

/// One request of each leg that a bound token needs, and of version 1.
async fn ask(client: &Client<'_>, leg: Leg, credential: &Credential) -> Result<Answer, i32> {
    match leg {
        Leg::Probe => client.get(METADATA, &[REQUEST_ID]).await,
        Leg::Metadata => client.metadata("").await,
        Leg::Issue => {
            // Asking for metadata here would meet the faults of that leg.
            let identity = client.system();
            let cu_id = r#"{"vmId":"a0000000-0000-4000-8000-00000000f001"}"#;
            let request =
                support::csr::Request::new(&identity.client_id, client.azure.tenant_id(), cu_id);
            client.issue("", &request.base64(&ClientKey::new())).await
        }
        Leg::V1Token => {
            let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x";
            client.get(path, &["Metadata: true"]).await
        }
        Leg::Token => {
            let scope = "https://vault.azure.net/.default";
            let form = client.form(client.system(), scope, "mtls_pop");
            client.ask_token(Some(credential), &form, &[]).await
        }
        Leg::Fabric => client.fabric("resource=x", &[]).await,
        Leg::Vault => client.secret(Some(credential), "x", &[]).await,
        other => panic!("no request for {other:?}"),
    }
}

const LEGS: [Leg; 7] = [
    Leg::Probe,
    Leg::Metadata,
    Leg::Issue,
    Leg::V1Token,
    Leg::Token,
    Leg::Fabric,
    Leg::Vault,
];

#[tokio::test]
async fn every_leg_can_fail_in_every_general_way_and_recovers() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    for leg in LEGS {
        let once = async |kind| {
            azure.inject(Fault::new(leg, kind).times(1)).unwrap();
            ask(&client, leg, &credential).await
        };
        let healthy = ask(&client, leg, &credential).await.unwrap().status;

        let gone = FaultKind::Status {
            status: 410,
            retry_after: None,
        };
        assert_eq!(once(gone).await.unwrap().status, 410);
        let throttled = FaultKind::Status {
            status: 429,
            retry_after: Some(7),
        };
        let answer = once(throttled).await.unwrap();
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header("retry-after"), Some("7"));

        let answer = once(FaultKind::Garbage).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(serde_json::from_slice::<Value>(&answer.body).is_err());
        let answer = once(FaultKind::NotUtf8).await.unwrap();
        assert!(String::from_utf8(answer.body).is_err());

        let huge = FaultKind::HugeBody { bytes: 3_000_001 };
        assert_eq!(once(huge).await.unwrap().body.len(), 3_000_001);

        let redirect = FaultKind::Redirect {
            status: 307,
            location: None,
        };
        let answer = once(redirect).await.unwrap();
        assert_eq!(answer.status, 307);
        let trap = match leg {
            Leg::Token | Leg::Fabric | Leg::Vault => {
                azure.honeypot_url().replace("http:", "https:")
            }
            _ => azure.honeypot_url(),
        };
        assert_eq!(answer.header("location"), Some(&*trap));

        // curl: 56 failure in receiving; 35 if the reset comes while the handshake ends.
        let reset = once(FaultKind::Reset).await.err().unwrap();
        assert!([35, 56].contains(&reset), "{leg:?}: curl said {reset}");

        let begun = Instant::now();
        let answer = once(FaultKind::Slow { millis: 150 }).await.unwrap();
        assert_eq!(answer.status, healthy, "late, but right");
        assert!(begun.elapsed() >= Duration::from_millis(150));

        let after = ask(&client, leg, &credential).await.unwrap();
        assert_eq!(after.status, healthy, "{leg:?} has recovered");
    }
    assert_eq!(azure.counters().honeypot, 0, "curl follows no redirect");
    assert!(azure.faults().is_empty());
}

#[tokio::test]
async fn a_gibibyte_is_streamed_not_held() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let fault: Fault =
        serde_json::from_str(r#"{"leg":"metadata","kind":{"huge_body":{}},"times":2}"#).unwrap();
    azure.inject(fault).unwrap();
    let url = format!("{}{METADATA}", azure.imds_url());
    let answer = support::curl(&["-H", "Metadata: true", "--head", "-X", "GET", &url]).await;
    let answer = answer.unwrap();
    assert_eq!(answer.header("content-length"), Some("1073741824"));
    // A client that gives up early leaves the emulator well.
    assert_eq!(
        support::curl(&["-H", "Metadata: true", "--max-filesize", "1000000", &url])
            .await
            .err(),
        Some(63)
    );
    assert_eq!(client.metadata("").await.unwrap().status, 200);
}

#[tokio::test]
async fn fields_can_be_missing_empty_or_wrong() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let inject = |leg, kind| azure.inject(Fault::new(leg, kind).times(1)).unwrap();
    inject(
        Leg::Metadata,
        FaultKind::MissingField {
            field: "tenantId".into(),
        },
    );
    inject(
        Leg::Metadata,
        FaultKind::EmptyField {
            field: "cuId.vmId".into(),
        },
    );
    let answer = client.metadata("").await.unwrap().json();
    assert!(answer.get("tenantId").is_none());
    assert_eq!(answer["cuId"], json!({ "vmId": "" }));

    inject(
        Leg::Issue,
        FaultKind::SetField {
            field: "client_id".into(),
            value: json!(7),
        },
    );
    let credential = client.enrol("", &ClientKey::new()).await;
    assert_eq!(credential.issued["client_id"], 7);

    inject(Leg::Token, FaultKind::WrongTokenType);
    let answer = ask(&client, Leg::Token, &credential).await.unwrap().json();
    assert_eq!(answer["token_type"], "Bearer");
}

#[tokio::test]
async fn the_service_can_hide_or_change_its_name() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    azure
        .inject(Fault::new(Leg::Imds, FaultKind::WrongServerHeader).times(1))
        .unwrap();
    let answer = client.metadata("").await.unwrap();
    assert_eq!(answer.header("server"), Some("Microsoft-IIS/10.0"));
    azure
        .inject(Fault::new(Leg::Imds, FaultKind::NoServerHeader).times(1))
        .unwrap();
    let answer = client.metadata("").await.unwrap();
    assert_eq!((answer.status, answer.header("server")), (200, None));
    let answer = client.metadata("").await.unwrap();
    assert_eq!(answer.header("server"), Some("IMDS/150.870.65.1854"));
}

/// What openssl prints of a certificate.
async fn read(client: &Client<'_>, answer: &Answer, options: &[&str]) -> String {
    let der = answer.json()["certificate"].as_str().unwrap().to_owned();
    let der = STANDARD.decode(der).unwrap();
    let credential = client.credential(&ClientKey::new(), der, Value::Null);
    let output = tokio::process::Command::new("openssl")
        .args(["x509", "-noout", "-in"])
        .arg(&credential.certificate)
        .args(options)
        .output()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn certificates_can_be_wrong_in_each_respect() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let csr = client.request("").await.base64(&key);
    let once = async |kind| {
        azure.inject(Fault::new(Leg::Issue, kind).times(1)).unwrap();
        client.issue("", &csr).await.unwrap()
    };
    let public_key = |der: &[u8]| STANDARD.encode(der);
    let own = public_key(&key.public_key());
    let printed = |said: String| -> String {
        said.lines()
            .filter(|line| !line.starts_with("-----"))
            .collect()
    };

    let right = client.issue("", &csr).await.unwrap();
    assert_eq!(printed(read(&client, &right, &["-pubkey"]).await), own);
    let answer = once(FaultKind::WrongKey).await;
    assert_ne!(printed(read(&client, &answer, &["-pubkey"]).await), own);

    let stranger = "a0000000-0000-4000-8000-0000000000ff";
    let answer = once(FaultKind::WrongClientId).await;
    let subject = read(&client, &answer, &["-subject"]).await;
    assert!(subject.contains(&format!("CN = {stranger}")), "{subject}");
    assert!(subject.contains(azure.tenant_id()), "{subject}");
    let answer = once(FaultKind::WrongTenantId).await;
    let subject = read(&client, &answer, &["-subject"]).await;
    assert!(subject.contains(&format!("DC = {stranger}")), "{subject}");
    assert!(subject.contains(&client.system().client_id), "{subject}");

    let answer = once(FaultKind::Expired).await;
    let said = read(&client, &answer, &["-checkend", "0"]).await;
    assert!(said.contains("will expire"), "{said}");
    let answer = once(FaultKind::NotYetValid).await;
    let said = read(&client, &answer, &["-startdate"]).await;
    let starts = tokio::process::Command::new("date")
        .args(["+%s", "-d", said.trim().trim_start_matches("notBefore=")])
        .output()
        .await
        .unwrap();
    let starts: u64 = String::from_utf8(starts.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let now = azure
        .now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!((now + 3500..now + 3700).contains(&starts), "{said}");

    let answer = once(FaultKind::HttpStsEndpoint).await.json();
    let endpoint = answer["mtls_authentication_endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with("http://"));
    let answer = once(FaultKind::ForeignStsEndpoint {
        host: "sts.evil.example".into(),
    });
    assert_eq!(
        answer.await.json()["mtls_authentication_endpoint"],
        "https://sts.evil.example"
    );
    // Whoever goes to the plain-text endpoint is counted.
    support::curl(&[&format!("{endpoint}/t/oauth2/v2.0/token")])
        .await
        .unwrap();
    assert_eq!(azure.counters().honeypot, 1);
}

#[tokio::test]
async fn revoked_certificates_are_refused_until_renewed() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let credential = client.enrol("", &key).await;
    assert_eq!(azure.revoke_all(), 1);
    let answer = ask(&client, Leg::Token, &credential).await.unwrap();
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json()["error"], "invalid_client");
    assert_eq!(answer.json()["error_codes"], json!([1_000_610]));
    let renewed = client.enrol("", &key).await;
    let answer = ask(&client, Leg::Token, &renewed).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_token_service_and_the_vault_can_refuse_on_demand() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    for (text, status, codes) in [
        (r#"{"code":3921996,"status":400}"#, 400, json!([3_921_996])),
        (r#"{"code":500181}"#, 401, json!([500_181])),
        (r#"{"code":0}"#, 401, Value::Null),
    ] {
        let fault = format!(r#"{{"leg":"token","kind":{{"aadsts":{text}}},"times":1}}"#);
        azure.inject(serde_json::from_str(&fault).unwrap()).unwrap();
        let answer = ask(&client, Leg::Token, &credential).await.unwrap();
        assert_eq!(answer.status, status);
        assert_eq!(answer.json()["error"], "invalid_client");
        assert_eq!(answer.json()["error_codes"], codes);
        assert_eq!(answer.description().contains("AADSTS"), !codes.is_null());
    }
    let claims = r#"{"access_token":{"nbf":{"essential":true}}}"#;
    azure
        .inject(Fault::new(
            Leg::Vault,
            FaultKind::ClaimsChallenge {
                claims: claims.into(),
            },
        ))
        .unwrap();
    let token = client.token(client.system(), &credential).await;
    let answer = client.secret(Some(&credential), &token, &[]).await.unwrap();
    assert_eq!(answer.status, 401);
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.contains("error=\"insufficient_claims\""));
    assert!(challenge.contains(&STANDARD.encode(claims)));
    azure.clear_faults();
    let answer = client.secret(Some(&credential), &token, &[]).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn other_processes_steer_the_emulator_over_http() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let post = async |path: &str, body: &str| {
        let path = format!("/_emulator/{path}");
        client.post(&path, body, &[]).await.unwrap()
    };
    let get = async |path: &str| {
        let path = format!("/_emulator/{path}");
        client.get(&path, &[]).await.unwrap()
    };
    let delete = async |path: &str| {
        let url = format!("{}/_emulator/{path}", azure.imds_url());
        support::curl(&["-X", "DELETE", &url]).await.unwrap().status
    };

    let answer = post(
        "faults",
        r#"[{"leg":"metadata","kind":{"status":{"status":410}},"seconds":60},
            {"leg":"vault","kind":"reset","times":3}]"#,
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(client.metadata("").await.unwrap().status, 410);
    let before = get("clock").await.json()["epoch"].as_u64().unwrap();
    let answer = post("clock", r#"{"advance_seconds":60}"#).await;
    assert!(answer.json()["epoch"].as_u64().unwrap() >= before + 60);
    assert_eq!(client.metadata("").await.unwrap().status, 200);
    assert_eq!(
        get("faults").await.json(),
        json!([{ "leg": "vault", "kind": "reset", "times": 3 }])
    );
    assert_eq!(delete("faults").await, 200);
    assert_eq!(get("faults").await.json(), json!([]));

    assert_eq!(get("counters").await.json()["metadata"], 2);
    assert_eq!(delete("counters").await, 200);
    assert_eq!(get("counters").await.json(), json!(azure.counters()));
    assert_eq!(azure.counters().metadata, 0);

    let answer = post("lifetimes", r#"{"certificate_lifetime_seconds":90}"#).await;
    assert_eq!(answer.json()["certificate_lifetime_seconds"], 90);
    let credential = client.enrol("", &ClientKey::new()).await;
    assert_eq!(post("revoke", r#"{"code":0}"#).await.json()["revoked"], 1);
    let answer = ask(&client, Leg::Token, &credential).await.unwrap();
    assert_eq!(answer.status, 401);
    assert!(answer.json().get("error_codes").is_none());

    assert_eq!(
        get("ca.pem").await.body,
        std::fs::read(azure.ca_file()).unwrap()
    );
    let env = String::from_utf8(get("env?shell=powershell").await.body).unwrap();
    assert!(env.contains("$env:KEYBOND_CA_FILE = '"), "{env}");

    for (path, body) in [
        ("faults", r#"{"leg":"vault","kind":"wrong_key"}"#),
        ("faults", r#"{"leg":"vault","kind":"wrong"}"#),
        ("faults", "nonsense"),
        ("lifetimes", r#"{"certificate_lifetime_seconds":0}"#),
        ("lifetimes", r#"{"certificate_lifetime":1}"#),
        ("clock", "{}"),
        ("clock", r#"{"advance_seconds":18446744073709551615}"#),
    ] {
        assert_eq!(post(path, body).await.status, 400, "{path} {body}");
    }
    assert_eq!(post("counters", "{}").await.status, 405);
    assert_eq!(get("nothing").await.status, 404);
    let from_a_page = client
        .get("/_emulator/counters", &["Origin: https://evil.example"])
        .await
        .unwrap();
    assert_eq!(from_a_page.status, 403);
}

#[tokio::test]
async fn shutdown_waits_for_nobody_and_a_slow_leg_delays_only_itself() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let azure = Emulator::builder().start().await.unwrap();
    let hour = FaultKind::Slow { millis: 3_600_000 };
    azure.inject(Fault::new(Leg::Metadata, hour)).unwrap();
    let address = azure.imds_url().replace("http://", "");
    let mut slow = tokio::net::TcpStream::connect(&address).await.unwrap();
    let request = format!("GET {METADATA} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n");
    slow.write_all(request.as_bytes()).await.unwrap();
    while azure.counters().metadata == 0 {
        tokio::task::yield_now().await;
    }
    // Another leg of the same server answers meanwhile.
    let probe = Client::new(&azure).get(METADATA, &[REQUEST_ID]).await;
    assert_eq!(probe.unwrap().status, 400);
    azure.shutdown().await;
    assert_eq!(slow.read(&mut [0; 16]).await.unwrap_or(0), 0, "no answer");
}
