//! Records (RFC 5246, 6.2) and their protection by AES-GCM (RFC 5288).

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use super::alert::{Alert, Failure};

/// The most plaintext of one record.
pub(super) const FRAGMENT_LIMIT: usize = 1 << 14;
/// Type, version and length.
const HEADER: usize = 5;
/// What AES-GCM adds: the explicit nonce and the tag.
const OVERHEAD: usize = 8 + 16;
/// TLS 1.2.
pub(super) const VERSION: [u8; 2] = [3, 3];

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ContentType {
    ChangeCipherSpec = 20,
    Alert = 21,
    Handshake = 22,
    ApplicationData = 23,
}

/// A record as it came, or after its protection was taken off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: ContentType,
    pub(super) fragment: Vec<u8>,
}

/// The protection of one direction.
pub(super) struct Sealer {
    key: LessSafeKey,
    salt: [u8; 4],
    sequence: u64,
}

impl Sealer {
    pub(super) fn new(key: UnboundKey, salt: [u8; 4]) -> Self {
        Self {
            key: LessSafeKey::new(key),
            salt,
            sequence: 0,
        }
    }

    /// The body of a protected record.
    pub(super) fn seal(&mut self, kind: ContentType, fragment: &[u8]) -> Result<Vec<u8>, Failure> {
        let failed = || Alert::InternalError.because("a record could not be protected");
        let explicit = self.sequence.to_be_bytes();
        let aad = self.aad(kind, fragment.len());
        let mut body = fragment.to_vec();
        self.key
            .seal_in_place_append_tag(self.nonce(explicit), aad, &mut body)
            .map_err(|_| failed())?;
        self.advance()?;
        Ok([&explicit, &*body].concat())
    }

    /// The content of a protected record.
    pub(super) fn open(&mut self, kind: ContentType, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let bad = || Alert::BadRecordMac.because("a record is not what was protected");
        let length = body.len().checked_sub(OVERHEAD).ok_or_else(bad)?;
        let (explicit, sealed) = body.split_first_chunk::<8>().ok_or_else(bad)?;
        let aad = self.aad(kind, length);
        let mut fragment = sealed.to_vec();
        self.key
            .open_in_place(self.nonce(*explicit), aad, &mut fragment)
            .map_err(|_| bad())?;
        fragment.truncate(length);
        self.advance()?;
        Ok(fragment)
    }

    fn nonce(&self, explicit: [u8; 8]) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&explicit);
        Nonce::assume_unique_for_key(nonce)
    }

    fn aad(&self, kind: ContentType, length: usize) -> Aad<[u8; 13]> {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8] = kind as u8;
        aad[9..11].copy_from_slice(&VERSION);
        // Fragments are shorter than 2^16.
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        aad[11..].copy_from_slice(&length.to_be_bytes());
        Aad::from(aad)
    }

    fn advance(&mut self) -> Result<(), Failure> {
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| Alert::InternalError.because("the sequence numbers are used up"))?;
        Ok(())
    }
}

/// Takes the first record off what has arrived, if it is there in full.
///
/// `first`: whether nothing was received before, when clients may name an older version.
pub(super) fn take(
    buffer: &mut Vec<u8>,
    opener: Option<&mut Sealer>,
    first: bool,
) -> Result<Option<Record>, Failure> {
    let Some(&[kind, major, minor, high, low]) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let kind = match kind {
        20 => ContentType::ChangeCipherSpec,
        21 => ContentType::Alert,
        22 => ContentType::Handshake,
        23 => ContentType::ApplicationData,
        _ => return Err(Alert::UnexpectedMessage.because("a record of unknown type")),
    };
    if major != 3 || (minor != 3 && !first) {
        return Err(Alert::ProtocolVersion.because("a record of another version"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    let limit = if opener.is_some() {
        FRAGMENT_LIMIT + OVERHEAD
    } else {
        FRAGMENT_LIMIT
    };
    if length > limit {
        return Err(Alert::RecordOverflow.because("a record that is too long"));
    }
    let end = HEADER + length;
    if buffer.len() < end {
        return Ok(None);
    }
    let body = &buffer[HEADER..end];
    let fragment = match opener {
        Some(opener) => opener.open(kind, body)?,
        None => body.to_vec(),
    };
    buffer.drain(..end);
    if fragment.is_empty() && kind != ContentType::ApplicationData {
        return Err(Alert::UnexpectedMessage.because("an empty record"));
    }
    Ok(Some(Record { kind, fragment }))
}

/// Writes content as records.
pub(super) fn put(
    output: &mut Vec<u8>,
    mut sealer: Option<&mut Sealer>,
    kind: ContentType,
    content: &[u8],
) -> Result<(), Failure> {
    for fragment in content.chunks(FRAGMENT_LIMIT) {
        let body = match sealer.as_deref_mut() {
            Some(sealer) => sealer.seal(kind, fragment)?,
            None => fragment.to_vec(),
        };
        output.push(kind as u8);
        output.extend_from_slice(&VERSION);
        output.extend_from_slice(&super::codec::vector(2, &body));
    }
    Ok(())
}
