//! Attestation: a service that states which key a machine holds, and what the metadata service and
//! the token service make of such statements.
//!
//! The real service takes evidence of a form that is not published and seals its answer to a TPM.
//! Here it takes a key's word for it: what is emulated is the statement and its way.

use std::sync::atomic::{AtomicU8, Ordering};

use aws_lc_rs::digest;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    error::EmulatorError,
    http_io::{Reply, Request},
    service::{internal, method_not_allowed},
    world::{World, random_guid},
};

/// Where the service lives on the token service's port.
pub(crate) const PREFIX: &str = "/attestation/";
/// A statement is valid for eight hours.
const LIFETIME: u64 = 8 * 3600;

/// What `issuecredential` says to attestation tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttestationRule {
    /// Certifies with and without one, and does not look at it.
    #[default]
    Optional,
    /// Refuses requests without one, and does not look at it.
    Required,
    /// Refuses requests without one. A certificate got with one that is not a valid statement of
    /// the emulator's attestation service about its key is refused by the token service, as Azure
    /// does it: AADSTS1000610 (time), 1000611 (issuer), 1000612 (claim), 1000613 (`jku`) or 1000614
    /// (signature).
    Checked,
    /// Refuses requests with one, whatever it says, and certifies without.
    Refused,
}

impl AttestationRule {
    const ALL: [Self; 4] = [Self::Optional, Self::Required, Self::Checked, Self::Refused];
}

/// What can be wrong with a statement that is made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttestationFlaw {
    /// It has expired.
    Time,
    /// It is of another issuer.
    Issuer,
    /// It is about another key.
    Claim,
    /// It says that its keys are elsewhere.
    Jku,
    /// Its signature is wrong.
    Signature,
}

/// A rule that may change while requests are answered.
#[derive(Debug, Default)]
pub(crate) struct CurrentRule(AtomicU8);

impl CurrentRule {
    pub(crate) fn new(rule: AttestationRule) -> Self {
        let current = Self::default();
        current.set(rule);
        current
    }

    pub(crate) fn set(&self, rule: AttestationRule) {
        self.0.store(rule as u8, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> AttestationRule {
        let at = usize::from(self.0.load(Ordering::Relaxed));
        AttestationRule::ALL.get(at).copied().unwrap_or_default()
    }
}

/// Answers a request to the service: `POST attest/keyguard` and `GET certs`.
pub(crate) fn answer(world: &World, request: &Request) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Evidence {
        /// SubjectPublicKeyInfo, base64 of the DER.
        key: String,
        flaw: Option<AttestationFlaw>,
    }

    let path = request.path.strip_prefix(PREFIX).unwrap_or_default();
    match (path, &request.method) {
        ("certs", &Method::GET) => Reply::ok(world.signer.key_set()),
        ("attest/keyguard", &Method::POST) => {
            let evidence = serde_json::from_slice::<Evidence>(&request.body);
            let read = evidence
                .map_err(|error| error.to_string())
                .and_then(|evidence| {
                    let key = STANDARD.decode(&evidence.key);
                    let key = key.map_err(|error| format!("key: {error}"))?;
                    Ok((key, evidence.flaw))
                });
            match read {
                Ok((key, flaw)) => match statement(world, &key, flaw) {
                    Ok(token) => Reply::ok(json!({ "token": token })),
                    Err(error) => internal(&error),
                },
                Err(error) => refusal(StatusCode::BAD_REQUEST, "InvalidParameter", &error),
            }
        }
        ("certs", method) => method_not_allowed(method, "GET"),
        ("attest/keyguard", method) => method_not_allowed(method, "POST"),
        _ => refusal(StatusCode::NOT_FOUND, "NotFound", "There is nothing here."),
    }
}

/// A statement about a key (SubjectPublicKeyInfo, DER).
pub(crate) fn statement(
    world: &World,
    public_key: &[u8],
    flaw: Option<AttestationFlaw>,
) -> Result<String, EmulatorError> {
    let now = world.clock.epoch();
    let is = |other| flaw == Some(other);
    let start = if is(AttestationFlaw::Time) {
        now.saturating_sub(2 * LIFETIME)
    } else {
        now
    };
    let issuer = if is(AttestationFlaw::Issuer) {
        "https://attestation.another.invalid".to_owned()
    } else {
        issuer()
    };
    let key = if is(AttestationFlaw::Claim) {
        key_id(b"another key")
    } else {
        key_id(public_key)
    };
    let jku = if is(AttestationFlaw::Jku) {
        "https://attestation.another.invalid/certs".to_owned()
    } else {
        key_set_url(world)
    };
    let claims = json!({
        "iss": issuer,
        "iat": start,
        "nbf": start,
        "exp": start + LIFETIME,
        "jti": random_guid()?,
        "x-ms-ver": "1.0",
        "x-ms-attestation-type": "keyguard",
        "x-ms-runtime": { "keys": [{ "kty": "RSA", "kid": key }] },
    });
    let mut token = world.signer.sign_with(&json!({ "jku": jku }), &claims)?;
    if is(AttestationFlaw::Signature) {
        // The last character but one: all of its bits count.
        let at = token.len() - 2;
        let other = if token.ends_with('A') { "B" } else { "A" };
        let other = if token[at..].starts_with(other) {
            "C"
        } else {
            other
        };
        token.replace_range(at..=at, other);
    }
    Ok(token)
}

/// The number with which the token service refuses the certificate of a key that was attested by
/// this token.
pub(crate) fn flaw_code(world: &World, token: &str, public_key: &[u8]) -> Option<u32> {
    let Some((header, claims)) = world.signer.verify_with_header(token) else {
        return Some(1_000_614);
    };
    let now = world.clock.epoch();
    let number = |name: &str| claims[name].as_u64().unwrap_or_default();
    let keys = claims["x-ms-runtime"]["keys"].as_array();
    let names_key = keys.is_some_and(|keys| {
        let id = key_id(public_key);
        keys.iter().any(|key| key["kid"] == id.as_str())
    });
    if header["jku"] != key_set_url(world) {
        Some(1_000_613)
    } else if claims["iss"] != issuer() {
        Some(1_000_611)
    } else if now < number("nbf") || now >= number("exp") {
        Some(1_000_610)
    } else if !names_key || claims["x-ms-attestation-type"] != "keyguard" {
        Some(1_000_612)
    } else {
        None
    }
}

/// The service's URL, without a slash at the end.
pub(crate) fn endpoint(world: &World) -> String {
    format!("{}{}", world.addresses().sts, PREFIX.trim_end_matches('/'))
}

fn key_set_url(world: &World) -> String {
    format!("{}/certs", endpoint(world))
}

/// A name that no verifier of real statements accepts.
fn issuer() -> String {
    "https://keybond.invalid/emulator/attestation".to_owned()
}

fn key_id(public_key: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, public_key))
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Reply {
    Reply::json(
        status,
        json!({ "error": { "code": code, "message": message } }),
    )
}
