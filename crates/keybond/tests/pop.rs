//! Signed HTTP Requests and DPoP proofs, verified by an independent JOSE library (Debian's python3-jwcrypto).
#![allow(clippy::unwrap_used)]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use keybond::{
    HeldKey, KeyProvider,
    keys::SignatureScheme,
    pop::{DpopProof, Jwk, SignedHttpRequest},
};
use serde_json::Value;

/// Prints header and claims of the JWS on standard input, verified with the JWK that it carries itself, and
/// that JWK's thumbprint.
const VERIFY: &str = r#"
import json, sys
from jwcrypto import jwk, jws
token = jws.JWS()
token.deserialize(sys.stdin.read())
header = token.jose_header
payload = json.loads(token.objects['payload'])
key = jwk.JWK(**(header.get('jwk') or payload['cnf']['jwk']))
token.verify(key)
print(json.dumps({'header': header, 'claims': payload, 'thumbprint': key.thumbprint()}))
"#;

fn verified(jws: &str) -> Value {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", VERIFY])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(jws.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn key() -> std::sync::Arc<HeldKey> {
    KeyProvider::in_memory().get_or_create_key().await.unwrap()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

#[tokio::test]
async fn signed_http_requests_verify_in_both_families() {
    let key = key().await;
    for scheme in [
        SignatureScheme::RsaPssSha256,
        SignatureScheme::RsaPkcs1Sha256,
    ] {
        let jws = SignedHttpRequest::new("the-token")
            .request("POST", "https://host.example:8443/a/b?x=1&y=2")
            .unwrap()
            .nonce("from-the-server")
            .scheme(scheme)
            .sign(&key, now())
            .await
            .unwrap();
        let proof = verified(&jws);
        assert_eq!(proof["header"]["alg"], scheme.jose_name());
        assert_eq!(proof["header"]["typ"], "pop");
        assert_eq!(proof["header"]["kid"], proof["thumbprint"]);
        assert_eq!(proof["thumbprint"], Jwk::of(key.public_key()).thumbprint());
        let claims = &proof["claims"];
        assert_eq!(claims["at"], "the-token");
        assert_eq!(claims["ts"], 1_700_000_000);
        assert_eq!(claims["m"], "POST");
        assert_eq!(claims["u"], "host.example:8443");
        assert_eq!(claims["p"], "/a/b");
        assert_eq!(claims["q"][0], serde_json::json!(["x", "y"]));
        assert_eq!(claims["nonce"], "from-the-server");
    }
}

#[tokio::test]
async fn without_a_nonce_each_signed_request_has_one_of_its_own() {
    let key = key().await;
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let jws = SignedHttpRequest::new("t").sign(&key, now()).await.unwrap();
        nonces.push(
            verified(&jws)["claims"]["nonce"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert_ne!(nonces[0], nonces[1]);
}

#[tokio::test]
async fn dpop_proofs_verify_in_both_families() {
    let key = key().await;
    let mut seen = Vec::new();
    for scheme in [
        SignatureScheme::RsaPssSha256,
        SignatureScheme::RsaPkcs1Sha256,
    ] {
        let jws = DpopProof::new(
            "GET",
            "https://resource.example.org/protectedresource?a=b#c",
        )
        .unwrap()
        .access_token("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU")
        .nonce("n-1")
        .scheme(scheme)
        .sign(&key, now())
        .await
        .unwrap();
        let proof = verified(&jws);
        assert_eq!(proof["header"]["alg"], scheme.jose_name());
        assert_eq!(proof["header"]["typ"], "dpop+jwt");
        assert!(proof["header"]["jwk"].get("d").is_none());
        let claims = &proof["claims"];
        assert_eq!(claims["htm"], "GET");
        assert_eq!(
            claims["htu"],
            "https://resource.example.org/protectedresource"
        );
        assert_eq!(claims["iat"], 1_700_000_000);
        assert_eq!(claims["ath"], "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo");
        assert_eq!(claims["nonce"], "n-1");
        seen.push(claims["jti"].as_str().unwrap().to_owned());
    }
    assert_ne!(seen[0], seen[1]);
}
