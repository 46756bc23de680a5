//! Apache httpd as a peer: a client certificate is asked for once the request is known, by renegotiation.

use std::net::SocketAddr;

use keybond_testkit::Site;
use tokio::net::TcpStream;

use crate::pki::Pki;

pub(crate) struct Apache(keybond_testkit::Apache);

impl Apache {
    /// Starts Apache with one host that speaks `protocol` (`TLSv1.2`) and waits until it serves.
    pub(crate) async fn start(pki: &Pki, protocol: &str) -> Self {
        Self::hinting(pki, protocol, None).await
    }

    /// [`Apache::start`]; whom the server names as the issuers it accepts may be another than it does.
    pub(crate) async fn hinting(pki: &Pki, protocol: &str, hinted: Option<&Pki>) -> Self {
        let site = Site {
            protocol,
            certificate: &pki.server.pem,
            key: &pki.server.key.serialize_pem(),
            client_authority: &pki.ca_pem,
            hinted_authority: hinted.map(|pki| pki.ca_pem.as_str()),
        };
        Self(keybond_testkit::Apache::start(site).unwrap())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address()
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }
}
