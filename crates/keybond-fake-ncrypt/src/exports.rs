//! The functions of `ncrypt.h` that keybond calls.

// Every function here is called with what `ncrypt.h` demands of its callers: strings end with NUL, buffers have
// the size that is passed, handles come from this library. That is the one reason for all `SAFETY` lines.

use std::{ffi::c_void, ptr, slice};

use windows_sys::{
    Win32::{
        Foundation::{
            NTE_BAD_KEY_STATE, NTE_BAD_KEYSET, NTE_BUFFER_TOO_SMALL, NTE_DEVICE_NOT_READY,
            NTE_EXISTS, NTE_FAIL, NTE_INVALID_HANDLE, NTE_INVALID_PARAMETER, NTE_KEYSET_NOT_DEF,
            NTE_NOT_FOUND, NTE_NOT_SUPPORTED,
        },
        Security::Cryptography::{
            BCRYPT_PAD_PSS, BCRYPT_PSS_PADDING_INFO, BCryptSignHash,
            NCRYPT_ALLOW_PLAINTEXT_EXPORT_FLAG, NCRYPT_OVERWRITE_KEY_FLAG, NCRYPT_SILENT_FLAG,
            NCRYPT_USE_PER_BOOT_KEY_FLAG, NCRYPT_USE_VIRTUAL_ISOLATION_FLAG,
        },
    },
    core::PCWSTR,
};

use crate::{
    config::{Config, record},
    object::{Key, Provider, file, free, key, provider, text},
    rsa::{KeyPair, status},
};

/// The code for a key that was sealed to an earlier boot.
const UNDECRYPTABLE: i32 = 0x8009_003a_u32.cast_signed();

fn code(result: Result<(), i32>) -> i32 {
    result.err().unwrap_or(0)
}

fn injected(config: &Config, call: &str) -> Result<(), i32> {
    config.failure(call).map_or(Ok(()), Err)
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptOpenStorageProvider(
    out: *mut usize,
    name: PCWSTR,
    _flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptOpenStorageProvider")?;
        // SAFETY: see the top of this file.
        let tpm = match unsafe { text(name) }.as_deref() {
            None | Some("Microsoft Software Key Storage Provider") => false,
            Some("Microsoft Platform Crypto Provider") if config.is_on("tpm") => true,
            Some("Microsoft Platform Crypto Provider") => return Err(NTE_DEVICE_NOT_READY),
            Some(_) => return Err(NTE_KEYSET_NOT_DEF),
        };
        // SAFETY: see the top of this file.
        unsafe { *out = Box::into_raw(Box::new(Provider::new(tpm))) as usize };
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptCreatePersistedKey(
    handle: usize,
    out: *mut usize,
    algorithm: PCWSTR,
    name: PCWSTR,
    _spec: u32,
    flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptCreatePersistedKey")?;
        // SAFETY: see the top of this file.
        let (provider, algorithm, name) =
            unsafe { (provider(handle), text(algorithm), text(name)) };
        let provider = provider.ok_or(NTE_INVALID_HANDLE)?;
        if algorithm.as_deref() != Some("RSA") {
            return Err(NTE_NOT_SUPPORTED);
        }
        let isolated =
            flags & (NCRYPT_USE_VIRTUAL_ISOLATION_FLAG | NCRYPT_USE_PER_BOOT_KEY_FLAG) != 0;
        if isolated && (provider.tpm || !config.is_on("vbs")) {
            return Err(NTE_NOT_SUPPORTED);
        }
        let taken = name
            .as_ref()
            .is_some_and(|name| file(provider.tpm, name).exists());
        if taken && flags & NCRYPT_OVERWRITE_KEY_FLAG == 0 {
            return Err(NTE_EXISTS);
        }
        let boot = Key::epoch(provider.tpm, &config);
        let key = Key::new(provider.tpm, name, flags, boot);
        // SAFETY: see the top of this file.
        unsafe { *out = Box::into_raw(Box::new(key)) as usize };
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptSetProperty(
    handle: usize,
    name: PCWSTR,
    value: *const u8,
    len: u32,
    _flags: u32,
) -> i32 {
    code((|| {
        // SAFETY: see the top of this file.
        let (key, name) = unsafe { (key(handle), text(name)) };
        let key = key.ok_or(NTE_INVALID_HANDLE)?;
        if key.pair.is_some() {
            return Err(NTE_BAD_KEY_STATE);
        }
        if len != 4 || value.is_null() {
            return Err(NTE_INVALID_PARAMETER);
        }
        let mut bytes = [0; 4];
        // SAFETY: see the top of this file.
        bytes.copy_from_slice(unsafe { slice::from_raw_parts(value, 4) });
        let name = name.ok_or(NTE_INVALID_PARAMETER)?;
        key.properties.insert(name, u32::from_le_bytes(bytes));
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptFinalizeKey(handle: usize, _flags: u32) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptFinalizeKey")?;
        // SAFETY: see the top of this file.
        let key = unsafe { key(handle) }.ok_or(NTE_INVALID_HANDLE)?;
        if key.pair.is_some() {
            return Err(NTE_BAD_KEY_STATE);
        }
        key.pair = Some(KeyPair::generate(key.properties["Length"])?);
        key.save()?;
        let name = key.name.as_deref().unwrap_or("(ephemeral)");
        record("calls", &format!("finalize {name}"));
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptOpenKey(
    handle: usize,
    out: *mut usize,
    name: PCWSTR,
    _spec: u32,
    _flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptOpenKey")?;
        // SAFETY: see the top of this file.
        let (provider, name) = unsafe { (provider(handle), text(name)) };
        let provider = provider.ok_or(NTE_INVALID_HANDLE)?;
        let name = name.ok_or(NTE_INVALID_PARAMETER)?;
        let key = Key::load(provider.tpm, &name)?;
        if key.isolated() && !config.is_on("vbs") {
            return Err(NTE_NOT_SUPPORTED);
        }
        if key.stale(&config) && config.fails_at_open() {
            return Err(UNDECRYPTABLE);
        }
        // SAFETY: see the top of this file.
        unsafe { *out = Box::into_raw(Box::new(key)) as usize };
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptGetProperty(
    handle: usize,
    name: PCWSTR,
    out: *mut u8,
    size: u32,
    len: *mut u32,
    _flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptGetProperty")?;
        // SAFETY: see the top of this file.
        let (key, provider, name) = unsafe { (key(handle), provider(handle), text(name)) };
        let name = name.ok_or(NTE_INVALID_PARAMETER)?;
        let value = match (key, provider, name.as_str()) {
            (Some(key), _, "Virtual Iso") if key.isolated() => {
                config.number("virtual-iso").unwrap_or(1)
            }
            (Some(key), _, "Per Boot Key") if key.per_boot() => 1,
            (Some(key), _, "PSS Salt Size") if key.tpm && !config.is_off("salt-told") => {
                config.number("salt").unwrap_or(2)
            }
            (Some(key), _, "Impl Type") => implementation(key.tpm, &config),
            (Some(key), _, name) => *key.properties.get(name).ok_or(NTE_NOT_FOUND)?,
            (None, Some(provider), "Impl Type") => implementation(provider.tpm, &config),
            (None, Some(_), _) => return Err(NTE_NOT_FOUND),
            (None, None, _) => return Err(NTE_INVALID_HANDLE),
        };
        // SAFETY: see the top of this file.
        unsafe { give(&value.to_le_bytes(), out, size, len) }
    })())
}

fn implementation(tpm: bool, config: &Config) -> u32 {
    match (tpm, config.is_on("vbs")) {
        (true, _) => 0x1,
        (false, true) => 0x2 | 0x20,
        (false, false) => 0x2,
    }
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptSignHash(
    handle: usize,
    padding: *const c_void,
    digest: *const u8,
    digest_len: u32,
    out: *mut u8,
    size: u32,
    len: *mut u32,
    flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptSignHash")?;
        // SAFETY: see the top of this file.
        let key = unsafe { key(handle) }.ok_or(NTE_INVALID_HANDLE)?;
        let pair = key.pair.as_ref().ok_or(NTE_BAD_KEY_STATE)?;
        if key.stale(&config) {
            return Err(NTE_BAD_KEY_STATE);
        }
        if !out.is_null() {
            let padding = if flags & BCRYPT_PAD_PSS != 0 {
                "PSS"
            } else {
                "PKCS1"
            };
            let name = key.name.as_deref().unwrap_or("(ephemeral)");
            record("signatures", &format!("{padding} {name}"));
        }
        let mut pss = BCRYPT_PSS_PADDING_INFO {
            pszAlgId: ptr::null(),
            cbSalt: 0,
        };
        let mut padding = padding;
        if key.tpm && config.number("salt") == Some(1) && flags & BCRYPT_PAD_PSS != 0 {
            // An old chip: the salt fills all there is, whatever is asked for.
            // SAFETY: see the top of this file; the flag announces this structure.
            pss.pszAlgId = unsafe { (*padding.cast::<BCRYPT_PSS_PADDING_INFO>()).pszAlgId };
            pss.cbSalt = key.properties["Length"] / 8 - digest_len - 2;
            padding = (&raw const pss).cast();
        }
        // In Wine a key that has signed PSS signs nothing else any more: a copy signs.
        let copy = pair.copy().ok_or(NTE_FAIL)?;
        // SAFETY: see the top of this file.
        status(unsafe {
            BCryptSignHash(
                copy.0,
                padding,
                digest,
                digest_len,
                out,
                size,
                len,
                flags & !NCRYPT_SILENT_FLAG,
            )
        })
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptExportKey(
    handle: usize,
    _wrapping: usize,
    form: PCWSTR,
    _parameters: *const c_void,
    out: *mut u8,
    size: u32,
    len: *mut u32,
    _flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptExportKey")?;
        // SAFETY: see the top of this file.
        let (key, name) = unsafe { (key(handle), text(form)) };
        let key = key.ok_or(NTE_INVALID_HANDLE)?;
        let allowed = key.properties["Export Policy"] & NCRYPT_ALLOW_PLAINTEXT_EXPORT_FLAG != 0;
        if name.as_deref() != Some("RSAPUBLICBLOB") && (key.tpm || key.isolated() || !allowed) {
            return Err(NTE_NOT_SUPPORTED);
        }
        let pair = key.pair.as_ref().ok_or(NTE_BAD_KEY_STATE)?;
        let mut blob = vec![0; 16 * 1024];
        let written = pair.export(form, &mut blob)?;
        // SAFETY: see the top of this file.
        unsafe { give(&blob[..written as usize], out, size, len) }
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptDeleteKey(handle: usize, _flags: u32) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptDeleteKey")?;
        // SAFETY: see the top of this file.
        let key = unsafe { key(handle) }.ok_or(NTE_INVALID_HANDLE)?;
        if let Some(name) = &key.name {
            // By name, as Windows does it, whatever key is under that name by now.
            std::fs::remove_file(file(key.tpm, name)).map_err(|_| NTE_BAD_KEYSET)?;
            record("calls", &format!("delete {name}"));
        }
        // SAFETY: the handle was shown to be a key.
        unsafe { free(handle) };
        Ok(())
    })())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptFreeObject(handle: usize) -> i32 {
    // SAFETY: see the top of this file.
    if unsafe { free(handle) } {
        0
    } else {
        NTE_INVALID_HANDLE
    }
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptIsKeyHandle(handle: usize) -> i32 {
    // SAFETY: see the top of this file.
    i32::from(unsafe { key(handle) }.is_some())
}

/// # Safety
/// As `ncrypt.h`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn NCryptCreateClaim(
    handle: usize,
    _authority: usize,
    kind: u32,
    _parameters: *const c_void,
    out: *mut u8,
    size: u32,
    len: *mut u32,
    _flags: u32,
) -> i32 {
    let config = Config::read();
    code((|| {
        injected(&config, "NCryptCreateClaim")?;
        // SAFETY: see the top of this file.
        let key = unsafe { key(handle) }.ok_or(NTE_INVALID_HANDLE)?;
        if !key.tpm && !key.isolated() {
            return Err(NTE_NOT_SUPPORTED);
        }
        // SAFETY: see the top of this file.
        unsafe {
            give(
                format!("a fake claim of kind {kind}").as_bytes(),
                out,
                size,
                len,
            )
        }
    })())
}

/// Hands a value out as all of these functions do it: the size alone without a buffer, else the whole value.
///
/// # Safety
/// `out` is null or has `size` writable bytes; `len` is writable.
unsafe fn give(value: &[u8], out: *mut u8, size: u32, len: *mut u32) -> Result<(), i32> {
    // SAFETY: the caller's promise, and the size is checked before the copy.
    unsafe {
        *len = value.len() as u32;
        if out.is_null() {
            return Ok(());
        }
        if (size as usize) < value.len() {
            return Err(NTE_BUFFER_TOO_SMALL);
        }
        ptr::copy_nonoverlapping(value.as_ptr(), out, value.len());
    }
    Ok(())
}
