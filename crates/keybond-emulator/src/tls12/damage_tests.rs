//! The machine against a client whose messages and records are damaged at random.

use super::{
    alert::Failure,
    codec::message,
    record::ContentType,
    test_client::{CERTIFICATE, FINISHED, HELLO, KEY_EXCHANGE, TestClient, VERIFY, told},
};

/// A small generator (xorshift64*), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % bound
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.below(256).to_le_bytes()[0]),
                2 if at < bytes.len() => {
                    bytes.remove(at);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.below(256).to_le_bytes()[0];
                    }
                }
            }
        }
    }
}

#[test]
fn damaged_messages_lead_to_alerts_and_never_to_panics() {
    let mut dice = Dice(0x6b65_7962_6f6e_6431);
    let kinds = [HELLO, CERTIFICATE, KEY_EXCHANGE, VERIFY, FINISHED];
    let mut refused = 0;
    for round in 0..400 {
        let mut client = if round % 2 == 0 {
            TestClient::new()
        } else {
            let mut client = TestClient::connected();
            client.server.renegotiate().unwrap();
            client
        };
        let which = kinds[dice.below(kinds.len())];
        let result = client.shake(&mut |kind, mut body| {
            if kind == which {
                dice.damage(&mut body);
            }
            Some(body)
        });
        if result.is_err() {
            told(&mut client, result);
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn damaged_records_lead_to_alerts_and_never_to_panics() {
    let mut dice = Dice(0x6b65_7962_6f6e_6432);
    for round in 0..2_000 {
        let (mut client, kind, body) = if round % 20 == 0 {
            let client = TestClient::connected();
            (client, ContentType::ApplicationData, b"content".to_vec())
        } else {
            let client = TestClient::new();
            let hello = message(HELLO, &client.hello());
            (client, ContentType::Handshake, hello)
        };
        let mut record = client.sealed(kind, &body);
        dice.damage(&mut record);
        let result = client.server.receive(&record);
        // It may still be whole, or wait for more.
        if let Err(Failure::Sent { .. }) = result {
            told(&mut client, result);
        }
    }
}
