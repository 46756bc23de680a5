//! Handshakes, transfers and refusals against real peers: `openssl s_server`, rustls, Apache httpd.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod apache;
mod http;
mod openssl;
mod pki;
mod reneg_server;
mod rustls_server;
mod store;

mod first_handshake;
mod held_key;
mod identity;
mod last_words;
mod on_demand;
mod refusals;
mod renegotiation;
mod roots;
mod transfer;

/// The connector under test; `tests/rustls` has the other one.
pub(crate) use keybond_tls::S2nConnector as Connector;
