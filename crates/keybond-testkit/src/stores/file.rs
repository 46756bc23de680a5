//! A store whose keys outlive the process: software keys in files, passed off as those of a TPM.

use std::{fs, io::Write as _, time::Duration};

use aws_lc_rs::{
    digest::{self, Digest},
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa::KeySize,
    signature::{self, KeyPair as _, RsaEncoding, RsaKeyPair},
};
use keybond_keys::{
    ExportAttempt, HashAlgorithm, Isolation, KeyName, KeyProperties, KeyStore, Origin, Reason,
    SignatureScheme, StateDir, StoreId, StoredKey, Unavailable,
};

const ID: StoreId = StoreId::Tpm2;

/// Keys as PKCS#8 files in a state directory. Every creation adds a line to `creations.log`.
pub struct FileStore {
    dir: StateDir,
    creation_takes: Duration,
}

impl FileStore {
    /// Keeps keys in `dir`.
    pub fn new(dir: StateDir) -> Self {
        Self {
            dir,
            creation_takes: Duration::ZERO,
        }
    }

    /// Lets a creation take this much longer, between the log line and the file.
    #[must_use]
    pub fn with_slow_creation(mut self, takes: Duration) -> Self {
        self.creation_takes = takes;
        self
    }

    /// The processes that began to create a key, in order.
    pub fn creations(&self) -> Vec<u32> {
        let log = fs::read_to_string(self.dir.path().join("creations.log")).unwrap_or_default();
        log.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl KeyStore for FileStore {
    fn id(&self) -> StoreId {
        ID
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        let Some(pkcs8) = self.dir.read(&file(name)).map_err(failed)? else {
            return Ok(None);
        };
        let pair = RsaKeyPair::from_pkcs8(&pkcs8)
            .map_err(|error| Unavailable::new(ID, Reason::Corrupt, error.to_string()))?;
        Ok(Some(Box::new(FileKey(pair))))
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let mut log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.path().join("creations.log"))
            .map_err(failed)?;
        writeln!(log, "{}", std::process::id()).map_err(failed)?;
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
        std::thread::sleep(self.creation_takes);
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
        self.dir
            .write(&file(name), pkcs8.as_ref())
            .map_err(failed)?;
        Ok(Box::new(FileKey(pair)))
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        self.dir.remove(&file(name)).map_err(failed)
    }
}

struct FileKey(RsaKeyPair);

impl StoredKey for FileKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(failed)?;
        Ok(der.as_ref().to_vec())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::RsaPssSha256,
            SignatureScheme::RsaPkcs1Sha256,
        ]
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let encoding: &dyn RsaEncoding = match scheme {
            SignatureScheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
            _ => &signature::RSA_PKCS1_SHA256,
        };
        debug_assert_eq!(scheme.hash(), HashAlgorithm::Sha256);
        let digest = Digest::import_less_safe(digest, &digest::SHA256).map_err(failed)?;
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign_digest(encoding, &digest, &mut signature)
            .map_err(failed)?;
        Ok(signature)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        Ok(KeyProperties {
            isolation: Isolation::Device,
            origin: Origin::Device,
            exportable: Some(false),
            ..KeyProperties::default()
        })
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(ExportAttempt::Refused("it plays the part of a TPM".into()))
    }
}

fn file(name: &KeyName) -> String {
    format!("{name}.p8")
}

fn failed(error: impl std::fmt::Display) -> Unavailable {
    Unavailable::new(ID, Reason::Failed, error.to_string())
}
