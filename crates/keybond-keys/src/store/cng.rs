//! What the two Windows tiers share: when a key in a Windows key store is used, made, replaced or left alone.
//!
//! 1. A key is opened first, and proved alive by a real signature.
//! 2. A key of this name is replaced only when there certainly is none that works: none was found, it cannot be
//!    decrypted any more, or it was opened twice and failed to sign twice for a reason that does not pass.
//!    Access denied, a service that is down, a sharing violation and the like are refusals, never a reason.
//!    A key of ours that lives and is not RSA-2048 is replaced, too; one that others share is refused.
//! 3. Keys are made under a named mutex, and looked for again with the mutex in hand.
//! 4. A key that was made is opened again by name: if another process won meanwhile, its key is used.
//! 5. Nothing is deleted through an old handle: Windows deletes by name, and the name may be another key's.
//!
//! The calls behind [`Backend`] exist on Windows only; the decisions are tested everywhere.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keybond_cng::{CngError, ErrorKind, RsaPublic, names};

use super::{ExportAttempt, KeyName, KeyProperties, StoredKey};
use crate::{
    public_key::{PublicKey, RSA_BITS},
    refusal::{NativeCode, Reason, Unavailable},
    scheme::SignatureScheme,
    strength::StoreId,
};

/// How long a process waits for another one that is making the same key.
const MUTEX_WAIT: Duration = Duration::from_secs(10);

/// The calls of a Windows key store.
pub(super) trait Backend: Send + Sync + 'static {
    /// What implements the provider: `keybond_cng::names::IMPL_*` bits.
    fn implementation(&self) -> Result<u32, CngError>;

    /// Begins a key with the flags of this tier and gives it up before it exists.
    fn rehearse(&self, name: &str) -> Result<(), CngError>;

    fn open(&self, name: &str) -> Result<Box<dyn CngKey>, CngError>;

    /// Makes a key with everything this tier asks for. Without `overwrite` an existing one is an error.
    fn create(&self, name: &str, overwrite: bool) -> Result<Box<dyn CngKey>, CngError>;

    /// Runs `job` with the mutex in hand; `false` if it could not be had within `wait`.
    fn exclusively(
        &self,
        mutex: &str,
        wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, CngError>;
}

/// One open key.
pub(super) trait CngKey: Send + 'static {
    fn public_key(&self) -> Result<RsaPublic, CngError>;
    fn sign(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, CngError>;
    fn property(&self, name: &str) -> Result<u32, CngError>;
    fn attempt_export(&self) -> ExportAttempt;
    fn delete(self: Box<Self>) -> Result<(), CngError>;
}

/// What distinguishes the two tiers.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) store: StoreId,
    /// One of these must sign for the key to count as alive.
    pub(super) alive_by: &'static [SignatureScheme],
    /// Whether what the provider is made of decides.
    pub(super) needs_hardware: bool,
    /// What the key says of itself.
    pub(super) describe: fn(&Described<'_>) -> Result<KeyProperties, CngError>,
    /// The remedy when Windows does not offer this tier.
    pub(super) how_to_get_it: &'static str,
    /// What a key that does not sign any more has died of.
    pub(super) dies_of: &'static str,
}

/// Where a key is kept, and who else knows the place.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) container: &'a str,
    pub(super) mutex: &'a str,
    /// Other programs of this user use the key.
    pub(super) shared: bool,
}

/// A key to be described, with what its provider is made of.
pub(super) struct Described<'a> {
    pub(super) key: &'a dyn CngKey,
    pub(super) implementation: Option<u32>,
    pub(super) container: &'a str,
}

/// A Windows key store under the rules above.
pub(super) struct CngStore {
    backend: Box<dyn Backend>,
    rules: Rules,
}

/// What is under a name.
enum Found {
    Alive(Box<dyn CngKey>),
    Vacant,
    /// With the key, if it still opens.
    Dead(Unavailable, Option<Box<dyn CngKey>>),
}

impl CngStore {
    pub(super) fn new(backend: Box<dyn Backend>, rules: Rules) -> Arc<Self> {
        Arc::new(Self { backend, rules })
    }

    pub(super) fn probe(&self, container: &str) -> Result<(), Unavailable> {
        self.check_provider()?;
        match self.backend.rehearse(container) {
            // There is a key of this name: so there was the means to make it.
            Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
            other => other.map_err(|error| self.refusal_to_create(&error)),
        }
    }

    pub(super) fn open(
        self: &Arc<Self>,
        container: &str,
    ) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        self.check_hardware()?;
        match self.look(container)? {
            Found::Alive(key) => Ok(Some(self.stored(key, container, None))),
            Found::Vacant => Ok(None),
            // Handed up with its public key, which tells everybody whose certificates are worthless now.
            Found::Dead(refusal, Some(key)) => Ok(Some(self.stored(key, container, Some(refusal)))),
            Found::Dead(refusal, None) => Err(refusal),
        }
    }

    pub(super) fn create(
        self: &Arc<Self>,
        place: Place<'_>,
    ) -> Result<Box<dyn StoredKey>, Unavailable> {
        let Place {
            container, mutex, ..
        } = place;
        self.check_hardware()?;
        let mut made = None;
        let ran = self
            .backend
            .exclusively(mutex, MUTEX_WAIT, &mut || {
                made = Some(self.find_or_make(place));
            })
            .map_err(|error| self.refusal(&error))?;
        match made {
            Some(made) if ran => made.map(|key| self.stored(key, container, None)),
            _ => Err(Unavailable::new(
                self.rules.store,
                Reason::Busy,
                format!(
                    "another process has held the mutex {mutex} for {} s",
                    MUTEX_WAIT.as_secs()
                ),
            )),
        }
    }

    /// Deletes whatever key is under the name now.
    pub(super) fn delete(&self, container: &str) -> Result<bool, Unavailable> {
        match self.backend.open(container) {
            Ok(key) => match key.delete() {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(self.refusal(&error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.refusal(&error)),
        }
    }

    /// With the mutex in hand.
    fn find_or_make(&self, place: Place<'_>) -> Result<Box<dyn CngKey>, Unavailable> {
        let container = place.container;
        let replace = match self.look(container)? {
            Found::Alive(key) => match self.another_size(&*key)? {
                // Another process was faster.
                None => return Ok(key),
                Some(bits) if place.shared => return Err(self.shared_and_of(bits, container)),
                Some(bits) => {
                    tracing::warn!(target: "keybond::keys", container, bits, "a key of another size is replaced");
                    true
                }
            },
            Found::Vacant => false,
            Found::Dead(cause, _) => {
                tracing::warn!(target: "keybond::keys", container, %cause, "a dead key is replaced");
                true
            }
        };
        let made = match self.backend.create(container, replace) {
            Err(error) if error.kind() == ErrorKind::Exists => match self.look(container)? {
                // Somebody who does not know our mutex was faster.
                Found::Alive(key) => return Ok(key),
                // A key that exists but cannot be found (a cleared TPM leaves such), or is dead.
                Found::Vacant | Found::Dead(..) => self.backend.create(container, true),
            },
            other => other,
        };
        let made = made.map_err(|error| self.refusal_to_create(&error))?;
        if let Err(refusal) = self.check_made(&*made) {
            self.discard(container, &*made);
            return Err(refusal);
        }
        // The name belongs to whoever finalised last.
        let kept = self
            .backend
            .open(container)
            .map_err(|error| self.refusal(&error))?;
        if self.public(&*kept)? == self.public(&*made)? {
            return Ok(made);
        }
        drop(made);
        match self.look(container)? {
            Found::Alive(theirs) => Ok(theirs),
            Found::Vacant | Found::Dead(..) => Err(Unavailable::new(
                self.rules.store,
                Reason::Busy,
                "other processes replace this key all the time",
            )),
        }
    }

    /// What is under the name. A key counts as dead only when it was found so twice.
    fn look(&self, container: &str) -> Result<Found, Unavailable> {
        match self.look_once(container)? {
            Found::Dead(..) => self.look_once(container),
            other => Ok(other),
        }
    }

    fn look_once(&self, container: &str) -> Result<Found, Unavailable> {
        let key = match self.backend.open(container) {
            Ok(key) => key,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Vacant),
            Err(error) if error.kind() == ErrorKind::Undecryptable => {
                return Ok(Found::Dead(self.dead(&error), None));
            }
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                let what = "Windows opens no such keys here";
                return Err(self
                    .refuse(Reason::NotSupported, what, &error)
                    .with_remedy(self.rules.how_to_get_it));
            }
            Err(error) => return Err(self.refusal(&error)),
        };
        let mut last = None;
        for scheme in self.rules.alive_by {
            match self.prove(&*key, *scheme) {
                Ok(()) => {
                    self.check_found(&*key, container)?;
                    return Ok(Found::Alive(key));
                }
                Err(Trial::Failed(error)) => last = Some(error),
                Err(Trial::Refused(refusal)) => return Err(refusal),
            }
        }
        Ok(match last {
            Some(error) if error.kind() == ErrorKind::NotSupported => {
                return Err(self.refusal(&error));
            }
            Some(error) => Found::Dead(self.dead(&error), Some(key)),
            None => Found::Vacant,
        })
    }

    /// One real signature. A failure that says nothing about the key is a refusal. Whether the signature is
    /// right is for the evidence to say.
    fn prove(&self, key: &dyn CngKey, scheme: SignatureScheme) -> Result<(), Trial> {
        let digest = scheme.hash().digest(b"keybond: does this key still sign?");
        match key.sign(scheme, &digest) {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                ErrorKind::Other
                | ErrorKind::NotFound
                | ErrorKind::Undecryptable
                | ErrorKind::NotSupported => Trial::Failed(error),
                _ => Trial::Refused(self.refusal(&error)),
            }),
        }
    }

    fn check_hardware(&self) -> Result<(), Unavailable> {
        if self.rules.needs_hardware {
            self.check_provider()
        } else {
            Ok(())
        }
    }

    /// The provider must say what it is. Not every system that opens one does.
    fn check_provider(&self) -> Result<(), Unavailable> {
        let implementation = self
            .backend
            .implementation()
            .map_err(|error| match error.kind() {
                ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::NotSupported => {
                    let silent = "the provider opens, but does not say what implements it";
                    self.refuse(Reason::NotSupported, silent, &error)
                        .with_remedy(self.rules.how_to_get_it)
                }
                _ => self.refusal(&error),
            })?;
        if self.rules.needs_hardware && implementation & names::IMPL_HARDWARE == 0 {
            let detail = format!(
                "the provider says that it is not hardware (implementation type {implementation:#x})"
            );
            return Err(
                Unavailable::new(self.rules.store, Reason::NotSupported, detail)
                    .with_remedy(self.rules.how_to_get_it),
            );
        }
        Ok(())
    }

    /// A key just made must be what was asked for; flags may be accepted and ignored.
    fn check_made(&self, key: &dyn CngKey) -> Result<(), Unavailable> {
        self.check_isolation(key).map_err(|detail| {
            Unavailable::new(
                self.rules.store,
                Reason::TooWeak,
                format!("Windows made a key and {detail}"),
            )
            .with_remedy(self.rules.how_to_get_it)
        })
    }

    /// A living key of our name that is something else is somebody's: it is left alone.
    fn check_found(&self, key: &dyn CngKey, container: &str) -> Result<(), Unavailable> {
        self.check_isolation(key).map_err(|detail| {
            Unavailable::new(
                self.rules.store,
                Reason::TooWeak,
                format!("there is a key {container} and {detail}"),
            )
            .with_remedy(how_to_delete(container))
        })
    }

    fn check_isolation(&self, key: &dyn CngKey) -> Result<(), String> {
        if self.rules.needs_hardware {
            return Ok(());
        }
        match key.property(names::VIRTUAL_ISOLATION) {
            Ok(0) => Err("its property Virtual Iso reads 0: VBS does not isolate it".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("its property Virtual Iso cannot be read: {error}")),
        }
    }

    /// Deletes a key that was made a moment ago, unless its name is another key's by now.
    fn discard(&self, container: &str, made: &dyn CngKey) {
        let Ok(kept) = self.backend.open(container) else {
            return;
        };
        let same =
            matches!((kept.public_key(), made.public_key()), (Ok(kept), Ok(made)) if kept == made);
        if same && let Err(error) = kept.delete() {
            tracing::warn!(target: "keybond::keys", container, %error, "the rejected key could not be deleted");
        }
    }

    /// How many bits the key has, if not those that keybond's keys have.
    fn another_size(&self, key: &dyn CngKey) -> Result<Option<usize>, Unavailable> {
        let bits = self.public(key)?.modulus.len() * 8;
        Ok((bits != RSA_BITS).then_some(bits))
    }

    fn shared_and_of(&self, bits: usize, container: &str) -> Unavailable {
        let detail = format!(
            "the key {container}, which other programs of this user share, has {bits} bits"
        );
        Unavailable::new(self.rules.store, Reason::TooWeak, detail)
            .with_remedy(how_to_delete(container))
    }

    fn public(&self, key: &dyn CngKey) -> Result<RsaPublic, Unavailable> {
        key.public_key().map_err(|error| self.refusal(&error))
    }

    /// The signature that a key in use did not give: a second handle tells a hiccup from the end of the key.
    fn sign_again(
        &self,
        container: &str,
        public: &RsaPublic,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, Unavailable> {
        match self.look(container)? {
            Found::Alive(key) if self.public(&*key)? == *public => key
                .sign(scheme, digest)
                .map_err(|error| self.refusal(&error)),
            Found::Dead(refusal, _) => Err(refusal),
            Found::Alive(_) | Found::Vacant => Err(Unavailable::new(
                self.rules.store,
                Reason::Dead,
                format!(
                    "{}: its name is another key's or nobody's",
                    self.rules.dies_of
                ),
            )),
        }
    }

    fn stored(
        self: &Arc<Self>,
        key: Box<dyn CngKey>,
        container: &str,
        dead: Option<Unavailable>,
    ) -> Box<dyn StoredKey> {
        Box::new(CngStoredKey {
            key: Mutex::new(key),
            dead,
            store: Arc::clone(self),
            implementation: self.backend.implementation().ok(),
            container: container.to_owned(),
        })
    }

    fn dead(&self, error: &CngError) -> Unavailable {
        self.refuse(Reason::Dead, self.rules.dies_of, error)
    }

    /// An error of a create call: what is not supported there is the tier itself.
    fn refusal_to_create(&self, error: &CngError) -> Unavailable {
        match error.kind() {
            ErrorKind::NotSupported | ErrorKind::Invalid => self
                .refuse(
                    Reason::NotSupported,
                    "Windows does not make such keys here",
                    error,
                )
                .with_remedy(self.rules.how_to_get_it),
            ErrorKind::NotFound => self
                .refuse(Reason::NotPresent, "the user has no place for keys", error)
                .with_remedy("Let the account have a profile that is loaded."),
            _ => self.refusal(error),
        }
    }

    fn refuse(&self, reason: Reason, what: &str, error: &CngError) -> Unavailable {
        Unavailable::new(self.rules.store, reason, format!("{what}: {error}"))
            .with_native(native(error))
    }

    fn refusal(&self, error: &CngError) -> Unavailable {
        refusal(self.rules.store, error)
    }
}

/// Why a trial signature did not come.
enum Trial {
    /// The key cannot sign in this scheme, or not at all.
    Failed(CngError),
    /// Nothing was learned about the key.
    Refused(Unavailable),
}

struct CngStoredKey {
    /// One thread at a time: nothing documents that a handle may be shared.
    key: Mutex<Box<dyn CngKey>>,
    /// Why it does not sign, if it was found so.
    dead: Option<Unavailable>,
    store: Arc<CngStore>,
    implementation: Option<u32>,
    container: String,
}

impl CngStoredKey {
    fn key(&self) -> MutexGuard<'_, Box<dyn CngKey>> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredKey for CngStoredKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let store = self.store.rules.store;
        let public = self
            .key()
            .public_key()
            .map_err(|error| self.store.refusal(&error))?;
        let key = PublicKey::from_rsa_components(&public.modulus, &public.exponent)
            .map_err(|error| Unavailable::new(store, Reason::Corrupt, error.to_string()))?;
        Ok(key.spki_der().to_vec())
    }

    /// PSS is left out where the device says that its salt fits nobody.
    fn schemes(&self) -> Vec<SignatureScheme> {
        let odd_salt = self.store.rules.needs_hardware
            && matches!(
                self.key().property(names::PSS_SALT_SIZE),
                Ok(names::SALT_MAXIMUM)
            );
        SignatureScheme::ALL
            .into_iter()
            .filter(|scheme| !(odd_salt && scheme.is_pss()))
            .collect()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        if let Some(dead) = &self.dead {
            return Err(dead.clone());
        }
        let key = self.key();
        let error = match key.sign(scheme, digest) {
            Ok(signature) => return Ok(signature),
            Err(error) => error,
        };
        match (error.kind(), key.public_key()) {
            (ErrorKind::Other | ErrorKind::NotFound | ErrorKind::Undecryptable, Ok(public)) => {
                let container = &self.container;
                self.store.sign_again(container, &public, scheme, digest)
            }
            _ => Err(self.store.refusal(&error)),
        }
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        let key = self.key();
        let described = Described {
            key: &**key,
            implementation: self.implementation,
            container: &self.container,
        };
        (self.store.rules.describe)(&described).map_err(|error| self.store.refusal(&error))
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(self.key().attempt_export())
    }
}

fn how_to_delete(container: &str) -> String {
    format!(
        "If nobody needs the key, delete it (`certutil -user -csp \"{}\" -delkey {container}`), or use another key name.",
        names::SOFTWARE_PROVIDER
    )
}

/// Our name for a key, where no other is agreed on.
pub(super) fn container(name: &KeyName) -> String {
    format!("keybond-{name}")
}

/// Our mutex for a container, where no other is agreed on.
pub(super) fn mutex(container: &str) -> String {
    format!("keybond_K_{container}")
}

/// A DWORD property; `None` if the key has no such property.
pub(super) fn optional(key: &dyn CngKey, name: &str) -> Result<Option<u32>, CngError> {
    match key.property(name) {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotSupported | ErrorKind::Invalid
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// How a property is printed.
pub(super) fn shown(value: Option<u32>) -> String {
    value.map_or_else(|| "absent".into(), |value| format!("{value:#x}"))
}

fn refusal(store: StoreId, error: &CngError) -> Unavailable {
    let reason = match error.kind() {
        ErrorKind::NotSupported => Reason::NotSupported,
        ErrorKind::PermissionDenied => Reason::PermissionDenied,
        ErrorKind::Busy | ErrorKind::Exists => Reason::Busy,
        ErrorKind::Undecryptable => Reason::Dead,
        ErrorKind::NotFound
        | ErrorKind::NoDevice
        | ErrorKind::NoProfile
        | ErrorKind::ServiceDown => Reason::NotPresent,
        _ => Reason::Failed,
    };
    Unavailable::new(store, reason, error.to_string())
        .with_native(native(error))
        .with_remedy(error.remedy())
        .with_retryable(error.retryable())
}

fn native(error: &CngError) -> NativeCode {
    NativeCode {
        space: "hresult",
        code: error.code().bits().into(),
        name: error.code().name().map(Into::into),
    }
}
