//! keybond for the Azure SDK for Rust: its clients with tokens that cannot be stolen, or with bearer tokens
//! for those who ask for them knowingly.
//!
//! # Bound
//!
//! The SDK's `AccessToken` is a string and a time: it has no place for the certificate that a bound token
//! belongs to, and the SDK sends whatever it holds as `Bearer`. So a bound token is never given to it. A
//! [`BoundIdentity`] gives the client a *ticket* instead, which is worth nothing anywhere, and the transport
//! that redeems it: there the ticket is replaced by the bound token, on a connection with the token's own
//! certificate. Token, certificate and key never pass through the SDK.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use azure_core::http::ClientOptions;
//! use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
//! use keybond::{ManagedIdentity, keys::KeyProvider, tls::TlsConnector};
//! use keybond_azure::BoundIdentity;
//!
//! # async fn read(tls: Arc<dyn TlsConnector>, keys: KeyProvider) -> Result<(), Box<dyn std::error::Error>> {
//! let identity = ManagedIdentity::builder()
//!     .key_provider(keys)
//!     .tls(Arc::clone(&tls))
//!     .build()?;
//! let bound = BoundIdentity::new(identity, tls);
//! let options = SecretClientOptions {
//!     client_options: ClientOptions {
//!         transport: Some(bound.transport()),
//!         ..ClientOptions::default()
//!     },
//!     ..SecretClientOptions::default()
//! };
//! let client = SecretClient::new("https://mine.vault.azure.net", bound.credential(), Some(options))?;
//! let secret = client.get_secret("motto", None).await?.into_model()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Bearer
//!
//! [`BearerCredential`] gives bearer tokens from whichever source is here. Whoever steals one can use it. It is
//! another type, never the fallback of a [`BoundIdentity`], whose transport refuses bearer tokens.
//!
//! # Limits
//!
//! - The SDK's interface for credentials has no claims: a claims challenge to a bearer token cannot be answered
//!   through it. Those to a bound token are the business of keybond's own call.
//! - Bodies are held in memory, in both directions: requests up to 64 MiB, answers up to the client's response
//!   limit (bound) or 64 MiB (otherwise).
//! - The SDK retries what ends with an I/O error of the resource. What failed on the way to the token was retried
//!   by keybond as published, and is not retried again.
#![forbid(unsafe_code)]

mod bearer;
mod bound;
mod convert;
mod failure;
mod plain;

pub use azure_core;
pub use keybond;

pub use self::{bearer::BearerCredential, bound::BoundIdentity, plain::PlainTransport};
