//! Records as they lie in files: on Windows protected by DPAPI, so that only this user reads them back,
//! wherever the file was carried; elsewhere as they are.

/// What a sealed record can be opened as, and nothing else.
#[cfg(windows)]
const PURPOSE: &[u8] = b"keybond certificate record 1";

#[cfg(windows)]
pub(super) fn seal(record: Vec<u8>) -> Result<Vec<u8>, String> {
    keybond_cng::protect(&record, PURPOSE).map_err(|error| error.to_string())
}

#[cfg(windows)]
pub(super) fn open(sealed: Vec<u8>) -> Result<Vec<u8>, String> {
    keybond_cng::unprotect(&sealed, PURPOSE).map_err(|error| error.to_string())
}

#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub(super) fn seal(record: Vec<u8>) -> Result<Vec<u8>, String> {
    Ok(record)
}

#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub(super) fn open(sealed: Vec<u8>) -> Result<Vec<u8>, String> {
    Ok(sealed)
}

#[cfg(all(test, windows))]
mod tests {
    #[test]
    fn a_sealed_record_is_no_plain_text_and_opens_again() {
        let record = b"{ \"client_id\": \"x\" }".to_vec();
        let sealed = super::seal(record.clone()).unwrap();
        assert!(!sealed.windows(9).any(|part| part == b"client_id"));
        assert_eq!(super::open(sealed).unwrap(), record);
        assert!(super::open(record).is_err(), "a record that is not sealed");
    }
}
