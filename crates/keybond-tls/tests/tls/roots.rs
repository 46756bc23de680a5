//! Trust roots from files, and clear words when a file is not what it should be.

use keybond_tls::{S2nConnector, TrustRoots};

use crate::pki::Pki;

#[test]
fn roots_are_added_once() {
    let pki = Pki::new();
    let other = Pki::named("another authority");
    let mut roots = TrustRoots::from_pem(&pki.ca_pem).unwrap();
    let both = pki.file(
        "both.pem",
        &format!("# ours\n{}\n{}", pki.ca_pem, other.ca_pem),
    );
    roots
        .add_pem_file(&both)
        .unwrap()
        .add_pem(&other.ca_pem)
        .unwrap();
    assert_eq!(roots.len(), 2);
    assert!(roots.iter().any(|der| der == other.ca_der));
}

#[test]
fn a_file_that_does_not_do_is_named_with_its_problem() {
    let pki = Pki::new();
    let damaged = pki.ca_pem.replacen("MII", "AII", 1);
    let cut = pki.ca_pem.split_at(200).0.to_owned();
    let key = pki.server.key.serialize_pem();
    for (name, content, problem) in [
        ("empty.pem", "", "no certificate in it"),
        ("key.pem", key.as_str(), "no certificate in it"),
        (
            "damaged.pem",
            damaged.as_str(),
            "certificate 1 cannot be read",
        ),
        ("cut.pem", cut.as_str(), "has no end"),
    ] {
        let path = pki.file(name, content);
        let mut roots = TrustRoots::empty();
        let error = roots.add_pem_file(&path).unwrap_err();
        assert_eq!(error.code(), "tls_trust_roots_invalid");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(problem), "{text}");
        assert!(roots.is_empty());
    }
    let missing = pki.file("x", "").with_file_name("missing.pem");
    let error = TrustRoots::empty().add_pem_file(&missing).unwrap_err();
    assert!(
        error.to_string().contains("missing.pem: No such file"),
        "{error}"
    );
    assert!(error.remedy().contains("KEYBOND_CA_FILE"));
}

#[test]
fn the_systems_roots_make_a_connector() {
    let roots = TrustRoots::system().unwrap();
    S2nConnector::new(&roots).unwrap();
}
