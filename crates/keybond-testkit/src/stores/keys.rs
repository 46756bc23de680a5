//! The software keys behind the scripted stores, and what they can lie about.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use keybond_keys::{
    ExportAttempt, KeyName, KeyProperties, KeyStore as _, MemoryStore, PublicKey, Reason,
    SignatureScheme, StoreId, StoredKey, Unavailable,
};

/// What a store's keys are, against what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The key is in process memory.
    NotIsolated,
    /// The key is isolated, but not bound to the boot.
    OutlivesBoot,
    /// The key was made elsewhere.
    Imported,
    /// The private key comes out, although the property says that it cannot.
    Exports,
    /// PSS signatures have a salt of 20 bytes.
    WrongSalt,
    /// Signatures are made with another key than the public one.
    AnotherKey,
    /// The public key is another one each time it is read.
    Changes,
    /// The key has this many bits.
    Bits(usize),
    /// The key says it is quick, and is not.
    Quick,
}

pub(super) fn make(lie: Option<Lie>) -> Arc<dyn StoredKey> {
    match lie {
        Some(Lie::WrongSalt) => Arc::new(OpensslKey::generate()),
        Some(Lie::AnotherKey) => Arc::new(TwoKeys(software(), software())),
        Some(Lie::Changes) => Arc::new(Changing([software(), software()], AtomicUsize::new(0))),
        Some(Lie::Bits(bits)) => Arc::new(PublicOnly(bits)),
        _ => software().into(),
    }
}

#[allow(
    clippy::expect_used,
    reason = "a test without randomness cannot go on, and nothing hides that"
)]
fn software() -> Box<dyn StoredKey> {
    MemoryStore
        .create(&KeyName::default())
        .expect("key generation")
}

/// Shows one key and signs with the other.
struct TwoKeys(Box<dyn StoredKey>, Box<dyn StoredKey>);

impl StoredKey for TwoKeys {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.0.public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.1.schemes()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        self.1.sign_digest(scheme, digest)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.0.properties()
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.0.attempt_export()
    }
}

/// Signs with the first key and shows the two in turn.
struct Changing([Box<dyn StoredKey>; 2], AtomicUsize);

impl StoredKey for Changing {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        self.0[self.1.fetch_add(1, Ordering::SeqCst) % 2].public_key()
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0[0].schemes()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        self.0[0].sign_digest(scheme, digest)
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        self.0[0].properties()
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        self.0[0].attempt_export()
    }
}

/// A public key of any size; it is to be refused before it signs.
struct PublicOnly(usize);

impl StoredKey for PublicOnly {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let mut modulus = vec![0xa5; self.0 / 8];
        modulus[0] |= 0x80;
        PublicKey::from_rsa_components(&modulus, &[1, 0, 1])
            .map(|key| key.spki_der().to_vec())
            .map_err(|error| failed(error.to_string()))
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        SignatureScheme::ALL.to_vec()
    }

    fn sign_digest(&self, _: SignatureScheme, _: &[u8]) -> Result<Vec<u8>, Unavailable> {
        Err(failed("this key has no private half"))
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        Ok(KeyProperties::default())
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(ExportAttempt::NoSuchCall)
    }
}

/// A key of the `openssl` command, which signs PSS with any salt.
struct OpensslKey(tempfile::TempDir);

impl OpensslKey {
    #[allow(
        clippy::expect_used,
        reason = "without the command the test cannot go on, and nothing hides that"
    )]
    fn generate() -> Self {
        let key = Self(tempfile::tempdir().expect("a directory"));
        openssl(
            key.0.path(),
            &[
                "genpkey",
                "-quiet",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-out",
                "key.pem",
            ],
        )
        .expect("the openssl command");
        key
    }
}

impl StoredKey for OpensslKey {
    fn public_key(&self) -> Result<Vec<u8>, Unavailable> {
        let dir = self.0.path();
        openssl(
            dir,
            &[
                "pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "pub",
            ],
        )?;
        fs::read(dir.join("pub")).map_err(|error| failed(error.to_string()))
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        SignatureScheme::ALL.to_vec()
    }

    fn sign_digest(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let dir = self.0.path();
        fs::write(dir.join("digest"), digest).map_err(|error| failed(error.to_string()))?;
        let hash = format!("digest:sha{}", digest.len() * 8);
        let mut args = vec![
            "pkeyutl", "-sign", "-inkey", "key.pem", "-in", "digest", "-out", "sig", "-pkeyopt",
            &hash,
        ];
        if scheme.is_pss() {
            args.extend([
                "-pkeyopt",
                "rsa_padding_mode:pss",
                "-pkeyopt",
                "rsa_pss_saltlen:20",
            ]);
        }
        openssl(dir, &args)?;
        fs::read(dir.join("sig")).map_err(|error| failed(error.to_string()))
    }

    fn properties(&self) -> Result<KeyProperties, Unavailable> {
        Ok(KeyProperties::default())
    }

    fn attempt_export(&self) -> Result<ExportAttempt, Unavailable> {
        Ok(ExportAttempt::NoSuchCall)
    }
}

fn openssl(dir: &Path, args: &[&str]) -> Result<(), Unavailable> {
    let output = Command::new("openssl")
        .args(args)
        .current_dir(dir)
        .output()
        .map_err(|error| failed(format!("openssl: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr)))
}

fn failed(detail: impl Into<String>) -> Unavailable {
    Unavailable::new(StoreId::Memory, Reason::Failed, detail)
}
