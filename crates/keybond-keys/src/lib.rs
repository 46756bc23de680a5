//! Makes, holds and proves the strongest private key a machine offers.
//!
//! A [`KeyProvider`] asks its [`KeyStore`]s in the order of their [`Tier`], proves what each answers
//! ([`Evidence`]), and caches the first [`HeldKey`] that is what its tier promises. Weaker stores are used only
//! when every stronger one refused, and the [`Decision`] in the result says why each did.
//!
//! ```
//! use keybond_keys::{KeyProvider, MemoryStore, SignatureScheme, Strength};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), keybond_keys::KeyError> {
//! let provider = KeyProvider::builder().store(MemoryStore).build();
//! let key = provider.get_or_create_key().await?;
//! assert_eq!(key.strength(), Strength::Software);
//! println!("{}", key.decision());
//!
//! let signature = key.sign(SignatureScheme::RsaPssSha256, b"message").await?;
//! assert!(key.public_key().verify(SignatureScheme::RsaPssSha256, b"message", &signature));
//!
//! // A floor is checked against evidence, and the error says what each store answered.
//! let refused = provider.get_key_of_strength(Strength::Hardware).await;
//! assert_eq!(refused.unwrap_err().code(), "min_strength_not_met");
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows nothing of networks, certificates or Azure.
#![forbid(unsafe_code)]

mod current;
#[cfg(test)]
mod current_tests;
mod decision;
mod error;
mod event;
mod evidence;
#[cfg(unix)]
#[doc(hidden)]
pub mod fuzzing;
mod keeper;
mod key;
mod offload;
mod policy;
mod provider;
mod public_key;
mod refusal;
mod scheme;
mod single_flight;
mod state;
mod store;
mod strength;
mod sync;

pub use decision::{Considered, Decision, Outcome};
pub use error::KeyError;
pub use event::{KeyEvent, KeyEvents};
pub use evidence::{Evidence, RejectedScheme};
pub use key::HeldKey;
pub use policy::StorePolicy;
pub use provider::{KeyProvider, KeyProviderBuilder, Verdict};
pub use public_key::{InvalidPublicKey, KeyId, PublicKey, RSA_BITS};
pub use refusal::{NativeCode, Reason, Unavailable};
pub use scheme::{HashAlgorithm, SignatureScheme};
pub use state::{StateDir, StateError, StateLock};
#[cfg(unix)]
pub use store::Tpm2Store;
pub use store::{
    AbsentStore, ExportAttempt, InvalidKeyName, Isolation, KeyName, KeyProperties, KeyStore,
    MemoryStore, Origin, StoredKey,
};
#[cfg(feature = "pkcs11")]
pub use store::{InvalidPkcs11Uri, Pin, PinSource, Pkcs11Store, Pkcs11Uri};
#[cfg(windows)]
pub use store::{KeyGuardSharing, KeyGuardStore, PlatformStore};
pub use strength::{StoreId, Strength, Tier, UnknownName};
