//! `BCRYPT_RSAKEY_BLOB`, the form in which CNG gives public keys away (`bcrypt.h`).

/// An RSA public key, big endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RsaPublic {
    /// The modulus.
    pub modulus: Vec<u8>,
    /// The public exponent.
    pub exponent: Vec<u8>,
}

/// A key blob that is not laid out as documented; names the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RSAPUBLICBLOB: unexpected {0}")]
pub struct InvalidBlob(&'static str);

impl RsaPublic {
    /// Reads an `RSAPUBLICBLOB`: six little-endian DWORDs (magic, bits, length of exponent, of modulus, 0, 0),
    /// then the exponent and the modulus, big endian.
    ///
    /// # Errors
    /// [`InvalidBlob`] names the part that is not as documented.
    pub fn from_blob(blob: &[u8]) -> Result<Self, InvalidBlob> {
        const MAGIC: u32 = u32::from_le_bytes(*b"RSA1");
        let (header, body) = blob.split_first_chunk::<24>().ok_or(InvalidBlob("end"))?;
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(header.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let [magic, bits, exponent_len, modulus_len, _, _] = words;
        if magic != MAGIC {
            return Err(InvalidBlob("magic"));
        }
        let (exponent, modulus) = body
            .split_at_checked(exponent_len as usize)
            .ok_or(InvalidBlob("length of the exponent"))?;
        if modulus.len() != modulus_len as usize {
            return Err(InvalidBlob("length of the modulus"));
        }
        let top = modulus.first().ok_or(InvalidBlob("modulus (empty)"))?;
        if modulus.len() * 8 - top.leading_zeros() as usize != bits as usize || exponent.is_empty()
        {
            return Err(InvalidBlob("size in bits"));
        }
        Ok(Self {
            modulus: modulus.to_vec(),
            exponent: exponent.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> Vec<u8> {
        let words = [0x3141_5352_u32, 16, 3, 2, 0, 0];
        let mut blob: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        blob.extend([1, 0, 1, 0x80, 0x01]);
        blob
    }

    #[test]
    fn a_documented_blob_is_read() {
        let key = RsaPublic::from_blob(&blob()).unwrap();
        assert_eq!((key.exponent, key.modulus), (vec![1, 0, 1], vec![0x80, 1]));
    }

    #[test]
    fn every_other_length_and_every_changed_header_byte_is_refused() {
        let good = blob();
        for len in 0..good.len() {
            assert!(RsaPublic::from_blob(&good[..len]).is_err(), "{len} bytes");
        }
        for at in 0..16 {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(RsaPublic::from_blob(&bad).is_err(), "byte {at}");
        }
        assert!(RsaPublic::from_blob(&[good, vec![0]].concat()).is_err());
    }
}
