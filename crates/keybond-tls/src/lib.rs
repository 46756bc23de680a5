//! Mutual TLS with a private key that cannot be exported.
//!
//! A [`TlsConnector`] shakes hands over a TCP connection; the client's signature comes from a
//! [`HeldKey`](keybond_keys::HeldKey), asynchronously, so that a slow device never blocks a runtime worker.
//! The [`Leg`] says when the server may see the client certificate: never, in the first handshake, or also later,
//! when it asks by renegotiation.
//!
//! ```
//! use keybond_tls::{Leg, TrustRoots, default_connector};
//! # use tokio::net::{TcpListener, TcpStream};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Roots are read and parsed once, off the async runtime.
//! let connector = tokio::task::spawn_blocking(|| default_connector(&TrustRoots::system()?)).await??;
//!
//! # let listener = TcpListener::bind("127.0.0.1:0").await?;
//! # let address = listener.local_addr()?;
//! # tokio::spawn(async move { listener.accept().await.map(drop) });
//! let tcp = TcpStream::connect(address).await?;
//! match connector.connect(tcp, "vault.example", Leg::Plain, None).await {
//!     Ok(connection) => println!("{}", connection.info().version),
//!     // This server hung up at once; errors say what happened and what to do.
//!     Err(error) => println!("{error}\n{}", error.remedy()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Limits: TLS 1.3 post-handshake authentication does not exist in the stack beneath, so [`Leg::OnDemand`] speaks
//! TLS 1.2 only; sessions are not resumed. On targets with Microsoft's C compiler, which cannot build that stack,
//! the connector is `RustlsConnector` (elsewhere behind the feature `rustls`): it refuses [`Leg::OnDemand`].
#![deny(unsafe_code)]

mod alert;
mod error;
mod host;
mod identity;
mod pem;
mod roots;
#[cfg(any(target_env = "msvc", feature = "rustls"))]
mod rustls_stack;
#[cfg(not(target_env = "msvc"))]
mod s2n;
mod seam;

pub use alert::Alert;
pub use error::{CertificateUse, RenegotiationRefusal, Stage, TlsError};
pub use identity::ClientIdentity;
pub use roots::TrustRoots;
#[cfg(any(target_env = "msvc", feature = "rustls"))]
pub use rustls_stack::RustlsConnector;
#[cfg(target_env = "msvc")]
pub use rustls_stack::default_connector;
#[cfg(not(target_env = "msvc"))]
pub use s2n::{S2nConnector, default_connector};
pub use seam::{BoxFuture, Leg, TlsConn, TlsConnector, TlsInfo, TlsVersion};
