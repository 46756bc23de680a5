//! The hardware tier on Linux: a key made in a TPM 2.0, kept beside it as a file that only this TPM can use.
//!
//! `keys/<name>.pem` is a TSS2 key file, which OpenSSL's tpm2 provider reads as well; `keys/<name>.json` is its
//! record. A key file that cannot be used any more is set aside, never deleted.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use keybond_tpm::{
    Belonging, ErrorKind, Existing, Hash, KeyBlob, KeyRequest, LoadedKey, PssMode, Scheme, Tpm,
    TpmAddress, TpmError, TpmNames, TpmOptions,
};

use super::{
    ExportAttempt, Isolation, KeyName, KeyProperties, KeyStore, Origin, StoredKey, record::Record,
};
use crate::{
    public_key::{KeyId, PublicKey},
    refusal::{NativeCode, Reason, Unavailable},
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

    /// The record of a key; one that cannot be understood is set aside, the key does without.
    fn record(&self, name: &KeyName) -> Result<Option<Record>, Unavailable> {
        let file = record_file(name);
        let Some(content) = self.keys.read(&file).map_err(state_refusal)? else {
            return Ok(None);
        };
        match Record::parse(&content) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(target: "keybond::keys", %file, %error, "the key's record is not understood");
                self.keys
                    .set_aside(&file, "corrupt", (self.now)())
                    .map_err(state_refusal)?;
                Ok(None)
            }
        }
    }

    fn write_record(
        &self,
        name: &KeyName,
        tpm: &Tpm,
        key: &LoadedKey,
    ) -> Result<Record, Unavailable> {
        let created = (self.now)()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let names = tpm.names().map_err(refusal)?;
        let pss = key.pss_mode().map_err(refusal)?;
        let record = Record::new(&names, pss, key_id(key)?, created);
        let json = record
            .to_json()
            .map_err(|error| Unavailable::new(STORE, Reason::Failed, error))?;
        self.keys
            .write(&record_file(name), &json)
            .map_err(state_refusal)?;
        Ok(record)
    }

    /// Why a key file does not load although the TPM works: the recorded names tell.
    fn explain(&self, tpm: &Tpm, record: Option<&Record>, error: &TpmError) -> Unavailable {
        let recorded: Option<TpmNames> = record.and_then(|record| record.names().ok());
        let Some(recorded) = recorded else {
            let detail = "the key file is damaged, or belongs to another or a cleared TPM (it has no record)";
            return with_codes(Unavailable::new(STORE, Reason::Corrupt, detail), error);
        };
        let now = match tpm.names() {
            Ok(now) => now,
            Err(error) => return refusal(error),
        };
        let (reason, detail) = match TpmNames::compare(&recorded, &now) {
            Belonging::Same => (
                Reason::Corrupt,
                "the key file is damaged: its TPM does not accept it",
            ),
            Belonging::Cleared => (
                Reason::Foreign,
                "the TPM was cleared since the key was made",
            ),
            Belonging::Other => (Reason::Foreign, "the key belongs to another TPM"),
            Belonging::ClearedOrOther => (
                Reason::Foreign,
                "the key belongs to another or a cleared TPM",
            ),
        };
        with_codes(Unavailable::new(STORE, reason, detail), error)
    }

    /// A new key that signs PSS, if any way leads there with this TPM.
    fn make(&self, tpm: &Tpm) -> Result<LoadedKey, TpmError> {
        let native = tpm.load(&tpm.create_key(&KeyRequest::default())?)?;
        if native.pss_mode()? != PssMode::Unavailable {
            return Ok(native);
        }
        let raw = tpm.load(&tpm.create_key(&KeyRequest {
            raw_rsa: true,
            ..KeyRequest::default()
        })?)?;
        // Without PSS either way, the key that can do less is the better one.
        Ok(if raw.pss_mode()? == PssMode::Unavailable {
            native
        } else {
            raw
        })
    }
}

impl KeyStore for Tpm2Store {
    fn id(&self) -> StoreId {
        STORE
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.tpm().map(drop)
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
        let record = self.record(name)?;
        let key = match tpm.load(&blob) {
            Ok(key) => key,
            Err(error) if error.kind() == ErrorKind::Integrity => {
                return Err(self.explain(&tpm, record.as_ref(), &error));
            }
            Err(error) => return Err(refusal(error)),
        };
        let id = key_id(&key)?;
        let record = match record {
            Some(record) if record.is_for(id) => {
                if let Ok(mode) = record.pss_mode() {
                    key.assume_pss_mode(mode);
                }
                record
            }
            _ => self.write_record(name, &tpm, &key)?,
        };
        Ok(Some(Box::new(Tpm2Key {
            key,
            file,
            created: record.created(),
        })))
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let tpm = self.tpm()?;
        let key = self.make(&tpm).map_err(refusal)?;
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
        let record = self.write_record(name, &tpm, &key)?;
        Ok(Box::new(Tpm2Key {
            key,
            file,
            created: record.created(),
        }))
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
    created: u64,
}

impl StoredKey for Tpm2Key {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        Ok(self.key.read_public().map_err(refusal)?.spki_der())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let pss = !matches!(self.key.pss_mode(), Ok(PssMode::Unavailable));
        SignatureScheme::ALL
            .into_iter()
            .filter(|scheme| pss || !scheme.is_pss())
            .collect()
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
        self.key.sign_digest(scheme, digest).map_err(refusal)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        let attributes = self.key.read_public().map_err(refusal)?.attributes();
        let bound = attributes.fixed_tpm() && attributes.fixed_parent();
        let identity = self.key.tpm().identity();
        let pss = self.key.pss_mode().map_err(refusal)?;
        let detail = |name: &str, value: String| (name.to_owned(), value);
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
                detail("created", self.created.to_string()),
            ],
        })
    }

    fn attempt_export(&self) -> ExportAttempt {
        match self.key.attempt_export() {
            Ok(keybond_tpm::ExportAttempt::Exported) => ExportAttempt::Exported,
            Ok(keybond_tpm::ExportAttempt::Refused(code)) => {
                ExportAttempt::Refused(code.to_string())
            }
            Err(error) => ExportAttempt::Refused(format!("the attempt failed: {error}")),
        }
    }
}

fn key_file(name: &KeyName) -> String {
    format!("{name}.pem")
}

fn record_file(name: &KeyName) -> String {
    format!("{name}.json")
}

fn key_id(key: &LoadedKey) -> Result<KeyId, Unavailable> {
    PublicKey::from_spki_der(&key.public().spki_der())
        .map(|key| key.id())
        .map_err(|error| Unavailable::new(STORE, Reason::TooWeak, error.to_string()))
}

fn refusal(error: TpmError) -> Unavailable {
    let reason = match error.kind() {
        ErrorKind::Off => Reason::DisabledByPolicy,
        ErrorKind::NotPresent => Reason::NotPresent,
        ErrorKind::NotSupported => Reason::NotSupported,
        ErrorKind::PermissionDenied | ErrorKind::WrongPin => Reason::PermissionDenied,
        ErrorKind::Busy | ErrorKind::Lockout => Reason::Busy,
        ErrorKind::TimedOut => Reason::TimedOut,
        ErrorKind::Integrity | ErrorKind::CorruptFile => Reason::Corrupt,
        _ => Reason::Failed,
    };
    with_codes(Unavailable::new(STORE, reason, error.to_string()), &error)
        .with_remedy(error.remedy())
        .with_retryable(error.retryable())
}

fn with_codes(refusal: Unavailable, error: &TpmError) -> Unavailable {
    if let Some(code) = error.response_code() {
        let name = code.name().map(Into::into);
        refusal.with_native(NativeCode {
            space: "tpm",
            code: code.raw().into(),
            name,
        })
    } else if let Some(errno) = error.errno() {
        refusal.with_native(NativeCode {
            space: "errno",
            code: errno.into(),
            name: None,
        })
    } else {
        refusal
    }
}

fn state_refusal(error: StateError) -> Unavailable {
    let reason = match &error {
        StateError::NotTrusted { .. } => Reason::PermissionDenied,
        _ => Reason::Failed,
    };
    Unavailable::new(STORE, reason, error.to_string()).with_remedy(
        "Make the state directory this user's own, with mode 0700 and files of mode 0600.",
    )
}
