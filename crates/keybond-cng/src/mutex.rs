//! Named mutexes: one holder among all processes of a session, or of the machine.

use std::{marker::PhantomData, ptr::null, time::Duration};

use windows_sys::Win32::{
    Foundation::{CloseHandle, GetLastError, HANDLE, WAIT_ABANDONED, WAIT_OBJECT_0, WAIT_TIMEOUT},
    System::Threading::{CreateMutexW, INFINITE, ReleaseMutex, WaitForSingleObject},
};

use crate::{
    codes::Hresult,
    error::{CngError, ErrorKind},
    wide::Wide,
};

/// A named mutex. Windows frees it when its holder ends, however it ends.
pub struct NamedMutex(HANDLE);

// SAFETY: a handle to a mutex may be used from any thread; ownership is tied to a thread by the guard.
unsafe impl Send for NamedMutex {}
// SAFETY: as above.
unsafe impl Sync for NamedMutex {}

/// A mutex that is held by this thread, until dropped.
pub struct MutexGuard<'a> {
    mutex: &'a NamedMutex,
    abandoned: bool,
    /// Only the thread that waited may release.
    _not_send: PhantomData<*const ()>,
}

impl NamedMutex {
    /// Opens or makes the mutex with exactly this name, with its namespace (`Global\…`, `Local\…`).
    ///
    /// # Errors
    /// [`CngError`]: `E_ACCESSDENIED` if another user has made it, or making a global one is not allowed.
    pub fn open(name: &str) -> Result<Self, CngError> {
        let name = Wide::new(name)?;
        // SAFETY: no security attributes means the default ones, and `name` ends with NUL.
        let handle = unsafe { CreateMutexW(null(), 0, name.as_ptr()) };
        if handle.is_null() {
            return Err(last_error("CreateMutexW"));
        }
        Ok(Self(handle))
    }

    /// Opens or makes `Global\<name>`, or `Local\<name>` where that is denied.
    ///
    /// # Errors
    /// As [`NamedMutex::open`].
    pub fn open_widest(name: &str) -> Result<Self, CngError> {
        match Self::open(&format!("Global\\{name}")) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Self::open(&format!("Local\\{name}"))
            }
            other => other,
        }
    }

    /// Waits until this thread holds the mutex; `None` if `timeout` passed first. A mutex whose holder died
    /// is held like any other, and [`MutexGuard::was_abandoned`] says so.
    ///
    /// # Errors
    /// [`CngError`] of `WaitForSingleObject`.
    pub fn acquire(&self, timeout: Duration) -> Result<Option<MutexGuard<'_>>, CngError> {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(INFINITE);
        // SAFETY: the handle is live as long as `self`.
        let abandoned = match unsafe { WaitForSingleObject(self.0, millis) } {
            WAIT_OBJECT_0 => false,
            WAIT_ABANDONED => true,
            WAIT_TIMEOUT => return Ok(None),
            _ => return Err(last_error("WaitForSingleObject")),
        };
        Ok(Some(MutexGuard {
            mutex: self,
            abandoned,
            _not_send: PhantomData,
        }))
    }
}

impl MutexGuard<'_> {
    /// Whether the last holder ended without releasing it: what it guards may be half done.
    pub fn was_abandoned(&self) -> bool {
        self.abandoned
    }
}

impl Drop for MutexGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and this thread holds the mutex: the guard cannot leave it.
        unsafe { ReleaseMutex(self.mutex.0) };
    }
}

impl Drop for NamedMutex {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and this is the only place that closes it.
        unsafe { CloseHandle(self.0) };
    }
}

/// The error that the calling thread's last Windows call left.
pub(crate) fn last_error(call: &'static str) -> CngError {
    // SAFETY: reads a number of this thread.
    CngError::new(call, Hresult::from_win32(unsafe { GetLastError() }))
}
