//! Handshakes, transfers and refusals against real peers: `openssl s_server`, rustls, Apache httpd.
#![allow(clippy::unwrap_used)]

mod pki;
mod store;

mod first_handshake;
mod openssl;
