//! TLS connections, on which the client certificate was asked for where it belongs into the first handshake.
//!
//! A connection whose first handshake ended without a request for the certificate is of no use there: what is
//! sent on it comes from nobody in particular, and is refused at best. Azure's token service is documented (by
//! MSAL for Java) to ask under TLS 1.2 and not yet under TLS 1.3. So such a connection is closed before anything
//! is sent, the server is met once more without TLS 1.3, and where that helps it is remembered for a while.
//!
//! Nobody on the way can bring this about: the server's signature and the end of the handshake cover that there
//! was no request (RFC 8446 §4.4), so only the server itself can leave it out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keybond_tls::{
    Alert, ClientIdentity, Leg as TlsLeg, TlsConn, TlsError,
    TlsVersion::{self, Tls12, Tls13},
};
use tokio::time::Instant;
use url::{Host, Url};

use super::{Net, Via, connection::dial};
use crate::error::{At, Error};

/// How long it is believed of a server that it asks under TLS 1.2 alone. It may learn to ask under TLS 1.3.
const BELIEVED: Duration = Duration::from_secs(60 * 60);

/// The servers, by address and port, that ask for the certificate under TLS 1.2 alone.
#[derive(Debug, Default)]
pub(crate) struct OlderOnly(Mutex<HashMap<String, Instant>>);

impl OlderOnly {
    fn note(&self, address: &str) {
        let now = Instant::now();
        let mut known = self.known();
        known.retain(|_, until| now < *until);
        known.insert(address.to_owned(), now + BELIEVED);
    }

    fn forget(&self, address: &str) {
        self.known().remove(address);
    }

    fn includes(&self, address: &str) -> bool {
        let until = self.known().get(address).copied();
        until.is_some_and(|until| Instant::now() < until)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a TLS server is met.
struct Meeting<'a> {
    net: &'a Net,
    url: &'a Url,
    via: &'a Via,
    at: &'a At,
    address: &'a str,
    host: String,
    leg: TlsLeg,
    identity: Option<Arc<ClientIdentity>>,
}

/// A connection to the TLS server at `url`, whose `address` is for messages. If `via` shows the certificate in the
/// first handshake, the server has asked for it.
pub(super) async fn connect(
    net: &Net,
    url: &Url,
    via: &Via,
    at: &At,
    address: &str,
) -> Result<Box<dyn TlsConn>, Error> {
    let (leg, newest, identity) = match via {
        Via::Tls(leg, identity) => (*leg, Tls13, Some(identity)),
        Via::Resource {
            leg,
            newest,
            identity,
        } => (*leg, *newest, Some(identity)),
        _ => (TlsLeg::Plain, Tls13, None),
    };
    let meeting = Meeting {
        net,
        url,
        via,
        at,
        address,
        host: match url.host() {
            Some(Host::Ipv6(ip)) => ip.to_string(),
            Some(host) => host.to_string(),
            None => String::new(),
        },
        leg,
        identity: identity.cloned(),
    };
    match leg {
        TlsLeg::FirstHandshake => meeting.asked(newest).await,
        TlsLeg::Plain | TlsLeg::OnDemand => meeting.shake_hands(newest).await,
    }
}

impl Meeting<'_> {
    /// A connection on which the server asked for the certificate.
    async fn asked(&self, newest: TlsVersion) -> Result<Box<dyn TlsConn>, Error> {
        let memory = &self.net.older_only;
        let offers: &[TlsVersion] = match newest {
            Tls12 => &[Tls12],
            Tls13 if memory.includes(self.address) => &[Tls12, Tls13],
            Tls13 => &[Tls13, Tls12],
        };
        let mut unasked = Vec::new();
        let mut refused = None;
        for offer in offers {
            if unasked.contains(offer) {
                break;
            }
            match self.shake_hands(*offer).await {
                Ok(conn) => {
                    let info = conn.info();
                    if info.certificate_requested {
                        if unasked == [Tls13] {
                            memory.note(self.address);
                        }
                        return Ok(conn);
                    }
                    tracing::info!(
                        target: "keybond", leg = %self.at.leg, host = self.address, version = %info.version,
                        "the server asked for no client certificate: nothing is sent on this connection"
                    );
                    if !unasked.contains(&info.version) {
                        unasked.push(info.version);
                    }
                }
                Err(error) => match version_refused(&error) {
                    Some(alert) if *offer == Tls12 && offers.len() > 1 => {
                        refused = Some((Tls12, alert));
                    }
                    _ => return Err(error),
                },
            }
            if *offer == Tls12 {
                memory.forget(self.address);
            }
        }
        Err(self.failed(TlsError::CertificateNotRequested {
            host: self.host.clone(),
            versions: unasked,
            refused,
        }))
    }

    async fn shake_hands(&self, newest: TlsVersion) -> Result<Box<dyn TlsConn>, Error> {
        let tcp = dial(self.url, self.via, self.at, self.address).await?;
        let identity = self.identity.clone();
        self.net
            .tls
            .connect_up_to(tcp, &self.host, self.leg, newest, identity)
            .await
            .map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: TlsError) -> Error {
        Error::Tls {
            at: self.at.clone(),
            host: self.address.to_owned(),
            cause: Arc::new(cause),
        }
    }
}

/// The alert by which a server says that it does not speak the versions offered.
fn version_refused(error: &Error) -> Option<Alert> {
    match error {
        Error::Tls { cause, .. } => match **cause {
            TlsError::Alert { alert, .. } if alert == Alert::PROTOCOL_VERSION => Some(alert),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_remembered_for_an_hour_and_none_longer() {
        let known = OlderOnly::default();
        known.note("a:443");
        tokio::time::advance(BELIEVED - Duration::from_secs(1)).await;
        assert!(known.includes("a:443"));
        assert!(!known.includes("a:8443"));
        known.note("b:443");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!known.includes("a:443"));
        known.note("c:443");
        assert_eq!(known.known().len(), 2, "what is over is dropped");
        known.forget("b:443");
        assert!(!known.includes("b:443"));
    }
}
