//! Certificate and key belong together, or there is no identity.

use keybond_keys::HashAlgorithm;
use keybond_tls::ClientIdentity;

use crate::pki::{Pki, memory_key};

#[tokio::test]
async fn an_identity_knows_the_hash_of_its_certificate() {
    let pki = Pki::new();
    let key = memory_key().await;
    let leaf = pki.certify(&key);
    let chain = vec![leaf.clone(), pki.ca_der.clone()];
    let identity = ClientIdentity::new(chain, key).unwrap();
    assert_eq!(
        identity.x5t_s256().as_slice(),
        HashAlgorithm::Sha256.digest(&leaf)
    );
    assert_eq!(identity.chain().len(), 2);
}

#[tokio::test]
async fn what_does_not_belong_together_is_refused() {
    let pki = Pki::new();
    let key = memory_key().await;
    let leaf = pki.certify(&key);
    let of_another_key = pki.certify(&*memory_key().await);
    // The right public key within the wrong certificate's bytes proves nothing.
    let mut garnished = of_another_key.clone();
    garnished.extend_from_slice(key.public_key().spki_der());
    for (chain, problem) in [
        (vec![], "is empty"),
        (
            vec![of_another_key.clone(), leaf.clone()],
            "for another key",
        ),
        (vec![garnished], "certificate 1 of the chain cannot be read"),
        (
            vec![leaf.clone(), vec![1, 2, 3]],
            "certificate 2 of the chain cannot be read",
        ),
        (
            vec![leaf[..leaf.len() - 1].to_vec()],
            "certificate 1 of the chain cannot be read",
        ),
    ] {
        let error = ClientIdentity::new(chain, key.clone()).unwrap_err();
        assert_eq!(error.code(), "tls_client_identity_invalid");
        assert!(error.to_string().contains(problem), "{error}");
    }
}
