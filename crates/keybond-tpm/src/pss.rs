//! EMSA-PSS (RFC 8017 §9.1.1) in software, for chips whose TPM2_Sign cannot.

use aws_lc_rs::digest::{Context, digest};

use crate::scheme::Hash;

/// Encodes a digest for a modulus of `bits` bits (a multiple of 8), with MGF1 over the same hash and the salt
/// given. `None` if the modulus is too small or the digest has the wrong length.
pub(crate) fn encode(hash: Hash, digest: &[u8], salt: &[u8], bits: usize) -> Option<Vec<u8>> {
    let length = bits.div_ceil(8);
    // The leading bit of the block is 0, so that it is below the modulus.
    let block = length.checked_sub(hash.len() + 1)?;
    let padding = block.checked_sub(salt.len() + 1)?;
    if digest.len() != hash.len() || !bits.is_multiple_of(8) {
        return None;
    }
    let mut context = Context::new(hash.algorithm());
    context.update(&[0; 8]);
    context.update(digest);
    context.update(salt);
    let seed = context.finish();

    let mut encoded = vec![0; padding];
    encoded.push(1);
    encoded.extend_from_slice(salt);
    for (byte, mask) in encoded.iter_mut().zip(mask(hash, seed.as_ref(), block)) {
        *byte ^= mask;
    }
    encoded[0] &= 0x7f;
    encoded.extend_from_slice(seed.as_ref());
    encoded.push(0xbc);
    Some(encoded)
}

/// MGF1 (RFC 8017 B.2.1).
fn mask(hash: Hash, seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0u32..).flat_map(|counter| {
        let input = [seed, &counter.to_be_bytes()].concat();
        digest(hash.algorithm(), &input).as_ref().to_vec()
    });
    blocks.take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    /// OpenSSL's signatures over `keybond` with an RSA-2048 key, opened with the public key: the salt it chose, and
    /// the SHA-256 of the whole encoded block.
    #[test]
    fn blocks_are_those_of_openssl() {
        for (hash, salt, block) in [
            (
                Hash::Sha256,
                "2dcf66b99c432cf1e883a446b0ae9e382eae1849173ff6e0cf99ad29dd5ec60f",
                "36dcb7377b6003c8580a3cc50ca21ab536e3cdf3c599714f50ff41b9c3eb030c",
            ),
            (
                Hash::Sha384,
                "e2a29c6ff8f7193a7876c946fd8deeb75467f9eae9bf8f6f22ff24448b3bf53b379a7a99a20b7150746ee49e4b505dc2",
                "5facfb375ffe4d147f1c844730e6d1a8add64822998db4b14197b976fffd7b91",
            ),
            (
                Hash::Sha512,
                "62f4d1c7cad070ec472ec1bcadd41ab16f209e7290ea7d1a0e951a6979805e5ad28800b92e15ba455e5c5fb2229b51d1af7d3d70a0423e5f21cca462967f0f51",
                "c240a628f2871581aaf299cd755b44479098ac5fb040b7a6b45e868d0a5782dc",
            ),
        ] {
            let encoded = encode(hash, &hash.digest(b"keybond"), &bytes(salt), 2048).unwrap();
            assert_eq!(encoded.len(), 256);
            assert_eq!(Hash::Sha256.digest(&encoded), bytes(block), "{hash:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(encode(Hash::Sha256, &[0; 31], &[0; 32], 2048).is_none());
        // 2 + hash + salt is the least (RFC 8017 §9.1.1 step 3).
        assert!(encode(Hash::Sha512, &[0; 64], &[0; 64], 8 * 130).is_some());
        assert!(encode(Hash::Sha512, &[0; 64], &[0; 64], 8 * 129).is_none());
        assert!(encode(Hash::Sha512, &[0; 64], &[0; 64], 0).is_none());
    }
}
