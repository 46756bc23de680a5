//! Bound tokens: the SDK holds a ticket, the transport redeems it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, TokenCredential, TokenRequestOptions},
    error::{Error, ErrorKind},
    http::{AsyncRawResponse, HttpClient, Request, Transport, headers::AUTHORIZATION},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use keybond::{ManagedIdentity, tls::TlsConnector};

use crate::{
    convert::{self, moment, one_scope},
    failure,
    plain::PlainTransport,
};

/// Headers that keybond's call sets itself.
const OWN: [&str; 8] = [
    "authorization",
    "connection",
    "content-length",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-ms-tokenboundauth",
];

/// How every ticket begins.
const TICKET: &str = "keybond-ticket";

/// An identity whose tokens the Azure SDK uses without holding them: a credential and a transport that belong
/// together.
///
/// 1. No token leaves through [`BoundIdentity::credential`]: what it gives is a ticket that only this identity's
///    own transport redeems. With any other transport a service answers 401 to it.
/// 2. [`BoundIdentity::transport`] sends a request with a ticket over mutual TLS, with token and certificate of one
///    binding; a request without credentials over plain TLS, as clients of Key Vault send one to learn what to
///    ask for; and no request with anything else.
/// 3. How a host wants to be called (the header that announces a bound token, the certificate on demand) follows
///    the identity's [`keybond::ResourceRule`]s.
#[derive(Clone)]
pub struct BoundIdentity {
    identity: ManagedIdentity,
    plain: PlainTransport,
    tickets: Arc<str>,
}

impl BoundIdentity {
    /// An identity, and what makes connections for requests without credentials.
    pub fn new(identity: ManagedIdentity, tls: Arc<dyn TlsConnector>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            identity,
            plain: PlainTransport::new(tls),
            tickets: format!("{TICKET}.{number}.").into(),
        }
    }

    /// What a client takes as its credential. It works with [`BoundIdentity::transport`] only.
    pub fn credential(&self) -> Arc<dyn TokenCredential> {
        Arc::new(self.clone())
    }

    /// What a client takes as `ClientOptions::transport`.
    pub fn transport(&self) -> Transport {
        Transport::new(Arc::new(self.clone()))
    }

    /// The identity itself.
    pub fn identity(&self) -> &ManagedIdentity {
        &self.identity
    }

    fn ticket(&self, scope: &str) -> String {
        format!("{}{}", self.tickets, BASE64_URL_SAFE_NO_PAD.encode(scope))
    }

    /// The scope that a ticket of this identity is for.
    fn scope_of(&self, authorization: &str) -> Option<String> {
        let (scheme, ticket) = authorization.split_once(' ')?;
        let scope = ticket.strip_prefix(&*self.tickets)?;
        let scope = BASE64_URL_SAFE_NO_PAD.decode(scope).ok()?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| String::from_utf8(scope).ok())
            .flatten()
    }

    async fn call(&self, request: &Request, scope: &str) -> azure_core::Result<AsyncRawResponse> {
        let method = convert::method(request)?;
        let mut call = self
            .identity
            .request(method, request.url().as_str())
            .resource(scope)
            .body(convert::body(request).await?);
        for (name, value) in request.headers().iter() {
            let name = name.as_str().to_ascii_lowercase();
            if !OWN.contains(&&*name) {
                call = call.header(name.as_str(), value.as_str());
            }
        }
        let response = Box::pin(call.send()).await.map_err(failure::of_call)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(failure::of_call)?;
        Ok(convert::answer(status, &headers, body))
    }
}

impl fmt::Debug for BoundIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoundIdentity")
            .field(&self.identity)
            .finish()
    }
}

#[async_trait]
impl TokenCredential for BoundIdentity {
    /// A ticket for one scope, once there is a bound token for it: what is wrong on the way to that is told here.
    ///
    /// # Errors
    /// Of the kind `Credential`, with the [`keybond::Error`] as the source.
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let scope = one_scope(scopes)?;
        let token = Box::pin(self.identity.token(scope))
            .await
            .map_err(failure::of_credential)?;
        let expires_on = moment(token.expires_on())?;
        Ok(AccessToken::new(self.ticket(scope), expires_on))
    }
}

#[async_trait]
impl HttpClient for BoundIdentity {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let Some(authorization) = request.headers().get_optional_str(&AUTHORIZATION) else {
            return self.plain.execute_request(request).await;
        };
        let scope = self.scope_of(authorization).ok_or_else(|| {
            Error::with_message(
                ErrorKind::Credential,
                "a bound token is required: this transport sends no other credential than that of its own \
                 BoundIdentity",
            )
        })?;
        self.call(request, &scope).await
    }
}
