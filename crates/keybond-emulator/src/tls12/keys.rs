//! Cipher suites, the pseudo-random function, and the secrets of a session (RFC 5246, 5, 6.3, 8.1).

use aws_lc_rs::{
    aead, agreement, constant_time, digest, hmac,
    rand::{self, SystemRandom},
};

use super::{
    alert::{Alert, Failure},
    record::Sealer,
};

/// A cipher suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suite {
    Aes128GcmSha256,
    Aes256GcmSha384,
}

impl Suite {
    /// The server's preference.
    pub(super) const ALL: [Self; 2] = [Self::Aes128GcmSha256, Self::Aes256GcmSha384];

    /// RFC 5289, 3.2.
    pub(super) const fn number(self) -> u16 {
        match self {
            Self::Aes128GcmSha256 => 0xc02f,
            Self::Aes256GcmSha384 => 0xc030,
        }
    }

    fn cipher(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128GcmSha256 => &aead::AES_128_GCM,
            Self::Aes256GcmSha384 => &aead::AES_256_GCM,
        }
    }

    pub(super) fn hash(self, message: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Self::Aes128GcmSha256 => &digest::SHA256,
            Self::Aes256GcmSha384 => &digest::SHA384,
        };
        digest::digest(algorithm, message)
    }

    /// `PRF(secret, label, seed)` (RFC 5246, 5).
    fn prf(self, secret: &[u8], label: &str, seed: &[u8], length: usize) -> Vec<u8> {
        let algorithm = match self {
            Self::Aes128GcmSha256 => hmac::HMAC_SHA256,
            Self::Aes256GcmSha384 => hmac::HMAC_SHA384,
        };
        let key = hmac::Key::new(algorithm, secret);
        let seed = [label.as_bytes(), seed].concat();
        let mut output = Vec::with_capacity(length + 64);
        let mut a = hmac::sign(&key, &seed);
        while output.len() < length {
            let mut block = hmac::Context::with_key(&key);
            block.update(a.as_ref());
            block.update(&seed);
            output.extend_from_slice(block.sign().as_ref());
            a = hmac::sign(&key, a.as_ref());
        }
        output.truncate(length);
        output
    }
}

/// A key agreement group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    X25519,
    P256,
}

impl Group {
    /// The server's preference.
    pub(super) const ALL: [Self; 2] = [Self::X25519, Self::P256];

    /// RFC 8422, 5.1.1.
    pub(super) const fn number(self) -> u16 {
        match self {
            Self::X25519 => 29,
            Self::P256 => 23,
        }
    }

    fn algorithm(self) -> &'static agreement::Algorithm {
        match self {
            Self::X25519 => &agreement::X25519,
            Self::P256 => &agreement::ECDH_P256,
        }
    }
}

/// One half of a key agreement.
pub(super) struct Ephemeral {
    group: Group,
    key: agreement::PrivateKey,
    pub(super) public: Vec<u8>,
}

impl Ephemeral {
    pub(super) fn new(group: Group) -> Result<Self, Failure> {
        let failed = || Alert::InternalError.because("no ephemeral key could be made");
        let key = agreement::PrivateKey::generate(group.algorithm()).map_err(|_| failed())?;
        let public = key.compute_public_key().map_err(|_| failed())?;
        let public = public.as_ref().to_vec();
        Ok(Self { group, key, public })
    }

    /// The premaster secret with the other half.
    pub(super) fn agree(&self, peer: &[u8]) -> Result<Vec<u8>, Failure> {
        let bad = Alert::IllegalParameter.because("the key share is no point of the group");
        // Compressed points are not to be used (RFC 8422, 5.4.1).
        if self.group == Group::P256 && peer.first() != Some(&4) {
            return Err(bad);
        }
        agreement::agree(
            &self.key,
            agreement::UnparsedPublicKey::new(self.group.algorithm(), peer),
            bad,
            |secret| Ok(secret.to_vec()),
        )
    }
}

/// The secrets of one session, and what was random in it.
pub(super) struct Secrets {
    suite: Suite,
    client_random: [u8; 32],
    server_random: [u8; 32],
    master: Vec<u8>,
}

/// From whom a record or a Finished comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Secrets {
    /// `session_hash`: that of all messages so far, if the extended master secret was agreed on
    /// (RFC 7627, 4).
    pub(super) fn new(
        suite: Suite,
        client_random: [u8; 32],
        server_random: [u8; 32],
        premaster: &[u8],
        session_hash: Option<&[u8]>,
    ) -> Self {
        let master = match session_hash {
            Some(hash) => suite.prf(premaster, "extended master secret", hash, 48),
            None => {
                let seed = [client_random, server_random].concat();
                suite.prf(premaster, "master secret", &seed, 48)
            }
        };
        Self {
            suite,
            client_random,
            server_random,
            master,
        }
    }

    /// What protects records of the client and of the server.
    pub(super) fn sealers(&self) -> Result<(Sealer, Sealer), Failure> {
        let cipher = self.suite.cipher();
        let seed = [self.server_random, self.client_random].concat();
        let length = cipher.key_len();
        let block = self
            .suite
            .prf(&self.master, "key expansion", &seed, 2 * length + 8);
        let (keys, salts) = block.split_at(2 * length);
        let sealer = |key: &[u8], salt: &[u8]| {
            aead::UnboundKey::new(cipher, key)
                .map(|key| Sealer::new(key, [salt[0], salt[1], salt[2], salt[3]]))
                .map_err(|_| Alert::InternalError.because("no cipher could be made"))
        };
        Ok((
            sealer(&keys[..length], &salts[..4])?,
            sealer(&keys[length..], &salts[4..])?,
        ))
    }

    /// `verify_data` of a Finished over these messages.
    pub(super) fn finished(&self, side: Side, transcript: &[u8]) -> [u8; 12] {
        let label = match side {
            Side::Client => "client finished",
            Side::Server => "server finished",
        };
        let hash = self.suite.hash(transcript);
        let data = self.suite.prf(&self.master, label, hash.as_ref(), 12);
        let mut verify_data = [0; 12];
        verify_data.copy_from_slice(&data);
        verify_data
    }
}

/// Whether two secrets are the same, without telling where they differ.
pub(super) fn same(left: &[u8], right: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// 32 random bytes.
pub(super) fn random() -> Result<[u8; 32], Failure> {
    rand::generate(&SystemRandom::new())
        .map(rand::Random::expose)
        .map_err(|_| Alert::InternalError.because("no random bytes could be drawn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test vector for P_SHA256 (IETF TLS list, 2009).
    #[test]
    fn the_pseudo_random_function_is_the_published_one() {
        let secret = b"\x9b\xbe\x43\x6b\xa9\x40\xf0\x17\xb1\x76\x52\x84\x9a\x71\xdb\x35";
        let seed = b"\xa0\xba\x9f\x93\x6c\xda\x31\x18\x27\xa6\xf7\x96\xff\xd5\x19\x8c";
        let output = Suite::Aes128GcmSha256.prf(secret, "test label", seed, 100);
        assert_eq!(
            output[..16],
            *b"\xe3\xf2\x29\xba\x72\x7b\xe1\x7b\x8d\x12\x26\x20\x55\x7c\xd4\x53"
        );
        assert_eq!(output[96..], *b"\x87\x34\x7b\x66");
    }

    #[test]
    fn both_halves_agree_and_points_off_the_group_are_refused() {
        for group in Group::ALL {
            let (one, other) = (
                Ephemeral::new(group).unwrap(),
                Ephemeral::new(group).unwrap(),
            );
            assert_eq!(
                one.agree(&other.public).unwrap(),
                other.agree(&one.public).unwrap()
            );
            for share in [&[][..], &[0; 32], &[4; 65], &one.public[1..]] {
                assert!(one.agree(share).is_err(), "{group:?}");
            }
        }
    }
}
