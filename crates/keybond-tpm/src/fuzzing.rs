//! Entry points for fuzzers: whatever comes in, nothing panics and nothing grows without bound. Not an interface.

use std::time::{Duration, Instant};

use crate::{
    commands,
    connection::Connection,
    keyfile::KeyBlob,
    public::RsaPublic,
    scheme::{Hash, Scheme},
    templates,
    transport::{Fault, Transport},
    wire::MAX_FRAME,
};

/// Answers every command with the same bytes.
struct Parrot(Vec<u8>);

impl Transport for Parrot {
    fn send(&mut self, _: &[u8], _: Instant) -> Result<(), Fault> {
        Ok(())
    }

    fn receive(&mut self, _: Instant) -> Result<Vec<u8>, Fault> {
        Ok(self.0.clone())
    }
}

/// Has every command read these bytes as its response. Tells how many took them for a success.
pub fn response(bytes: &[u8]) -> usize {
    // No time is left, so that codes that ask to send again do not.
    let past = Instant::now() - Duration::from_secs(1);
    let connect = || Connection::over(Box::new(Parrot(bytes.to_vec())), past);
    let scheme = Scheme::Pss(Hash::Sha256);
    let pin = b"pin";
    let results = [
        connect().startup().is_ok(),
        connect()
            .random(8)
            .is_ok_and(|random| random.len() <= MAX_FRAME),
        connect()
            .properties(0x100)
            .is_ok_and(|pairs| pairs.len() <= MAX_FRAME / 8),
        connect()
            .handles(0x8000_0000)
            .is_ok_and(|handles| handles.len() <= MAX_FRAME / 4),
        connect()
            .create_primary(commands::OWNER, &templates::storage_root())
            .is_ok(),
        connect()
            .create(1, pin, &templates::signing_key(false, true))
            .is_ok(),
        connect().read_public(1).is_ok(),
        connect().sign(1, pin, scheme, &[0; 32]).is_ok(),
        connect().raw_rsa(1, pin, &[0; 256]).is_ok(),
        connect().certify(1, pin, 2, &[0; 32]).is_ok(),
        connect().policy_for_duplicate().is_ok(),
        connect().flush(1).is_ok(),
    ];
    results.into_iter().filter(|success| *success).count()
}

/// Reads these bytes as a key file, and as a public area. Tells whether the file was taken.
pub fn key_file(bytes: &[u8]) -> bool {
    let _ = RsaPublic::parse("fuzzing", bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(blob) = KeyBlob::from_pem(text) else {
        return false;
    };
    assert_eq!(KeyBlob::from_pem(&blob.to_pem()).ok().as_ref(), Some(&blob));
    true
}
