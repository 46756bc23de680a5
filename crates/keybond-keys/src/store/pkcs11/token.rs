//! One token: module, slot, sessions, login.

use std::{
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::{
    context::Pkcs11,
    error::{Error, RvError},
    mechanism::MechanismType,
    session::{Session, SessionState, UserType},
    slot::{Slot, TokenInfo},
    types::{AuthPin, Ulong},
};

use super::{
    module::{self, Lease},
    pin::PinSource,
    refusal::{is_stale, other, refused},
    uri::Pkcs11Uri,
};
use crate::refusal::{Reason, Unavailable};

/// Sessions that are kept open for the next signature; one that is not kept is closed.
const IDLE_SESSIONS: usize = 4;

type Found = (Pkcs11, Slot, TokenInfo);

pub(super) struct Token {
    uri: Pkcs11Uri,
    pin: Option<PinSource>,
    idle: Mutex<Vec<Leased>>,
    /// SHA-256 of the PIN that the token refused.
    refused_pin: Mutex<Option<Vec<u8>>>,
}

/// A session, and what keeps its module alive. Fields are dropped in this order.
pub(super) struct Leased {
    session: Session,
    lease: Lease,
}

impl Leased {
    pub(super) fn lease(&self) -> Lease {
        self.lease.clone()
    }
}

impl Deref for Leased {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Token {
    pub(super) fn new(uri: Pkcs11Uri, pin: Option<PinSource>) -> Self {
        Self {
            uri,
            pin,
            idle: Mutex::default(),
            refused_pin: Mutex::default(),
        }
    }

    /// Whether the token is there, can make and use RSA keys, and its PIN is not known to be unusable.
    pub(super) fn probe(&self) -> Result<(), Unavailable> {
        let ((module, slot, info), _lease) = self.find()?;
        self.check_login(&info)?;
        let mechanisms = module.get_mechanism_list(slot).map_err(refused)?;
        for needed in [
            MechanismType::RSA_PKCS_KEY_PAIR_GEN,
            MechanismType::RSA_PKCS,
        ] {
            if !mechanisms.contains(&needed) {
                return Err(other(
                    Reason::NotSupported,
                    format!("the token has no {needed}"),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn mechanisms(&self) -> Result<Vec<MechanismType>, Unavailable> {
        let ((module, slot, _), _lease) = self.find()?;
        module.get_mechanism_list(slot).map_err(refused)
    }

    /// Facts for humans.
    pub(super) fn details(&self) -> Result<Vec<(String, String)>, Unavailable> {
        let ((module, slot, info), _lease) = self.find()?;
        let slot = module.get_slot_info(slot).map_err(refused)?;
        let hardware = if slot.hardware_slot() { "yes" } else { "no" };
        let firmware = info.firmware_version().to_string();
        Ok([
            ("module", self.uri.module_path.display().to_string()),
            ("token", info.label().to_owned()),
            ("manufacturer", info.manufacturer_id().to_owned()),
            ("model", info.model().to_owned()),
            ("serial", info.serial_number().to_owned()),
            ("firmware", firmware),
            ("hardware slot", hardware.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into())
    }

    /// Runs `work` in a session that may read and sign, once more with a fresh one if what was known is stale.
    pub(super) fn read<T>(
        &self,
        work: impl Fn(&Leased) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        let kept = lock(&self.idle).pop();
        if let Some(session) = kept {
            match work(&session) {
                Err(refusal) if is_stale(&refusal) => lock(&self.idle).clear(),
                answer => {
                    self.keep(session);
                    return answer;
                }
            }
        }
        let session = self.session(false)?;
        let answer = work(&session);
        if answer.is_ok() {
            self.keep(session);
        }
        answer
    }

    /// Runs `work` in a session of its own that may change the token.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&Leased) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        work(&self.session(true)?)
    }

    fn keep(&self, session: Leased) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_SESSIONS {
            idle.push(session);
        }
    }

    fn session(&self, write: bool) -> Result<Leased, Unavailable> {
        let ((module, slot, info), lease) = self.find()?;
        let session = if write {
            module.open_rw_session(slot)
        } else {
            module.open_ro_session(slot)
        }
        .map_err(refused)?;
        let session = Leased { session, lease };
        self.log_in(&session, &info)?;
        Ok(session)
    }

    /// The one slot whose token is the one that the URI names.
    fn find(&self) -> Result<(Found, Lease), Unavailable> {
        let look = || module::with(&self.uri.module_path, |module| self.look(module));
        look().or_else(|_| {
            // Without the sessions in reserve the module may be free to start anew.
            lock(&self.idle).clear();
            look()
        })
    }

    fn look(&self, module: &Pkcs11) -> Result<Found, Unavailable> {
        let uri = &self.uri;
        let is = |wanted: &Option<String>, given: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted == given.trim_end())
        };
        let mut found = None;
        let mut silent = None;
        for slot in module.get_slots_with_token().map_err(refused)? {
            let info = match module.get_token_info(slot) {
                Ok(info) => info,
                Err(error) => {
                    silent = Some(refused(error));
                    continue;
                }
            };
            if is(&uri.token, info.label())
                && is(&uri.serial, info.serial_number())
                && is(&uri.manufacturer, info.manufacturer_id())
                && is(&uri.model, info.model())
                && found.replace((slot, info)).is_some()
            {
                let detail = format!("two tokens are called {uri}");
                let remedy = "Add the token's `serial` to the URI.";
                return Err(other(Reason::Failed, detail).with_remedy(remedy));
            }
        }
        if let Some((slot, info)) = found {
            return Ok((module.clone(), slot, info));
        }
        // A token that does not answer may be the one: only without it the absence is certain.
        Err(silent.unwrap_or_else(|| {
            other(Reason::NotPresent, format!("there is no {uri}"))
                .with_remedy("Insert the token, or correct the URI.")
        }))
    }

    fn check_login(&self, info: &TokenInfo) -> Result<(), Unavailable> {
        let denied = |detail: &str, remedy: &'static str| {
            Err(other(Reason::PermissionDenied, detail).with_remedy(remedy))
        };
        if info.user_pin_locked() {
            let remedy = "Unlock the token with its security officer's PIN.";
            return denied("the user PIN is locked", remedy);
        }
        if self.pin.is_none() && info.login_required() {
            let remedy = "Name a `pin-source` in the URI.";
            return denied("the token demands a PIN and none is configured", remedy);
        }
        Ok(())
    }

    fn log_in(&self, session: &Session, info: &TokenInfo) -> Result<(), Unavailable> {
        let state = session.get_session_info().map_err(refused)?.session_state();
        if matches!(state, SessionState::RoUser | SessionState::RwUser) {
            return Ok(());
        }
        self.check_login(info)?;
        let Some(source) = &self.pin else {
            return Ok(());
        };
        let pin = source.read()?;
        let fingerprint = digest(&SHA256, pin.expose().as_bytes()).as_ref().to_vec();
        // Held over the login: two threads must not try the same wrong PIN.
        let mut refused_pin = lock(&self.refused_pin);
        if refused_pin.as_ref() == Some(&fingerprint) {
            let detail = "the token refused this PIN before; it is not tried again";
            let remedy = "Correct the PIN where `pin-source` points.";
            return Err(other(Reason::PermissionDenied, detail).with_remedy(remedy));
        }
        if info.user_pin_final_try() {
            let detail = "one wrong PIN more locks the token, so keybond does not try";
            let remedy = "Log in once with another tool and the right PIN.";
            return Err(other(Reason::PermissionDenied, detail).with_remedy(remedy));
        }
        let pin = AuthPin::from(pin.expose().to_owned());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => {
                if let Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange, _) = &error {
                    *refused_pin = Some(fingerprint);
                }
                Err(refused(error))
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number as the module takes it: 32 bits on Windows, the machine's word elsewhere.
pub(super) fn ulong(number: usize) -> Result<Ulong, Unavailable> {
    Ulong::try_from(number).map_err(refused)
}
