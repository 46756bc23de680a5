//! Records as they lie in files: on Windows protected by DPAPI, so that only this user reads them back,
//! wherever the file was carried; elsewhere as they are. A record that was sealed for one purpose opens for no
//! other.

/// What a sealed certificate can be opened as.
pub(crate) const CERTIFICATE: &[u8] = b"keybond certificate record 1";

#[cfg(windows)]
pub(crate) fn seal(record: Vec<u8>, purpose: &[u8]) -> Result<Vec<u8>, String> {
    keybond_cng::protect(&record, purpose).map_err(|error| error.to_string())
}

#[cfg(windows)]
pub(crate) fn open(sealed: Vec<u8>, purpose: &[u8]) -> Result<Vec<u8>, String> {
    keybond_cng::unprotect(&sealed, purpose).map_err(|error| error.to_string())
}

#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub(crate) fn seal(record: Vec<u8>, _purpose: &[u8]) -> Result<Vec<u8>, String> {
    Ok(record)
}

#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub(crate) fn open(sealed: Vec<u8>, _purpose: &[u8]) -> Result<Vec<u8>, String> {
    Ok(sealed)
}

#[cfg(all(test, windows))]
mod tests {
    use super::{CERTIFICATE, open, seal};

    #[test]
    fn a_sealed_record_is_no_plain_text_and_opens_again() {
        let record = b"{ \"client_id\": \"x\" }".to_vec();
        let sealed = seal(record.clone(), CERTIFICATE).unwrap();
        assert!(!sealed.windows(9).any(|part| part == b"client_id"));
        assert_eq!(open(sealed.clone(), CERTIFICATE).unwrap(), record);
        assert!(open(sealed, b"another purpose").is_err());
        assert!(
            open(record, CERTIFICATE).is_err(),
            "a record that is not sealed"
        );
    }
}
