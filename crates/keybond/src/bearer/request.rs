//! What each source is asked for a bearer token, and how the answer is read.
//!
//! | source | request | secret | user-assigned by |
//! |---|---|---|---|
//! | IMDS v1 | `GET …/oauth2/token?api-version=2018-02-01&resource=` | none, `Metadata: true` | `client_id`, `object_id`, `msi_res_id` |
//! | App Service | `GET …?api-version=2019-08-01&resource=` | `X-IDENTITY-HEADER` | `client_id`, `object_id`, `mi_res_id` |
//! | Service Fabric | `GET …?api-version=2020-05-01&resource=[&xms_cc=][&token_sha256_to_refresh=]`, pinned server | `secret` | `principalId` |
//! | Machine Learning | `GET …?api-version=2017-09-01&resource=` | `secret`, `Metadata: true` | `clientid` |
//! | Cloud Shell | `POST`, form `resource=` | none, `Metadata: true` | not at all |
//! | Azure Arc | `GET …?api-version=2020-06-01&resource=`, twice | a file that is named by the first answer | not at all |

use std::{
    str::FromStr as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use bytes::Bytes;
use serde_json::Value;
use url::Url;

use super::{BearerToken, TokenHash, arc};
use crate::{
    acquisition::Acquisition,
    client::Shared,
    error::{At, Error, SourceProblem},
    http::{Answer, Ask, Via, header_value},
    identity::Identity,
    imds::retry::Family,
    json::Object,
    leg::{Done, Leg},
    source::{Source, places::Place},
    token::TokenType,
};

/// Tokens live a day; a month is more than any service grants.
const LONGEST_LIFE: Duration = Duration::from_secs(31 * 24 * 60 * 60);

const SANE: &str = "a time from now to a month ahead";

/// Asks the source that is here.
pub(super) async fn request(
    shared: &Shared,
    way: &Acquisition,
    resource: &str,
    refused: Option<TokenHash>,
) -> Result<Done<Arc<BearerToken>>, Error> {
    let place = shared.place()?;
    let source = place.as_ref().map_or(Source::ImdsV1, Place::source);
    let mut ask = match &place {
        None => imds(shared, resource, &way.id)?,
        Some(place) => {
            let capabilities = &shared.remedies.client_capabilities;
            let mut ask = elsewhere(place, &shared.imds.identity, resource, &way.id)?;
            if let Place::ServiceFabric { .. } = place {
                revocable(&mut ask.url, capabilities, refused);
            }
            ask
        }
    };
    let at = At::new(Leg::Bearer, &way.id);
    let asked_at = shared.clock.now();
    let net = &shared.imds.net;
    let family = Family::Source;
    let (mut answer, _) = if place.is_none() {
        // Without version 1 there is nothing to wait for at the metadata service.
        let family = Family::Metadata;
        shared.imds.persist(&ask, &at, way.deadline, family).await?
    } else {
        net.persist(&ask, &at, way.deadline, family).await?
    };
    if source == Source::AzureArc && answer.status.as_u16() == 401 {
        let root = &shared.surroundings.root;
        let environment = &*shared.environment;
        ask = arc::answer(ask, &answer.headers, root, environment, &at).await?;
        (answer, _) = net.persist(&ask, &at, way.deadline, family).await?;
    }
    let at = answer.place(at, &ask);
    if answer.status.as_u16() != 200 {
        return Err(answer.refusal(at, &ask));
    }
    let token = read(
        &answer,
        &at,
        &shared.imds.identity,
        source,
        resource,
        asked_at,
    )?;
    let life = token
        .expires_on
        .duration_since(asked_at)
        .unwrap_or_default();
    let outcome = format!(
        "a bearer token for {resource} from {source}, {} s",
        life.as_secs()
    );
    Ok(Done {
        value: Arc::new(token),
        outcome,
        tls: answer.tls,
    })
}

fn imds(shared: &Shared, resource: &str, correlation_id: &str) -> Result<Ask, Error> {
    let version = ("api-version", "2018-02-01");
    let path = "/metadata/identity/oauth2/token";
    let mut url = shared
        .imds
        .endpoint
        .url(path, version, &Identity::SystemAssigned);
    url.query_pairs_mut()
        .append_pair("resource", resource)
        .extend_pairs(
            shared
                .imds
                .identity
                .selector()
                .map(|(name, id)| match name {
                    // Version 1 alone calls it so.
                    "mi_res_id" => ("msi_res_id", id),
                    name => (name, id),
                }),
        );
    get(url, shared.imds.via(), &[METADATA], correlation_id)
}

fn elsewhere(
    place: &Place,
    identity: &Identity,
    resource: &str,
    correlation_id: &str,
) -> Result<Ask, Error> {
    let refuse = |problem| Error::Source {
        leg: Leg::Bearer,
        place: place.source(),
        problem,
    };
    let selector = identity.selector();
    let with = |endpoint: &Url, version: &str, selector: Option<(&str, &str)>| {
        let mut url = endpoint.clone();
        url.query_pairs_mut()
            .append_pair("api-version", version)
            .append_pair("resource", resource)
            .extend_pairs(selector);
        url
    };
    match place {
        Place::AppService { endpoint, secret } => get(
            with(endpoint, "2019-08-01", selector),
            via(endpoint),
            &[("x-identity-header", secret.as_str())],
            correlation_id,
        ),
        Place::ServiceFabric {
            endpoint,
            secret,
            thumbprint,
        } => {
            let accepted = "object id";
            let selector = match identity {
                Identity::SystemAssigned => None,
                Identity::ObjectId(id) => Some(("principalId", id.as_str())),
                _ => return Err(refuse(SourceProblem::NotConfigurable { accepted })),
            };
            let pinned = Via::ServerTls {
                thumbprint: Some(thumbprint.clone()),
            };
            let url = with(endpoint, "2020-05-01", selector);
            get(url, pinned, &[("secret", secret.as_str())], correlation_id)
        }
        Place::MachineLearning {
            endpoint,
            secret,
            default_client,
        } => {
            let accepted = "client id";
            let client = match identity {
                Identity::SystemAssigned => default_client.as_deref(),
                Identity::ClientId(id) => Some(id.as_str()),
                _ => return Err(refuse(SourceProblem::IdType { accepted })),
            };
            get(
                with(endpoint, "2017-09-01", client.map(|id| ("clientid", id))),
                via(endpoint),
                &[METADATA, ("secret", secret.as_str())],
                correlation_id,
            )
        }
        Place::CloudShell { .. } | Place::AzureArc { .. } if selector.is_some() => {
            Err(refuse(SourceProblem::UserAssignedNotSupported))
        }
        Place::CloudShell { endpoint } => {
            let mut ask = get(endpoint.clone(), via(endpoint), &[METADATA], correlation_id)?;
            ask.method = Method::POST;
            ask.body = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("resource", resource)
                .finish()
                .into();
            ask.headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
            Ok(ask)
        }
        Place::AzureArc { endpoint } => get(
            with(endpoint, "2020-06-01", None),
            via(endpoint),
            &[METADATA],
            correlation_id,
        ),
    }
}

/// What Service Fabric alone takes ("MSI v1 token revocation" in MSAL's documents; for App Service they name a
/// version, 2025-03-30, that MSAL itself does not use): what the client understands, and the token that a resource
/// refused, lest the source gives it again.
fn revocable(url: &mut Url, capabilities: &[String], refused: Option<TokenHash>) {
    let mut query = url.query_pairs_mut();
    if !capabilities.is_empty() {
        query.append_pair("xms_cc", &capabilities.join(","));
    }
    if let Some(hash) = refused {
        query.append_pair("token_sha256_to_refresh", &hash.to_string());
    }
}

const METADATA: (&str, &str) = ("metadata", "true");

fn via(endpoint: &Url) -> Via {
    if endpoint.scheme() == "https" {
        Via::ServerTls { thumbprint: None }
    } else {
        Via::PrivateTcp
    }
}

/// A GET; the values of `own` headers may be secrets.
fn get(
    url: Url,
    via: Via,
    own: &[(&'static str, &str)],
    correlation_id: &str,
) -> Result<Ask, Error> {
    let mut headers = HeaderMap::new();
    for (name, text) in own {
        let mut value = header_value(name, text)?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    for (name, value) in [
        ("x-client-sku", "keybond"),
        ("x-client-ver", env!("CARGO_PKG_VERSION")),
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    headers.insert(
        HeaderName::from_static("x-ms-client-request-id"),
        header_value("x-ms-client-request-id", correlation_id)?,
    );
    Ok(Ask {
        method: Method::GET,
        url,
        headers,
        body: Bytes::new(),
        via,
    })
}

fn read(
    answer: &Answer,
    at: &At,
    identity: &Identity,
    source: Source,
    resource: &str,
    asked_at: SystemTime,
) -> Result<BearerToken, Error> {
    let object = Object::parse(&answer.body, at)?;
    let expected = TokenType::Bearer.name();
    if let Some(found) = object.get("token_type").and_then(Value::as_str)
        && !found.eq_ignore_ascii_case(expected)
    {
        let found: String = found.escape_debug().take(64).collect();
        return Err(at.mismatch("token_type", expected, found));
    }
    if let (Identity::ClientId(asked), Some(found)) =
        (identity, object.get("client_id").and_then(Value::as_str))
        && !found.eq_ignore_ascii_case(asked)
    {
        let found: String = found.escape_debug().take(64).collect();
        return Err(at.mismatch("client_id", asked, found));
    }
    let secret = object.text("access_token")?;
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(object.unexpected("access_token", "a token of printable characters"));
    }
    let life = match object.get("expires_on") {
        // The time of day is what counts; some services say how long beside it, some instead.
        Some(stated) => moment(stated)
            .ok_or_else(|| object.unexpected("expires_on", SANE))?
            .duration_since(asked_at)
            .unwrap_or_default(),
        None => {
            let life = object.seconds("expires_in")?;
            Duration::from_secs(life.ok_or_else(|| object.unexpected("expires_in", SANE))?)
        }
    };
    if life < Duration::from_secs(1) || life > LONGEST_LIFE {
        return Err(object.unexpected("expires_on", SANE));
    }
    let refresh_in = object.seconds("refresh_in")?.map(Duration::from_secs);
    Ok(BearerToken::new(
        secret, resource, source, asked_at, life, refresh_in,
    ))
}

/// A moment, in seconds since 1970 (a number or a string of one) or as RFC 3339 writes it.
fn moment(stated: &Value) -> Option<SystemTime> {
    let seconds = match stated {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) => match text.parse() {
            Ok(seconds) => seconds,
            Err(_) => {
                let text = text
                    .strip_suffix("+00:00")
                    .map_or_else(|| text.clone(), |utc| format!("{utc}Z"));
                return Some(UNIX_EPOCH + ::der::DateTime::from_str(&text).ok()?.unix_duration());
            }
        },
        _ => return None,
    };
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_all_published_forms() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        for stated in [
            Value::from(1_700_000_000),
            Value::from("1700000000"),
            Value::from("2023-11-14T22:13:20Z"),
            Value::from("2023-11-14T22:13:20+00:00"),
        ] {
            assert_eq!(moment(&stated), at(1_700_000_000), "{stated}");
        }
        for stated in [
            Value::from("soon"),
            Value::Null,
            Value::from(-1),
            Value::from(1.5),
        ] {
            assert_eq!(moment(&stated), None, "{stated}");
        }
        assert_eq!(moment(&Value::from(u64::MAX)), None);
    }
}
