//! [`LoadedKey`]: a key that signs inside the TPM.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_lc_rs::{rand, signature::RsaPublicKeyComponents};

use crate::{
    commands,
    error::TpmError,
    keyfile::KeyBlob,
    pss,
    public::{RsaPublic, name_of},
    rc::ResponseCode,
    scheme::{Hash, PssMode, Scheme},
    templates,
    tpm::{Pin, Tpm},
    wire::Auth,
};

/// A key inside a TPM. It is loaded again by itself when the TPM was reset or needed the room.
///
/// No method yields the private part; there is no such command for keys with `fixedTPM`.
pub struct LoadedKey {
    tpm: Tpm,
    blob: Arc<KeyBlob>,
    pin: Option<Arc<Pin>>,
    public: RsaPublic,
    pss: OnceLock<(PssMode, String)>,
}

/// The outcome of really trying to get a private key out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportAttempt {
    /// The TPM refused with this code.
    Refused(ResponseCode),
    /// The TPM gave the key out. What came was not looked at.
    Exported,
}

/// A statement by the TPM about a key it holds. All three parts are in the TPM's own format (TPM 2.0 Library
/// Part 2); who relies on it must know the signer, for instance through TPM2_ActivateCredential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certification {
    /// What is stated: a TPMS_ATTEST with the nonce and the key's name.
    pub statement: Vec<u8>,
    /// The signature over it: a TPMT_SIGNATURE, ECDSA P-256 with SHA-256.
    pub signature: Vec<u8>,
    /// The public area of the signing key: a TPMT_PUBLIC, restricted to statements of the TPM itself.
    pub signer: Vec<u8>,
}

impl LoadedKey {
    pub(crate) fn load(
        tpm: Tpm,
        blob: Arc<KeyBlob>,
        pin: Option<Arc<Pin>>,
    ) -> Result<Self, TpmError> {
        let public = read_public(&tpm, &blob)?;
        Ok(Self {
            tpm,
            blob,
            pin,
            public,
            pss: OnceLock::new(),
        })
    }

    /// The public key and attributes, as the TPM gave them when the key was loaded.
    pub fn public(&self) -> &RsaPublic {
        &self.public
    }

    /// Asks the TPM again for the public key and attributes (TPM2_ReadPublic).
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::PublicMismatch`] if they are not those of the file.
    pub fn read_public(&self) -> Result<RsaPublic, TpmError> {
        read_public(&self.tpm, &self.blob)
    }

    /// The key as it is kept outside.
    pub fn blob(&self) -> &KeyBlob {
        &self.blob
    }

    /// The TPM that holds the key.
    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    /// Signs a digest of exactly [`Hash::len`] bytes. PSS has a salt of the same length.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::PssUnavailable`] if neither the TPM nor raw RSA gives such a signature.
    pub fn sign_digest(&self, scheme: Scheme, digest: &[u8]) -> Result<Vec<u8>, TpmError> {
        let expected = scheme.hash().len();
        if digest.len() != expected {
            let detail = format!("{} bytes, expected {expected} for {scheme}", digest.len());
            return Err(TpmError::Input {
                field: "digest",
                detail,
            });
        }
        match scheme {
            Scheme::Pkcs1(_) => self.native(scheme, digest),
            Scheme::Pss(hash) => match self.require_pss()? {
                PssMode::Synthesised => self.synthesised(hash, digest),
                _ => self.native(scheme, digest),
            },
        }
    }

    /// [`LoadedKey::pss_mode`] of a key that makes PSS signatures at all.
    ///
    /// # Errors
    /// [`TpmError::PssUnavailable`] with the cause if it makes none; [`TpmError`]
    pub fn require_pss(&self) -> Result<PssMode, TpmError> {
        match self.tested_pss()? {
            (PssMode::Unavailable, cause) => Err(TpmError::PssUnavailable {
                cause: cause.clone(),
            }),
            (mode, _) => Ok(*mode),
        }
    }

    /// How this key makes PSS signatures: found out by signing once and verifying strictly, then remembered. A TPM
    /// that is only busy is an error and proves nothing.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn pss_mode(&self) -> Result<PssMode, TpmError> {
        Ok(self.tested_pss()?.0)
    }

    /// Takes the mode from the key's record instead of testing it again. Does nothing if it is known already.
    pub fn assume_pss_mode(&self, mode: PssMode) {
        let _ = self.pss.set((mode, "found out earlier".into()));
    }

    /// Really tries TPM2_Duplicate to nowhere and without wrapping, both with the key's password and with the
    /// policy session that the command demands.
    ///
    /// # Errors
    /// [`TpmError`] if the attempt could not be made.
    pub fn attempt_export(&self) -> Result<ExportAttempt, TpmError> {
        let (blob, pin) = (Arc::clone(&self.blob), self.pin.clone());
        let result = self.tpm.call(move |owner| {
            let (handle, connection) = owner.key(&blob)?;
            match connection.duplicate(handle, Auth::Password(secret(&pin))) {
                Err(TpmError::Response { .. }) => {}
                other => return other,
            }
            let session = connection.policy_for_duplicate()?;
            let result = connection.duplicate(handle, Auth::Session(session));
            if !connection.poisoned() {
                connection.flush(session)?;
            }
            result
        });
        match result {
            Ok(()) => Ok(ExportAttempt::Exported),
            Err(TpmError::Response {
                command: "TPM2_Duplicate",
                code,
            }) if !code.retryable() => Ok(ExportAttempt::Refused(code)),
            Err(error) => Err(error),
        }
    }

    /// The same key, with another limit for how long a caller waits.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            tpm: self.tpm.with_timeout(timeout),
            blob: Arc::clone(&self.blob),
            pin: self.pin.clone(),
            public: self.public.clone(),
            pss: self.pss.clone(),
        }
    }

    /// Has the TPM certify that it holds this key, with these attributes (TPM2_Certify). `nonce` (at most 32 bytes)
    /// comes back inside, so that the statement is known to be fresh.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn certify(&self, nonce: &[u8]) -> Result<Certification, TpmError> {
        if nonce.len() > 32 {
            let detail = format!("{} bytes, at most 32", nonce.len());
            return Err(TpmError::Input {
                field: "nonce",
                detail,
            });
        }
        let (blob, pin, nonce) = (Arc::clone(&self.blob), self.pin.clone(), nonce.to_vec());
        self.tpm.call(move |owner| {
            let (key, _) = owner.key(&blob)?;
            let template = templates::attestation();
            owner.with_primary(commands::ENDORSEMENT, &template, |connection, signer| {
                let (statement, signature) =
                    connection.certify(key, secret(&pin), signer.handle, &nonce)?;
                Ok(Certification {
                    statement,
                    signature,
                    signer: signer.public.clone(),
                })
            })
        })
    }

    fn tested_pss(&self) -> Result<&(PssMode, String), TpmError> {
        if let Some(known) = self.pss.get() {
            return Ok(known);
        }
        let found = self.test_pss()?;
        tracing::debug!(mode = %found.0, cause = found.1, "PSS self-test");
        Ok(self.pss.get_or_init(|| found))
    }

    fn test_pss(&self) -> Result<(PssMode, String), TpmError> {
        let scheme = Scheme::Pss(Hash::Sha256);
        let mut message = [0; 32];
        random(&mut message)?;
        let digest = Hash::Sha256.digest(&message);
        let cause = match self.native(scheme, &digest) {
            Ok(signature) if self.verifies(scheme, &message, &signature) => {
                return Ok((PssMode::Native, "the TPM's own".into()));
            }
            Ok(_) => "TPM2_Sign uses another salt length".to_owned(),
            Err(error) if refuses_scheme(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        if !self.public.attributes().decrypt() {
            return Ok((
                PssMode::Unavailable,
                format!("{cause}; the key does no raw RSA"),
            ));
        }
        match self.synthesised(Hash::Sha256, &digest) {
            Ok(signature) if self.verifies(scheme, &message, &signature) => {
                Ok((PssMode::Synthesised, cause))
            }
            Ok(_) => Ok((
                PssMode::Unavailable,
                format!("{cause}; raw RSA gives a wrong result"),
            )),
            Err(error) if refuses_scheme(&error) => {
                Ok((PssMode::Unavailable, format!("{cause}; {error}")))
            }
            Err(error) => Err(error),
        }
    }

    fn native(&self, scheme: Scheme, digest: &[u8]) -> Result<Vec<u8>, TpmError> {
        let (blob, pin, digest) = (Arc::clone(&self.blob), self.pin.clone(), digest.to_vec());
        let signature = self.tpm.call(move |owner| {
            let (handle, connection) = owner.key(&blob)?;
            connection.sign(handle, secret(&pin), scheme, &digest)
        })?;
        self.of_full_length(signature, "TPM2_Sign")
    }

    fn synthesised(&self, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, TpmError> {
        let mut salt = vec![0; hash.len()];
        random(&mut salt)?;
        let block =
            pss::encode(hash, digest, &salt, self.public.bits()).ok_or(TpmError::Input {
                field: "digest",
                detail: "does not fit the key".into(),
            })?;
        let (blob, pin) = (Arc::clone(&self.blob), self.pin.clone());
        let signature = self.tpm.call(move |owner| {
            let (handle, connection) = owner.key(&blob)?;
            connection.raw_rsa(handle, secret(&pin), &block)
        })?;
        self.of_full_length(signature, "TPM2_RSA_Decrypt")
    }

    /// A signature is as long as the modulus (RFC 8017 §8); a number in front may be shorter in some TPMs' answers.
    fn of_full_length(&self, bytes: Vec<u8>, command: &'static str) -> Result<Vec<u8>, TpmError> {
        let length = self.public.modulus().len();
        match length.checked_sub(bytes.len()) {
            Some(0) => Ok(bytes),
            Some(missing) => Ok([vec![0; missing], bytes].concat()),
            None => Err(TpmError::Malformed {
                command,
                field: "signature",
                detail: format!("{} bytes, at most {length}", bytes.len()),
            }),
        }
    }

    fn verifies(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> bool {
        let exponent = self.public.exponent().to_be_bytes();
        let zeros = exponent.iter().take_while(|byte| **byte == 0).count();
        let key = RsaPublicKeyComponents {
            n: self.public.modulus(),
            e: &exponent[zeros..],
        };
        key.verify(scheme.verifier(), message, signature).is_ok()
    }
}

impl fmt::Debug for LoadedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedKey")
            .field("public", &self.public)
            .field("pss", &self.pss.get())
            .finish_non_exhaustive()
    }
}

fn read_public(tpm: &Tpm, blob: &Arc<KeyBlob>) -> Result<RsaPublic, TpmError> {
    let wanted = Arc::clone(blob);
    let (area, name) = tpm.call(move |owner| {
        let (handle, connection) = owner.key(&wanted)?;
        connection.read_public(handle)
    })?;
    if area != blob.public_area() {
        return Err(TpmError::PublicMismatch {
            field: "publicArea",
        });
    }
    if name_of(&area).as_ref() != Some(&name) {
        return Err(TpmError::PublicMismatch { field: "name" });
    }
    RsaPublic::parse("TPM2_ReadPublic", &area)
}

fn refuses_scheme(error: &TpmError) -> bool {
    matches!(error, TpmError::Response { code, .. } if code.refuses_scheme())
}

fn secret(pin: &Option<Arc<Pin>>) -> &[u8] {
    pin.as_ref().map_or(&[], |pin| pin.bytes())
}

fn random(bytes: &mut [u8]) -> Result<(), TpmError> {
    rand::fill(bytes).map_err(|_| TpmError::Local {
        what: "randomness",
        cause: "the operating system gave none".into(),
    })
}
