//! What only a real Windows machine can tell. Run there:
//!
//! ```text
//! cargo test -p keybond-cng --test real -- --ignored --nocapture --test-threads 1
//! ```
//!
//! Every test prints what Windows answered, with its code, and fails where keybond relies on another answer.
//! A machine without VBS or TPM fails the tests of that part: the code it prints is the interesting part.
//! Keys are made under names of their own and deleted again; certificates are not touched.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use keybond_cng::{
    ClaimKind, CngError, ErrorKind, ExportOutcome, Hash, Key, Padding, Provider, acl,
    claims_exported, names,
};

/// A key that is deleted when the test ends, however it ends.
struct Temporary {
    provider: Provider,
    name: String,
}

impl Temporary {
    fn new(provider: &str, what: &str) -> Self {
        Self {
            provider: Provider::open(provider).unwrap_or_else(|error| panic!("{error}")),
            name: format!("keybond-test-{what}-{}", std::process::id()),
        }
    }

    fn make(&self, flags: u32) -> Result<Key, CngError> {
        let new = self.provider.begin_key(Some(&self.name), flags)?;
        new.set_export_policy(0)?;
        new.set_usage(names::USAGE_SIGNING)?;
        new.set_length(2048)?;
        new.finalize()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Ok(key) = self.provider.open_key(&self.name)
            && let Err(error) = key.delete()
        {
            println!("{} is left behind: {error}", self.name);
        }
    }
}

fn shown<T: std::fmt::Debug>(what: &str, answer: Result<T, CngError>) -> Result<T, CngError> {
    match &answer {
        Ok(value) => println!("{what}: {value:?}"),
        Err(error) => println!("{what}: {error}"),
    }
    answer
}

fn refused(key: &Key) {
    let outcome = key.attempt_private_export();
    println!("private export: {outcome:?}");
    assert!(matches!(outcome, ExportOutcome::Refused(_)));
}

/// The software provider says what implements it, and tells a name that is free from one that is taken.
#[test]
#[ignore = "needs real Windows"]
fn names_of_software_keys() {
    let temporary = Temporary::new(names::SOFTWARE_PROVIDER, "names");
    shown(
        "Impl Type of the provider",
        temporary.provider.implementation(),
    )
    .unwrap();
    let absent = temporary.provider.open_key(&temporary.name).err().unwrap();
    println!("open of an absent key: {absent}");
    assert_eq!(absent.kind(), ErrorKind::NotFound);

    // Begun and given up: nothing is kept.
    drop(
        temporary
            .provider
            .begin_key(Some(&temporary.name), 0)
            .unwrap(),
    );
    assert!(temporary.provider.open_key(&temporary.name).is_err());

    let first = temporary.make(0).unwrap();
    let taken = temporary.make(0).err().unwrap();
    println!("create over an existing key: {taken}");
    assert_eq!(taken.kind(), ErrorKind::Exists);
    refused(&first);
    let again = temporary.provider.open_key(&temporary.name).unwrap();
    assert_eq!(again.public_key().unwrap(), first.public_key().unwrap());

    let bogus = Provider::open("keybond: no such provider").err().unwrap();
    println!("open of an unknown provider: {bogus}");
}

/// Protected data that was changed anywhere does not open (Wine lets some changes pass).
#[test]
#[ignore = "needs real Windows"]
fn protected_data_that_was_changed() {
    let sealed = keybond_cng::protect(b"a record", b"purpose").unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let opened = keybond_cng::unprotect(&changed, b"purpose");
        assert!(opened.is_err(), "byte {at} of {}", sealed.len());
    }
}

/// A new directory of the user's own lets no stranger in, and one that everybody may read is told as such.
#[test]
#[ignore = "needs real Windows"]
fn access_lists() {
    let home = std::env::temp_dir().join(format!("keybond-test-acl-{}", std::process::id()));
    acl::create_private_dir(&home).unwrap();
    let stranger = || acl::stranger(&acl::open_directory(&home).unwrap()).unwrap();
    assert_eq!(stranger(), None);
    let granted = std::process::Command::new("icacls")
        .arg(&home)
        .args(["/grant", "*S-1-1-0:R"])
        .output()
        .unwrap();
    println!("icacls: {}", granted.status);
    assert!(stranger().is_some_and(|who| who.contains("S-1-1-0")));
    std::fs::remove_dir_all(&home).unwrap();
}

/// KeyGuard: isolation and boot are read back, the key signs PSS and stays inside.
#[test]
#[ignore = "needs real Windows with virtualization-based security"]
fn a_keyguard_key() {
    let temporary = Temporary::new(names::SOFTWARE_PROVIDER, "keyguard");
    let flags = names::USE_VIRTUAL_ISOLATION | names::USE_PER_BOOT;
    let begun = temporary.provider.begin_key(Some(&temporary.name), flags);
    shown("begin with VBS flags (the probe)", begun.map(drop)).unwrap();
    let key = temporary
        .make(flags)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(
        shown("Virtual Iso", key.property(names::VIRTUAL_ISOLATION)).unwrap(),
        0
    );
    assert_ne!(
        shown("Per Boot Key", key.property(names::PER_BOOT)).unwrap(),
        0
    );
    assert_eq!(
        shown("Export Policy", key.property(names::EXPORT_POLICY)).unwrap(),
        0
    );
    assert_eq!(shown("Length", key.property(names::LENGTH)).unwrap(), 2048);
    for (padding, hash, len) in [
        (Padding::Pss, Hash::Sha256, 32),
        (Padding::Pss, Hash::Sha384, 48),
        (Padding::Pkcs1, Hash::Sha256, 32),
    ] {
        let signature = key.sign(padding, hash, &vec![7; len]);
        shown(
            &format!("{padding:?} {hash:?}"),
            signature.map(|bytes| bytes.len()),
        )
        .unwrap();
    }
    refused(&key);
    println!("NCryptCreateClaim is exported: {}", claims_exported());
    // Without it keybond can do; the code says whether attestation by the system is possible.
    let _ = shown(
        "claim",
        key.create_claim(ClaimKind::Vbs).map(|claim| claim.len()),
    );
}

/// The TPM: the provider is hardware, the salt is told, the key signs and stays inside.
#[test]
#[ignore = "needs real Windows with a TPM 2.0"]
fn a_platform_key() {
    let temporary = Temporary::new(names::PLATFORM_PROVIDER, "platform");
    let implementation = shown(
        "Impl Type of the provider",
        temporary.provider.implementation(),
    )
    .unwrap();
    assert_ne!(implementation & names::IMPL_HARDWARE, 0);
    let absent = temporary.provider.open_key(&temporary.name).err().unwrap();
    println!("open of an absent key: {absent}");
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    let key = temporary.make(0).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        shown("Export Policy", key.property(names::EXPORT_POLICY)).unwrap(),
        0
    );
    let salt = shown("PSS Salt Size", key.property(names::PSS_SALT_SIZE));
    let pss = key.sign(Padding::Pss, Hash::Sha256, &[7; 32]);
    let pss = shown("PSS SHA-256", pss.map(|bytes| bytes.len()));
    if salt == Ok(names::SALT_HASH_SIZE) {
        pss.unwrap();
    }
    let pkcs1 = key.sign(Padding::Pkcs1, Hash::Sha256, &[7; 32]);
    shown("PKCS#1 SHA-256", pkcs1.map(|bytes| bytes.len())).unwrap();
    refused(&key);
    let _ = shown(
        "claim",
        key.create_claim(ClaimKind::Subject)
            .map(|claim| claim.len()),
    );
}

/// Run before and after a reboot: the first run makes the key and says so, the second tells how its death shows,
/// and deletes it.
#[test]
#[ignore = "needs real Windows with virtualization-based security, and a reboot"]
fn a_keyguard_key_over_a_reboot() {
    const NAME: &str = "keybond-test-reboot";
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let flags = names::USE_VIRTUAL_ISOLATION | names::USE_PER_BOOT;
    match provider.open_key(NAME) {
        Ok(key) => {
            let signed = key.sign(Padding::Pss, Hash::Sha256, &[7; 32]);
            let signed = shown("sign with an existing key", signed.map(|bytes| bytes.len()));
            if signed.is_ok() {
                println!("the key lives: reboot, then run this again");
                return;
            }
            println!("the key is dead; it opened, and could not sign");
            shown("delete", key.delete()).unwrap();
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let new = provider
                .begin_key(Some(NAME), flags)
                .unwrap_or_else(|error| panic!("{error}"));
            new.set_length(2048).unwrap();
            new.finalize().unwrap_or_else(|error| panic!("{error}"));
            println!("the key is made: reboot, then run this again");
        }
        Err(error) => {
            println!("the key is dead; it did not open: {error}");
            assert_eq!(error.kind(), ErrorKind::Undecryptable);
            let new = provider
                .begin_key(Some(NAME), flags | names::OVERWRITE)
                .unwrap();
            new.set_length(2048).unwrap();
            shown("delete", new.finalize().unwrap().delete()).unwrap();
        }
    }
}
