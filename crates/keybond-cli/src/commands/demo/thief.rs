//! What a thief does who has the token and perhaps some certificate, but not the honest client: a plain
//! HTTP request with whatever there is. The client library itself cannot be made to mix the two.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use keybond_tls::{ClientIdentity, Leg, TlsConnector};
use tokio::net::TcpStream;
use url::Url;

use crate::failure::{Failure, Kind};

/// Uses the token with this certificate, or none; the vault's status and answer.
pub(super) async fn attempt(
    connector: &dyn TlsConnector,
    url: &str,
    token: &str,
    certificate: Option<Arc<ClientIdentity>>,
) -> Result<(u16, String), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(
            Kind::Failed,
            "demo_failed",
            format!("the thief's request failed: {error}"),
            "",
        )
    };
    let parsed = Url::parse(url).map_err(|error| failed(&error))?;
    let (host, port) = (
        parsed.host_str().unwrap_or_default(),
        parsed.port_or_known_default().unwrap_or(443),
    );
    let tcp = TcpStream::connect((host, port))
        .await
        .map_err(|error| failed(&error))?;
    let leg = if certificate.is_some() {
        Leg::FirstHandshake
    } else {
        Leg::Plain
    };
    let tls = connector.connect(tcp, host, leg, certificate).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let path = &parsed[url::Position::BeforePath..];
    let request = Request::get(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::AUTHORIZATION, format!("mtls_pop {token}"))
        .header("x-ms-tokenboundauth", "true")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), 1 << 16)
        .collect()
        .await
        .map_err(|error| failed(&error))?;
    Ok((
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    ))
}

/// The token's `cnf.x5t#S256`: anyone who has a token can read what it is bound to.
pub(super) fn confirmation(token: &str) -> Option<String> {
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(claims["cnf"]["x5t#S256"].as_str()?.to_owned())
}
