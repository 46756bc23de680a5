//! The hardware tier on Windows: a key that the TPM makes and keeps, through the Platform Crypto Provider.

use std::sync::Arc;

use keybond_cng::{CngError, names};

use super::{
    Isolation, KeyName, KeyProperties, KeyStore, Origin, StoredKey,
    cng::{self, Backend, CngStore, Described, Place, Rules},
};
use crate::{refusal::Unavailable, scheme::SignatureScheme, strength::StoreId};

const RULES: Rules = Rules {
    store: StoreId::Platform,
    alive_by: &[
        SignatureScheme::RsaPssSha256,
        SignatureScheme::RsaPkcs1Sha256,
    ],
    needs_hardware: true,
    describe,
    how_to_get_it: "Turn on the TPM 2.0 in firmware, or give the VM a virtual TPM (on Azure: Trusted Launch).",
    dies_of: "the key is there and does not sign any more; the TPM may have been cleared",
};

/// Makes and opens RSA-2048 keys of the current user in the TPM.
pub struct PlatformStore(Arc<CngStore>);

impl PlatformStore {
    #[cfg(windows)]
    /// The current user's TPM keys. Nothing is asked of Windows yet.
    #[expect(
        clippy::new_without_default,
        reason = "a store that reaches for a device is made on purpose"
    )]
    pub fn new() -> Self {
        Self::over(Box::new(super::cng_windows::platform()))
    }

    pub(super) fn over(backend: Box<dyn Backend>) -> Self {
        Self(CngStore::new(backend, RULES))
    }

    /// The name under which Windows keeps the key called `name`.
    pub fn container(&self, name: &KeyName) -> String {
        cng::container(name)
    }
}

impl KeyStore for PlatformStore {
    fn id(&self) -> StoreId {
        StoreId::Platform
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.0.probe(&cng::container(&KeyName::default()))
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        self.0.open(&self.container(name))
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let container = self.container(name);
        self.0.create(Place {
            container: &container,
            mutex: &cng::mutex(&container),
            shared: false,
        })
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        self.0.delete(&self.container(name))
    }
}

fn describe(described: &Described<'_>) -> Result<KeyProperties, CngError> {
    let salt = cng::optional(described.key, names::PSS_SALT_SIZE)?;
    let policy = cng::optional(described.key, names::EXPORT_POLICY)?;
    let hardware = described
        .implementation
        .is_some_and(|bits| bits & names::IMPL_HARDWARE != 0);
    let pss = match salt {
        Some(names::SALT_HASH_SIZE) => "native",
        Some(names::SALT_MAXIMUM) => "unavailable (maximal salt)",
        _ => "not told",
    };
    let detail = |name: &str, value: String| (name.to_owned(), value);
    Ok(KeyProperties {
        isolation: if hardware {
            Isolation::Device
        } else {
            Isolation::Process
        },
        // CNG has no property for the origin: we never import, and the name is ours.
        origin: if hardware {
            Origin::Device
        } else {
            Origin::Unknown
        },
        exportable: policy.map(|policy| policy != 0),
        file: None,
        details: vec![
            detail("provider", names::PLATFORM_PROVIDER.into()),
            detail("container", described.container.into()),
            detail("pss", pss.into()),
            detail("export_policy", cng::shown(policy)),
            detail("implementation", cng::shown(described.implementation)),
        ],
    })
}
