//! [`Tpm`]: a handle to a TPM, shared by all who use it.

use std::{fmt, sync::Arc, time::Duration};

use zeroize::Zeroizing;

use crate::{
    actor::Actor,
    address::TpmAddress,
    commands,
    error::TpmError,
    identity::{TpmIdentity, TpmNames},
    key::LoadedKey,
    keyfile::KeyBlob,
    owner::Owner,
    scheme::PssMode,
    templates,
};

/// TPM_PT_FIXED, the first of the fixed properties.
const PT_FIXED: u32 = 0x100;
const TRANSIENT_FIRST: u32 = 0x8000_0000;
/// TPMs hold authorization values as long as the largest hash of the object's name; ours is SHA-256.
const MAX_PIN: usize = 32;

/// How a [`Tpm`] is used.
#[derive(Clone, Debug)]
pub struct TpmOptions {
    /// How long a caller waits for anything but making keys, including its turn in the queue.
    pub timeout: Duration,
    /// How long a caller waits for a new key. Chips take from one second to over a minute for RSA-2048.
    pub create_timeout: Duration,
    /// How many calls may wait for the device; more wait to enter, until their deadline.
    pub queue_capacity: usize,
    /// Whether the TPM is ours alone, without a resource manager: it is started up, and objects found loaded are
    /// flushed. `None` decides by address: false for `/dev/tpmrm*`, true otherwise.
    pub exclusive: Option<bool>,
    /// After how long without work everything is flushed and the connection closed. `None` decides by address:
    /// never for a device, 250 ms for a socket, since swtpm serves one connection at a time.
    pub idle_release: Option<Duration>,
}

impl Default for TpmOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            create_timeout: Duration::from_secs(180),
            queue_capacity: 64,
            exclusive: None,
            idle_release: None,
        }
    }
}

/// A TPM. Clones share one connection and the thread that owns it; when the last clone and the last
/// [`LoadedKey`] are dropped, everything loaded is flushed and the connection closed.
///
/// Methods block until the answer or the deadline: not for the threads of an async runtime.
#[derive(Clone)]
pub struct Tpm {
    shared: Arc<Shared>,
    timeout: Duration,
    create_timeout: Duration,
}

struct Shared {
    actor: Actor,
    address: TpmAddress,
    identity: TpmIdentity,
}

/// A secret that a key asks for. Wiped when dropped.
///
/// It goes to the TPM in the clear: whoever can listen on the bus between processor and chip can read it. It cannot
/// be printed:
///
/// ```compile_fail,E0277
/// let pin = keybond_tpm::Pin::new(b"1234").unwrap();
/// println!("{pin:?}");
/// ```
pub struct Pin(Zeroizing<Vec<u8>>);

impl Pin {
    /// Takes 1 to 32 bytes that do not end with a zero byte, which TPMs would strip.
    ///
    /// # Errors
    /// [`TpmError::Input`].
    pub fn new(secret: &[u8]) -> Result<Self, TpmError> {
        if secret.is_empty() || secret.len() > MAX_PIN || secret.ends_with(&[0]) {
            let detail = format!("expected 1 to {MAX_PIN} bytes, the last of them not zero");
            return Err(TpmError::Input {
                field: "PIN",
                detail,
            });
        }
        Ok(Self(Zeroizing::new(secret.to_vec())))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What kind of key to make. The default is a key that only signs, without a PIN, below the storage root key.
#[derive(Clone, Default)]
pub struct KeyRequest {
    /// Also allow raw RSA, for TPMs that cannot sign PSS themselves.
    pub raw_rsa: bool,
    /// Ask for this PIN at each use, and count wrong ones.
    pub pin: Option<Arc<Pin>>,
    /// A persistent object (0x81……) as the parent, instead of the storage root key.
    pub parent: Option<u32>,
}

impl Tpm {
    /// Connects and asks the TPM who it is. A definite "no" takes milliseconds.
    ///
    /// # Errors
    /// [`TpmError`]: among others no device, no permission, TPM 1.2, failure mode, not started up, lost in time.
    pub fn open(address: &TpmAddress, options: &TpmOptions) -> Result<Self, TpmError> {
        let managed = match address {
            TpmAddress::Off => return Err(TpmError::Off),
            TpmAddress::Device(path) => path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("tpmrm")),
            _ => false,
        };
        let idle = match address {
            TpmAddress::Device(_) => options.idle_release,
            _ => Some(options.idle_release.unwrap_or(Duration::from_millis(250))),
        };
        let exclusive = options.exclusive.unwrap_or(!managed);
        let owner = Owner::new(address.clone(), exclusive);
        let actor = Actor::start(owner, options.queue_capacity, idle)?;
        let identity = actor.call(options.timeout, |owner| {
            let connection = owner.connection()?;
            let properties = connection.properties(PT_FIXED)?;
            // Answers in failure mode and before startup with an error, unlike the above.
            connection.random(8)?;
            Ok(TpmIdentity::from_properties(&properties))
        })?;
        tracing::debug!(%address, %identity, "TPM opened");
        Ok(Self {
            shared: Arc::new(Shared {
                actor,
                address: address.clone(),
                identity,
            }),
            timeout: options.timeout,
            create_timeout: options.create_timeout,
        })
    }

    /// The same TPM, with another limit for everything including making keys.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            timeout,
            create_timeout: timeout,
        }
    }

    /// The address it was opened at.
    pub fn address(&self) -> &TpmAddress {
        &self.shared.address
    }

    /// Who the TPM says it is, asked when it was opened.
    pub fn identity(&self) -> &TpmIdentity {
        &self.shared.identity
    }

    /// How many calls wait for the device right now.
    pub fn queue_depth(&self) -> usize {
        self.shared.actor.depth()
    }

    /// The name of the storage root key.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn srk_name(&self) -> Result<Vec<u8>, TpmError> {
        self.call(Owner::root_name)
    }

    /// The name of a key's parent: of the storage root key, or of what is at a persistent handle.
    ///
    /// # Errors
    /// [`TpmError`]; a response TPM_RC_HANDLE if nothing is there.
    pub fn parent_name(&self, parent: u32) -> Result<Vec<u8>, TpmError> {
        self.call(move |owner| match parent {
            commands::OWNER => owner.root_name(),
            handle => Ok(owner.connection()?.read_public(handle)?.1),
        })
    }

    /// The name of the endorsement key (ECC P-256).
    ///
    /// # Errors
    /// [`TpmError`]; a wrong-PIN kind if the endorsement hierarchy has a password.
    pub fn ek_name(&self) -> Result<Vec<u8>, TpmError> {
        self.call(|owner| {
            owner.with_primary(
                commands::ENDORSEMENT,
                &templates::endorsement(),
                |_, primary| Ok(primary.name.clone()),
            )
        })
    }

    /// Both names, for a key's record. An endorsement key that the TPM does not make for us is left out; a TPM
    /// that does not answer is an error.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn names(&self) -> Result<TpmNames, TpmError> {
        let ek = match self.ek_name() {
            Ok(name) => Some(name),
            Err(error @ TpmError::Response { .. }) if !error.retryable() => None,
            Err(error) => return Err(error),
        };
        Ok(TpmNames {
            srk: self.srk_name()?,
            ek,
        })
    }

    /// The handles of transient objects that this connection sees.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn transient_handles(&self) -> Result<Vec<u32>, TpmError> {
        self.call(|owner| owner.connection()?.handles(TRANSIENT_FIRST))
    }

    /// Makes a new RSA-2048 key. It is not stored anywhere: the blob is all there is.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn create_key(&self, request: &KeyRequest) -> Result<KeyBlob, TpmError> {
        let request = request.clone();
        let parent = request.parent.unwrap_or(commands::OWNER);
        if parent != commands::OWNER && !(0x8100_0000..=0x81ff_ffff).contains(&parent) {
            let detail = format!("{parent:#x}, expected a persistent handle (0x81……)");
            return Err(TpmError::Input {
                field: "parent",
                detail,
            });
        }
        let template = templates::signing_key(request.raw_rsa, request.pin.is_some());
        let empty_auth = request.pin.is_none();
        let (public, private) = self.shared.actor.call(self.create_timeout, move |owner| {
            let pin = request.pin.as_ref().map_or(&[][..], |pin| pin.bytes());
            owner.create(parent, pin, &template)
        })?;
        Ok(KeyBlob::new(parent, empty_auth, &public, &private)?)
    }

    /// Makes and loads a key that signs PSS, if this TPM can be brought to it: one that only signs; if that one's
    /// PSS is unavailable, one that also allows raw RSA; if that does not help either, the first. Raw RSA is not
    /// allowed without need, since it signs anything under any padding.
    ///
    /// # Errors
    /// [`TpmError`]
    pub fn create_pss_key(&self, request: &KeyRequest) -> Result<LoadedKey, TpmError> {
        let make = |raw_rsa| {
            let request = KeyRequest {
                raw_rsa,
                ..request.clone()
            };
            let blob = Arc::new(self.create_key(&request)?);
            LoadedKey::load(self.clone(), blob, request.pin)
        };
        let first = make(request.raw_rsa)?;
        if request.raw_rsa || first.pss_mode()? != PssMode::Unavailable {
            return Ok(first);
        }
        let second = make(true)?;
        match second.pss_mode()? {
            PssMode::Unavailable => Ok(first),
            PssMode::Native | PssMode::Synthesised => Ok(second),
        }
    }

    /// Loads a key without a PIN, and reads back what the TPM says about it.
    ///
    /// # Errors
    /// [`TpmError`]; of kind [`Integrity`](crate::ErrorKind::Integrity) if the key does not belong to this TPM
    /// or is damaged, see [`TpmNames`]; [`TpmError::PinRequired`].
    pub fn load(&self, blob: &KeyBlob) -> Result<LoadedKey, TpmError> {
        if !blob.empty_auth() {
            return Err(TpmError::PinRequired);
        }
        LoadedKey::load(self.clone(), Arc::new(blob.clone()), None)
    }

    /// Loads a key that asks for a PIN. Whether the PIN is right shows at the first signature.
    ///
    /// # Errors
    /// As [`Tpm::load`].
    pub fn load_with_pin(&self, blob: &KeyBlob, pin: Arc<Pin>) -> Result<LoadedKey, TpmError> {
        LoadedKey::load(self.clone(), Arc::new(blob.clone()), Some(pin))
    }

    pub(crate) fn call<T: Send + 'static>(
        &self,
        job: impl FnMut(&mut Owner) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        self.shared.actor.call(self.timeout, job)
    }
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tpm")
            .field("address", &self.shared.address)
            .field("identity", &self.shared.identity)
            .finish_non_exhaustive()
    }
}
