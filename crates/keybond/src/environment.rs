//! Environment variables, injected: which are read, and what their values mean.

/// Where environment variables come from.
pub trait Environment: Send + Sync + 'static {
    /// The value of `name`; `None` if it is not set or not Unicode.
    fn get(&self, name: &str) -> Option<String>;
}

/// The variables of this process, read anew each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// Where the metadata service is, if not at its link-local address.
pub(crate) const AUTHORITY_HOST: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
/// Token services that may be used beside Azure's own: host names, separated by commas.
pub(crate) const ALLOWED_HOSTS: &str = "MSAL_MI_IMDSV2_ALLOWED_HOSTS";
/// Switches bound tokens off: `true` or `1`.
pub(crate) const DISABLE_IMDS_V2: &str = "MSAL_MI_DISABLE_IMDS_V2";

/// Keeps certificates out of files and of Windows' store: `true` or `1`.
pub(crate) const DISABLE_CERTIFICATE_CACHE: &str = "MSAL_MI_DISABLE_PERSISTENT_CERT_CACHE";

/// Whether a variable is `true` (in any case) or `1`.
pub(crate) fn is_on(environment: &dyn Environment, name: &str) -> bool {
    non_empty(environment, name)
        .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

/// A variable's value without surrounding space; `None` if nothing is left.
pub(crate) fn non_empty(environment: &dyn Environment, name: &str) -> Option<String> {
    let value = environment.get(name)?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}
