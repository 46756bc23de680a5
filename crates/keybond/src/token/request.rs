//! The token leg: client credentials over mutual TLS, and everything the answer must agree with.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use keybond_tls::Leg as TlsLeg;
use serde_json::Value;

use super::{
    AccessToken, TokenType,
    claims::{self, Demanded},
};
use crate::{
    acquisition::Acquisition,
    client::Shared,
    credential::Binding,
    error::{At, Error},
    http::{Answer, Ask, Via, header_value},
    imds::retry::{Family, retry_after},
    json::Object,
    leg::{Done, Leg},
    lifecycle::{self, token::Granted},
    random,
};

/// Tokens live a day; a month is more than any service grants.
const LONGEST_LIFE: u64 = 31 * 24 * 60 * 60;

/// What is waited after a 429 that does not say how long, as MSAL does.
const UNSAID: Duration = Duration::from_secs(60);

/// A token as it came, with what the service said of its time.
pub(crate) struct Arrived {
    pub(crate) token: Arc<AccessToken>,
    pub(crate) granted: Granted,
}

/// Whether tokens of this binding may be asked for where its certificate says: the environment may have changed
/// since it was issued.
pub(crate) fn check_host(
    shared: &Shared,
    way: &Acquisition,
    binding: &Binding,
) -> Result<(), Error> {
    let at = At::new(Leg::Token, &way.id);
    let allowed = shared.sts_hosts.check(
        &at,
        "mtls_authentication_endpoint",
        binding.token_endpoint(),
        &*shared.environment,
    );
    allowed.map(drop)
}

/// Asks for a token for `resource`, bound to `binding`.
pub(crate) async fn request(
    shared: &Shared,
    way: &Acquisition,
    binding: &Arc<Binding>,
    resource: &str,
    claims: Option<&Demanded>,
) -> Result<Done<Arrived>, Error> {
    let at = At::new(Leg::Token, &way.id);
    check_host(shared, way, binding)?;
    let claims = claims::merge(claims, &shared.remedies.client_capabilities);
    let ask = ask(binding, resource, claims.as_deref(), &way.id)?;
    let asked_at = shared.clock.now();
    let (answer, _) = shared
        .imds
        .net
        .persist(&ask, &at, way.deadline, Family::Sts)
        .await?;
    let at = answer.place(at, &ask);
    if answer.status.as_u16() != 200 {
        let wait = wait_asked(answer.status, &answer.headers);
        if let Some(wait) = wait {
            tracing::warn!(target: "keybond", %resource, ?wait, "the token service asks to wait");
        }
        return Err(answer.refusal(at, &ask).after_waiting(wait));
    }
    let jitter = random::jitter(&*shared.random);
    let arrived = read(&answer, &at, binding, resource, asked_at, jitter)?;
    let outcome = format!(
        "mtls_pop for {resource}, {} s, {}",
        arrived.granted.expires_in.as_secs(),
        if arrived.token.is_confirmed() {
            "bound to the certificate"
        } else {
            "opaque: it does not show what it is bound to"
        }
    );
    Ok(Done {
        value: arrived,
        outcome,
        tls: answer.tls,
    })
}

/// How long a refusal asks not to be repeated; `None` if it does not ask. A service in trouble (5xx) that names
/// no time is asked again when somebody needs it.
fn wait_asked(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let asked = retry_after(headers).filter(|wait| !wait.is_zero());
    match status.as_u16() {
        429 => Some(asked.unwrap_or(UNSAID)),
        500..=599 => asked,
        _ => None,
    }
}

fn ask(
    binding: &Arc<Binding>,
    resource: &str,
    claims: Option<&str>,
    correlation_id: &str,
) -> Result<Ask, Error> {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("client_id", binding.client_id())
        .append_pair("scope", &format!("{resource}/.default"))
        .append_pair("grant_type", "client_credentials")
        .append_pair("token_type", TokenType::MtlsPop.name())
        .extend_pairs(claims.map(|claims| ("claims", claims)))
        .finish();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "application/x-www-form-urlencoded"),
        ("accept", "application/json"),
        ("return-client-request-id", "true"),
        ("x-ms-lib-capability", "retry-after, h429"),
        ("x-client-sku", "keybond"),
        ("x-client-ver", env!("CARGO_PKG_VERSION")),
        ("x-client-os", std::env::consts::OS),
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    headers.insert(
        HeaderName::from_static("client-request-id"),
        header_value("client-request-id", correlation_id)?,
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let via = Via::Tls(
        TlsLeg::FirstHandshake,
        Arc::clone(binding.client_identity()),
    );
    Ok(Ask {
        method: Method::POST,
        url: binding.token_url().clone(),
        headers,
        body: Bytes::from(body),
        via,
    })
}

fn read(
    answer: &Answer,
    at: &At,
    binding: &Arc<Binding>,
    resource: &str,
    asked_at: SystemTime,
    jitter: f64,
) -> Result<Arrived, Error> {
    const SANE: &str = "a number of seconds from 1 to a month";
    let object = Object::parse(&answer.body, at)?;
    let expected = TokenType::MtlsPop.name();
    let token_type = object.text("token_type")?;
    if !token_type.eq_ignore_ascii_case(expected) {
        return Err(at.mismatch("token_type", expected, token_type));
    }
    let secret = object.text("access_token")?;
    if !is_printable(secret) {
        return Err(object.unexpected("access_token", "a token of printable characters"));
    }
    let life = object
        .seconds("expires_in")?
        .ok_or_else(|| object.unexpected("expires_in", SANE))?;
    if !is_sane_life(life) {
        return Err(object.unexpected("expires_in", SANE));
    }
    let granted = Granted {
        asked_at,
        expires_in: Duration::from_secs(life),
        refresh_in: object.seconds("refresh_in")?.map(Duration::from_secs),
    };
    let confirmed = check_confirmation(secret, binding.x5t_s256(), at)?;
    let token = AccessToken::new(
        secret.to_owned(),
        asked_at + granted.expires_in,
        lifecycle::token::life(granted, binding.life(), jitter),
        resource.to_owned(),
        confirmed,
        Arc::clone(binding),
    );
    Ok(Arrived {
        token: Arc::new(token),
        granted,
    })
}

/// Whether it can stand in a header.
pub(crate) fn is_printable(secret: &str) -> bool {
    !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a token may live so many seconds.
pub(crate) fn is_sane_life(seconds: u64) -> bool {
    (1..=LONGEST_LIFE).contains(&seconds)
}

/// What a token states of the certificate to which it is bound (RFC 8705 §3.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// This one.
    Stated,
    /// It is not a readable JWT, and says nothing.
    Unreadable,
    /// Another one, or, although it is readable, none.
    Another(Option<String>),
}

/// Holds the token's own statement against the certificate: `false` if it makes none that can be read.
fn check_confirmation(token: &str, x5t_s256: &str, at: &At) -> Result<bool, Error> {
    match confirmation(token, x5t_s256) {
        Confirmation::Stated => Ok(true),
        Confirmation::Unreadable => Ok(false),
        Confirmation::Another(stated) => Err(at.mismatch(
            "access_token cnf.x5t#S256",
            x5t_s256,
            stated.map_or("missing".into(), |stated| {
                stated.escape_debug().take(64).collect::<String>()
            }),
        )),
    }
}

/// What the token says of its certificate. A readable JWT must name exactly this one.
pub(crate) fn confirmation(token: &str, x5t_s256: &str) -> Confirmation {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Confirmation::Unreadable;
    };
    let Ok(payload) = BASE64_URL_SAFE_NO_PAD.decode(payload) else {
        return Confirmation::Unreadable;
    };
    let Ok(Value::Object(claims)) = serde_json::from_slice(&payload) else {
        return Confirmation::Unreadable;
    };
    let stated = claims
        .get("cnf")
        .and_then(|cnf| cnf.get("x5t#S256"))
        .and_then(Value::as_str);
    match stated {
        Some(stated) if stated == x5t_s256 => Confirmation::Stated,
        stated => Confirmation::Another(stated.map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_429_always_asks_to_wait_and_trouble_only_if_it_says_so() {
        let asked = |status: u16, text: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            }
            wait_asked(StatusCode::from_u16(status).unwrap(), &headers).map(|wait| wait.as_secs())
        };
        assert_eq!(asked(429, Some("7")), Some(7));
        assert_eq!(asked(429, None), Some(60));
        assert_eq!(asked(429, Some("soon")), Some(60));
        assert_eq!(asked(429, Some("99999999")), Some(3600));
        assert_eq!(asked(503, Some("7")), Some(7));
        assert_eq!(asked(503, None), None);
        assert_eq!(asked(400, Some("7")), None);
    }
}
