//! Azure on loopback, for managed identity v2.
//!
//! Servers that behave as their originals do, as far as a client of managed identity can
//! tell, and that refuse what their originals refuse:
//!
//! - the **Instance Metadata Service** (HTTP): platform metadata and `issuecredential` of version 2,
//!   the token endpoint of version 1, a little instance metadata;
//! - a **token service** (HTTPS, TLS 1.2 and 1.3): tokens bound to the client certificate of the
//!   connection, and the keys to verify them;
//! - the **token service of a Service Fabric cluster**, at `/fabric` on the token service's port: bearer tokens
//!   of version 1, which it keeps until it is told that one was refused;
//! - a **vault** (HTTPS), twice: secrets, for a bound token over a connection with its certificate.
//!   One asks for the certificate in the first handshake, the other by renegotiation under TLS 1.2
//!   after it has read the head of a request, as Key Vault does.
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let azure = keybond_emulator::Emulator::builder().start().await?;
//! let address = azure.imds_url().replace("http://", "");
//!
//! let mut imds = tokio::net::TcpStream::connect(&address).await?;
//! let request = "GET /metadata/identity/getplatformmetadata?cred-api-version=2.0 HTTP/1.1\r\n\
//!     Host: imds\r\nConnection: close\r\nMetadata: true\r\n\
//!     x-ms-client-request-id: 00000000-0000-4000-8000-000000000001\r\n\r\n";
//! imds.write_all(request.as_bytes()).await?;
//! let mut answer = String::new();
//! imds.read_to_string(&mut answer).await?;
//!
//! assert!(answer.starts_with("HTTP/1.1 200 OK"));
//! assert!(answer.contains(&azure.identities()[0].client_id));
//! assert_eq!(azure.counters().metadata, 1);
//! # Ok(())
//! # }
//! ```
//!
//! [`Emulator::env_lines`] prints the environment that sends clients in other processes here.
//!
//! # Strict, and saying why
//!
//! A signing request is read byte by byte ([`Csr::parse`]); the refusal says at which offset which
//! byte was expected. Headers, versions, names of query variables, methods and media types are
//! checked as the real services check them. Nothing of the client's code is used here, so that a
//! misunderstanding on one side cannot hide on the other.
//!
//! # Where it differs from Azure
//!
//! - Refusals explain more than Azure's do.
//! - The issuer of tokens is `https://keybond.invalid/emulator/…` and the authority says that it is
//!   not Azure: nothing made here can be mistaken for the real thing.
//! - Token service and vault take any certificate in the handshake and refuse it in HTTP, where
//!   they can say why; only the vault that renegotiates refuses another authority's by alert.
//! - The TLS of that vault is for test beds, and only that: it has been made for this emulator.
//! - The attestation service, at `/attestation` on the token service's port, takes a key's word for
//!   it and does not seal its answer. Attestation tokens are looked at only with
//!   [`AttestationRule::Checked`].
//! - `token_not_after` is kept beside the certificate, not in it: the extension is not published.
//! - No rate limits, unless injected.
//!
//! # Faults
//!
//! A [`Scenario`] says in a few words what happens when: `410 for 60s`, `after 10m: revoke once`.
//! [`Emulator::play`] plays it, as does [`Builder::scenario`] from the start. Below it,
//! [`Emulator::inject`] makes a leg misbehave: see [`FaultKind`]. With [`Emulator::advance_clock`],
//! [`Emulator::set_certificate_lifetime`], [`Emulator::revoke`] and [`Emulator::counters`] whole
//! scenarios can be played without waiting.
//!
//! The same is there for other processes, as JSON under `/_emulator/` on the IMDS port:
//!
//! | request | does |
//! |---|---|
//! | `GET` `counters`, `DELETE` `counters` | [`Counters`]; counts from zero again |
//! | `POST` `scenario` | plays a [`Scenario`], given as its text |
//! | `GET` `scenario`, `DELETE` `scenario` | the steps still to come; forgets them |
//! | `GET` `faults`, `DELETE` `faults` | the faults in force; ends them |
//! | `POST` `faults` | injects one [`Fault`] or an array of them |
//! | `GET` `clock`, `POST` `clock` `{"advance_seconds":n}` | the time; moves it forward |
//! | `POST` `lifetimes` `{"certificate_lifetime_seconds":n,"token_lifetime_seconds":n}` | sets either or both |
//! | `POST` `revoke` `{"x5t#S256":"…","code":n}` | revokes one certificate, or all issued so far; refused with AADSTS1000610 or `code` (0: none) |
//! | `GET` `ca.pem`, `GET` `env?shell=sh` | the authority; the environment for `sh`, `powershell`, `docker` |
//!
//! Injected redirects and plain-text endpoints lead to the honeypot, a listener of its own for HTTP
//! and HTTPS, which only counts: [`Counters::honeypot`] must stay 0.
#![forbid(unsafe_code)]

mod admin;
mod attestation;
mod builder;
mod clock;
mod counters;
mod csr;
mod der;
mod emulator;
mod env;
mod error;
mod fabric;
mod fault;
mod http_io;
mod identity;
mod imds;
mod jwt;
mod oid;
mod scenario;
mod server;
mod service;
mod state;
mod sts;
mod tls;
mod tls12;
mod vault;
mod world;
mod x509;

pub use attestation::{AttestationFlaw, AttestationRule};
pub use builder::Builder;
pub use clock::ClockSource;
pub use counters::Counters;
pub use csr::{Csr, CsrRules};
pub use der::DerError;
pub use emulator::Emulator;
pub use env::Shell;
pub use error::EmulatorError;
pub use fault::{Fault, FaultKind, Leg};
pub use identity::{Identity, IdentityKind, Profile};
pub use scenario::{Directive, Scenario, Step};
