//! Keys in a real (software) TPM: made, loaded, used, described, refused to leave.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use common::{assert_signs, bed, loaded, new_key, open, run};
use keybond_tpm::{
    Belonging, ErrorKind, ExportAttempt, Hash, KeyBlob, KeyRequest, Pin, PssMode, Scheme, TpmError,
    TpmNames,
};

#[test]
fn a_key_signs_in_every_scheme() {
    let (_swtpm, tpm) = bed();
    let key = new_key(&tpm);
    for scheme in Scheme::ALL {
        assert_signs(&key, scheme);
    }
    assert_eq!(key.pss_mode().unwrap(), PssMode::Native);
}

#[test]
fn a_key_is_what_its_attributes_say() {
    let (_swtpm, tpm) = bed();
    let key = new_key(&tpm);
    let attributes = key.public().attributes();
    assert_eq!(attributes.bits(), 0x0004_0472);
    assert_eq!(
        attributes.to_string(),
        "fixedTPM|fixedParent|sensitiveDataOrigin|userWithAuth|noDA|sign"
    );
    assert_eq!(key.public().bits(), 2048);
    assert_eq!(key.public().exponent(), 65537);
    assert_eq!(key.read_public().unwrap(), *key.public());
}

#[test]
fn a_key_cannot_be_got_out() {
    let (swtpm, tpm) = bed();
    let key = new_key(&tpm);
    match key.attempt_export().unwrap() {
        ExportAttempt::Refused(code) => println!("refused with {code}"),
        ExportAttempt::Exported => panic!("a fixedTPM key was exported"),
    }
    assert_signs(&key, Scheme::Pss(Hash::Sha256));
    drop((key, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_key_file_brings_the_key_back() {
    let (swtpm, tpm) = bed();
    let key = new_key(&tpm);
    let blob = KeyBlob::from_pem(&key.blob().to_pem()).unwrap();
    assert_eq!(&blob, key.blob());
    let public = key.public().clone();
    drop((key, tpm));
    let again = open(&swtpm.address()).load(&blob).unwrap();
    assert_eq!(*again.public(), public);
    assert_signs(&again, Scheme::Pkcs1(Hash::Sha256));
}

#[test]
fn more_keys_than_fit_into_the_tpm_work_side_by_side() {
    let (swtpm, tpm) = bed();
    let keys: Vec<_> = (0..4).map(|_| new_key(&tpm)).collect();
    for _ in 0..2 {
        for key in &keys {
            assert_signs(key, Scheme::Pkcs1(Hash::Sha256));
            assert!(tpm.transient_handles().unwrap().len() <= 3);
        }
    }
    assert!(tpm.ek_name().unwrap().starts_with(&[0, 0x0b]));
    drop((keys, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn many_threads_share_one_tpm() {
    let (swtpm, tpm) = bed();
    let key = Arc::new(new_key(&tpm));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for scheme in [Scheme::Pss(Hash::Sha256), Scheme::Pkcs1(Hash::Sha384)] {
                    assert_signs(&key, scheme);
                }
            });
        }
    });
    assert_eq!(tpm.queue_depth(), 0);
    drop((key, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn a_pin_is_asked_for_and_guessing_locks_only_such_keys() {
    let (_swtpm, tpm) = bed();
    let pin = |text: &str| Some(Arc::new(Pin::new(text.as_bytes()).unwrap()));
    let request = KeyRequest {
        pin: pin("1234"),
        ..KeyRequest::default()
    };
    let blob = tpm.create_key(&request).unwrap();
    assert!(!blob.empty_auth());
    assert_eq!(blob.public().attributes().bits(), 0x0004_0072);
    let blob = KeyBlob::from_pem(&blob.to_pem()).unwrap();
    assert!(!blob.empty_auth());

    assert!(matches!(tpm.load(&blob), Err(TpmError::PinRequired)));

    let good = tpm.load_with_pin(&blob, pin("1234").unwrap()).unwrap();
    assert_signs(&good, Scheme::Pss(Hash::Sha256));

    let bad = tpm.load_with_pin(&blob, pin("4321").unwrap()).unwrap();
    let digest = [7; 32];
    let scheme = Scheme::Pkcs1(Hash::Sha256);
    let error = bad.sign_digest(scheme, &digest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongPin, "{error}");
    assert!(
        error
            .to_string()
            .contains("0x98e TPM_RC_AUTH_FAIL (session 1)"),
        "{error}"
    );

    let lockout = (0..5)
        .map(|_| bad.sign_digest(scheme, &digest).unwrap_err())
        .last()
        .unwrap();
    assert!(
        matches!(lockout, TpmError::Lockout { recovery: Some(time), .. } if time.as_secs() == 1000),
        "{lockout}"
    );
    assert!(lockout.remedy().contains("tpm2_dictionarylockout"));
    assert_eq!(
        good.sign_digest(scheme, &digest).unwrap_err().kind(),
        ErrorKind::Lockout
    );
    assert_signs(&new_key(&tpm), Scheme::Pss(Hash::Sha256));
}

#[test]
fn a_key_of_another_tpm_is_told_by_the_names() {
    let (_here, tpm) = bed();
    let (_there, other) = bed();
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    let recorded = tpm.names().unwrap();
    assert_eq!(tpm.names().unwrap(), recorded);

    let error = other.load(&blob).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(
        error
            .to_string()
            .contains("0x1df TPM_RC_INTEGRITY (parameter 1)"),
        "{error}"
    );
    assert_eq!(
        TpmNames::compare(&recorded, &other.names().unwrap()),
        Belonging::Other
    );
}

#[test]
fn a_damaged_key_is_told_by_the_names() {
    let (_swtpm, tpm) = bed();
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    let recorded = tpm.names().unwrap();
    let mut private = blob.tpm2b_private();
    private[100] ^= 1;
    let damaged = KeyBlob::from_tpm2b(blob.parent(), true, &blob.tpm2b_public(), &private).unwrap();
    assert_eq!(tpm.load(&damaged).unwrap_err().kind(), ErrorKind::Integrity);
    assert_eq!(
        TpmNames::compare(&recorded, &tpm.names().unwrap()),
        Belonging::Same
    );
    assert_signs(&tpm.load(&blob).unwrap(), Scheme::Pkcs1(Hash::Sha256));
}

#[test]
fn a_cleared_tpm_is_told_by_the_names_and_makes_new_keys() {
    let (swtpm, tpm) = bed();
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    let recorded = tpm.names().unwrap();
    drop(tpm);
    run(&swtpm, swtpm.dir(), "tpm2_clear");
    let tpm = open(&swtpm.address());
    assert_eq!(tpm.load(&blob).unwrap_err().kind(), ErrorKind::Integrity);
    assert_eq!(
        TpmNames::compare(&recorded, &tpm.names().unwrap()),
        Belonging::Cleared
    );
    assert_signs(&new_key(&tpm), Scheme::Pss(Hash::Sha256));
}

/// Takes the statement apart by hand: magic, type, the TPM's name for the signer, our nonce, … , our key's name.
#[test]
fn the_tpm_certifies_the_key() {
    let (swtpm, tpm) = bed();
    let keys = [new_key(&tpm), new_key(&tpm)];
    let key = &keys[0];
    let said = key.certify(b"nonce").unwrap();
    assert_eq!(said.statement[..6], [0xff, 0x54, 0x43, 0x47, 0x80, 0x17]);
    let signer = usize::from(said.statement[7]);
    assert_eq!(said.statement[8 + signer..][..7], *b"\0\x05nonce");
    let name = key.public().name();
    assert!(
        said.statement
            .windows(name.len())
            .any(|window| window == name)
    );

    // TPMT_PUBLIC: restricted|sign, ECDSA with SHA-256 on P-256; the point is at the end.
    assert_eq!(said.signer[..8], [0, 0x23, 0, 0x0b, 0, 5, 4, 0x72]);
    let at = said.signer.len() - 68;
    let (x, y) = (&said.signer[at + 2..at + 34], &said.signer[at + 36..]);
    let point = [&[4], x, y].concat();
    // TPMT_SIGNATURE: ECDSA, SHA-256, r and s, each of which may have lost leading zeros.
    assert_eq!(said.signature[..4], [0, 0x18, 0, 0x0b]);
    let r = &said.signature[6..][..usize::from(said.signature[5])];
    let s = &said.signature[6 + r.len() + 2..];
    let fixed = [&vec![0; 32 - r.len()][..], r, &vec![0; 32 - s.len()], s].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(&said.statement, &fixed)
        .unwrap();

    assert_eq!(
        key.certify(&[0; 33]).unwrap_err().to_string(),
        "nonce: 33 bytes, at most 32"
    );
    for key in &keys {
        assert_signs(key, Scheme::Pss(Hash::Sha256));
    }
    drop((keys, tpm));
    assert!(loaded(&swtpm).is_empty());
}

#[test]
fn handles_go_to_other_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<keybond_tpm::Tpm>();
    shared::<keybond_tpm::LoadedKey>();
    shared::<KeyBlob>();
    shared::<TpmError>();
}

#[test]
fn the_tpm_says_who_it_is() {
    let (_swtpm, tpm) = bed();
    let identity = tpm.identity();
    assert_eq!(identity.manufacturer, "IBM");
    assert_eq!(identity.vendor, "SW   TPM");
    assert_eq!(identity.family, "2.0");
    assert_eq!(identity.revision, 164);
}

#[test]
fn a_digest_of_the_wrong_length_never_reaches_the_tpm() {
    let (_swtpm, tpm) = bed();
    let key = new_key(&tpm);
    let error = key
        .sign_digest(Scheme::Pss(Hash::Sha256), &[0; 48])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "digest: 48 bytes, expected 32 for RSASSA-PSS with SHA-256"
    );
}
