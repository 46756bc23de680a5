//! The machine, byte by byte, with a client that also does what it must not.

use super::{
    alert::{Alert, Failure},
    codec::{message, vector},
    connection::{CannotAsk, Connection},
    keys::{Group, Suite},
    record::ContentType,
    test_client::{CERTIFICATE, FINISHED, HELLO, KEY_EXCHANGE, TestClient, VERIFY, told, world},
};

/// Says everything as it should be.
fn honest(_: u8, body: Vec<u8>) -> Option<Vec<u8>> {
    Some(body)
}

fn content(server: &mut Connection) -> Vec<u8> {
    std::mem::take(server.content()).to_vec()
}

#[test]
fn every_combination_shakes_hands_renegotiates_and_carries_content() {
    for suite in Suite::ALL {
        for group in Group::ALL {
            for extended_master_secret in [true, false] {
                let mut client = TestClient::new();
                client.suite = suite;
                client.group = group;
                client.extended_master_secret = extended_master_secret;
                client.shake(&mut honest).unwrap();
                assert_eq!(client.server.certificate(), None);
                client.send(ContentType::ApplicationData, b"one").unwrap();
                assert!(client.server.send(&[7; 40_000]).unwrap());
                let mut received = Vec::new();
                while let Some(record) = client.record() {
                    assert_eq!(record.kind, ContentType::ApplicationData);
                    received.extend(record.fragment);
                }
                assert_eq!(received, [7; 40_000]);

                for round in 1..=2 {
                    client.server.renegotiate().unwrap();
                    assert!(!client.server.is_settled());
                    assert_eq!(client.server.renegotiate(), Err(CannotAsk::NotNow));
                    client.shake(&mut honest).unwrap();
                    assert!(client.server.is_settled());
                    assert_eq!(client.server.renegotiations(), round);
                    assert_eq!(client.server.certificate(), Some(&*world().certificate));
                }
                client.send(ContentType::ApplicationData, b"two").unwrap();
                assert_eq!(content(&mut client.server), b"onetwo");
            }
        }
    }
}

#[test]
fn content_in_flight_arrives_in_order() {
    let mut client = TestClient::connected();
    client.server.renegotiate().unwrap();
    client
        .send(ContentType::ApplicationData, b"before, ")
        .unwrap();
    client.content_before_change = b"while, ".to_vec();
    client.shake(&mut honest).unwrap();
    client.send(ContentType::ApplicationData, b"after").unwrap();
    assert_eq!(content(&mut client.server), b"before, while, after");
}

#[test]
fn content_under_keys_that_are_not_confirmed_is_refused() {
    let mut client = TestClient::connected();
    client.server.renegotiate().unwrap();
    client.content_after_change = b"too early".to_vec();
    let result = client.shake(&mut honest);
    assert_eq!(told(&mut client, result), Alert::UnexpectedMessage);
    for early in [&mut TestClient::new(), &mut TestClient::new()] {
        early.content_after_change = b"too early".to_vec();
        let result = early.shake(&mut honest);
        assert_eq!(told(early, result), Alert::UnexpectedMessage);
    }
}

#[test]
fn a_client_without_a_certificate_or_the_will_to_renegotiate_goes_on() {
    let mut client = TestClient::connected();
    client.certificate = None;
    client.server.renegotiate().unwrap();
    client.shake(&mut honest).unwrap();
    assert_eq!(
        (client.server.renegotiations(), client.server.certificate()),
        (1, None)
    );

    let mut client = TestClient::connected();
    client.server.renegotiate().unwrap();
    client.send(ContentType::Alert, &[1, 100]).unwrap();
    assert!(client.server.is_settled());
    assert_eq!(client.server.renegotiations(), 0);

    // A client that says nothing of RFC 5746 cannot be asked.
    let mut client = TestClient::new();
    let drop_info = |kind, mut body: Vec<u8>| {
        if kind == HELLO {
            // The last extension, of five bytes, is renegotiation_info.
            body.truncate(body.len() - 5);
            let at = 2 + 32 + 1 + 4 + 2;
            let length = u16::try_from(body.len() - at - 2).unwrap();
            body[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        Some(body)
    };
    client.shake(&mut { drop_info }).unwrap();
    assert_eq!(client.server.renegotiate(), Err(CannotAsk::NotSecure));
}

#[test]
fn only_the_server_may_ask() {
    let mut client = TestClient::connected();
    let hello = message(HELLO, &client.hello());
    client.send(ContentType::Handshake, &hello).unwrap();
    assert_eq!(client.last_alert(), Some([1, Alert::NoRenegotiation as u8]));
    client
        .send(ContentType::ApplicationData, b"goes on")
        .unwrap();
    assert_eq!(content(&mut client.server), b"goes on");
    // Not for ever.
    let result = (0..20).try_for_each(|_| client.send(ContentType::Handshake, &hello));
    assert_eq!(told(&mut client, result), Alert::UnexpectedMessage);
}

#[test]
fn a_hello_that_is_wrong_is_refused() {
    type Change = fn(&mut Vec<u8>);
    // Session id at 34, the suite at 37, compression at 40, extensions' length at 41, the group at 49.
    let cases: [(Change, Alert); 9] = [
        (|body| body[1] = 2, Alert::ProtocolVersion),
        (|body| body[40] = 1, Alert::IllegalParameter),
        (|body| body[38] = 0x13, Alert::HandshakeFailure),
        (|body| body.truncate(60), Alert::DecodeError),
        (|body| body.push(0), Alert::DecodeError),
        // supported_groups: only one that is unknown.
        (|body| body[50] = 24, Alert::HandshakeFailure),
        // The second extension becomes one of the first's kind.
        (|body| body[52] = 10, Alert::IllegalParameter),
        (|body| body[34] = 33, Alert::DecodeError),
        // supported_versions without TLS 1.2 in place of the last extension, renegotiation_info.
        (
            |body| {
                body.truncate(body.len() - 5);
                body.extend_from_slice(&[0, 43, 0, 3, 2, 3, 4]);
                body[42] += 2;
            },
            Alert::ProtocolVersion,
        ),
    ];
    for (at, (change, alert)) in cases.into_iter().enumerate() {
        let mut client = TestClient::new();
        let result = client.shake(&mut |kind, mut body| {
            if kind == HELLO {
                change(&mut body);
            }
            Some(body)
        });
        assert_eq!(told(&mut client, result), alert, "case {at}");
        assert!(client.server.receive(b"more").is_err(), "it is over");
    }
}

#[test]
fn a_renegotiation_must_be_that_of_this_session() {
    let mut first = TestClient::new();
    let stranger = TestClient::connected().established;
    first.established = stranger;
    let hello = message(HELLO, &first.hello());
    let result = first.send(ContentType::Handshake, &hello);
    assert_eq!(told(&mut first, result), Alert::HandshakeFailure);

    for established in [None, stranger] {
        let mut client = TestClient::connected();
        client.server.renegotiate().unwrap();
        client.established = established;
        let hello = message(HELLO, &client.hello());
        let result = client.send(ContentType::Handshake, &hello);
        assert_eq!(told(&mut client, result), Alert::HandshakeFailure);
    }
}

#[test]
fn each_message_of_a_renegotiation_is_checked() {
    type Change = fn(Vec<u8>) -> Option<Vec<u8>>;
    fn flip(mut body: Vec<u8>) -> Option<Vec<u8>> {
        *body.last_mut()? ^= 1;
        Some(body)
    }
    let foreign = |_| Some(vector(3, &vector(3, &world().foreign)));
    let cases: [(u8, Change, Alert); 14] = [
        (CERTIFICATE, |_| None, Alert::UnexpectedMessage),
        (CERTIFICATE, foreign, Alert::UnknownCa),
        (CERTIFICATE, flip, Alert::UnknownCa),
        (
            CERTIFICATE,
            |_| Some(vector(3, &vector(3, b"no certificate"))),
            Alert::BadCertificate,
        ),
        (
            CERTIFICATE,
            |_| Some(vector(3, &[0; 3])),
            Alert::DecodeError,
        ),
        (CERTIFICATE, |_| Some(Vec::new()), Alert::DecodeError),
        (KEY_EXCHANGE, |_| None, Alert::UnexpectedMessage),
        (
            KEY_EXCHANGE,
            |_| Some(vector(1, &[0; 32])),
            Alert::IllegalParameter,
        ),
        (
            KEY_EXCHANGE,
            |_| Some(vector(1, &[0; 31])),
            Alert::IllegalParameter,
        ),
        (VERIFY, flip, Alert::DecryptError),
        // SHA-1, which was not asked for.
        (
            VERIFY,
            |body| Some([&[2, 1], &body[2..]].concat()),
            Alert::IllegalParameter,
        ),
        (VERIFY, |_| None, Alert::UnexpectedMessage),
        (FINISHED, flip, Alert::DecryptError),
        (FINISHED, |_| Some(Vec::new()), Alert::DecryptError),
    ];
    for (at, (which, change, alert)) in cases.into_iter().enumerate() {
        let mut client = TestClient::connected();
        client.server.renegotiate().unwrap();
        let result = client.shake(&mut |kind, body| {
            if kind == which {
                change(body)
            } else {
                Some(body)
            }
        });
        assert_eq!(told(&mut client, result), alert, "case {at}");
        assert_eq!(client.server.certificate(), None);
    }
}

#[test]
fn records_that_are_wrong_are_refused() {
    for (bytes, alert) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Alert::UnexpectedMessage),
        (&[24, 3, 3, 0, 1, 0], Alert::UnexpectedMessage),
        (&[22, 2, 0, 0, 1, 0], Alert::ProtocolVersion),
        (&[22, 3, 1, 0x40, 1], Alert::RecordOverflow),
        (&[22, 3, 1, 0, 0], Alert::UnexpectedMessage),
        (&[23, 3, 3, 0, 1, 0], Alert::UnexpectedMessage),
        (&[20, 3, 3, 0, 1, 1], Alert::UnexpectedMessage),
        (&[22, 3, 3, 0, 4, 1, 1, 0, 1], Alert::DecodeError),
        // A message interrupted by another record.
        (
            &[22, 3, 3, 0, 1, 1, 21, 3, 3, 0, 2, 1, 0],
            Alert::UnexpectedMessage,
        ),
        (&[21, 3, 3, 0, 1, 1], Alert::DecodeError),
        (&[21, 3, 3, 0, 2, 3, 0], Alert::IllegalParameter),
    ] {
        let mut client = TestClient::new();
        let result = client.server.receive(bytes);
        assert_eq!(told(&mut client, result), alert, "{bytes:?}");
    }
    let mut client = TestClient::connected();
    let mut record = client.sealed(ContentType::ApplicationData, b"content");
    *record.last_mut().unwrap() ^= 1;
    let result = client.server.receive(&record);
    assert_eq!(told(&mut client, result), Alert::BadRecordMac);
    let mut client = TestClient::connected();
    let result = client.server.receive(&[23, 3, 3, 0, 3, 1, 2, 3]);
    assert_eq!(told(&mut client, result), Alert::BadRecordMac);
    let mut client = TestClient::connected();
    let result = client.server.receive(&[23, 3, 1, 0, 3, 1, 2, 3]);
    assert_eq!(told(&mut client, result), Alert::ProtocolVersion);
    // A record sent twice.
    let mut client = TestClient::connected();
    let record = client.sealed(ContentType::ApplicationData, b"content");
    client.server.receive(&record).unwrap();
    let result = client.server.receive(&record);
    assert_eq!(told(&mut client, result), Alert::BadRecordMac);
}

#[test]
fn both_sides_may_end_it() {
    let mut client = TestClient::connected();
    client.send(ContentType::Alert, &[1, 0]).unwrap();
    assert!(client.server.peer_closed());
    client.server.receive(b"whatever").unwrap();
    assert_eq!(client.server.renegotiate(), Err(CannotAsk::NotNow));
    client.server.close();
    client.server.close();
    assert_eq!(client.last_alert(), Some([1, 0]));
    assert!(!client.server.send(b"more").unwrap());

    let mut client = TestClient::connected();
    let result = client.send(ContentType::Alert, &[2, 42]);
    assert_eq!(result, Err(Failure::Received { description: 42 }));
    assert_eq!(client.last_alert(), None, "nobody is left to be told");
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut client = TestClient::new();
    let hello = message(HELLO, &client.hello());
    for byte in client.sealed(ContentType::Handshake, &hello) {
        assert!(client.server.output().is_empty());
        client.server.receive(&[byte]).unwrap();
    }
    assert!(!client.server.output().is_empty());
    let mut client = TestClient::connected();
    for byte in client.sealed(ContentType::ApplicationData, b"content") {
        client.server.receive(&[byte]).unwrap();
    }
    assert_eq!(content(&mut client.server), b"content");
}

#[test]
fn content_that_nobody_reads_has_a_bound() {
    let mut client = TestClient::connected();
    let piece = [0; 1 << 14];
    let result = (0..3_000).try_for_each(|_| client.send(ContentType::ApplicationData, &piece));
    assert_eq!(told(&mut client, result), Alert::InternalError);
}
