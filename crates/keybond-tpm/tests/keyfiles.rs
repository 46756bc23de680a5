//! Key files: what is read, what is refused and with which words, and what a crash leaves behind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use keybond_tpm::{ErrorKind, Existing, KeyBlob, KeyFileError, TpmError};
use proptest::prelude::*;

/// A TPMT_PUBLIC of an RSA-2048 signing key with scheme NULL.
fn public() -> Vec<u8> {
    let mut area = vec![
        0, 1, 0, 0x0b, 0, 4, 4, 0x72, 0, 0, 0, 0x10, 0, 0x10, 8, 0, 0, 0, 0, 0, 1, 0,
    ];
    area.extend_from_slice(&[0xc5; 256]);
    area
}

fn sized(area: &[u8]) -> Vec<u8> {
    [&u16::try_from(area.len()).unwrap().to_be_bytes(), area].concat()
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match content.len() {
        0..=0x7f => vec![tag, length[1]],
        0x80..=0xff => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [header, content.to_vec()].concat()
}

const OID: &[u8] = &[0x67, 0x81, 0x05, 0x0a, 0x01, 0x03];
const TRUE: &[u8] = &[0xa0, 3, 1, 1, 0xff];
const OWNER: &[u8] = &[2, 4, 0x40, 0, 0, 1];

fn parts() -> Vec<Vec<u8>> {
    vec![
        tlv(6, OID),
        TRUE.to_vec(),
        OWNER.to_vec(),
        tlv(4, &sized(&public())),
        tlv(4, &sized(&[0x77; 222])),
    ]
}

fn pem(parts: &[Vec<u8>]) -> String {
    armour(&tlv(0x30, &parts.concat()))
}

fn armour(der: &[u8]) -> String {
    format!(
        "-----BEGIN TSS2 PRIVATE KEY-----\n{}\n-----END TSS2 PRIVATE KEY-----\n",
        STANDARD.encode(der)
    )
}

/// A good file with one part replaced.
fn with(index: usize, part: Vec<u8>) -> String {
    let mut parts = parts();
    parts[index] = part;
    pem(&parts)
}

fn field(error: &KeyFileError) -> &'static str {
    match error {
        KeyFileError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn true_is_any_byte_but_zero_and_written_as_ff() {
    let blob = KeyBlob::from_pem(&pem(&parts())).unwrap();
    assert!(blob.empty_auth());
    // tpm2-openssl writes 0x01.
    let from_openssl = KeyBlob::from_pem(&with(1, vec![0xa0, 3, 1, 1, 1])).unwrap();
    assert_eq!(from_openssl, blob);
    let text = from_openssl.to_pem();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    assert_eq!(der, tlv(0x30, &parts().concat()));
    assert!(text.lines().all(|line| line.len() <= 64));
    for absent_or_false in [vec![], vec![0xa0, 3, 1, 1, 0]] {
        assert!(
            !KeyBlob::from_pem(&with(1, absent_or_false))
                .unwrap()
                .empty_auth()
        );
    }
}

#[test]
fn a_description_is_passed_over() {
    let described = [TRUE, &tlv(0xa4, &tlv(12, b"a key"))].concat();
    assert_eq!(
        KeyBlob::from_pem(&with(1, described)).unwrap(),
        KeyBlob::from_pem(&pem(&parts())).unwrap()
    );
}

#[test]
fn a_bad_file_names_the_field() {
    let spoiled = |offset: usize, byte: u8| {
        let mut area = public();
        area[offset] = byte;
        with(3, tlv(4, &sized(&area)))
    };
    let good = pem(&parts());
    let cases = [
        (
            String::new(),
            "PEM",
            "expected `-----BEGIN TSS2 PRIVATE KEY-----`",
        ),
        (good.replace("TSS2 ", "RSA "), "PEM", "expected"),
        (good.replace("-----END", "-----"), "PEM", "at the end"),
        (format!("{good}{good}"), "PEM", "base64"),
        (format!("{good}trailing"), "PEM", "at the end"),
        ("x".repeat(70_000), "PEM", "too long"),
        (armour(&[0x30]), "TPMKey", "SEQUENCE"),
        (
            armour(&[tlv(0x30, &parts().concat()), vec![0]].concat()),
            "TPMKey",
            "nothing after",
        ),
        (
            with(0, tlv(6, &[0x67, 0x81, 0x05, 0x0a, 0x01, 0x05])),
            "type",
            "2.23.133.10.1.3",
        ),
        (
            with(1, vec![0xa0, 4, 1, 1, 0xff, 0]),
            "emptyAuth",
            "BOOLEAN",
        ),
        (with(1, vec![0xa0, 2, 1, 0]), "emptyAuth", "BOOLEAN"),
        (
            with(1, [TRUE, &tlv(0xa1, &[0x30, 0])].concat()),
            "policy",
            "not supported",
        ),
        (
            with(1, [TRUE, &tlv(0xa2, &[4, 0])].concat()),
            "secret",
            "not supported",
        ),
        (
            with(1, [TRUE, &tlv(0xa5, &[1, 1, 0xff])].concat()),
            "rsaParent",
            "not supported",
        ),
        (with(2, vec![2, 4, 0x40, 0, 0, 7]), "parent", "0x40000007"),
        (with(2, vec![2, 4, 0x81, 0, 0, 1]), "parent", "INTEGER"),
        (
            with(2, vec![2, 6, 0, 0x81, 0, 0, 0, 1]),
            "parent",
            "INTEGER",
        ),
        (with(3, tlv(4, &public())), "pubkey", "length"),
        (with(4, tlv(4, &[0, 0])), "privkey", "0 bytes"),
        (with(4, tlv(4, &sized(&[7; 1501]))), "privkey", "1501 bytes"),
        (
            with(4, [tlv(4, &sized(&[7; 222])), vec![5, 0]].concat()),
            "TPMKey",
            "nothing after privkey",
        ),
        // Type ECC, a storage key, 1024 bits, an even exponent, a short modulus.
        (spoiled(1, 0x23), "pubkey", "type"),
        (spoiled(11, 6), "pubkey", "symmetric"),
        (spoiled(14, 4), "pubkey", "keyBits"),
        (spoiled(19, 2), "pubkey", "exponent"),
        (spoiled(22, 0x45), "pubkey", "unique"),
    ];
    for (text, expected, detail) in cases {
        let error = KeyBlob::from_pem(&text).unwrap_err();
        assert_eq!(field(&error), expected, "{error}");
        assert!(error.to_string().contains(detail), "{error}");
        assert_eq!(TpmError::from(error).kind(), ErrorKind::CorruptFile);
    }
}

#[test]
fn a_persistent_parent_is_written_as_a_positive_number() {
    let blob = KeyBlob::from_pem(&with(2, vec![2, 5, 0, 0x81, 0, 0, 1])).unwrap();
    assert_eq!(blob.parent(), 0x8100_0001);
    assert_eq!(KeyBlob::from_pem(&blob.to_pem()).unwrap(), blob);
}

#[test]
fn files_are_private_whole_and_never_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.pem");
    let blob = KeyBlob::from_pem(&pem(&parts())).unwrap();
    assert!(KeyBlob::load(&path).unwrap_err().is_not_found());
    blob.save(&path, Existing::Keep).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(KeyBlob::load(&path).unwrap(), blob);

    let other = KeyBlob::from_pem(&with(1, vec![])).unwrap();
    let TpmError::KeyFile(error) = other.save(&path, Existing::Keep).unwrap_err() else {
        panic!()
    };
    assert!(error.is_already_there(), "{error}");
    assert_eq!(KeyBlob::load(&path).unwrap(), blob);
    other.save(&path, Existing::Replace).unwrap();
    assert_eq!(KeyBlob::load(&path).unwrap(), other);
    // No temporary file is left.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let nowhere = dir.path().join("absent/key.pem");
    assert!(matches!(
        other.save(&nowhere, Existing::Replace),
        Err(TpmError::KeyFile(KeyFileError::Io { .. }))
    ));
}

#[test]
fn a_file_that_others_could_have_planted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.pem");
    KeyBlob::from_pem(&pem(&parts()))
        .unwrap()
        .save(&path, Existing::Keep)
        .unwrap();
    let refusal = |path: &std::path::Path| match KeyBlob::load(path).unwrap_err() {
        KeyFileError::Untrusted { detail, .. } => detail,
        other => panic!("{other}"),
    };
    let link = dir.path().join("link.pem");
    symlink(&path, &link).unwrap();
    assert!(refusal(&link).contains("symbolic link"));

    let fifo = dir.path().join("fifo.pem");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert!(refusal(&fifo).contains("not a regular file"));

    fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
    assert!(refusal(&path).contains("writable by others"));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    // Only root can give files away.
    if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
        assert!(refusal(&path).contains("belongs to user 65534"));
    }
}

#[test]
fn a_key_prints_no_part_that_is_not_public() {
    let blob = KeyBlob::from_pem(&pem(&parts())).unwrap();
    let text = format!("{blob:?}");
    assert!(text.contains("bits: 2048"), "{text}");
    assert!(!text.contains("119") && !text.contains("0x77"), "{text}");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,400}") {
        let _ = KeyBlob::from_pem(&text);
    }

    #[test]
    fn any_der_is_read_or_refused(der in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = KeyBlob::from_pem(&armour(&der));
    }

    /// What is read at all is read the same after it was written.
    #[test]
    fn a_mutated_file_is_refused_or_survives_a_round_trip(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut der = tlv(0x30, &parts().concat());
        let at = at.index(der.len());
        der[at] = byte;
        for der in [&der[..], &der[..cut.index(der.len())]] {
            if let Ok(blob) = KeyBlob::from_pem(&armour(der)) {
                prop_assert_eq!(KeyBlob::from_pem(&blob.to_pem()).unwrap(), blob);
            }
        }
    }
}
