//! Keys in a PKCS#11 token: a smart card, an HSM, a YubiKey, through the module its maker supplies.
//!
//! 1. A private key is made on the token, sensitive and not extractable, and is found again by its label.
//! 2. What is in the way of a new key is relabelled, never destroyed; only `delete` destroys.
//! 3. A PIN that the token refused is not tried again: a few wrong ones lock most tokens for good.
//! 4. A module is loaded once in a process. It is foreign code in this process: one that hangs costs its
//!    callers their deadline, but one that crashes takes the process with it.

mod key;
mod module;
mod pin;
mod refusal;
mod token;
mod uri;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};
use key::Pkcs11Key;
pub use pin::{Pin, PinSource};
use refusal::{other, refused};
use token::{Token, ulong};
pub use uri::{InvalidPkcs11Uri, Pkcs11Uri};

use super::{KeyName, KeyStore, StoredKey};
use crate::{
    public_key::RSA_BITS,
    refusal::{Reason, Unavailable},
    strength::StoreId,
};

/// Makes RSA-2048 keys in a PKCS#11 token.
///
/// ```no_run
/// use keybond_keys::{KeyProvider, Pkcs11Store, Pkcs11Uri};
///
/// let uri: Pkcs11Uri = "pkcs11:token=build?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/pin".parse()?;
/// let provider = KeyProvider::builder().store(Pkcs11Store::new(uri)).build();
/// # Ok::<(), keybond_keys::InvalidPkcs11Uri>(())
/// ```
pub struct Pkcs11Store {
    token: Arc<Token>,
    object: Option<String>,
}

impl Pkcs11Store {
    /// The token that `uri` names. The PIN comes from the URI's `pin-source`; if it has none, the token is
    /// used without a login.
    pub fn new(uri: Pkcs11Uri) -> Self {
        let pin = uri.pin_source.clone().map(PinSource::File);
        Self::with_pin(uri, pin)
    }

    /// The token that `uri` names, with a PIN from elsewhere, or without a login.
    pub fn with_pin(uri: Pkcs11Uri, pin: Option<PinSource>) -> Self {
        Self {
            object: uri.object.clone(),
            token: Arc::new(Token::new(uri, pin)),
        }
    }

    /// The label of the key called `name`: the URI's `object` or `keybond`, and the name if it is not the
    /// default one.
    fn label(&self, name: &KeyName) -> String {
        let object = self.object.as_deref().unwrap_or("keybond");
        if *name == KeyName::default() {
            return object.to_owned();
        }
        format!("{object}-{name}")
    }
}

impl KeyStore for Pkcs11Store {
    fn id(&self) -> StoreId {
        StoreId::Pkcs11
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.token.probe()
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        let label = self.label(name);
        let (found, lease) = self
            .token
            .read(|session| Ok((private_keys(session, &label)?, session.lease())))?;
        match found[..] {
            [] => Ok(None),
            [key] => {
                let key = Pkcs11Key::new(Arc::clone(&self.token), label, key, lease);
                Ok(Some(Box::new(key)))
            }
            _ => Err(other(
                Reason::Failed,
                format!("{} private keys have the label `{label}`", found.len()),
            )
            .with_remedy(
                "Name another `object` in the URI, or delete the keys that are not in use.",
            )),
        }
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let label = self.label(name);
        let (key, lease) = self.token.write(|session| {
            set_aside(session, &label)?;
            Ok((generate(session, &label)?, session.lease()))
        })?;
        let key = Pkcs11Key::new(Arc::clone(&self.token), label, key, lease);
        Ok(Box::new(key))
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        let label = self.label(name);
        self.token.write(|session| {
            let mut deleted = false;
            // The private key last: until it is gone, the key can be found and deleted again.
            for class in [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY] {
                for object in objects(session, class, &label)? {
                    session.destroy_object(object).map_err(refused)?;
                    deleted |= class == ObjectClass::PRIVATE_KEY;
                }
            }
            Ok(deleted)
        })
    }
}

fn objects(
    session: &Session,
    class: ObjectClass,
    label: &str,
) -> Result<Vec<ObjectHandle>, Unavailable> {
    session
        .find_objects(&[Attribute::Class(class), Attribute::Label(label.into())])
        .map_err(refused)
}

fn private_keys(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Unavailable> {
    objects(session, ObjectClass::PRIVATE_KEY, label)
}

/// Gives what has this label another one.
fn set_aside(session: &Session, label: &str) -> Result<(), Unavailable> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let aside = format!("{label}.{}.replaced", now.unwrap_or_default().as_secs());
    for class in [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY] {
        for object in objects(session, class, label)? {
            session
                .update_attributes(object, &[Attribute::Label(aside.clone().into())])
                .map_err(refused)?;
            tracing::warn!(target: "keybond::keys", from = label, to = aside, "token object set aside");
        }
    }
    Ok(())
}

fn generate(session: &Session, label: &str) -> Result<ObjectHandle, Unavailable> {
    let label = Attribute::Label(label.into());
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::ModulusBits(ulong(RSA_BITS)?),
        Attribute::PublicExponent(vec![1, 0, 1]),
        label.clone(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        label,
    ];
    let pair = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
    Ok(pair.map_err(refused)?.1)
}
