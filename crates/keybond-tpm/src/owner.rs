//! The one owner of a TPM connection: what is loaded, what is thrown out, what is done again.
//!
//! 1. At most the storage root key and two keys are loaded: TPMs guarantee room for three objects only.
//! 2. Whatever is loaded was loaded over the present connection. When the connection goes, all handles go.
//! 3. A poisoned connection is never used again; it is dropped before the next command.
//! 4. A job is done a second time only if the first time failed for a reason of the past: a connection that had
//!    died since its last use, a handle lost to a reset, no room left by others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tpm2_protocol::data::Tpm2bPublic;

use crate::{
    address::TpmAddress,
    commands::{self, Primary},
    connection::Connection,
    error::TpmError,
    keyfile::KeyBlob,
    rc::ResponseCode,
    templates,
};

/// Keys kept loaded besides the storage root key.
const MAX_KEYS: usize = 2;
/// How long cleaning up may take before the connection is just dropped.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// TPM_PT_LOCKOUT_INTERVAL: seconds until one failed authorization is forgiven.
const PT_LOCKOUT_INTERVAL: u32 = 0x210;
const TRANSIENT_FIRST: u32 = 0x8000_0000;

pub(crate) struct Owner {
    address: TpmAddress,
    exclusive: bool,
    connection: Option<Connection>,
    root: Option<(u32, Vec<u8>)>,
    /// The most recently used last.
    keys: Vec<(Arc<KeyBlob>, u32)>,
    began: Instant,
    deadline: Instant,
}

impl Owner {
    /// `exclusive`: no resource manager is in between, and nobody else uses the TPM at the same time.
    pub(crate) fn new(address: TpmAddress, exclusive: bool) -> Self {
        let now = Instant::now();
        Self {
            address,
            exclusive,
            connection: None,
            root: None,
            keys: Vec::new(),
            began: now,
            deadline: now,
        }
    }

    /// Does a job within its deadline (invariants 3 and 4).
    pub(crate) fn perform<T>(
        &mut self,
        began: Instant,
        deadline: Instant,
        job: &mut dyn FnMut(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        (self.began, self.deadline) = (began, deadline);
        if let Some(connection) = &mut self.connection {
            connection.set_deadline(began, deadline);
        }
        let was_proven = self.connection.as_ref().is_some_and(Connection::proven);
        let error = match job(self) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        self.drop_poisoned();
        let again = match &error {
            TpmError::Connection { .. } => was_proven,
            TpmError::Response { code, .. } if code.lost_handle() => {
                self.forget();
                true
            }
            TpmError::Response { code, .. } if *code == ResponseCode::OBJECT_MEMORY => {
                self.release();
                true
            }
            _ => false,
        };
        let error = match again && Instant::now() < deadline {
            true => match job(self) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            },
            false => error,
        };
        let error = self.enrich(error);
        self.drop_poisoned();
        Err(error)
    }

    /// The connection, made if there is none.
    pub(crate) fn connection(&mut self) -> Result<&mut Connection, TpmError> {
        self.drop_poisoned();
        if self.connection.is_none() {
            let mut new = Connection::open(&self.address, self.began, self.deadline)?;
            if self.exclusive {
                new.startup()?;
                // A command whose answer was lost may have left an object behind.
                for handle in new.handles(TRANSIENT_FIRST)? {
                    match new.flush(handle) {
                        // Whoever left it may just have flushed it.
                        Ok(()) | Err(TpmError::Response { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            self.connection = Some(new);
        }
        self.connection.as_mut().ok_or(TpmError::Off)
    }

    /// The name of the storage root key, which is made if it is not loaded.
    pub(crate) fn root_name(&mut self) -> Result<Vec<u8>, TpmError> {
        self.root()?;
        Ok(self
            .root
            .as_ref()
            .map(|(_, name)| name.clone())
            .unwrap_or_default())
    }

    /// The handle of a parent: the storage root key, or a persistent object.
    fn parent(&mut self, parent: u32) -> Result<u32, TpmError> {
        match parent {
            commands::OWNER => self.root(),
            persistent => Ok(persistent),
        }
    }

    fn root(&mut self) -> Result<u32, TpmError> {
        // First the connection: when it is new, what was loaded is gone.
        self.connection()?;
        if let Some((handle, _)) = &self.root {
            return Ok(*handle);
        }
        self.keep_keys(MAX_KEYS - 1)?;
        let template = templates::storage_root();
        let primary = self
            .connection()?
            .create_primary(commands::OWNER, &template)?;
        self.root = Some((primary.handle, primary.name));
        Ok(primary.handle)
    }

    /// Makes a primary key for one use and flushes it at once. There is room for one key besides; it is the most
    /// recently used.
    pub(crate) fn with_primary<T>(
        &mut self,
        hierarchy: u32,
        template: &Tpm2bPublic,
        job: impl FnOnce(&mut Connection, &Primary) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.keep_keys(MAX_KEYS - 1)?;
        let connection = self.connection()?;
        let primary = connection.create_primary(hierarchy, template)?;
        let result = job(connection, &primary);
        if !connection.poisoned() {
            connection.flush(primary.handle)?;
        }
        result
    }

    /// Makes a key below `parent`.
    pub(crate) fn create(
        &mut self,
        parent: u32,
        pin: &[u8],
        template: &Tpm2bPublic,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let handle = self.parent(parent)?;
        // TPM2_Create needs room for the new object while it works.
        self.keep_keys(MAX_KEYS - 1)?;
        self.connection()?.create(handle, pin, template)
    }

    /// The handle of a key, loaded if it is not, and the connection it is loaded on.
    pub(crate) fn key(&mut self, blob: &Arc<KeyBlob>) -> Result<(u32, &mut Connection), TpmError> {
        self.connection()?;
        let handle = match self.keys.iter().position(|(loaded, _)| loaded == blob) {
            Some(index) => {
                let entry = self.keys.remove(index);
                let handle = entry.1;
                self.keys.push(entry);
                handle
            }
            None => {
                let parent = self.parent(blob.parent())?;
                self.keep_keys(MAX_KEYS - 1)?;
                let handle = self.connection()?.load(parent, blob)?;
                self.keys.push((Arc::clone(blob), handle));
                handle
            }
        };
        Ok((handle, self.connection()?))
    }

    /// Flushes the least recently used keys until at most `count` are loaded.
    pub(crate) fn keep_keys(&mut self, count: usize) -> Result<(), TpmError> {
        self.connection()?;
        while self.keys.len() > count {
            let (_, handle) = self.keys.remove(0);
            self.connection()?.flush(handle)?;
        }
        Ok(())
    }

    /// Flushes everything and closes the connection.
    pub(crate) fn release(&mut self) {
        self.drop_poisoned();
        if let Some(connection) = &mut self.connection {
            let now = Instant::now();
            connection.set_deadline(now, now + RELEASE_LIMIT);
            let handles = self
                .keys
                .iter()
                .map(|(_, key)| *key)
                .chain(self.root.iter().map(|r| r.0));
            for handle in handles {
                if let Err(error) = connection.flush(handle) {
                    tracing::debug!(%error, "an object could not be flushed");
                    break;
                }
            }
        }
        self.forget();
    }

    /// Closes the connection. With a resource manager that frees all objects; without one, the next connection
    /// does.
    pub(crate) fn forget(&mut self) {
        self.connection = None;
        self.root = None;
        self.keys.clear();
    }

    fn drop_poisoned(&mut self) {
        if self.connection.as_ref().is_none_or(Connection::poisoned) {
            self.forget();
        }
    }

    /// Adds what only this connection can tell.
    fn enrich(&mut self, error: TpmError) -> TpmError {
        match error {
            TpmError::Tpm12 { .. } => TpmError::Tpm12 {
                address: self.address.to_string(),
            },
            TpmError::Response { command, code } if code == ResponseCode::LOCKOUT => {
                let interval = self
                    .connection()
                    .and_then(|connection| connection.properties(PT_LOCKOUT_INTERVAL));
                let recovery = interval
                    .ok()
                    .and_then(|properties| match properties.first() {
                        Some((PT_LOCKOUT_INTERVAL, seconds)) => {
                            Some(Duration::from_secs((*seconds).into()))
                        }
                        _ => None,
                    });
                TpmError::Lockout { command, recovery }
            }
            other => other,
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.release();
    }
}
