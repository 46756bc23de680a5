//! The very same key files in OpenSSL's tpm2 provider and in tpm2-tools, both ways.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{assert_signs, bed, new_key, open, run, verifies};
use keybond_tpm::{Existing, Hash, KeyBlob, KeyRequest, PssMode, Scheme};

const PROVIDERS: &str = "-provider tpm2 -provider default -propquery ?provider=tpm2";

#[test]
fn openssl_uses_our_key_file() {
    let (swtpm, tpm) = bed();
    let dir = tempfile::tempdir().unwrap();
    let key = new_key(&tpm);
    key.blob()
        .save(&dir.path().join("key.pem"), Existing::Keep)
        .unwrap();
    let public = key.public().clone();
    drop((key, tpm));

    let pubout = run(
        &swtpm,
        dir.path(),
        &format!("openssl pkey {PROVIDERS} -in key.pem -pubout"),
    );
    let text = String::from_utf8(pubout.stdout).unwrap();
    let base64: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    assert_eq!(STANDARD.decode(base64).unwrap(), public.spki_der());

    fs::write(dir.path().join("message"), b"signed by openssl").unwrap();
    for (option, scheme) in [
        ("", Scheme::Pkcs1(Hash::Sha256)),
        ("-pkeyopt rsa_padding_mode:pss", Scheme::Pss(Hash::Sha256)),
    ] {
        let line = format!(
            "openssl pkeyutl {PROVIDERS} -sign -rawin -digest sha256 {option} -inkey key.pem -in message -out signature"
        );
        run(&swtpm, dir.path(), &line);
        let signature = fs::read(dir.path().join("signature")).unwrap();
        assert!(
            verifies(&public, scheme, b"signed by openssl", &signature),
            "{scheme}"
        );
    }
    let req = format!("openssl req -new {PROVIDERS} -key key.pem -subj /CN=keybond -out csr.pem");
    run(&swtpm, dir.path(), &req);
    run(&swtpm, dir.path(), "openssl req -in csr.pem -noout -verify");
}

#[test]
fn openssl_verifies_our_signatures_and_their_salt() {
    let (swtpm, tpm) = bed();
    let dir = tempfile::tempdir().unwrap();
    let key = new_key(&tpm);
    fs::write(dir.path().join("public.der"), key.public().spki_der()).unwrap();
    fs::write(dir.path().join("message"), b"signed by keybond").unwrap();
    for (hash, name) in [
        (Hash::Sha256, "sha256"),
        (Hash::Sha384, "sha384"),
        (Hash::Sha512, "sha512"),
    ] {
        for (scheme, options) in [
            (Scheme::Pkcs1(hash), ""),
            (
                Scheme::Pss(hash),
                "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest",
            ),
        ] {
            let signature = key
                .sign_digest(scheme, &hash.digest(b"signed by keybond"))
                .unwrap();
            fs::write(dir.path().join("signature"), signature).unwrap();
            let line = format!(
                "openssl dgst -{name} -keyform DER -verify public.der {options} -signature signature message"
            );
            run(&swtpm, dir.path(), &line);
        }
    }
}

#[test]
fn a_key_made_by_openssl_works_here() {
    let (swtpm, tpm) = bed();
    drop(tpm);
    let dir = tempfile::tempdir().unwrap();
    run(
        &swtpm,
        dir.path(),
        "openssl genpkey -provider tpm2 -algorithm RSA -pkeyopt bits:2048 -out key.pem",
    );
    let blob = KeyBlob::load(&dir.path().join("key.pem")).unwrap();
    let key = open(&swtpm.address()).load(&blob).unwrap();
    assert!(key.public().attributes().decrypt());
    assert_eq!(key.pss_mode().unwrap(), PssMode::Native);
    for scheme in Scheme::ALL {
        assert_signs(&key, scheme);
    }
}

const SRK: &str = "tpm2_createprimary -C o -G ecc256:aes128cfb -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt -c srk.ctx";

#[test]
fn tpm2_tools_loads_our_key_and_sees_its_attributes() {
    let (swtpm, tpm) = bed();
    let dir = tempfile::tempdir().unwrap();
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    drop(tpm);
    fs::write(dir.path().join("key.pub"), blob.tpm2b_public()).unwrap();
    fs::write(dir.path().join("key.priv"), blob.tpm2b_private()).unwrap();
    for line in [
        SRK,
        "tpm2_flushcontext -t",
        "tpm2_load -C srk.ctx -u key.pub -r key.priv -c key.ctx",
        "tpm2_flushcontext -t",
    ] {
        run(&swtpm, dir.path(), line);
    }
    let read = run(&swtpm, dir.path(), "tpm2_readpublic -c key.ctx");
    let text = String::from_utf8(read.stdout).unwrap();
    let attributes =
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n  raw: 0x40472";
    assert!(text.contains(attributes), "{text}");
}

#[test]
fn a_key_made_by_tpm2_tools_works_here() {
    let (swtpm, tpm) = bed();
    drop(tpm);
    let dir = tempfile::tempdir().unwrap();
    for line in [
        SRK,
        "tpm2_flushcontext -t",
        "tpm2_create -C srk.ctx -G rsa2048 -u key.pub -r key.priv -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign",
        "tpm2_flushcontext -t",
    ] {
        run(&swtpm, dir.path(), line);
    }
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let blob = KeyBlob::from_tpm2b(0x4000_0001, true, &read("key.pub"), &read("key.priv")).unwrap();
    let blob = KeyBlob::from_pem(&blob.to_pem()).unwrap();
    let key = open(&swtpm.address()).load(&blob).unwrap();
    for scheme in Scheme::ALL {
        assert_signs(&key, scheme);
    }
}

#[test]
fn a_persistent_parent_serves_us_and_openssl() {
    let (swtpm, tpm) = bed();
    drop(tpm);
    let dir = tempfile::tempdir().unwrap();
    for line in [
        SRK,
        "tpm2_evictcontrol -C o -c srk.ctx 0x81000001",
        "tpm2_flushcontext -t",
    ] {
        run(&swtpm, dir.path(), line);
    }
    let tpm = open(&swtpm.address());
    let request = KeyRequest {
        parent: Some(0x8100_0001),
        ..KeyRequest::default()
    };
    let blob = tpm.create_key(&request).unwrap();
    assert_eq!(KeyBlob::from_pem(&blob.to_pem()).unwrap(), blob);
    let key = tpm.load(&blob).unwrap();
    assert_signs(&key, Scheme::Pss(Hash::Sha256));
    // Two more keys and the persistent parent fill the TPM's memory.
    let others = [
        tpm.create_key(&KeyRequest::default()).unwrap(),
        blob.clone(),
    ];
    for other in &others {
        assert_signs(&tpm.load(other).unwrap(), Scheme::Pkcs1(Hash::Sha256));
    }
    blob.save(&dir.path().join("key.pem"), Existing::Keep)
        .unwrap();
    drop((key, tpm));
    let pubout = format!("openssl pkey {PROVIDERS} -in key.pem -pubout");
    run(&swtpm, dir.path(), &pubout);

    let request = KeyRequest {
        parent: Some(0x8100_0002),
        ..KeyRequest::default()
    };
    let error = open(&swtpm.address()).create_key(&request).unwrap_err();
    assert!(
        error.to_string().contains("TPM_RC_HANDLE (handle 1)"),
        "{error}"
    );
}
