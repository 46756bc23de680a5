//! Mutual TLS with a private key that cannot be exported.

mod error;
mod identity;
mod seam;

pub use error::TlsError;
pub use identity::ClientIdentity;
pub use seam::{BoxFuture, Leg, TlsConn, TlsConnector, TlsInfo, TlsVersion};
