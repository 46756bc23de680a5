use aws_lc_rs::rsa::KeySize;

use super::*;

#[path = "../tests/support/csr.rs"]
#[allow(dead_code, unreachable_pub)]
mod client;

use client::{ClientKey, Request, attribute, cn, cuid, dc, mgf1, pss, sha_256, tlv};

const CLIENT: &str = "a0000000-0000-4000-8000-00000000c001";
const TENANT: &str = "a0000000-0000-4000-8000-00000000e001";
const CUID: &str = r#"{"vmId":"a0000000-0000-4000-8000-00000000f001"}"#;

fn rules() -> CsrRules {
    CsrRules {
        client_id: CLIENT.into(),
        tenant_id: TENANT.into(),
        cu_id: CUID.into(),
    }
}

fn good() -> Request {
    Request::new(CLIENT, TENANT, CUID)
}

#[test]
fn the_accepted_form_is_accepted_and_its_key_handed_on() {
    let key = ClientKey::new();
    let csr = Csr::parse(&good().sign(&key), &rules()).unwrap();
    assert_eq!(csr.public_key, key.public_key());

    let both = r#"{"vmId":"a","vmssId":"b"}"#;
    let rules = CsrRules {
        cu_id: both.into(),
        ..rules()
    };
    Csr::parse(&Request::new(CLIENT, TENANT, both).sign(&key), &rules).unwrap();
}

#[test]
fn every_truncation_and_every_changed_byte_is_refused_inside_the_request() {
    let der = good().sign(&ClientKey::new());
    for length in 0..der.len() {
        let refusal = Csr::parse(&der[..length], &rules()).unwrap_err();
        assert!(refusal.offset <= length, "{length}: {refusal}");
    }
    let mut lengths = Vec::new();
    find_lengths(&der, 0..der.len(), &mut lengths);
    for at in 0..der.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = der.clone();
            changed[at] ^= flip;
            let refusal = Csr::parse(&changed, &rules()).unwrap_err();
            assert!(refusal.offset < der.len(), "{at}: {refusal}");
            // A wrong length may show only by what it encloses, a wrong key by what it signed.
            // Everything else is refused where it differs.
            assert!(
                refusal.offset == at || lengths.contains(&at) || refusal.field == "signature",
                "{at}: {refusal}"
            );
        }
    }
    let longer = [der, vec![0]].concat();
    assert_eq!(
        Csr::parse(&longer, &rules()).unwrap_err().offset,
        longer.len() - 1
    );
}

/// Where the length bytes of all values are.
fn find_lengths(der: &[u8], range: std::ops::Range<usize>, lengths: &mut Vec<usize>) {
    let mut at = range.start;
    while at < range.end {
        let tag = der[at];
        let long = usize::from(der[at + 1]).saturating_sub(0x80);
        let content = at + 2 + long;
        lengths.extend(at + 1..content);
        let length = match long {
            0 => usize::from(der[at + 1]),
            _ => der[at + 2..content]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        if tag & 0x20 != 0 {
            find_lengths(der, content..content + length, lengths);
        } else if tag == 3 && length == 271 {
            // The BIT STRING of the public key holds DER again.
            find_lengths(der, content + 1..content + length, lengths);
        }
        at = content + length;
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..20_000 {
        let mut input = Vec::with_capacity(64);
        for _ in 0..(state % 64) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Tags and lengths that lead on, more often than chance would have it.
            input.push(
                *[0x30, 0x31, 0x02, 0x06, 0x82, state as u8]
                    .get((state >> 32) as usize % 6)
                    .unwrap(),
            );
        }
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        assert!(Csr::parse(&input, &rules()).is_err());
    }
}

/// What PKI libraries emit by default, and other near misses: each refused at its first byte that
/// differs.
#[test]
fn near_misses_are_refused_where_they_differ() {
    let key = ClientKey::new();
    let null = [5, 0];
    let hash = tlv(0xa0, &sha_256(&[]));
    let mask = tlv(0xa1, &mgf1(&sha_256(&[])));
    let salt = tlv(0xa2, &tlv(2, &[32]));
    let change = |edit: &dyn Fn(&mut Request)| {
        let mut request = good();
        edit(&mut request);
        request
    };
    let cases: Vec<(Request, &str, &str)> = vec![
        (
            change(&|r| r.version = 1),
            "version 0",
            "expected 0x00, found 0x01",
        ),
        (
            change(&|r| r.names.reverse()),
            "subject, first name: DC=<tenant id>",
            "expected 0x0a, found 0x03",
        ),
        (
            change(&|r| r.names[0] = dc(0x13, TENANT)),
            "subject, first name: DC=<tenant id>",
            "expected 0x16 (IA5String), found 0x13",
        ),
        (
            change(&|r| r.names[0] = dc(0x16, "b0000000-0000-4000-8000-00000000e001")),
            "subject, first name: DC=<tenant id>",
            "expected 0x61 of \"a0000000-0000-4000-8000-00000000e001\", found 0x62",
        ),
        (
            change(&|r| r.names[1] = cn(0x16, CLIENT)),
            "subject, second name: CN=<client id>",
            "expected 0x13 (PrintableString; UTF8String also accepted), found 0x16",
        ),
        (
            change(&|r| r.names[1] = cn(0x13, "a0000000-0000-4000-8000-00000000c00")),
            "subject, second name: CN=<client id>",
            "expected 0x31 of \"a0000000-0000-4000-8000-00000000c001\"",
        ),
        (
            change(&|r| r.names.push(cn(0x13, "x"))),
            "subject",
            "expected nothing more, found 0x31",
        ),
        (
            change(&|r| r.attributes = vec![]),
            "attribute 1.3.6.1.4.1.311.90.2.10 (CUID)",
            "expected 0x30 (SEQUENCE)",
        ),
        (
            change(&|r| {
                // challengePassword, of an old draft.
                r.attributes = vec![attribute(
                    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07",
                    0x0c,
                    CUID,
                )];
            }),
            "attribute 1.3.6.1.4.1.311.90.2.10 (CUID)",
            "expected 0x0a, found 0x09",
        ),
        (
            change(&|r| r.attributes[0] = cuid(0x13, CUID)),
            "attribute 1.3.6.1.4.1.311.90.2.10 (CUID)",
            "expected 0x0c (UTF8String), found 0x13",
        ),
        (
            change(&|r| {
                r.attributes[0] = cuid(
                    0x0c,
                    r#"{"vmId":"a0000000-0000-4000-8000-00000000f001","vmssId":""}"#,
                );
            }),
            "attribute CUID, compact JSON of cuId",
            "expected 0x7d of",
        ),
        (
            change(&|r| r.attributes.push(cuid(0x0c, CUID))),
            "attributes, exactly one",
            "expected nothing more, found 0x30",
        ),
        (
            change(&|r| {
                // sha256WithRSAEncryption
                r.algorithm = tlv(
                    0x30,
                    b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00",
                );
            }),
            "signatureAlgorithm, id-RSASSA-PSS",
            "expected 0x0a, found 0x0b",
        ),
        (
            change(&|r| {
                r.algorithm = pss(&[tlv(0xa0, &sha_256(&null)), mask.clone(), salt.clone()]);
            }),
            "RSASSA-PSS hash: SHA-256 without NULL",
            "expected nothing more, found 0x05",
        ),
        (
            change(&|r| {
                r.algorithm = pss(&[
                    hash.clone(),
                    tlv(0xa1, &mgf1(&sha_256(&null))),
                    salt.clone(),
                ]);
            }),
            "RSASSA-PSS mask: MGF1 over SHA-256 without NULL",
            "expected nothing more, found 0x05",
        ),
        (
            change(&|r| {
                r.algorithm = pss(&[hash.clone(), mask.clone(), tlv(0xa2, &tlv(2, &[20]))]);
            }),
            "RSASSA-PSS salt length 32",
            "expected 0x20, found 0x14",
        ),
        (
            change(&|r| {
                let trailer = tlv(0xa3, &tlv(2, &[1]));
                r.algorithm = pss(&[hash.clone(), mask.clone(), salt.clone(), trailer]);
            }),
            "RSASSA-PSS parameters, trailerField omitted",
            "expected nothing more, found 0xa3",
        ),
    ];
    for (request, field, expected) in cases {
        let der = request.sign(&key);
        let refusal = Csr::parse(&der, &rules()).unwrap_err();
        let said = refusal.to_string();
        assert_eq!(refusal.field, field, "{said}");
        assert!(said.contains(expected), "{said}");
        if let Some(found) = refusal.found {
            assert_eq!(der[refusal.offset], found, "{said}");
        }
    }
}

#[test]
fn only_rsa_2048_is_accepted() {
    for size in [KeySize::Rsa3072, KeySize::Rsa4096] {
        let refusal = Csr::parse(&good().sign(&ClientKey::with_size(size)), &rules()).unwrap_err();
        assert_eq!(refusal.field, "modulus, exactly 2048 bits", "{refusal}");
    }
}

#[test]
fn the_signature_must_be_by_the_key_in_the_request() {
    let (key, other) = (ClientKey::new(), ClientKey::new());
    let der = good().with_signature(&key, &other.sign(&good().info(&key)));
    let from = der.len() - 256;
    let refusal = Csr::parse(&der, &rules()).unwrap_err();
    assert_eq!((refusal.offset, refusal.field), (from, "signature"));
}
