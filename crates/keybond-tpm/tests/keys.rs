//! Keys in a real (software) TPM: made, loaded, used, described, refused to leave.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{assert_signs, bed, loaded, new_key, open};
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
    assert_eq!(loaded(&swtpm), []);
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
    assert_eq!(loaded(&swtpm), []);
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
    assert_eq!(loaded(&swtpm), []);
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
