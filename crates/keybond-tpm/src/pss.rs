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
