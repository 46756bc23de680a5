//! From arguments to the parts that do the work.

#[cfg(feature = "pkcs11")]
use std::io::IsTerminal as _;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use keybond::{Identity, ManagedIdentity, ManagedIdentityBuilder};
use keybond_keys::StateDir;
#[cfg(unix)]
use keybond_keys::Tpm2Store;
use keybond_keys::{
    AbsentStore, KeyName, KeyProvider, KeyProviderBuilder, MemoryStore, Reason, StoreId, Strength,
    Unavailable,
};
#[cfg(windows)]
use keybond_keys::{KeyGuardSharing, KeyGuardStore, PlatformStore};
#[cfg(feature = "pkcs11")]
use keybond_keys::{Pin, PinSource, Pkcs11Store};
use keybond_tls::{TlsConnector, TrustRoots};

#[cfg(windows)]
use crate::args::Interop;
use crate::{
    args::{ClientArgs, IdentityArgs, KeyArgs, KeyPlaceArgs, TrustArgs},
    failure::Failure,
};

/// Where the PIN of a PKCS#11 token may stand.
#[cfg(feature = "pkcs11")]
const PIN_VARIABLE: &str = "KEYBOND_PKCS11_PIN";

/// The key provider with every store of this platform; those it does not have are listed with the cause.
pub(crate) fn key_provider(args: &KeyArgs) -> Result<KeyProvider, Failure> {
    provider(&args.place, args.min_strength)
}

/// The same for what uses no key.
pub(crate) fn provider_without_floor(place: &KeyPlaceArgs) -> Result<KeyProvider, Failure> {
    provider(place, Strength::Software)
}

fn provider(args: &KeyPlaceArgs, floor: Strength) -> Result<KeyProvider, Failure> {
    let name = KeyName::new(args.key_name.as_str())
        .map_err(|error| Failure::usage(format!("--key-name: {error}")))?;
    let mut builder = KeyProvider::builder()
        .key_name(name)
        .policy(args.stores.clone())
        .minimum_strength(floor);
    builder = windows_stores(builder, args)?;
    // A token that was named goes before a TPM that merely is there.
    builder = pkcs11_store(builder, args);
    builder = platform_stores(builder, args)?;
    Ok(builder.store(MemoryStore).build())
}

/// Where state is kept, if the arguments or the environment say so.
pub(crate) fn state_dir(args: &KeyPlaceArgs) -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    args.state_dir.clone().or_else(|| {
        if cfg!(windows) {
            Some(variable("LOCALAPPDATA")?.join("keybond"))
        } else {
            let state =
                variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
            Some(state?.join("keybond"))
        }
    })
}

#[cfg(windows)]
fn windows_stores(
    builder: KeyProviderBuilder,
    args: &KeyPlaceArgs,
) -> Result<KeyProviderBuilder, Failure> {
    let sharing = match args.interop {
        Some(Interop::Msal) => KeyGuardSharing::Msal,
        None => KeyGuardSharing::Own,
    };
    Ok(builder
        .store(KeyGuardStore::new(sharing))
        .store(PlatformStore::new()))
}

#[cfg(not(windows))]
fn windows_stores(
    builder: KeyProviderBuilder,
    args: &KeyPlaceArgs,
) -> Result<KeyProviderBuilder, Failure> {
    if args.interop.is_some() {
        return Err(Failure::usage(
            "--interop (KEYBOND_INTEROP): MSAL shares keys on Windows only",
        ));
    }
    let absent = |store| {
        AbsentStore::new(Unavailable::new(
            store,
            Reason::NotSupported,
            "a part of Windows",
        ))
    };
    Ok(builder
        .store(absent(StoreId::KeyGuard))
        .store(absent(StoreId::Platform)))
}

#[cfg(feature = "pkcs11")]
fn pkcs11_store(builder: KeyProviderBuilder, args: &KeyPlaceArgs) -> KeyProviderBuilder {
    let Some(uri) = args.pkcs11.clone() else {
        let refusal = Unavailable::new(
            StoreId::Pkcs11,
            Reason::NotPresent,
            "no token is configured (KEYBOND_PKCS11)",
        );
        return builder.store(AbsentStore::new(refusal));
    };
    let pin = if let Some(file) = uri.pin_source.clone() {
        Some(PinSource::File(file))
    } else if std::env::var_os(PIN_VARIABLE).is_some() {
        Some(PinSource::Environment(PIN_VARIABLE.into()))
    } else if std::io::stdin().is_terminal() {
        let ask = || rpassword::prompt_password("PIN of the PKCS#11 token: ").map(Pin::new);
        Some(PinSource::Prompt(Arc::new(move || {
            ask().map_err(|error| error.to_string())
        })))
    } else {
        None
    };
    builder.store(Pkcs11Store::with_pin(uri, pin))
}

#[cfg(not(feature = "pkcs11"))]
fn pkcs11_store(builder: KeyProviderBuilder, _args: &KeyPlaceArgs) -> KeyProviderBuilder {
    let refusal = Unavailable::new(
        StoreId::Pkcs11,
        Reason::NotSupported,
        "this build has no PKCS#11",
    );
    builder.store(AbsentStore::new(refusal))
}

#[cfg(unix)]
fn platform_stores(
    builder: KeyProviderBuilder,
    args: &KeyPlaceArgs,
) -> Result<KeyProviderBuilder, Failure> {
    let address = args
        .tpm
        .parse()
        .map_err(|error| Failure::usage(format!("--tpm (KEYBOND_TPM): {error}")))?;
    let opened = state_dir(args)
        .ok_or_else(|| "no state directory: set KEYBOND_STATE_DIR or HOME".to_owned())
        .and_then(|path| StateDir::open(path).map_err(|error| error.to_string()))
        .and_then(|state| {
            let store = Tpm2Store::new(address, &state).map_err(|error| error.to_string())?;
            Ok((state, store))
        });
    Ok(match opened {
        Ok((state, store)) => builder.state_dir(state).store(store),
        // The memory store needs no directory; that the TPM's does is no reason to fail.
        Err(detail) => {
            let refusal = Unavailable::new(StoreId::Tpm2, Reason::PermissionDenied, detail)
                .with_remedy("Give keybond a directory of its own: KEYBOND_STATE_DIR.");
            builder.store(AbsentStore::new(refusal))
        }
    })
}

#[cfg(not(unix))]
fn platform_stores(
    builder: KeyProviderBuilder,
    args: &KeyPlaceArgs,
) -> Result<KeyProviderBuilder, Failure> {
    // Windows keeps the keys itself; the directory holds only which slot of a rotated key is in use.
    match state_dir(args).map(StateDir::open) {
        Some(Ok(state)) => Ok(builder.state_dir(state)),
        Some(Err(error)) => {
            tracing::warn!(%error, "the state directory cannot be used");
            Ok(builder)
        }
        None => Ok(builder),
    }
}

/// A connector that trusts the system's authorities and those of `--ca-file`.
pub(crate) async fn connector(args: &TrustArgs) -> Result<Arc<dyn TlsConnector>, Failure> {
    let extra = args.ca_file.clone();
    // Reading and parsing the system's roots takes a while; the runtime has better things to do.
    let built = tokio::task::spawn_blocking(move || build_connector(extra.as_deref())).await;
    built.map_err(|error| Failure::io("trust roots", &std::io::Error::other(error)))?
}

/// The managed identity that the arguments name.
pub(crate) async fn managed_identity(args: &ClientArgs) -> Result<ManagedIdentityBuilder, Failure> {
    builder(args, key_provider(&args.key)?).await
}

/// The same with a key provider that is there already.
pub(crate) async fn builder(
    args: &ClientArgs,
    provider: KeyProvider,
) -> Result<ManagedIdentityBuilder, Failure> {
    let identity = which(&args.identity)?;
    let builder = with_certificates(ManagedIdentity::builder(), &identity, &args.key.place)
        .identity(identity)
        .key_provider(provider)
        .minimum_strength(args.key.min_strength)
        .tls(connector(&args.trust).await?);
    Ok(with_switch(builder, &args.key.place))
}

/// The builder, told where an operator's file switch may lie.
fn with_switch(builder: ManagedIdentityBuilder, place: &KeyPlaceArgs) -> ManagedIdentityBuilder {
    match state_dir(place) {
        Some(directory) => builder.state_directory(directory),
        None => builder,
    }
}

/// Certificates of a shared key are shared, too; others are kept in files.
#[cfg(windows)]
fn with_certificates(
    builder: ManagedIdentityBuilder,
    identity: &Identity,
    place: &KeyPlaceArgs,
) -> ManagedIdentityBuilder {
    match place.interop {
        Some(Interop::Msal) => {
            let store = keybond::MsalCertificates::new(identity, state_dir(place).as_deref());
            builder.certificate_store(Arc::new(store))
        }
        None => builder,
    }
}

#[cfg(not(windows))]
fn with_certificates(
    builder: ManagedIdentityBuilder,
    _identity: &Identity,
    _place: &KeyPlaceArgs,
) -> ManagedIdentityBuilder {
    builder
}

fn build_connector(extra: Option<&Path>) -> Result<Arc<dyn TlsConnector>, Failure> {
    let mut roots = TrustRoots::system()?;
    if let Some(file) = extra {
        roots.add_pem_file(file)?;
    }
    Ok(keybond_tls::default_connector(&roots)?)
}

fn which(args: &IdentityArgs) -> Result<Identity, Failure> {
    let named = if let Some(id) = &args.client_id {
        Identity::client_id(id)
    } else if let Some(id) = &args.object_id {
        Identity::object_id(id)
    } else if let Some(id) = &args.resource_id {
        Identity::resource_id(id)
    } else {
        return Ok(Identity::SystemAssigned);
    };
    named.map_err(|error| Failure::usage(error.to_string()))
}
