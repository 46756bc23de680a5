//! How long certificates and tokens still live. A gauge stands still while time goes on: whoever scrapes has
//! the remaining life counted anew before, or uses the moment of expiry, which is always right.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use metrics::Label;

use super::table::{CERTIFICATE_EXPIRES, CERTIFICATE_REMAINING, TOKEN_EXPIRES, TOKEN_REMAINING};
use crate::{identity::Identity, token::TokenType};

/// Everything whose life was told in this process, and when it ends. As many entries as there are series.
static LIVES: Mutex<BTreeMap<Life, SystemTime>> = Mutex::new(BTreeMap::new());

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Certificate {
        client_id: String,
    },
    Token {
        identity: String,
        resource: String,
        token_type: &'static str,
    },
}

/// Sets the gauges of remaining life to what remains at `now`, for every certificate and token that was got
/// in this process. Called before metrics are scraped; it takes a lock that nothing on the way to a token
/// waits for longer than this takes.
pub fn refresh_life(now: SystemTime) {
    let lives = LIVES.lock().unwrap_or_else(PoisonError::into_inner);
    for (life, end) in &*lives {
        life.remaining(*end, now);
    }
}

pub(super) fn certificate(client_id: &str, end: SystemTime, now: SystemTime) {
    let client_id = client_id.to_owned();
    Life::Certificate { client_id }.tell(end, now);
}

pub(super) fn token(
    identity: &Identity,
    token_type: TokenType,
    resource: &str,
    end: SystemTime,
    now: SystemTime,
) {
    let life = Life::Token {
        identity: identity
            .selector()
            .map_or_else(|| identity.to_string(), |(_, id)| id.to_owned()),
        resource: resource.to_owned(),
        token_type: token_type.name(),
    };
    life.tell(end, now);
}

impl Life {
    fn tell(self, end: SystemTime, now: SystemTime) {
        let expires = match self {
            Self::Certificate { .. } => CERTIFICATE_EXPIRES,
            Self::Token { .. } => TOKEN_EXPIRES,
        };
        metrics::gauge!(expires, self.labels()).set(seconds(end, UNIX_EPOCH));
        self.remaining(end, now);
        LIVES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self, end);
    }

    fn remaining(&self, end: SystemTime, now: SystemTime) {
        let name = match self {
            Self::Certificate { .. } => CERTIFICATE_REMAINING,
            Self::Token { .. } => TOKEN_REMAINING,
        };
        metrics::gauge!(name, self.labels()).set(seconds(end, now));
    }

    fn labels(&self) -> Vec<Label> {
        match self {
            Self::Certificate { client_id } => vec![Label::new("client_id", client_id.clone())],
            Self::Token {
                identity,
                resource,
                token_type,
            } => vec![
                Label::new("identity", identity.clone()),
                Label::new("resource", resource.clone()),
                Label::new("token_type", *token_type),
            ],
        }
    }
}

/// Seconds from `now` to `end`; negative once it is over.
fn seconds(end: SystemTime, now: SystemTime) -> f64 {
    match end.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(over) => -over.duration().as_secs_f64(),
    }
}
