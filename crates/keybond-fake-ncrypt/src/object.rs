//! What the handles point to: providers and keys, and keys in their files.

use std::{collections::HashMap, fs, io, path::PathBuf};

use windows_sys::{
    Win32::{
        Foundation::{NTE_BAD_KEYSET, NTE_FAIL},
        Security::Cryptography::{NCRYPT_USE_PER_BOOT_KEY_FLAG, NCRYPT_USE_VIRTUAL_ISOLATION_FLAG},
    },
    core::PCWSTR,
};

use crate::{
    config::{Config, directory},
    rsa::KeyPair,
};

/// `HRESULT_FROM_WIN32(ERROR_SHARING_VIOLATION)`.
const SHARING_VIOLATION: i32 = 0x8007_0020_u32.cast_signed();

const PROVIDER: u64 = 0x4645_4b45_5052_4f56;
const KEY: u64 = 0x4645_4b45_4b45_5921;

#[repr(C)]
pub(crate) struct Provider {
    magic: u64,
    pub(crate) tpm: bool,
}

#[repr(C)]
pub(crate) struct Key {
    magic: u64,
    pub(crate) tpm: bool,
    pub(crate) name: Option<String>,
    pub(crate) flags: u32,
    pub(crate) boot: u32,
    pub(crate) properties: HashMap<String, u32>,
    /// `None` before the key is finalised.
    pub(crate) pair: Option<KeyPair>,
}

impl Provider {
    pub(crate) fn new(tpm: bool) -> Self {
        Self {
            magic: PROVIDER,
            tpm,
        }
    }
}

impl Key {
    pub(crate) fn new(tpm: bool, name: Option<String>, flags: u32, boot: u32) -> Self {
        // CNG's own default length is the provider's; the policy is what a key has if nobody sets it.
        let properties = [
            ("Length", 2048),
            ("Export Policy", 0),
            ("Key Usage", 0x00ff_ffff),
        ];
        Self {
            magic: KEY,
            tpm,
            name,
            flags,
            boot,
            properties: properties
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            pair: None,
        }
    }

    pub(crate) fn isolated(&self) -> bool {
        self.flags & NCRYPT_USE_VIRTUAL_ISOLATION_FLAG != 0
    }

    pub(crate) fn per_boot(&self) -> bool {
        self.flags & NCRYPT_USE_PER_BOOT_KEY_FLAG != 0
    }

    /// Whether the key was sealed to another boot, or made before the TPM was cleared.
    pub(crate) fn stale(&self, config: &Config) -> bool {
        (self.per_boot() || self.tpm) && self.boot != Self::epoch(self.tpm, config)
    }

    /// What new keys die with.
    pub(crate) fn epoch(tpm: bool, config: &Config) -> u32 {
        let epoch = if tpm { "tpm-seed" } else { "boot" };
        config.number(epoch).unwrap_or(1)
    }

    /// Writes the key as a whole, in place of what was there: the last one to finalise wins.
    pub(crate) fn save(&self) -> Result<(), i32> {
        let (Some(name), Some(pair)) = (&self.name, &self.pair) else {
            return Ok(());
        };
        let mut content = Vec::new();
        for word in [
            self.flags,
            self.boot,
            self.properties["Export Policy"],
            self.properties["Length"],
        ] {
            content.extend(word.to_le_bytes());
        }
        content.extend(pair.export_full().ok_or(NTE_FAIL)?);
        let target = file(self.tpm, name);
        let temporary = target.with_extension(format!("{}.tmp", std::process::id()));
        // Another process may have the file open at this instant.
        fs::write(&temporary, content)
            .and_then(|()| fs::rename(&temporary, &target))
            .map_err(|_| SHARING_VIOLATION)
    }

    pub(crate) fn load(tpm: bool, name: &str) -> Result<Self, i32> {
        let content = fs::read(file(tpm, name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NTE_BAD_KEYSET,
            _ => SHARING_VIOLATION,
        })?;
        Self::parse(tpm, name, &content).ok_or(NTE_FAIL)
    }

    fn parse(tpm: bool, name: &str, content: &[u8]) -> Option<Self> {
        let (header, blob) = content.split_first_chunk::<16>()?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let mut key = Self::new(tpm, Some(name.to_owned()), word(0), word(4));
        key.properties.insert("Export Policy".into(), word(8));
        key.properties.insert("Length".into(), word(12));
        key.pair = Some(KeyPair::import_full(blob)?);
        Some(key)
    }
}

/// The file of a key.
pub(crate) fn file(tpm: bool, name: &str) -> PathBuf {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    directory().join(format!(
        "{}-{hex}.key",
        if tpm { "tpm" } else { "software" }
    ))
}

/// # Safety
/// `handle` is 0 or points to eight readable bytes at least.
pub(crate) unsafe fn provider<'a>(handle: usize) -> Option<&'a Provider> {
    let pointer = handle as *const Provider;
    // SAFETY: the caller's promise covers the first word, and its value tells what the rest is.
    unsafe { (!pointer.is_null() && (*pointer).magic == PROVIDER).then(|| &*pointer) }
}

/// # Safety
/// As [`provider`], and nobody else uses the key meanwhile.
pub(crate) unsafe fn key<'a>(handle: usize) -> Option<&'a mut Key> {
    let pointer = handle as *mut Key;
    // SAFETY: as in `provider`.
    unsafe { (!pointer.is_null() && (*pointer).magic == KEY).then(|| &mut *pointer) }
}

/// # Safety
/// `handle` was made by `Box::into_raw` here; afterwards it is gone.
pub(crate) unsafe fn free(handle: usize) -> bool {
    // SAFETY: the caller's promise; the magic tells which of the two types it is, and is wiped against reuse.
    unsafe {
        if let Some(found) = key(handle) {
            found.magic = 0;
            drop(Box::from_raw(handle as *mut Key));
            true
        } else if provider(handle).is_some() {
            (*(handle as *mut Provider)).magic = 0;
            drop(Box::from_raw(handle as *mut Provider));
            true
        } else {
            false
        }
    }
}

/// # Safety
/// `start` is null or points to UTF-16 that ends with NUL.
pub(crate) unsafe fn text(start: PCWSTR) -> Option<String> {
    if start.is_null() {
        return None;
    }
    let mut len = 0;
    // SAFETY: the caller promises a NUL at the end.
    unsafe {
        while *start.add(len) != 0 {
            len += 1;
        }
        Some(String::from_utf16_lossy(std::slice::from_raw_parts(
            start, len,
        )))
    }
}
