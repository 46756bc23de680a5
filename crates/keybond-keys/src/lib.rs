//! Makes, holds and proves the strongest private key a machine offers.
#![forbid(unsafe_code)]

mod decision;
mod error;
mod evidence;
mod key;
mod offload;
mod public_key;
mod refusal;
mod scheme;
mod store;
mod strength;

pub use decision::{Considered, Decision, Outcome};
pub use error::KeyError;
pub use evidence::{Evidence, RejectedScheme};
pub use key::HeldKey;
pub use public_key::{InvalidPublicKey, KeyId, PublicKey, RSA_BITS};
pub use refusal::{NativeCode, Reason, Unavailable};
pub use scheme::{HashAlgorithm, SignatureScheme};
pub use store::{
    ExportAttempt, InvalidKeyName, Isolation, KeyName, KeyProperties, KeyStore, MemoryStore,
    Origin, StoredKey,
};
pub use strength::{StoreId, Strength, Tier, UnknownName};
