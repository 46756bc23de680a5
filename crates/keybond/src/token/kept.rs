//! Tokens in files below the state directory, for the other processes of this user: `tokens/<name>.json` is a token
//! with what it is for, `tokens/<name>.lock` a turn to ask for it.
//!
//! 1. Only tokens that state the certificate to which they are bound, and whose key is not in process memory: who has
//!    the file and not the key has nothing. Never a bearer token, never one with claims.
//! 2. The files are a convenience: what they give is checked like something that came over the network, and files that
//!    cannot be used cost a request to the token service, nothing else.
//! 3. What cannot be understood is set aside, not deleted and not overwritten. On Windows the records are sealed for
//!    the user (DPAPI).

use std::{fs, path::PathBuf, sync::OnceLock, time::SystemTime};

use keybond_keys::{StateDir, StateError, StateLock};

use super::record::{TokenRecord, TokenSlot, Wrong};
use crate::{
    credential::store::{is_left_behind, seal, set_aside},
    lifecycle::SKEW,
};

/// The folder in the state directory.
const FOLDER: &str = "tokens";

/// What a sealed token can be opened as.
const PURPOSE: &[u8] = b"keybond token record 1";

/// Keeps tokens in a state directory. The methods block.
pub(crate) struct DiskTokens {
    state: PathBuf,
    folder: OnceLock<StateDir>,
}

/// What is in a slot. All but the first are reasons to ask the token service.
pub(crate) enum Answer {
    /// This is in it.
    Token(Box<TokenRecord>),
    /// Nothing is in it.
    Absent,
    /// Something may be in it that cannot be read now. It stays as it is.
    Unreadable {
        /// Why.
        detail: String,
    },
    /// What is in it makes no sense, or is for something else.
    Unusable {
        /// What is wrong with it.
        detail: String,
        /// Where it is now.
        set_aside: Option<PathBuf>,
    },
}

impl DiskTokens {
    pub(crate) fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            folder: OnceLock::new(),
        }
    }

    /// Where they are, in words for people.
    pub(crate) fn describe(&self) -> String {
        self.state.join(FOLDER).display().to_string()
    }

    pub(crate) fn find(&self, slot: &TokenSlot) -> Answer {
        let unreadable = |error: StateError| Answer::Unreadable {
            detail: error.to_string(),
        };
        let folder = match self.folder() {
            Ok(folder) => folder,
            Err(error) => return unreadable(error),
        };
        let file = slot.file();
        let content = match folder.read(&file) {
            Ok(None) => return Answer::Absent,
            Ok(Some(content)) => content,
            Err(error @ StateError::Io { .. }) => return unreadable(error),
            // Somebody else could have written it, or it is none of ours: out of the way, for people to see.
            Err(error) => {
                return Answer::Unusable {
                    detail: error.to_string(),
                    set_aside: set_aside(folder, &file, "untrusted"),
                };
            }
        };
        let (detail, why) = match read(content)
            .map_err(Wrong::Corrupt)
            .and_then(|record| record.of(slot))
        {
            Ok(record) => return Answer::Token(Box::new(record)),
            Err(Wrong::Corrupt(detail)) => (detail, "corrupt"),
            Err(Wrong::Foreign(detail)) => (detail, "foreign"),
        };
        Answer::Unusable {
            detail,
            set_aside: set_aside(folder, &file, why),
        }
    }

    /// Puts a token into its slot, unless a newer one is there, and removes those of certificates that gave way to
    /// its own.
    ///
    /// # Errors
    /// In words; the slot then holds what it held before.
    pub(crate) fn keep(&self, record: &TokenRecord, now: SystemTime) -> Result<(), String> {
        let folder = self.folder().map_err(text)?;
        let file = record.slot().file();
        // What cannot be read now is not known to be worthless.
        let there = match folder.read(&file) {
            Err(error @ StateError::Io { .. }) => return Err(text(error)),
            Ok(content) => content.and_then(|content| read(content).ok()),
            Err(_) => None,
        };
        let newer = |there: TokenRecord| {
            // One from the future is no use to anybody.
            record.is_older_than(&there) && there.granted().asked_at <= now + SKEW
        };
        if there.is_some_and(newer) {
            return Ok(());
        }
        let json = seal::seal(record.to_json()?, PURPOSE)?;
        folder.write(&file, &json).map_err(text)?;
        let family = record.slot().family();
        remove_if(
            folder,
            |name| name != file && name.starts_with(&family),
            |other| other.is_superseded_by(record),
        );
        Ok(())
    }

    /// Removes the tokens for which that is said.
    ///
    /// # Errors
    /// In words, if they cannot be looked at.
    pub(crate) fn discard(&self, which: impl Fn(&TokenSlot) -> bool) -> Result<(), String> {
        // Nothing is made where nothing was kept.
        if !self.state.join(FOLDER).exists() {
            return Ok(());
        }
        let folder = self.folder().map_err(text)?;
        remove_if(folder, |_| true, |record| which(record.slot()));
        Ok(())
    }

    /// Removes tokens that ended, and what killed processes left half-written. Whatever fails is tried again the
    /// next time.
    pub(crate) fn sweep(&self, now: SystemTime) {
        let Ok(folder) = self.folder() else { return };
        for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && is_left_behind(&name, &entry)
            {
                let _ = folder.remove(&name);
            }
        }
        remove_if(folder, |_| true, |record| record.expires_on() <= now);
    }

    /// Tries to become the only one of this user's processes that asks for the token; `None` if another is. A holder
    /// that dies holds nothing.
    ///
    /// # Errors
    /// In words, if there is no lock to be had.
    pub(crate) fn try_lock(&self, slot: &TokenSlot) -> Result<Option<StateLock>, String> {
        self.folder()
            .and_then(|folder| folder.try_lock(&format!("{}.lock", slot.family())))
            .map_err(text)
    }

    fn folder(&self) -> Result<&StateDir, StateError> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder);
        }
        let folder = StateDir::open(&self.state)?.subdirectory(FOLDER)?;
        Ok(self.folder.get_or_init(|| folder))
    }
}

fn read(content: Vec<u8>) -> Result<TokenRecord, String> {
    let opened = seal::open(content, PURPOSE)?;
    TokenRecord::parse(&opened)
}

/// Removes records by name and content; what cannot be understood stays.
fn remove_if(
    folder: &StateDir,
    named: impl Fn(&str) -> bool,
    is_worthless: impl Fn(&TokenRecord) -> bool,
) {
    for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && name.ends_with(".json")
            && named(&name)
            && let Ok(Some(content)) = folder.read(&name)
            && read(content).is_ok_and(|record| is_worthless(&record))
        {
            let _ = folder.remove(&name);
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::lifecycle::token::Granted;
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

    const NOW: u64 = 1_781_481_600;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn slot() -> TokenSlot {
        TokenSlot {
            source: "http://169.254.169.254/".into(),
            client_id: "0e1b0a2c-63f1-4a53-9f0b-6d3e1f6a7b01".into(),
            tenant_id: "72f988bf-86f1-41af-91ab-2d7cd011db47".into(),
            token_endpoint: "https://token.example/".into(),
            attested: false,
            key_id: "00".into(),
            x5t_s256: "one".into(),
            resource: "https://vault.azure.net".into(),
            client_capabilities: Vec::new(),
        }
    }

    /// A token that states the slot's certificate.
    fn token(slot: &TokenSlot, signature: &str) -> String {
        let claims = format!(r#"{{"cnf":{{"x5t#S256":"{}"}}}}"#, slot.x5t_s256);
        format!("e30.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn record(slot: &TokenSlot, certificate_ends: u64, obtained: u64) -> TokenRecord {
        let granted = Granted {
            asked_at: at(obtained),
            expires_in: Duration::from_secs(3_600),
            refresh_in: Some(Duration::from_secs(1_000)),
        };
        let secret = token(slot, &obtained.to_string());
        TokenRecord::new(slot.clone(), at(certificate_ends), granted, &secret)
    }

    fn found(tokens: &DiskTokens, slot: &TokenSlot) -> Option<TokenRecord> {
        match tokens.find(slot) {
            Answer::Token(record) => Some(*record),
            _ => None,
        }
    }

    fn fresh() -> (tempfile::TempDir, DiskTokens) {
        let parent = tempfile::tempdir().unwrap();
        let tokens = DiskTokens::new(parent.path().join("state"));
        (parent, tokens)
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let (parent, tokens) = fresh();
        tokens.discard(|_| true).unwrap();
        assert!(
            !parent.path().join("state").exists(),
            "nothing is made for it"
        );
        tokens
            .keep(&record(&slot(), NOW + 9, NOW), at(NOW))
            .unwrap();
        let found = found(&tokens, &slot()).unwrap();
        let granted = found.granted();
        assert_eq!(granted.asked_at, at(NOW));
        assert_eq!(granted.expires_in, Duration::from_secs(3_600));
        assert_eq!(granted.refresh_in, Some(Duration::from_secs(1_000)));
        assert_eq!(found.expires_on(), at(NOW + 3_600));
        assert_eq!(found.secret(), token(&slot(), &NOW.to_string()));
    }

    #[test]
    fn whatever_makes_another_token_makes_another_file() {
        let change: [fn(&mut TokenSlot); 10] = [
            |slot| slot.source.push('x'),
            |slot| slot.client_id.push('x'),
            |slot| slot.tenant_id.push('x'),
            |slot| slot.token_endpoint.push('x'),
            |slot| slot.attested = true,
            |slot| slot.key_id.push('x'),
            |slot| slot.x5t_s256.push('x'),
            |slot| slot.resource.push('x'),
            |slot| slot.client_capabilities.push("cp1\ncp2".into()),
            |slot| slot.client_capabilities = vec!["cp1".into(), "cp2".into()],
        ];
        let mut names = vec![slot().file()];
        for change in change {
            let mut other = slot();
            change(&mut other);
            // Those of two certificates lie side by side, and one of them is asked for at a time.
            let same_family = other.x5t_s256 != slot().x5t_s256;
            assert_eq!(other.family() == slot().family(), same_family);
            names.push(other.file());
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 11);
    }

    #[test]
    fn a_newer_token_stays_unless_it_is_from_the_future() {
        let (_parent, tokens) = fresh();
        let obtained = |tokens: &DiskTokens| found(tokens, &slot()).unwrap().granted().asked_at;
        let keep = |when| {
            tokens
                .keep(&record(&slot(), NOW + 9, when), at(NOW))
                .unwrap()
        };
        keep(NOW - 100);
        keep(NOW - 50);
        keep(NOW - 70);
        assert_eq!(obtained(&tokens), at(NOW - 50));
        // What a clock left behind that ran ahead keeps nobody's token out.
        keep(NOW + 1_000);
        keep(NOW);
        assert_eq!(obtained(&tokens), at(NOW));
    }

    #[test]
    fn the_token_of_a_certificate_that_gave_way_goes() {
        let (_parent, tokens) = fresh();
        let of = |x5t: &str, resource: &str| TokenSlot {
            x5t_s256: x5t.into(),
            resource: resource.into(),
            ..slot()
        };
        let keep = |slot: &TokenSlot, ends| tokens.keep(&record(slot, ends, NOW), at(NOW)).unwrap();
        let (old, new) = (of("old", "r"), of("new", "r"));
        keep(&old, NOW + 1);
        keep(&of("old", "other"), NOW + 1);
        keep(&new, NOW + 2);
        assert!(found(&tokens, &old).is_none());
        assert!(found(&tokens, &new).is_some());
        assert!(found(&tokens, &of("old", "other")).is_some());
        // A process that still has the old certificate takes nothing from the others.
        keep(&old, NOW + 1);
        assert!(found(&tokens, &new).is_some());
    }

    #[test]
    fn what_ended_is_swept_and_what_makes_no_sense_stays() {
        let (parent, tokens) = fresh();
        let ended = TokenSlot {
            resource: "ended".into(),
            ..slot()
        };
        tokens
            .keep(&record(&ended, NOW + 9, NOW - 3_600), at(NOW))
            .unwrap();
        tokens
            .keep(&record(&slot(), NOW + 9, NOW), at(NOW))
            .unwrap();
        let folder = parent.path().join("state").join(FOLDER);
        let dir = StateDir::open(&folder).unwrap();
        dir.write("strange.json", b"{").unwrap();
        tokens.sweep(at(NOW));
        assert!(found(&tokens, &ended).is_none());
        assert!(found(&tokens, &slot()).is_some());
        tokens.discard(|_| true).unwrap();
        assert!(found(&tokens, &slot()).is_none());
        assert!(folder.join("strange.json").exists());
    }

    #[test]
    fn one_asks_at_a_time() {
        let (_parent, tokens) = fresh();
        let held = tokens.try_lock(&slot()).unwrap().unwrap();
        assert!(tokens.try_lock(&slot()).unwrap().is_none());
        drop(held);
        assert!(tokens.try_lock(&slot()).unwrap().is_some());
    }
}
