//! What holds on every Windows, with or without VBS or a TPM, and under Wine as it comes.
#![cfg(windows)]
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, OpenOptions},
    os::windows::fs::OpenOptionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rsa::PublicKeyComponents,
    signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256},
};
use keybond_cng::{
    CertStore, ErrorKind, Hash, KeyLink, NamedMutex, Padding, Provider, RsaPublic, acl, names,
};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

fn unique(what: &str) -> String {
    format!("keybond-test-{what}-{}", std::process::id())
}

#[test]
fn an_ephemeral_key_signs_and_another_library_agrees() {
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let new = provider.begin_key(None, 0).unwrap();
    new.set_length(2048).unwrap();
    let key = new.finalize().unwrap();
    // The key keeps its provider.
    drop(provider);
    let public = key.public_key().unwrap();
    assert_eq!(
        (public.modulus.len(), key.property(names::LENGTH).unwrap()),
        (256, 2048)
    );

    let verifier = PublicKeyComponents {
        n: &public.modulus,
        e: &public.exponent,
    };
    let hash = digest(&SHA256, b"message");
    let pkcs1 = key
        .sign(Padding::Pkcs1, Hash::Sha256, hash.as_ref())
        .unwrap();
    verifier
        .verify(&RSA_PKCS1_2048_8192_SHA256, b"message", &pkcs1)
        .unwrap();
    let pss = key.sign(Padding::Pss, Hash::Sha256, hash.as_ref()).unwrap();
    verifier
        .verify(&RSA_PSS_2048_8192_SHA256, b"message", &pss)
        .unwrap();

    let error = key
        .sign(Padding::Pss, Hash::Sha384, hash.as_ref())
        .unwrap_err();
    assert_eq!(error.call(), "NCryptSignHash");
}

#[test]
fn names_with_a_nul_never_reach_windows() {
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    assert!(provider.open_key("a\0b").is_err());
    assert!(provider.begin_key(Some("a\0b"), 0).is_err());
    assert!(NamedMutex::open("Local\\a\0b").is_err());
}

/// A certificate of a key of any algorithm: the store does not care.
fn certificate(subject: &str, key: &rcgen::KeyPair) -> Vec<u8> {
    let mut parameters = rcgen::CertificateParams::default();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, subject);
    parameters.serial_number = Some(
        digest(&SHA256, subject.as_bytes()).as_ref()[..8]
            .to_vec()
            .into(),
    );
    parameters.self_signed(key).unwrap().der().to_vec()
}

fn find(subject_der: &[u8]) -> Option<keybond_cng::Certificate> {
    let store = CertStore::open_my().unwrap();
    store
        .certificates()
        .into_iter()
        .find(|found| found.der() == subject_der)
}

#[test]
fn certificates_are_added_found_and_deleted_with_their_names() {
    let der = certificate(&unique("one"), &rcgen::KeyPair::generate().unwrap());
    let name = "MSAL|alias=ü#att=1|ep=https://example/tenant";
    let link = KeyLink {
        key: "KeyGuardRSAKey".into(),
        provider: names::SOFTWARE_PROVIDER.into(),
    };
    CertStore::open_my()
        .unwrap()
        .add(&der, Some(name), Some(&link))
        .unwrap();

    let found = find(&der).unwrap();
    assert_eq!(found.friendly_name().unwrap().as_deref(), Some(name));
    assert_eq!(found.key().unwrap(), Some(link));
    drop(found);

    let store = CertStore::open_my().unwrap();
    store.add(&der, None, None).unwrap();
    let found = find(&der).unwrap();
    assert_eq!(
        (found.friendly_name().unwrap(), found.key().unwrap()),
        (None, None)
    );
    drop(found);
    let other = CertStore::open_my().unwrap();
    assert!(other.delete(&der).unwrap());
    assert!(find(&der).is_none());
    assert!(!CertStore::open_my().unwrap().delete(&der).unwrap());

    assert!(store.add(b"no certificate", None, None).is_err());
}

#[test]
fn only_the_certificates_of_the_dead_key_go() {
    let (dead, alive) = (
        rcgen::KeyPair::generate().unwrap(),
        rcgen::KeyPair::generate().unwrap(),
    );
    let of_dead = [
        certificate(&unique("dead-a"), &dead),
        certificate(&unique("dead-b"), &dead),
    ];
    // The same subject, another key.
    let of_alive = certificate(&unique("dead-a"), &alive);
    let store = CertStore::open_my().unwrap();
    for der in of_dead.iter().chain([&of_alive]) {
        store.add(der, None, None).unwrap();
    }
    let spki = rcgen::PublicKeyData::subject_public_key_info(&dead);
    let of = |found: &keybond_cng::Certificate| found.public_key() == Some(&spki);
    assert_eq!(store.delete_where(of).unwrap(), 2);
    assert!(of_dead.iter().all(|der| find(der).is_none()));
    assert!(find(&of_alive).is_some());
    assert!(store.delete(&of_alive).unwrap());
    assert_eq!(store.delete_where(of).unwrap(), 0);
}

#[test]
fn one_holder_of_a_mutex_among_threads() {
    let mutex = NamedMutex::open_widest(&unique("threads")).unwrap();
    let held = mutex.acquire(LONG).unwrap().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(mutex.acquire(SHORT).unwrap().is_none()));
    });
    drop(held);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(!mutex.acquire(SHORT).unwrap().unwrap().was_abandoned()));
    });
}

/// Set for the process that takes a mutex and dies with it.
const CHILD: &str = "KEYBOND_TEST_MUTEX";

#[test]
fn a_mutex_whose_holder_died_is_free_and_says_so() {
    if let Ok(name) = std::env::var(CHILD) {
        let mutex = NamedMutex::open(&name).unwrap();
        let _held = mutex.acquire(LONG).unwrap().unwrap();
        // Not a return: that would release it.
        std::process::exit(0);
    }
    let name = format!("Local\\{}", unique("processes"));
    let mutex = NamedMutex::open(&name).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_mutex_whose_holder_died_is_free_and_says_so"])
        .env(CHILD, &name)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(mutex.acquire(LONG).unwrap().unwrap().was_abandoned());
    assert!(!mutex.acquire(LONG).unwrap().unwrap().was_abandoned());
}

#[test]
fn errors_carry_call_code_and_kind() {
    let provider = Provider::open(names::SOFTWARE_PROVIDER).unwrap();
    let key = provider.open_key(&unique("absent")).err().unwrap();
    assert_eq!(key.call(), "NCryptOpenKey");
    // Wine opens no named keys at all.
    assert!(
        matches!(key.kind(), ErrorKind::NotFound | ErrorKind::NotSupported),
        "{key}"
    );
    assert!(RsaPublic::from_blob(&[]).is_err());
}

#[test]
fn protected_data_opens_for_its_purpose_only() {
    let secret = b"a record of a certificate".as_slice();
    let sealed = keybond_cng::protect(secret, b"purpose").unwrap();
    assert!(!sealed.windows(8).any(|part| part == &secret[..8]));
    assert_eq!(keybond_cng::unprotect(&sealed, b"purpose").unwrap(), secret);
    assert!(keybond_cng::unprotect(&sealed, b"another purpose").is_err());
    assert!(keybond_cng::unprotect(b"nothing of the kind", b"purpose").is_err());
    assert_eq!(
        keybond_cng::unprotect(&keybond_cng::protect(b"", b"").unwrap(), b"").unwrap(),
        b""
    );
}

#[test]
fn private_files_and_directories_let_no_stranger_in() {
    let home = std::env::temp_dir().join(unique("acl"));
    let dir = home.join("a").join("b");
    acl::create_private_dir(&dir).unwrap();
    acl::create_private_dir(&dir).unwrap();
    let stranger = acl::stranger(&acl::open_directory(&dir).unwrap()).unwrap();
    assert_eq!(stranger, None);

    let path = dir.join("record");
    const READ_AND_WRITE: u32 = 0x8000_0000 | 0x4000_0000;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .access_mode(READ_AND_WRITE | acl::PRIVATE_ACCESS)
        .open(&path)
        .unwrap();
    acl::make_private(&file).unwrap();
    assert_eq!(acl::stranger(&file).unwrap(), None);
    drop(file);
    fs::remove_dir_all(&home).unwrap();
}
