//! Mutual TLS with a private key that cannot be exported.
#![deny(unsafe_code)]

mod alert;
mod error;
mod host;
mod identity;
mod pem;
mod roots;
#[cfg(not(target_env = "msvc"))]
mod s2n;
mod seam;

pub use alert::Alert;
pub use error::{RenegotiationRefusal, Stage, TlsError};
pub use identity::ClientIdentity;
pub use roots::TrustRoots;
#[cfg(not(target_env = "msvc"))]
pub use s2n::{S2nConnector, default_connector};
pub use seam::{BoxFuture, Leg, TlsConn, TlsConnector, TlsInfo, TlsVersion};
