//! What the tests share: a TPM, a key, verification by others than the code under test.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use keybond_testkit::Swtpm;
use keybond_tpm::{Hash, KeyRequest, LoadedKey, RsaPublic, Scheme, Tpm, TpmOptions};

pub(crate) fn open(address: &str) -> Tpm {
    Tpm::open(&address.parse().unwrap(), &TpmOptions::default()).unwrap()
}

pub(crate) fn bed() -> (Swtpm, Tpm) {
    let swtpm = Swtpm::start().unwrap();
    let tpm = open(&swtpm.address());
    (swtpm, tpm)
}

pub(crate) fn new_key(tpm: &Tpm) -> LoadedKey {
    let blob = tpm.create_key(&KeyRequest::default()).unwrap();
    tpm.load(&blob).unwrap()
}

/// Signs with the key, verifies with aws-lc, which accepts no PSS salt but one as long as the hash.
pub(crate) fn assert_signs(key: &LoadedKey, scheme: Scheme) {
    let message = b"the message";
    let signature = key
        .sign_digest(scheme, &scheme.hash().digest(message))
        .unwrap();
    assert!(
        verifies(key.public(), scheme, message, &signature),
        "{scheme}"
    );
    assert!(
        !verifies(key.public(), scheme, b"another", &signature),
        "{scheme}"
    );
}

pub(crate) fn verifies(
    public: &RsaPublic,
    scheme: Scheme,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let algorithm: &'static dyn VerificationAlgorithm = match scheme {
        Scheme::Pkcs1(Hash::Sha256) => &RSA_PKCS1_2048_8192_SHA256,
        Scheme::Pkcs1(Hash::Sha384) => &RSA_PKCS1_2048_8192_SHA384,
        Scheme::Pkcs1(Hash::Sha512) => &RSA_PKCS1_2048_8192_SHA512,
        Scheme::Pss(Hash::Sha256) => &RSA_PSS_2048_8192_SHA256,
        Scheme::Pss(Hash::Sha384) => &RSA_PSS_2048_8192_SHA384,
        Scheme::Pss(Hash::Sha512) => &RSA_PSS_2048_8192_SHA512,
    };
    UnparsedPublicKey::new(algorithm, public.pkcs1_der())
        .verify(message, signature)
        .is_ok()
}

/// Asks the TPM itself for its transient objects (0x80), loaded sessions (0x02) and saved sessions (0x03), over
/// a connection of its own.
pub(crate) fn loaded(swtpm: &Swtpm) -> Vec<u32> {
    let mut stream = UnixStream::connect(swtpm.socket()).unwrap();
    let mut all = Vec::new();
    for first in [0x8000_0000u32, 0x0200_0000, 0x0300_0000] {
        let mut command = vec![0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 1];
        command.extend_from_slice(&first.to_be_bytes());
        command.extend_from_slice(&64u32.to_be_bytes());
        stream.write_all(&command).unwrap();
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
        assert_eq!(header[6..], [0; 4], "TPM2_GetCapability failed");
        let mut body = vec![0; length - 10];
        stream.read_exact(&mut body).unwrap();
        all.extend(
            body[9..]
                .chunks(4)
                .map(|h| u32::from_be_bytes(h.try_into().unwrap())),
        );
    }
    all
}

/// Runs a program against this TPM; it must be installed and succeed.
pub(crate) fn run(swtpm: &Swtpm, dir: &Path, line: &str) -> Output {
    let output = try_run(swtpm, dir, line);
    assert!(
        output.status.success(),
        "{line}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub(crate) fn try_run(swtpm: &Swtpm, dir: &Path, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    Command::new(program)
        .args(words)
        .current_dir(dir)
        .env("TPM2OPENSSL_TCTI", swtpm.tcti())
        .env("TPM2TOOLS_TCTI", swtpm.tcti())
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} must be installed (apt-get install tpm2-openssl tpm2-tools): {error}")
        })
}

/// How much later than its deadline a call may return on a machine that does other things too.
pub(crate) const SLACK: Duration = Duration::from_millis(250);

/// What `call` gives, which takes less than 50 ms at least once in five times: others use this machine too.
pub(crate) fn at_once<T>(mut call: impl FnMut() -> T) -> T {
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let result = call();
        took.push(began.elapsed());
        if took[took.len() - 1] < Duration::from_millis(50) {
            return result;
        }
    }
    panic!("never within 50 ms: {took:?}");
}
