//! The TLS stack where `s2n-tls` cannot be built: rustls.
//!
//! rustls asks for the client's signature in the middle of a call and cannot wait for it, so a handshake that
//! may need one runs on a thread of its own. It never renegotiates: [`Leg::OnDemand`](crate::Leg::OnDemand) is
//! refused before a byte is sent.

mod classify;
mod connector;
mod signer;
mod stream;

pub use connector::RustlsConnector;
#[cfg(target_env = "msvc")]
pub use connector::default_connector;
