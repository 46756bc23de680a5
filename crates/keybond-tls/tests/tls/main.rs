//! Handshakes, transfers and refusals against real peers: `openssl s_server`, rustls, Apache httpd.
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
