//! Proof of possession in HTTP requests: a signature by the held key over the request, made fresh each time.
//!
//! - [`SignedHttpRequest`]: the token travels inside a JWS that names method, host and path
//!   (draft-ietf-oauth-signed-http-request-03, as Microsoft's services read it).
//! - [`DpopProof`]: a proof beside the token (RFC 9449).
//!
//! Both name the key by its JWK ([`Jwk`], RFC 7517) or that JWK's thumbprint (RFC 7638).

mod dpop;
mod jwk;
mod jws;
mod shr;

pub use dpop::DpopProof;
pub use jwk::Jwk;
pub use jws::PopError;
pub use shr::SignedHttpRequest;
