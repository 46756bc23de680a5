//! Responses from anywhere: read or refused, never a panic, never more than a frame.
#![cfg(target_os = "linux")]

use keybond_tpm::fuzzing;
use proptest::prelude::*;

fn frame(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(body.len() as u32 + 10).to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn good_responses_are_read() {
    // TPM2_Startup, TPM2_FlushContext.
    assert_eq!(fuzzing::response(&frame(0x8001, 0, &[])), 2);
    // TPM2_GetRandom.
    assert_eq!(fuzzing::response(&frame(0x8001, 0, &[0, 2, 7, 7])), 1);
    // TPM2_GetCapability with one handle, and with one property.
    assert_eq!(
        fuzzing::response(&frame(
            0x8001,
            0,
            &[0, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0, 0, 0]
        )),
        1
    );
    let property = [0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 5, 0x49, 0x42, 0x4d, 0];
    assert_eq!(fuzzing::response(&frame(0x8001, 0, &property)), 1);
}

#[test]
fn what_is_cut_short_or_too_long_is_refused() {
    let good = frame(0x8001, 0, &[0, 2, 7, 7]);
    for length in 0..good.len() {
        assert_eq!(fuzzing::response(&good[..length]), 0, "{length}");
    }
    assert_eq!(fuzzing::response(&frame(0x8001, 0, &[0, 2, 7, 7, 7])), 0);
    assert_eq!(
        fuzzing::response(&frame(0x8001, 0, &[0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])),
        0
    );
    assert_eq!(fuzzing::response(&frame(0x8001, 0, &vec![0; 4087])), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzzing::response(&bytes);
        fuzzing::key_file(&bytes);
    }

    #[test]
    fn any_body(
        sessions in any::<bool>(),
        code in prop_oneof![Just(0u32), any::<u32>()],
        body in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..600),
    ) {
        let successes = fuzzing::response(&frame(if sessions { 0x8002 } else { 0x8001 }, code, &body));
        prop_assert!(code == 0 || code == 0x100 || successes == 0);
    }

    /// The outermost lengths are right, so that what is inside is reached.
    #[test]
    fn any_parameters(
        handle in any::<bool>(),
        parameters in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..300),
    ) {
        let mut body = if handle { vec![0x80, 0, 0, 0] } else { vec![] };
        body.extend_from_slice(&(parameters.len() as u32).to_be_bytes());
        body.extend_from_slice(&parameters);
        body.extend_from_slice(&[0, 0, 1, 0, 0]);
        fuzzing::response(&frame(0x8002, 0, &body));
    }
}
