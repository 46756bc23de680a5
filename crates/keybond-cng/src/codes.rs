//! The codes Windows answers with: name, meaning, kind.
//!
//! Numbers and names are those of `winerror.h` of the Windows SDK (as also in the `windows-sys` crate), or of
//! the source named beside them. What each call returns in which situation is only partly documented; the
//! kinds below are chosen so that a wrong guess never destroys a key.

use std::fmt;

use crate::error::ErrorKind;

/// A result code of a Windows call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hresult(u32);

impl Hresult {
    /// The code with these bits, as printed in documentation.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// `HRESULT_FROM_WIN32` of an error number as `GetLastError` gives it.
    pub const fn from_win32(error: u32) -> Self {
        if error == 0 || error & 0x8000_0000 != 0 {
            Self(error)
        } else {
            Self(0x8007_0000 | (error & 0xffff))
        }
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The symbolic name, if it is in the table.
    pub fn name(self) -> Option<&'static str> {
        self.entry().map(|entry| entry.1)
    }

    /// The meaning in a few words, if it is in the table.
    pub fn meaning(self) -> Option<&'static str> {
        self.entry().map(|entry| entry.2)
    }

    pub(crate) fn kind(self) -> ErrorKind {
        match self.entry() {
            Some(entry) => entry.3,
            // The facilities of the TPM base services and of the TPM itself (winerror.h: 0x28).
            None if self.0 & 0xffff_f000 == 0x8028_4000 => ErrorKind::NoDevice,
            None => ErrorKind::Other,
        }
    }

    fn entry(self) -> Option<&'static Entry> {
        TABLE
            .binary_search_by_key(&self.0, |entry| entry.0)
            .ok()
            .map(|at| &TABLE[at])
    }
}

impl fmt::Display for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)?;
        match (self.name(), self.meaning()) {
            (Some(name), Some(meaning)) => write!(f, " {name} ({meaning})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hresult({self})")
    }
}

type Entry = (u32, &'static str, &'static str, ErrorKind);

/// Sorted by number.
#[rustfmt::skip]
const TABLE: &[Entry] = &[
    (0x8007_0002, "ERROR_FILE_NOT_FOUND", "a file of the key store is missing", ErrorKind::NoProfile),
    (0x8007_0003, "ERROR_PATH_NOT_FOUND", "the user's profile has no key store", ErrorKind::NoProfile),
    (0x8007_0005, "E_ACCESSDENIED", "access denied", ErrorKind::PermissionDenied),
    (0x8007_0008, "ERROR_NOT_ENOUGH_MEMORY", "out of memory", ErrorKind::Busy),
    (0x8007_000e, "E_OUTOFMEMORY", "out of memory", ErrorKind::Busy),
    (0x8007_0020, "ERROR_SHARING_VIOLATION", "another process has the file open", ErrorKind::Busy),
    (0x8007_0021, "ERROR_LOCK_VIOLATION", "another process has locked the file", ErrorKind::Busy),
    (0x8007_0032, "ERROR_NOT_SUPPORTED", "not supported", ErrorKind::NotSupported),
    (0x8007_0057, "E_INVALIDARG", "invalid argument", ErrorKind::Invalid),
    (0x8007_0070, "ERROR_DISK_FULL", "the disk is full", ErrorKind::Storage),
    (0x8007_0078, "ERROR_CALL_NOT_IMPLEMENTED", "this system lacks the call", ErrorKind::NotSupported),
    (0x8007_00aa, "ERROR_BUSY", "the resource is in use", ErrorKind::Busy),
    (0x8007_00b7, "ERROR_ALREADY_EXISTS", "it exists already", ErrorKind::Exists),
    (0x8007_0102, "WAIT_TIMEOUT", "the wait timed out", ErrorKind::Busy),
    // 1058, 1060, 1062, 1722, 1726, 1727, 1753: the key isolation service (KeyIso) is reached by RPC.
    (0x8007_0422, "ERROR_SERVICE_DISABLED", "a service that is needed is disabled", ErrorKind::ServiceDown),
    (0x8007_0424, "ERROR_SERVICE_DOES_NOT_EXIST", "a service that is needed does not exist", ErrorKind::ServiceDown),
    (0x8007_0426, "ERROR_SERVICE_NOT_ACTIVE", "a service that is needed is not running", ErrorKind::ServiceDown),
    (0x8007_045b, "ERROR_SHUTDOWN_IN_PROGRESS", "the system is shutting down", ErrorKind::Busy),
    (0x8007_06ba, "RPC_S_SERVER_UNAVAILABLE", "the key isolation service does not answer", ErrorKind::ServiceDown),
    (0x8007_06be, "RPC_S_CALL_FAILED", "the call to the key isolation service failed", ErrorKind::ServiceDown),
    (0x8007_06bf, "RPC_S_CALL_FAILED_DNE", "the call to the key isolation service was not made", ErrorKind::ServiceDown),
    (0x8007_06d9, "EPT_S_NOT_REGISTERED", "the key isolation service is not listening", ErrorKind::ServiceDown),
    (0x8009_0003, "NTE_BAD_KEY", "bad key", ErrorKind::Other),
    (0x8009_0005, "NTE_BAD_DATA", "bad data", ErrorKind::Other),
    (0x8009_0006, "NTE_BAD_SIGNATURE", "the signature does not verify", ErrorKind::Other),
    (0x8009_0008, "NTE_BAD_ALGID", "unknown algorithm", ErrorKind::NotSupported),
    (0x8009_0009, "NTE_BAD_FLAGS", "this Windows does not know a flag of the call", ErrorKind::NotSupported),
    (0x8009_000a, "NTE_BAD_TYPE", "this type is not accepted", ErrorKind::NotSupported),
    (0x8009_000b, "NTE_BAD_KEY_STATE", "the key is not in a state to be used", ErrorKind::Other),
    (0x8009_000d, "NTE_NO_KEY", "no such key", ErrorKind::NotFound),
    (0x8009_000e, "NTE_NO_MEMORY", "out of memory", ErrorKind::Busy),
    (0x8009_000f, "NTE_EXISTS", "a key of this name exists", ErrorKind::Exists),
    (0x8009_0010, "NTE_PERM", "access denied", ErrorKind::PermissionDenied),
    (0x8009_0011, "NTE_NOT_FOUND", "not found", ErrorKind::NotFound),
    (0x8009_0013, "NTE_BAD_PROVIDER", "no such provider", ErrorKind::NoDevice),
    (0x8009_0014, "NTE_BAD_PROV_TYPE", "no such provider type", ErrorKind::NoDevice),
    (0x8009_0016, "NTE_BAD_KEYSET", "no such key", ErrorKind::NotFound),
    (0x8009_0019, "NTE_KEYSET_NOT_DEF", "no such provider", ErrorKind::NoDevice),
    (0x8009_001a, "NTE_KEYSET_ENTRY_BAD", "the key store's entry is invalid", ErrorKind::Other),
    (0x8009_001d, "NTE_PROVIDER_DLL_FAIL", "the provider could not be started", ErrorKind::ServiceDown),
    (0x8009_001e, "NTE_PROV_DLL_NOT_FOUND", "the provider's library is missing", ErrorKind::NoDevice),
    (0x8009_0020, "NTE_FAIL", "internal error of the provider", ErrorKind::Other),
    (0x8009_0021, "NTE_SYS_ERR", "error of the system below the provider", ErrorKind::Other),
    (0x8009_0022, "NTE_SILENT_CONTEXT", "the key wants to ask a human", ErrorKind::PermissionDenied),
    (0x8009_0023, "NTE_TOKEN_KEYSET_STORAGE_FULL", "the device has no room for a key", ErrorKind::Storage),
    (0x8009_0024, "NTE_TEMPORARY_PROFILE", "the user has a temporary profile", ErrorKind::NoProfile),
    (0x8009_0026, "NTE_INVALID_HANDLE", "invalid handle", ErrorKind::Invalid),
    (0x8009_0027, "NTE_INVALID_PARAMETER", "invalid parameter", ErrorKind::Invalid),
    (0x8009_0028, "NTE_BUFFER_TOO_SMALL", "the buffer is too small", ErrorKind::Invalid),
    (0x8009_0029, "NTE_NOT_SUPPORTED", "not supported", ErrorKind::NotSupported),
    (0x8009_002c, "NTE_DECRYPTION_FAILURE", "decryption failed", ErrorKind::Other),
    (0x8009_002d, "NTE_INTERNAL_ERROR", "internal error", ErrorKind::Other),
    (0x8009_002e, "NTE_UI_REQUIRED", "the key wants to ask a human", ErrorKind::PermissionDenied),
    (0x8009_0030, "NTE_DEVICE_NOT_READY", "the provider's device is not ready", ErrorKind::NoDevice),
    (0x8009_0034, "NTE_ENCRYPTION_FAILURE", "encryption failed", ErrorKind::Other),
    (0x8009_0035, "NTE_DEVICE_NOT_FOUND", "the provider's device is not there", ErrorKind::NoDevice),
    (0x8009_0036, "NTE_USER_CANCELLED", "cancelled by the user", ErrorKind::PermissionDenied),
    (0x8009_0038, "NTE_NOT_ACTIVE_CONSOLE", "the session is not the active console", ErrorKind::PermissionDenied),
    // Named in no public header; seen when a key is opened after the boot it was made in
    // (microsoft-authentication-library-for-dotnet PR 6037).
    (0x8009_003a, "VBS_KEY_UNDECRYPTABLE", "VBS cannot decrypt the key: it was made in an earlier boot", ErrorKind::Undecryptable),
    (0x8009_2004, "CRYPT_E_NOT_FOUND", "not found", ErrorKind::NotFound),
    (0x8009_2005, "CRYPT_E_EXISTS", "it exists already", ErrorKind::Exists),
    (0x8009_200b, "CRYPT_E_NO_KEY_PROPERTY", "the certificate has no private key", ErrorKind::NotFound),
    (0x8028_0920, "TPM_20_E_NV_RATE", "the TPM limits the rate of requests", ErrorKind::Busy),
    (0x8028_0921, "TPM_20_E_LOCKOUT", "the TPM is in lockout", ErrorKind::Busy),
    (0x8028_0922, "TPM_20_E_RETRY", "the TPM is busy", ErrorKind::Busy),
    (0x8028_4008, "TBS_E_SERVICE_NOT_RUNNING", "the TPM base services are not running", ErrorKind::ServiceDown),
    (0x8028_4009, "TBS_E_TOO_MANY_TBS_CONTEXTS", "too many users of the TPM", ErrorKind::Busy),
    (0x8028_400a, "TBS_E_TOO_MANY_RESOURCES", "too much of the TPM is in use", ErrorKind::Busy),
    (0x8028_400b, "TBS_E_SERVICE_START_PENDING", "the TPM base services are starting", ErrorKind::Busy),
    (0x8028_400f, "TBS_E_TPM_NOT_FOUND", "this machine has no TPM 2.0 or it is turned off", ErrorKind::NoDevice),
    (0x8028_4010, "TBS_E_SERVICE_DISABLED", "the TPM base services are disabled", ErrorKind::ServiceDown),
    (0x8028_4012, "TBS_E_ACCESS_DENIED", "access to the TPM denied", ErrorKind::PermissionDenied),
    // What MSAL.NET compares with to find that VBS is not there (WindowsCngKeyOperations.cs).
    (0x8089_0014, "VBS_KEY_ISOLATION_UNAVAILABLE", "VBS key isolation is not available", ErrorKind::NotSupported),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        for entry in TABLE {
            assert_eq!(Hresult::from_bits(entry.0).name(), Some(entry.1));
        }
    }

    #[test]
    fn numbers_that_are_easy_to_get_wrong() {
        assert_eq!(
            Hresult::from_bits(0x8009_0029).name(),
            Some("NTE_NOT_SUPPORTED")
        );
        assert_eq!(
            Hresult::from_win32(32).name(),
            Some("ERROR_SHARING_VIOLATION")
        );
        assert_eq!(
            Hresult::from_win32(0x8009_2004).name(),
            Some("CRYPT_E_NOT_FOUND")
        );
        assert_eq!(Hresult::from_bits(0x8009_9999).to_string(), "0x80099999");
        assert_eq!(Hresult::from_bits(0x8028_4001).kind(), ErrorKind::NoDevice);
    }

    #[cfg(windows)]
    #[test]
    fn numbers_and_names_are_those_of_the_sdk() {
        use windows_sys::Win32::Foundation as sdk;
        macro_rules! same {
            ($($name:ident),*) => {$(
                assert_eq!(Hresult::from_bits(sdk::$name.cast_unsigned()).name(), Some(stringify!($name)));
            )*};
        }
        same!(
            NTE_BAD_KEY,
            NTE_BAD_DATA,
            NTE_BAD_SIGNATURE,
            NTE_BAD_ALGID,
            NTE_BAD_FLAGS,
            NTE_BAD_TYPE,
            NTE_BAD_KEY_STATE,
            NTE_NO_KEY,
            NTE_NO_MEMORY,
            NTE_EXISTS,
            NTE_PERM,
            NTE_NOT_FOUND,
            NTE_BAD_PROVIDER,
            NTE_BAD_PROV_TYPE,
            NTE_BAD_KEYSET,
            NTE_KEYSET_NOT_DEF,
            NTE_KEYSET_ENTRY_BAD,
            NTE_PROVIDER_DLL_FAIL,
            NTE_PROV_DLL_NOT_FOUND,
            NTE_FAIL,
            NTE_SYS_ERR,
            NTE_SILENT_CONTEXT,
            NTE_TOKEN_KEYSET_STORAGE_FULL,
            NTE_TEMPORARY_PROFILE,
            NTE_INVALID_HANDLE,
            NTE_INVALID_PARAMETER,
            NTE_BUFFER_TOO_SMALL,
            NTE_NOT_SUPPORTED,
            NTE_DECRYPTION_FAILURE,
            NTE_INTERNAL_ERROR,
            NTE_UI_REQUIRED,
            NTE_DEVICE_NOT_READY,
            NTE_ENCRYPTION_FAILURE,
            NTE_DEVICE_NOT_FOUND,
            NTE_USER_CANCELLED,
            NTE_NOT_ACTIVE_CONSOLE,
            CRYPT_E_NOT_FOUND,
            CRYPT_E_EXISTS,
            CRYPT_E_NO_KEY_PROPERTY,
            TPM_20_E_NV_RATE,
            TPM_20_E_LOCKOUT,
            TPM_20_E_RETRY,
            TBS_E_SERVICE_NOT_RUNNING,
            TBS_E_TOO_MANY_TBS_CONTEXTS,
            TBS_E_TOO_MANY_RESOURCES,
            TBS_E_SERVICE_START_PENDING,
            TBS_E_TPM_NOT_FOUND,
            TBS_E_SERVICE_DISABLED,
            TBS_E_ACCESS_DENIED,
            E_ACCESSDENIED,
            E_OUTOFMEMORY,
            E_INVALIDARG
        );
        macro_rules! same_win32 {
            ($($name:ident),*) => {$(
                assert_eq!(Hresult::from_win32(sdk::$name).name(), Some(stringify!($name)));
            )*};
        }
        same_win32!(
            ERROR_FILE_NOT_FOUND,
            ERROR_PATH_NOT_FOUND,
            ERROR_NOT_ENOUGH_MEMORY,
            ERROR_SHARING_VIOLATION,
            ERROR_LOCK_VIOLATION,
            ERROR_NOT_SUPPORTED,
            ERROR_DISK_FULL,
            ERROR_CALL_NOT_IMPLEMENTED,
            ERROR_BUSY,
            ERROR_ALREADY_EXISTS,
            ERROR_SERVICE_DISABLED,
            ERROR_SERVICE_DOES_NOT_EXIST,
            ERROR_SERVICE_NOT_ACTIVE,
            ERROR_SHUTDOWN_IN_PROGRESS
        );
    }
}
