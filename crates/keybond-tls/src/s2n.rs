//! The TLS stack: `s2n-tls` under a stream of our own.
//!
//! s2n alone signs asynchronously in the first handshake and in a renegotiation. Its own tokio stream delays
//! errors by 10 to 30 seconds and fails when a server renegotiates during an upload, hence ours.

mod classify;
mod connector;
mod records;
mod renegotiation;
mod session;
mod signer;
mod stream;
mod transport;
mod wakers;

pub use connector::{S2nConnector, default_connector};
