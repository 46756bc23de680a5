//! Azure managed identity that cannot be stolen: a held key, certified, and tokens bound to it.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use keybond::{ManagedIdentity, keys::KeyProvider, tls::TlsConnector};
//!
//! # async fn read(tls: Arc<dyn TlsConnector>, keys: KeyProvider) -> Result<(), keybond::Error> {
//! let identity = ManagedIdentity::builder()
//!     .key_provider(keys)
//!     .tls(tls)
//!     .build()?;
//! let secret = identity
//!     .get("https://mine.vault.azure.net/secrets/motto?api-version=7.4")
//!     .send()
//!     .await?;
//! println!("{}", secret.status());
//! # Ok(())
//! # }
//! ```
//!
//! Behind that call: a key is made that never leaves its store, the metadata service certifies it, the token
//! service is asked for a token over mutual TLS with that certificate, and the token is used over mutual TLS
//! with the same one. Whoever steals the token has nothing. Each part can be had alone; the certificate
//! request needs no network:
//!
//! ```
//! use keybond::{CsrSubject, CuId, build_csr, keys::KeyProvider};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = KeyProvider::in_memory().get_or_create_key().await?;
//! let subject = CsrSubject {
//!     client_id: "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01".into(),
//!     tenant_id: "72f988bf-86f1-41af-91ab-2d7cd011db47".into(),
//!     cu_id: CuId {
//!         vm_id: Some("d2f7c0a1-57c4-4b58-8f7a-0c4f5e7a9b10".into()),
//!         vmss_id: None,
//!     },
//! };
//! let csr = build_csr(&key, &subject).await?;
//! assert!(csr.to_pem().starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
//! # Ok(())
//! # }
//! ```
//!
//! Everything received is held against everything known before the next leg begins, and an [`Error`] names
//! the leg, the part that is to blame, and what to do.
#![forbid(unsafe_code)]

mod acquisition;
mod attestation;
mod bearer;
mod call;
mod capabilities;
mod client;
mod credential;
mod csr;
mod der;
mod downgrade;
mod environment;
mod error;
mod explain;
mod hosts;
mod http;
mod identity;
mod imds;
mod json;
mod leg;
mod lifecycle;
pub mod pop;
mod printable;
mod random;
mod single_flight;
mod slots;
mod source;
mod switch;
mod telemetry;
mod time;
mod token;
mod turn;

pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
pub use bytes::Bytes;
pub use keybond_keys as keys;
pub use keybond_keys::{HeldKey, KeyProvider, Strength};
pub use keybond_tls as tls;

#[cfg(windows)]
pub use self::credential::store::MsalCertificates;
pub use self::{
    attestation::{AttestationError, AttestationProvider, AttestationRequest, AttestationToken},
    bearer::BearerToken,
    call::{
        ClientCertificate, RequestBuilder, ResourceRule, ResourceService, Response, ResponseBody,
        Timeouts,
    },
    capabilities::Capabilities,
    client::{ManagedIdentity, ManagedIdentityBuilder},
    credential::{
        Binding,
        store::{
            CertificateSlot, CertificateStore, CertificateStoreError, DiskCertificates,
            KeptCertificate, MemoryCertificates, MintLock, StoreAnswer, StoredCertificate,
            identity_name,
        },
    },
    csr::{Csr, CsrError, CsrSubject, CuId, build_csr},
    downgrade::{BindingPolicy, GrantedToken},
    environment::{Environment, ProcessEnvironment},
    error::{At, CertificateProblem, Error, Malformation, NoAnswer, ServiceIds, SourceProblem},
    explain::{Entry, Origin, Retry, catalogue, explain, markdown as catalogue_markdown},
    identity::Identity,
    leg::{Leg, LegReport},
    random::{Random, SecureRandom},
    source::{Finding, Source, SourceReport},
    telemetry::{
        Metric, MetricKind, describe_metrics, metrics_catalogue, metrics_markdown, refresh_life,
    },
    time::{Clock, SystemClock},
    token::{AccessToken, TokenType, remedy::RemedyPolicy},
};
