//! The very same key files in OpenSSL's tpm2 provider and in tpm2-tools, both ways.
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

#[test]
fn tpm2_tools_sees_the_attributes_that_we_see() {
    let (swtpm, tpm) = bed();
    let dir = tempfile::tempdir().unwrap();
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    blob.save(&dir.path().join("key.pem"), Existing::Keep)
        .unwrap();
    drop(tpm);
    run(
        &swtpm,
        dir.path(),
        "openssl asn1parse -in key.pem -noout -out key.der",
    );
    // tpm2-tools 5.4 loads a public and a private part, not a PEM: take them out of the DER.
    let der = fs::read(dir.path().join("key.der")).unwrap();
    let part = |marker: &[u8]| {
        let at = der
            .windows(marker.len())
            .position(|window| window == marker)
            .unwrap();
        let length = usize::from(u16::from_be_bytes([
            marker[marker.len() - 2],
            marker[marker.len() - 1],
        ]));
        der[at + marker.len()..][..length].to_vec()
    };
    let (public, private) = (part(&[4, 0x82, 1, 0x18]), {
        let rest = &der[der
            .windows(4)
            .position(|w| w == [4, 0x82, 1, 0x18])
            .unwrap()
            + 4
            + 0x118..];
        rest[rest.len() - usize::from(rest[2])..].to_vec()
    });
    fs::write(dir.path().join("key.pub"), public).unwrap();
    fs::write(dir.path().join("key.priv"), private).unwrap();
    run(
        &swtpm,
        dir.path(),
        "tpm2_createprimary -C o -G ecc256:aes128cfb -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt -c srk.ctx",
    );
    run(&swtpm, dir.path(), "tpm2_flushcontext -t");
    run(
        &swtpm,
        dir.path(),
        "tpm2_load -C srk.ctx -u key.pub -r key.priv -c key.ctx",
    );
    run(&swtpm, dir.path(), "tpm2_flushcontext -t");
    let read = run(&swtpm, dir.path(), "tpm2_readpublic -c key.ctx");
    let text = String::from_utf8(read.stdout).unwrap();
    assert!(
        text.contains("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n"),
        "{text}"
    );
    assert!(
        text.contains(
            &blob
                .public()
                .attributes()
                .bits()
                .to_string()
                .replace("263282", "0x40472")
        )
    );
}
