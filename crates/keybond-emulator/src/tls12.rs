//! A TLS 1.2 server that renegotiates, for test beds only: **never use it in production.**
//!
//! Key Vault asks for the client certificate by renegotiation, after it has read the head of a
//! request. No TLS library for Rust can do that as a server, so the emulator brings the little that
//! is needed, as strictly as the documents have it:
//!
//! - RFC 5246 with `ECDHE_RSA_WITH_AES_128_GCM_SHA256` and `…AES_256_GCM_SHA384` (RFC 5289) over
//!   X25519 and P-256 (RFC 8422), uncompressed, without resumption;
//! - the extended master secret, if the client knows it (RFC 7627);
//! - renegotiation only as RFC 5746 has it, only when the server asks, one at a time;
//! - ALPN: `http/1.1` or none (RFC 7301). The server name is ignored.
//!
//! [`Connection`] is a machine without sockets, clock or threads: bytes go in, bytes come out. The
//! shell around it, [`TlsStream`], moves them and lets a [`Renegotiator`] ask at any time. What
//! arrives while a renegotiation is under way is kept for the reader.
//!
//! What makes it unfit for anything but tests: it blocks its task while it signs, keeps secrets in
//! ordinary memory, takes no care of side channels beyond those of the cryptographic library, and
//! has been reviewed by nobody but its tests.

mod alert;
mod certificate;
mod codec;
mod config;
mod connection;
#[cfg(test)]
mod damage_tests;
mod handshake;
mod hello;
mod keys;
mod record;
mod stream;
#[cfg(test)]
mod test_client;
#[cfg(test)]
mod tests;

pub(crate) use alert::Alert;
pub(crate) use config::{Config, LazyConfig};
pub(crate) use stream::{RenegotiationError, Renegotiator, TlsStream};
