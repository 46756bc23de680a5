//! Sending: token, connection and certificate of one binding; what may be repeated, and what never is.
//!
//! 1. The connection is taken for the token's binding, and the token is looked at again when the connection is
//!    there: what has grown too old meanwhile is replaced, token and connection together.
//! 2. A request that did not leave is sent on another connection. One that may have arrived is repeated only if it
//!    changes nothing (RFC 9110 §9.2.1), its body is at hand, and it failed on a connection that had been used
//!    before: the server may have closed that at the same moment.
//! 3. A server that asks for the certificate later may not be able to keep a large body meanwhile. Before one, a
//!    `HEAD` for the same target lets it ask.
//! 4. A 401 that demands claims is followed once, with a token that has them; one that came with a token that was
//!    replaced meanwhile is repeated once.
//! 5. A streamed body is never sent twice, not even in part.
//! 6. A key that does not sign has to prove itself. If it is dead, the request is sent once more with another key's
//!    token, unless a part of it may have arrived that must not arrive twice.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::TrySendError,
};
use keybond_tls::{Leg as TlsLeg, Stage};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::{
    Response, ResponseBody, Timeouts, challenge, key,
    pool::{Lease, Target},
};
use crate::{
    acquisition::Acquisition,
    client::ManagedIdentity,
    error::{At, Error},
    http::{
        self, Deadline,
        body::{Outgoing, Progress},
        connection,
    },
    leg::{Done, Leg},
    time,
    token::{AccessToken, TokenType, claims::Demanded, sharing},
};

/// Asks a resource to expect a bound token.
pub(super) const TOKEN_BOUND: &str = "x-ms-tokenboundauth";

/// Bodies above this are sent only when the certificate was asked for. Servers keep 48 KiB (http.sys) or 128 KiB
/// (Apache) of a request while they ask.
const KEPT_BY_SERVERS: usize = 16 * 1024;

/// A server that means to ask for the certificate late does so when it has read the head of a request. One that has
/// not asked within this time keeps nobody else from the key any longer.
const ASKS_WITHIN: Duration = Duration::from_secs(2);

/// A request to a resource.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: CallBody,
    pub(super) resource: Option<String>,
    pub(super) timeouts: Timeouts,
}

impl Call {
    fn may_arrive_twice(&self) -> bool {
        self.method.is_safe() && matches!(self.body, CallBody::Whole(_))
    }

    /// Whether it may be sent again after a handshake that failed. The first one comes before everything.
    fn is_repeatable_after(&self, stage: Stage) -> bool {
        stage == Stage::Handshake || self.may_arrive_twice()
    }
}

/// Its body.
pub(super) enum CallBody {
    Whole(Bytes),
    Stream(Outgoing),
    /// A stream that was sent, in part at least.
    Spent,
}

impl CallBody {
    fn take(&mut self) -> Option<Outgoing> {
        match self {
            Self::Whole(bytes) => Some(Outgoing::whole(bytes.clone())),
            Self::Stream(_) => match std::mem::replace(self, Self::Spent) {
                Self::Stream(body) => Some(body),
                _ => None,
            },
            Self::Spent => None,
        }
    }

    fn put_back(&mut self, body: Outgoing) {
        if matches!(self, Self::Spent) {
            *self = Self::Stream(body);
        }
    }

    fn is_large(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.len() > KEPT_BY_SERVERS,
            Self::Stream(_) => true,
            Self::Spent => false,
        }
    }
}

/// Where a call goes, and how.
struct Route {
    resource: String,
    target: Target,
    leg: TlsLeg,
    token_bound_header: bool,
}

/// How one attempt ended.
enum Ended {
    Answered(Box<Response>),
    /// The token grew too old before it was used.
    TooOld,
    /// The body was not sent: already the question before it was refused with 401 and these headers.
    Refused(HeaderMap),
}

pub(super) async fn send(client: &ManagedIdentity, mut call: Call) -> Result<Response, Error> {
    let way = client.shared.acquisition()?;
    let route = route(client, &call)?;
    let Some(total) = call.timeouts.total else {
        return attempts(client, &mut call, &route, &way, None).await;
    };
    let deadline = Deadline::after(total);
    let sending = attempts(client, &mut call, &route, &way, Some(deadline));
    match timeout_at(deadline.at, sending).await {
        Ok(result) => result,
        Err(_) => Err(deadline.exceeded(Leg::Resource, &way.id)),
    }
}

fn route(client: &ManagedIdentity, call: &Call) -> Result<Route, Error> {
    let host = call.url.host_str().unwrap_or_default();
    let rule = client.shared.rules.find(host, call.resource.as_deref());
    let resource = call
        .resource
        .as_deref()
        .or_else(|| rule.and_then(|rule| rule.resource.as_deref()))
        .ok_or_else(|| {
            Error::configuration(
                "resource",
                "the host does not tell which resource it is: name it",
            )
        })?;
    let (leg, newest) = match rule {
        Some(rule) => rule.transport()?,
        None => (TlsLeg::FirstHandshake, keybond_tls::TlsVersion::Tls13),
    };
    Ok(Route {
        resource: resource.to_owned(),
        target: Target::new(&call.url, leg, newest),
        leg,
        token_bound_header: rule.is_some_and(|rule| rule.token_bound_header),
    })
}

async fn attempts(
    client: &ManagedIdentity,
    call: &mut Call,
    route: &Route,
    way: &Acquisition,
    deadline: Option<Deadline>,
) -> Result<Response, Error> {
    let mut may_ask_before = true;
    let mut may_follow = true;
    let mut may_change = true;
    let mut may_refuse_old = true;
    let mut may_change_key = true;
    loop {
        let token = client.token(&route.resource).await?;
        let attempt = Attempt {
            client,
            route,
            token: &token,
            deadline,
            at: At::new(Leg::Resource, &way.id),
            may_ask_before,
            may_refuse_old,
        };
        let ended = match Box::pin(way.leg(Leg::Resource, attempt.run(call))).await {
            Ok(ended) => ended,
            Err(failure) => {
                let Some(stage) = key::unsigned(&failure).filter(|_| may_change_key) else {
                    return Err(failure);
                };
                may_change_key = false;
                // Asked in any case: the next request is to find another key.
                let (binding, limit) = (token.bound_to(), call.timeouts.connect);
                let replaced = key::is_replaced(&client.shared, binding, &failure, limit).await;
                if replaced && call.is_repeatable_after(stage) {
                    continue;
                }
                return Err(failure);
            }
        };
        let response = match ended {
            Ended::TooOld => {
                // Once: tokens of very short lives are used as they come.
                may_refuse_old = false;
                continue;
            }
            Ended::Refused(headers) => Err(headers),
            Ended::Answered(response) => Ok(*response),
        };
        let refusal = match &response {
            Ok(response) if response.status().as_u16() == 401 => Some(response.headers()),
            Ok(_) => None,
            Err(headers) => Some(headers),
        };
        let repeatable = !matches!(call.body, CallBody::Spent);
        if let Some(refusal) = refusal
            && repeatable
        {
            // A renewal in the meantime may have made the token worthless, or somebody else may have followed the
            // same challenge; then there is another by now.
            if may_change && client.token(&route.resource).await?.secret() != token.secret() {
                may_change = false;
                continue;
            }
            // Claims that make no sense cannot be met: the resource's own words say more than an error about them.
            if may_follow
                && let Some(claims) = challenge::claims(refusal)
                && Demanded::parse(&claims).is_ok()
            {
                may_follow = false;
                let challenged = Some(token.bound_to());
                let following = client.token_after(challenged, &route.resource, &claims);
                following.await?;
                continue;
            }
        }
        if refusal.is_some() {
            sharing::discard_refused(&client.shared, &token).await;
        }
        match response {
            Ok(response) => return Ok(response),
            // The resource's own words are what the caller asked for.
            Err(_) => may_ask_before = false,
        }
    }
}

/// One attempt: everything belongs to the binding of one token.
struct Attempt<'a> {
    client: &'a ManagedIdentity,
    route: &'a Route,
    token: &'a Arc<AccessToken>,
    deadline: Option<Deadline>,
    at: At,
    may_ask_before: bool,
    may_refuse_old: bool,
}

impl Attempt<'_> {
    async fn run(&self, call: &mut Call) -> Result<Done<Ended>, Error> {
        let headers = bound_headers(self.route, self.token)?;
        let idle = call.timeouts.idle;
        let mut fresh = false;
        let mut asked_before = false;
        loop {
            let mut lease = self
                .connect(&call.url, call.timeouts.connect, fresh)
                .await?;
            if self.may_refuse_old && !self.token.is_usable(self.client.shared.clock.now()) {
                return Ok(Done::new(Ended::TooOld, "the token is too old by now"));
            }
            if !asked_before && self.should_ask_before(call, &lease) {
                let asking = ask_before(&mut lease, &call.url, &headers, idle, &self.at);
                let head = match asking.await {
                    Ok(head) => head,
                    // The server closed what was kept. HEAD changes nothing, and the body has not left.
                    Err(Failed::Unsent(..) | Failed::Sent(_)) if lease.is_reused() => {
                        fresh = true;
                        continue;
                    }
                    Err(failed) => return Err(failed.into_error()),
                };
                asked_before = true;
                if head.status.as_u16() == 401 {
                    let outcome = "refused before the body was sent: HTTP 401";
                    return Ok(Done::new(Ended::Refused(head.headers), outcome));
                }
                if !lease.is_ready().await {
                    // This server closes after every answer: the body goes on a connection of its own.
                    fresh = true;
                    continue;
                }
            }

            let Some(body) = call.body.take() else {
                return Err(spent(&self.at, &call.url));
            };
            let upload = body.progress();
            let mut request = connection::request(call.method.clone(), &call.url, body)?;
            request.headers_mut().extend(call.headers.clone());
            request.headers_mut().extend(headers.clone());
            match exchange(&mut lease, request, &upload, idle, &self.at).await {
                Ok(answer) => {
                    let host = call.url.host_str().unwrap_or_default();
                    let asked = if asked_before {
                        ", certificate asked for before the body"
                    } else {
                        ""
                    };
                    let said = format!("from {host}{asked}");
                    return self.answered(lease, upload, answer, idle, &said);
                }
                Err(Failed::Unsent(body, error)) => {
                    call.body.put_back(body);
                    if !lease.is_reused() {
                        return Err(error);
                    }
                }
                Err(Failed::Sent(error)) => {
                    if fresh || !lease.is_reused() || !call.may_arrive_twice() {
                        return Err(error);
                    }
                    fresh = true;
                }
                Err(Failed::Final(error)) => return Err(error),
            }
            tracing::debug!(
                target: "keybond", host = call.url.host_str(),
                "the server closed a connection that was kept; sending on another"
            );
        }
    }

    async fn connect(&self, url: &Url, limit: Duration, fresh: bool) -> Result<Lease, Error> {
        let shared = &self.client.shared;
        let binding = self.token.bound_to();
        let taking = shared.pool.take(
            &shared.imds.net,
            url,
            &self.route.target,
            binding,
            &self.at,
            fresh,
        );
        timeout(limit, taking)
            .await
            .map_err(|_| connection::unanswered(&self.at, &connection::address(url), limit))?
    }

    /// Whether the server should be given the chance to ask for the certificate before the body comes.
    fn should_ask_before(&self, call: &Call, lease: &Lease) -> bool {
        self.may_ask_before
            && self.route.leg == TlsLeg::OnDemand
            && call.body.is_large()
            && lease
                .tls()
                .is_some_and(|tls| tls.client_signature.is_none())
    }

    fn answered(
        &self,
        lease: Lease,
        upload: Arc<Progress>,
        answer: ::http::Response<Incoming>,
        idle: Duration,
        said: &str,
    ) -> Result<Done<Ended>, Error> {
        let (head, incoming) = answer.into_parts();
        let status = head.status.as_u16();
        let at = self.at.clone().with_status(status);
        if http::is_redirect(head.status) {
            return Err(Error::Redirected { at });
        }
        let reused = if lease.is_reused() {
            ", connection reused"
        } else {
            ""
        };
        Ok(Done {
            outcome: format!("HTTP {status} {said}{reused}"),
            tls: lease.tls(),
            value: Ended::Answered(Box::new(Response {
                status: head.status,
                headers: head.headers,
                token: Arc::clone(self.token),
                limit: self.client.shared.response_limit,
                body: ResponseBody::new(incoming, lease, upload, idle, self.deadline, at),
            })),
        })
    }
}

/// What makes a request one with a bound token. Nothing here is ever sent without one.
fn bound_headers(route: &Route, token: &AccessToken) -> Result<HeaderMap, Error> {
    let text = format!("{} {}", TokenType::MtlsPop, token.secret());
    let mut value = http::header_value("authorization", &text)?;
    value.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    if route.token_bound_header {
        headers.insert(
            HeaderName::from_static(TOKEN_BOUND),
            HeaderValue::from_static("true"),
        );
    }
    Ok(headers)
}

/// Lets the server ask for the certificate before a large body.
async fn ask_before(
    lease: &mut Lease,
    url: &Url,
    headers: &HeaderMap,
    idle: Duration,
    at: &At,
) -> Result<::http::response::Parts, Failed> {
    let body = Outgoing::whole(Bytes::new());
    let upload = body.progress();
    let request = connection::request(Method::HEAD, url, body);
    let mut request = request.map_err(Failed::Final)?;
    request.headers_mut().extend(headers.clone());
    let answer = exchange(lease, request, &upload, idle, at).await?;
    let (head, mut nothing) = answer.into_parts();
    // Answers to HEAD have no body; reading its end lets the connection go on.
    while !nothing.is_end_stream() && nothing.frame().await.is_some() {}
    Ok(head)
}

/// How an exchange failed.
enum Failed {
    /// Nothing was sent; the body is whole.
    Unsent(Outgoing, Error),
    /// Something may have been sent.
    Sent(Error),
    /// Whoever sends again fails again.
    Final(Error),
}

impl Failed {
    fn into_error(self) -> Error {
        match self {
            Self::Unsent(_, error) | Self::Sent(error) | Self::Final(error) => error,
        }
    }
}

/// Sends a request and waits for the answer's head, as long as something moves.
async fn exchange(
    lease: &mut Lease,
    request: Request<Outgoing>,
    upload: &Progress,
    idle: Duration,
    at: &At,
) -> Result<::http::Response<Incoming>, Failed> {
    let Some(connection) = lease.connection() else {
        return Err(Failed::Final(lease.silent(at, idle)));
    };
    let activity = connection.activity();
    let mut moved = Instant::now();
    let sending = connection.try_send(request);
    tokio::pin!(sending);
    let asked = time::after(moved, ASKS_WITHIN.min(idle));
    let mut sent = timeout_at(asked, &mut sending).await;
    if sent.is_err() && !connection.is_renegotiating() {
        connection.give_back();
    }
    loop {
        if sent.is_err() {
            sent = timeout_at(time::after(moved, idle), &mut sending).await;
        }
        if let Ok(sent) = sent {
            connection.give_back();
            return sent.map_err(|failure| failed(lease, failure, at));
        }
        let last = activity.as_ref().map_or(moved, |activity| activity.last());
        if upload.waits_for_source() {
            moved = Instant::now();
        } else if last > moved {
            moved = last;
        } else {
            return Err(Failed::Final(lease.silent(at, idle)));
        }
    }
}

fn failed(lease: &Lease, mut failure: TrySendError<Request<Outgoing>>, at: &At) -> Failed {
    let unsent = failure.take_message();
    let error = failure.into_error();
    if error.is_user() {
        return Failed::Final(Error::RequestBody {
            at: at.clone(),
            cause: cause(&error),
        });
    }
    let broken = lease.broken(at, &error);
    match unsent {
        Some(request) => Failed::Unsent(request.into_body(), broken),
        None => Failed::Sent(broken),
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

fn spent(at: &At, url: &Url) -> Error {
    Error::RequestBody {
        at: at.clone(),
        cause: format!(
            "it was sent to {} in part, and a stream cannot be sent again",
            connection::address(url)
        ),
    }
}
