//! The token service of a Service Fabric cluster, asked with curl.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_emulator::Emulator;
use serde_json::{Value, json};
use support::{Answer, Client};

const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";

fn token(answer: &Answer) -> String {
    let json = answer.json();
    assert_eq!(answer.status, 200, "{json}");
    assert_eq!(json["token_type"], "Bearer");
    assert_eq!(json["resource"], "https://vault.azure.net");
    json["access_token"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn sha256(token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test]
async fn a_token_is_kept_until_it_is_refused_or_over() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let ask =
        async |more: &str| token(&client.fabric(&format!("{VAULT}{more}"), &[]).await.unwrap());
    let first = ask("").await;
    assert_eq!(ask("").await, first);
    assert_eq!(claims(&first)["oid"], client.system().object_id.as_str());
    assert_eq!(claims(&first)["cnf"], Value::Null);

    let refused = format!("&token_sha256_to_refresh={}", sha256(&first));
    let second = ask(&refused).await;
    assert_ne!(second, first);
    // Another node that was refused the first one is given the second, and no third is made.
    assert_eq!(ask(&refused).await, second);
    assert_eq!(ask("").await, second);

    azure.advance_clock(Duration::from_secs(86_399)).unwrap();
    assert_ne!(ask("").await, second);
    assert_eq!(azure.counters().fabric, 6);
}

#[tokio::test]
async fn identities_and_capabilities_have_tokens_of_their_own() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let ask = async |more: &str| {
        claims(&token(
            &client.fabric(&format!("{VAULT}{more}"), &[]).await.unwrap(),
        ))
    };
    let user = client.user();
    let named = format!("&principalId={}", user.object_id);
    assert_eq!(ask(&named).await["appid"], user.client_id.as_str());
    let able = ask("&xms_cc=cp1%2Ccp2").await;
    assert_eq!(able["xms_cc"], json!(["cp1", "cp2"]));
    let unable = ask("").await;
    assert_eq!(unable["xms_cc"], Value::Null);
    assert_ne!(able["uti"], unable["uti"]);
}

#[tokio::test]
async fn what_the_service_does_not_take_is_refused_in_its_words() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let code = async |query: &str, arguments: &[&str]| {
        let answer = client.fabric(query, arguments).await.unwrap();
        assert_eq!(answer.status, 400, "{query}");
        answer.json()["error"]["code"].as_str().unwrap().to_owned()
    };
    let (_, endpoint) = &azure.service_fabric_env()[0];
    let url = format!("{endpoint}?api-version=2020-05-01&{VAULT}");
    for (secret, expected) in [
        ("x: y", "SecretHeaderNotFound"),
        ("secret: y", "SecretHeaderInvalid"),
    ] {
        let answer = client.tls(&url, None, &["-H", secret]).await.unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &expected.into())
        );
    }
    let capital = format!("{VAULT}&token_sha256_to_refresh={}", "A".repeat(64));
    for (query, expected) in [
        ("", "ArgumentNullOrEmpty"),
        ("resource=", "ArgumentNullOrEmpty"),
        ("resource=x&resource=y", "ArgumentNullOrEmpty"),
        ("resource=x&api-version=2019-08-01", "ArgumentNullOrEmpty"),
        ("resource=x&client_id=y", "InvalidArgument"),
        ("resource=x&bypass_cache=true", "InvalidArgument"),
        ("resource=x&token_sha256_to_refresh=1", "InvalidArgument"),
        (&capital, "InvalidArgument"),
        ("resource=x&principalId=y", "ManagedIdentityNotFound"),
    ] {
        assert_eq!(code(query, &[]).await, expected, "{query}");
    }
    let posted = client.fabric(VAULT, &["-X", "POST"]).await.unwrap();
    assert_eq!(posted.status, 405);
}
