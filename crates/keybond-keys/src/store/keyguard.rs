//! The strongest tier on Windows: a key isolated by virtualization-based security (VBS), which dies with the
//! boot. No driver and no administrator of the running system reads it.

use std::sync::Arc;

use keybond_cng::{CngError, msal, names};

use super::{
    Isolation, KeyName, KeyProperties, KeyStore, Origin, StoredKey,
    cng::{self, Backend, CngStore, Described, Place, Rules},
};
use crate::{
    refusal::{Reason, Unavailable},
    scheme::SignatureScheme,
    strength::StoreId,
};

const RULES: Rules = Rules {
    store: StoreId::KeyGuard,
    alive_by: &[SignatureScheme::RsaPssSha256],
    needs_hardware: false,
    describe,
    how_to_get_it: "Turn on virtualization-based security with Credential Guard (on Azure: a Trusted Launch \
                    or confidential VM) on Windows Server 2022, Windows 11 or later.",
    dies_of: "per_boot: the key was made in an earlier boot and cannot be used any more",
};

/// Who else uses the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyGuardSharing {
    /// Nobody: the key is named after the provider's key name.
    #[default]
    Own,
    /// MSAL.NET and MSAL Go of the same user: their key name and their mutex, whatever the provider's key name
    /// is. The key is made if there is none, and never deleted.
    Msal,
}

/// Makes and opens KeyGuard keys of the current user.
pub struct KeyGuardStore {
    inner: Arc<CngStore>,
    sharing: KeyGuardSharing,
}

impl KeyGuardStore {
    #[cfg(windows)]
    /// The current user's KeyGuard keys. Nothing is asked of Windows yet.
    pub fn new(sharing: KeyGuardSharing) -> Self {
        Self::over(Box::new(super::cng_windows::keyguard(sharing)), sharing)
    }

    pub(super) fn over(backend: Box<dyn Backend>, sharing: KeyGuardSharing) -> Self {
        Self {
            inner: CngStore::new(backend, RULES),
            sharing,
        }
    }

    /// The name under which Windows keeps the key called `name`.
    pub fn container(&self, name: &KeyName) -> String {
        match self.sharing {
            KeyGuardSharing::Own => cng::container(name),
            KeyGuardSharing::Msal => msal::KEYGUARD_KEY.into(),
        }
    }

    fn mutex(&self, container: &str) -> String {
        match self.sharing {
            KeyGuardSharing::Own => cng::mutex(container),
            KeyGuardSharing::Msal => msal::key_mutex(container),
        }
    }
}

impl KeyStore for KeyGuardStore {
    fn id(&self) -> StoreId {
        StoreId::KeyGuard
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.inner.probe(&cng::container(&KeyName::default()))
    }

    fn open(&self, name: &KeyName) -> Result<Option<Box<dyn StoredKey>>, Unavailable> {
        self.inner.open(&self.container(name))
    }

    fn create(&self, name: &KeyName) -> Result<Box<dyn StoredKey>, Unavailable> {
        let container = self.container(name);
        self.inner.create(Place {
            container: &container,
            mutex: &self.mutex(&container),
            shared: self.sharing == KeyGuardSharing::Msal,
        })
    }

    fn delete(&self, name: &KeyName) -> Result<bool, Unavailable> {
        let container = self.container(name);
        match self.sharing {
            KeyGuardSharing::Own => self.inner.delete(&container),
            KeyGuardSharing::Msal => Err(Unavailable::new(
                StoreId::KeyGuard,
                Reason::DisabledByPolicy,
                format!("the key {container} is shared with other programs of this user"),
            )
            .with_remedy(format!(
                "If none of them needs it: `certutil -user -csp \"{}\" -delkey {container}`.",
                names::SOFTWARE_PROVIDER
            ))),
        }
    }
}

fn describe(described: &Described<'_>) -> Result<KeyProperties, CngError> {
    let virtual_isolation = cng::optional(described.key, names::VIRTUAL_ISOLATION)?;
    let per_boot = cng::optional(described.key, names::PER_BOOT)?;
    let policy = cng::optional(described.key, names::EXPORT_POLICY)?;
    let isolated = virtual_isolation.unwrap_or(0) != 0;
    let detail = |name: &str, value: String| (name.to_owned(), value);
    Ok(KeyProperties {
        isolation: if isolated {
            Isolation::Vbs {
                per_boot: per_boot.unwrap_or(0) != 0,
            }
        } else {
            Isolation::Process
        },
        // CNG has no property for the origin: the enclave makes the keys it isolates.
        origin: if isolated {
            Origin::Device
        } else {
            Origin::Unknown
        },
        exportable: policy.map(|policy| policy != 0),
        file: None,
        details: vec![
            detail("provider", names::SOFTWARE_PROVIDER.into()),
            detail("container", described.container.into()),
            detail("virtual_iso", cng::shown(virtual_isolation)),
            detail("per_boot", cng::shown(per_boot)),
            detail("export_policy", cng::shown(policy)),
            detail("implementation", cng::shown(described.implementation)),
        ],
    })
}
