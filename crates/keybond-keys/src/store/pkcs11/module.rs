//! Modules: loaded and initialised once in a process, whoever uses them.
//!
//! 1. A module in which a session or a key of ours lives is never finalised: handles are numbers, and a number
//!    from before could mean another key afterwards.
//! 2. One in which nothing lives may be started anew for another look. Some modules list their tokens only when
//!    they start, and lose one for good that another process is writing at that moment.
//! 3. Whoever looks while nothing lives has the module for himself, so that nobody is inside meanwhile.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};

use super::{
    refusal::{other, refused},
    token::lock,
};
use crate::refusal::{Reason, Unavailable};

/// Pauses before another look: long enough for SoftHSM to finish writing a token, short enough (175 ms in all)
/// for a definite "no". A module that is not there is not looked for twice.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LAST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Module {
    context: Option<Pkcs11>,
    /// Other code in this process initialised it, so it is not ours to finalise.
    shared: bool,
    lives: Lease,
}

/// What keeps a module from being finalised.
#[derive(Clone, Default)]
pub(super) struct Lease(Arc<()>);

/// Looks for something in the module at `path`; what is found stays valid while the lease is held.
pub(super) fn with<T>(
    path: &Path,
    look: impl Fn(&Pkcs11) -> Result<T, Unavailable>,
) -> Result<(T, Lease), Unavailable> {
    static MODULES: OnceLock<Mutex<HashMap<PathBuf, Arc<Mutex<Module>>>>> = OnceLock::new();
    // One lock for each module: one that hangs while it starts holds up only those who want it.
    let module = Arc::clone(
        lock(MODULES.get_or_init(Mutex::default))
            .entry(path.to_owned())
            .or_default(),
    );
    let mut module = lock(&module);
    if let Some(context) = &module.context
        && Arc::strong_count(&module.lives.0) > 1
    {
        let (context, lease) = (context.clone(), module.lives.clone());
        drop(module);
        return Ok((look(&context)?, lease));
    }
    let mut answer = look(&module.started(path)?);
    let mut pause = FIRST_PAUSE;
    while answer.is_err() && !module.shared && pause <= LAST_PAUSE {
        if let Some(context) = module.context.take() {
            context.finalize().map_err(refused)?;
        }
        thread::sleep(pause);
        pause *= 2;
        answer = look(&module.started(path)?);
    }
    Ok((answer?, module.lives.clone()))
}

impl Module {
    fn started(&mut self, path: &Path) -> Result<Pkcs11, Unavailable> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        if !path.exists() {
            let detail = format!("there is no module {}", path.display());
            return Err(other(Reason::NotPresent, detail)
                .with_remedy("Install the token's PKCS#11 module, or correct `module-path`."));
        }
        let context = Pkcs11::new(path).map_err(refused)?;
        match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) => {}
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => self.shared = true,
            Err(error) => return Err(refused(error)),
        }
        self.context = Some(context.clone());
        Ok(context)
    }
}
