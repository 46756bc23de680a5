//! Entry points for fuzzers. Not an interface.

/// Reads these bytes as the record of a TPM's key. Tells whether they were taken.
pub fn record(bytes: &[u8]) -> bool {
    crate::store::record::fuzz(bytes)
}
