//! The hardware tier on Linux: a key made in a TPM 2.0, kept beside it as a file that only this TPM can use.
//!
//! `keys/<name>.pem` is a TSS2 key file, which OpenSSL's tpm2 provider reads as well; `keys/<name>.json` is its
//! record. A key file that cannot be used any more is set aside, never deleted.

mod refusals;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use keybond_tpm::{
    Existing, Hash, KeyBlob, KeyRequest, LoadedKey, RsaPublic, Scheme, Tpm, TpmAddress, TpmError,
    TpmOptions,
};

use self::refusals::{does_not_take, explain, refusal, state_refusal};
use super::{
    ExportAttempt, Isolation, KeyName, KeyProperties, KeyStore, Origin, StoredKey, record::Record,
};
use crate::{
    public_key::{KeyId, PublicKey},
    refusal::{Reason, Unavailable},
    scheme::{HashAlgorithm, SignatureScheme},
    state::{StateDir, StateError},
    strength::StoreId,
};

const STORE: StoreId = StoreId::Tpm2;

/// Makes and opens RSA-2048 keys in a TPM 2.0.
pub struct Tpm2Store {
    address: TpmAddress,
    options: TpmOptions,
    keys: StateDir,
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Opened at the first use and again after a failure to open it.
    tpm: Mutex<Option<Tpm>>,
}

impl Tpm2Store {
    /// The TPM at `address`, with key files in the directory `keys` of `state`. The TPM is not touched yet.
    ///
    /// # Errors
    /// [`StateError`] if that directory cannot be made or trusted.
    pub fn new(address: TpmAddress, state: &StateDir) -> Result<Self, StateError> {
        Ok(Self {
            address,
            options: TpmOptions::default(),
            keys: state.subdirectory("keys")?,
            now: Arc::new(SystemTime::now),
            tpm: Mutex::new(None),
        })
    }

    /// Replaces the options with which the TPM is opened: deadlines, queue.
    #[must_use]
    pub fn with_options(mut self, options: TpmOptions) -> Self {
        self.options = options;
        self
    }

    /// Replaces the clock that dates records and files set aside.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.now = Arc::new(now);
        self
    }

    /// The key file of the key called `name`.
    pub fn key_file(&self, name: &KeyName) -> PathBuf {
        self.keys.path().join(key_file(name))
    }

    fn tpm(&self) -> Result<Tpm, Unavailable> {
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tpm) = &*tpm {
            return Ok(tpm.clone());
        }
        let opened = Tpm::open(&self.address, &self.options).map_err(refusal)?;
        Ok(tpm.insert(opened).clone())
    }

    /// The record of a key. One that cannot be understood, or is another key's, is set aside: the key does
    /// without.
    fn record(&self, name: &KeyName, key: KeyId) -> Result<Option<Record>, Unavailable> {
        let file = record_file(name);
        let Some(content) = self.keys.read(&file).map_err(state_refusal)? else {
            return Ok(None);
        };
        let (why, problem) = match Record::parse(&content) {
            Ok(record) if record.is_for(key) => return Ok(Some(record)),
            Ok(_) => ("stale", "it is the record of another key".to_owned()),
            Err(problem) => ("corrupt", problem),
        };
        tracing::warn!(target: "keybond::keys", %file, %problem, "the key's record is of no use");
        self.keys
            .set_aside(&file, why, (self.now)())
            .map_err(state_refusal)?;
        Ok(None)
    }

    /// Writes the record of a key that works. The key file alone is enough to use the key, so a record that
    /// cannot be written is only warned of.
    fn write_record(&self, name: &KeyName, key: &LoadedKey) -> Result<Record, Unavailable> {
        let (tpm, parent) = (key.tpm(), key.blob().parent());
        let created = (self.now)()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let record = Record::new(
            &tpm.names().map_err(refusal)?,
            (parent, &tpm.parent_name(parent).map_err(refusal)?),
            key.pss_mode().map_err(refusal)?,
            key_id(key.public())?,
            created,
        );
        let json = record
            .to_json()
            .map_err(|error| Unavailable::new(STORE, Reason::Failed, error))?;
        if let Err(error) = self.keys.write(&record_file(name), &json) {
            tracing::warn!(target: "keybond::keys", %error, "the key's record is not written");
        }
        Ok(record)
    }
}

impl KeyStore for Tpm2Store {
    fn id(&self) -> StoreId {
        STORE
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.tpm().map(drop)
    }

    fn describe(&self, name: &KeyName) -> Result<Vec<(String, String)>, Unavailable> {
        let tpm = self.tpm()?;
        let mut details = vec![
            detail("tpm", tpm.identity().to_string()),
            detail("address", tpm.address().to_string()),
        ];
        // What is wrong with a key file, opening it tells; the TPM is no worse for it.
        if let Ok(key) = KeyBlob::load(&self.key_file(name)).map_err(TpmError::from)
            && let Ok(key) = tpm.load(&key)
        {
            let mode = signs_pss(key)?.pss_mode().map_err(refusal)?;
            details.push(detail("pss", mode.to_string()));
        }
        Ok(details)
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        // Without a TPM a key file says nothing; it must not look lost then.
        let tpm = self.tpm()?;
        let file = self.key_file(name);
        let blob = match KeyBlob::load(&file) {
            Ok(blob) => blob,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(refusal(error.into())),
        };
        let record = self.record(name, key_id(blob.public())?)?;
        let key = match tpm.load(&blob) {
            Ok(key) => key,
            Err(error) if does_not_take(&blob, &error) => {
                return Err(explain(&tpm, &blob, record.as_ref(), &error));
            }
            Err(error) => return Err(refusal(error)),
        };
        // The record is not believed: firmware may have learned, or forgotten, how to sign PSS.
        let mode = key.pss_mode().map_err(refusal)?;
        let record = match record {
            Some(record) if record.pss_mode() == Ok(mode) => record,
            _ => self.write_record(name, &key)?,
        };
        let key = signs_pss(key)?;
        Ok(Some(Box::new(Tpm2Key { key, file, record })))
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let tpm = self.tpm()?;
        let key = tpm
            .create_pss_key(&KeyRequest::default())
            .map_err(refusal)?;
        for lost in [key_file(name), record_file(name)] {
            self.keys
                .set_aside(&lost, "replaced", (self.now)())
                .map_err(state_refusal)?;
        }
        let file = self.key_file(name);
        match key.blob().save(&file, Existing::Keep) {
            Ok(()) => {}
            Err(TpmError::KeyFile(error)) if error.is_already_there() => {
                let theirs = self.open(name)?;
                return theirs.ok_or_else(|| {
                    Unavailable::new(STORE, Reason::Busy, "the key file comes and goes")
                });
            }
            Err(error) => return Err(refusal(error)),
        }
        let record = self.write_record(name, &key)?;
        // The file stays: it saves the next attempt the making of two keys, and firmware may learn.
        let key = signs_pss(key)?;
        Ok(Box::new(Tpm2Key { key, file, record }))
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        self.keys
            .remove(&record_file(name))
            .map_err(state_refusal)?;
        self.keys.remove(&key_file(name)).map_err(state_refusal)
    }
}

struct Tpm2Key {
    key: LoadedKey,
    file: PathBuf,
    record: Record,
}

impl Tpm2Key {
    /// The TPM may be cleared, or exchanged by a migration of the machine, while the key is in use.
    fn refusal(&self, error: TpmError) -> Unavailable {
        if does_not_take(self.key.blob(), &error) {
            explain(self.key.tpm(), self.key.blob(), Some(&self.record), &error)
        } else {
            refusal(error)
        }
    }
}

impl StoredKey for Tpm2Key {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let public = self.key.read_public();
        Ok(public.map_err(|error| self.refusal(error))?.spki_der())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        SignatureScheme::ALL.into()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let hash = match scheme.hash() {
            HashAlgorithm::Sha256 => Hash::Sha256,
            HashAlgorithm::Sha384 => Hash::Sha384,
            HashAlgorithm::Sha512 => Hash::Sha512,
        };
        let scheme = if scheme.is_pss() {
            Scheme::Pss(hash)
        } else {
            Scheme::Pkcs1(hash)
        };
        self.key
            .sign_digest(scheme, digest)
            .map_err(|error| self.refusal(error))
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        let attributes = self.key.read_public().map_err(refusal)?.attributes();
        let bound = attributes.fixed_tpm() && attributes.fixed_parent();
        let identity = self.key.tpm().identity();
        let pss = self.key.pss_mode().map_err(refusal)?;
        Ok(KeyProperties {
            isolation: Isolation::Device,
            origin: if attributes.sensitive_data_origin() {
                Origin::Device
            } else {
                Origin::Imported
            },
            exportable: Some(!bound),
            file: Some(self.file.clone()),
            details: vec![
                detail("tpm", identity.to_string()),
                detail("address", self.key.tpm().address().to_string()),
                detail("attributes", attributes.to_string()),
                detail("pss", pss.to_string()),
                detail("created", self.record.created().to_string()),
            ],
        })
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(match self.key.attempt_export().map_err(refusal)? {
            keybond_tpm::ExportAttempt::Exported => ExportAttempt::Exported,
            keybond_tpm::ExportAttempt::Refused(code) => ExportAttempt::Refused(code.to_string()),
        })
    }
}

/// A key, unless neither the TPM nor raw RSA gives it PSS: certificate requests, TLS 1.3 and JWTs need that, and a
/// weaker store serves them better than a key that cannot.
fn signs_pss(key: LoadedKey) -> Result<LoadedKey, Unavailable> {
    key.require_pss().map_err(refusal)?;
    Ok(key)
}

fn detail(name: &str, value: String) -> (String, String) {
    (name.to_owned(), value)
}

fn key_file(name: &KeyName) -> String {
    format!("{name}.pem")
}

fn record_file(name: &KeyName) -> String {
    format!("{name}.json")
}

fn key_id(public: &RsaPublic) -> Result<KeyId, Unavailable> {
    PublicKey::from_spki_der(&public.spki_der())
        .map(|key| key.id())
        .map_err(|error| Unavailable::new(STORE, Reason::TooWeak, error.to_string()))
}
