//! The calls behind the Windows tiers.

use std::time::Duration;

use keybond_cng::{
    CngError, ExportOutcome, Hash, Key, NamedMutex, NewKey, Padding, Provider, RsaPublic, names,
};

use super::{
    ExportAttempt,
    cng::{Backend, CngKey},
    keyguard::KeyGuardSharing,
};
use crate::{
    public_key::RSA_BITS,
    scheme::{HashAlgorithm, SignatureScheme},
};

/// One provider and what its keys are made with.
pub(super) struct Windows {
    provider: &'static str,
    flags: u32,
    usage: u32,
}

/// Keys in the VBS enclave, for this boot.
pub(super) fn keyguard(sharing: KeyGuardSharing) -> Windows {
    Windows {
        provider: names::SOFTWARE_PROVIDER,
        flags: names::USE_VIRTUAL_ISOLATION | names::USE_PER_BOOT,
        usage: match sharing {
            KeyGuardSharing::Own => names::USAGE_SIGNING,
            // As the others make it, since they use it, too.
            KeyGuardSharing::Msal => names::USAGE_ALL,
        },
    }
}

/// Keys in the TPM.
pub(super) fn platform() -> Windows {
    Windows {
        provider: names::PLATFORM_PROVIDER,
        flags: 0,
        usage: names::USAGE_SIGNING,
    }
}

impl Windows {
    fn provider(&self) -> Result<Provider, CngError> {
        Provider::open(self.provider)
    }

    fn begin(&self, name: &str, overwrite: bool) -> Result<NewKey, CngError> {
        let overwrite = if overwrite { names::OVERWRITE } else { 0 };
        self.provider()?
            .begin_key(Some(name), self.flags | overwrite)
    }
}

impl Backend for Windows {
    fn implementation(&self) -> Result<u32, CngError> {
        self.provider()?.implementation()
    }

    fn rehearse(&self, name: &str) -> Result<(), CngError> {
        self.begin(name, false).map(drop)
    }

    fn open(&self, name: &str) -> Result<Box<dyn CngKey>, CngError> {
        Ok(Box::new(self.provider()?.open_key(name)?))
    }

    fn create(&self, name: &str, overwrite: bool) -> Result<Box<dyn CngKey>, CngError> {
        let key = self.begin(name, overwrite)?;
        key.set_export_policy(0)?;
        key.set_usage(self.usage)?;
        key.set_length(RSA_BITS as u32)?;
        Ok(Box::new(key.finalize()?))
    }

    fn exclusively(
        &self,
        mutex: &str,
        wait: Duration,
        job: &mut dyn FnMut(),
    ) -> Result<bool, CngError> {
        let mutex = NamedMutex::open_widest(mutex)?;
        // An abandoned mutex is one like any other: the key is looked for again with it in hand.
        let Some(_held) = mutex.acquire(wait)? else {
            return Ok(false);
        };
        job();
        Ok(true)
    }
}

impl CngKey for Key {
    fn public_key(&self) -> Result<RsaPublic, CngError> {
        self.public_key()
    }

    fn sign(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, CngError> {
        let hash = match scheme.hash() {
            HashAlgorithm::Sha256 => Hash::Sha256,
            HashAlgorithm::Sha384 => Hash::Sha384,
            HashAlgorithm::Sha512 => Hash::Sha512,
        };
        let padding = if scheme.is_pss() {
            Padding::Pss
        } else {
            Padding::Pkcs1
        };
        self.sign(padding, hash, digest)
    }

    fn property(&self, name: &str) -> Result<u32, CngError> {
        self.property(name)
    }

    fn attempt_export(&self) -> ExportAttempt {
        match self.attempt_private_export() {
            ExportOutcome::Exported(_) => ExportAttempt::Exported,
            ExportOutcome::Refused(codes) => {
                let codes: Vec<_> = codes
                    .iter()
                    .map(|(form, code)| format!("{form}: {code}"))
                    .collect();
                ExportAttempt::Refused(codes.join("; "))
            }
        }
    }

    fn delete(self: Box<Self>) -> Result<(), CngError> {
        (*self).delete()
    }
}
