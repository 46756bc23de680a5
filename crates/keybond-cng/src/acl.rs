//! Files and directories for one user: made so, and looked at before they are believed.
//!
//! The system itself and administrators always get in somehow; they count as no one else.

use std::{
    fs::{File, OpenOptions},
    io,
    os::windows::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, io::AsRawHandle as _},
    path::Path,
    ptr::{null, null_mut},
};

use windows_sys::Win32::{
    Foundation::{CloseHandle, HANDLE, LocalFree},
    Security::{
        ACCESS_ALLOWED_ACE, ACL,
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            GetSecurityInfo, SDDL_REVISION_1, SE_FILE_OBJECT, SetSecurityInfo,
        },
        DACL_SECURITY_INFORMATION, EqualSid, GetAce, GetSecurityDescriptorDacl,
        GetTokenInformation, INHERIT_ONLY_ACE, IsWellKnownSid, OWNER_SECURITY_INFORMATION,
        PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES,
        TOKEN_QUERY, TOKEN_USER, TokenUser, WELL_KNOWN_SID_TYPE, WinBuiltinAdministratorsSid,
        WinCreatorOwnerRightsSid, WinCreatorOwnerSid, WinLocalSystemSid,
    },
    Storage::FileSystem::{
        CreateDirectoryW, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, READ_CONTROL,
        WRITE_DAC,
    },
    System::{
        SystemServices::{ACCESS_ALLOWED_ACE_TYPE, ACCESS_DENIED_ACE_TYPE},
        Threading::{GetCurrentProcess, OpenProcessToken},
    },
};

use crate::{
    codes::Hresult,
    error::{CngError, ErrorKind},
    mutex::last_error,
    wide::{Wide, c_text},
};

/// Makes the directory, and missing ones above it, for this user and the system alone; what is made inside
/// inherits that. Existing ones stay as they are.
///
/// # Errors
/// [`CngError`] of `CreateDirectoryW`.
pub fn create_private_dir(path: &Path) -> Result<(), CngError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
    {
        create_private_dir(parent)?;
    }
    let name: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let descriptor = Descriptor::private()?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path ends with NUL; the attributes and their descriptor are live for the call.
    if unsafe { CreateDirectoryW(name.as_ptr(), &attributes) } != 0 {
        return Ok(());
    }
    let error = last_error("CreateDirectoryW");
    if error.kind() == ErrorKind::Exists {
        // Another process was faster; whose it is, is for the caller to examine.
        Ok(())
    } else {
        Err(error)
    }
}

/// Gives an open file to this user and the system alone. Access that others hold already stays.
///
/// # Errors
/// [`CngError`] of `SetSecurityInfo`. The file must have been opened with [`PRIVATE_ACCESS`].
pub fn make_private(file: &File) -> Result<(), CngError> {
    let descriptor = Descriptor::private()?;
    let (mut present, mut list, mut defaulted) = (0, null_mut(), 0);
    // SAFETY: the descriptor is valid; the list points into it.
    if unsafe { GetSecurityDescriptorDacl(descriptor.0, &mut present, &mut list, &mut defaulted) }
        == 0
    {
        return Err(last_error("GetSecurityDescriptorDacl"));
    }
    let what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
    // SAFETY: the handle is open as long as `file`, and the list as long as `descriptor`.
    let status = unsafe {
        SetSecurityInfo(
            file.as_raw_handle(),
            SE_FILE_OBJECT,
            what,
            null_mut(),
            null_mut(),
            list,
            null(),
        )
    };
    check("SetSecurityInfo", status)
}

/// The access rights that a file needs beyond reading and writing to be made private and examined.
pub const PRIVATE_ACCESS: u32 = READ_CONTROL | WRITE_DAC;

/// Opens a directory to be examined by [`stranger`]. A link is opened itself, not what it points to.
///
/// # Errors
/// The operating system's.
pub fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(READ_CONTROL)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)
}

/// Whether somebody but this user, the system and administrators owns the file or may use it: the first such
/// one, as half a sentence.
///
/// # Errors
/// [`CngError`] of the call that failed.
pub fn stranger(file: &File) -> Result<Option<String>, CngError> {
    let (mut owner, mut list, mut descriptor) = (null_mut(), null_mut(), null_mut());
    // SAFETY: the handle is open as long as `file`; owner and list point into the descriptor, which is ours.
    let status = unsafe {
        GetSecurityInfo(
            file.as_raw_handle(),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
            &mut owner,
            null_mut(),
            &mut list,
            null_mut(),
            &mut descriptor,
        )
    };
    check("GetSecurityInfo", status)?;
    let _descriptor = Descriptor(descriptor);
    let user = User::current()?;
    if !user.is_one_of_us(owner) {
        return Ok(Some(format!("it belongs to {}", shown(owner))));
    }
    if list.is_null() {
        return Ok(Some(
            "it has no access list, so that everybody gets in".into(),
        ));
    }
    allowed_stranger(list, &user)
}

fn allowed_stranger(list: *const ACL, user: &User) -> Result<Option<String>, CngError> {
    // SAFETY: the list is a valid one that the system gave.
    let count = unsafe { (*list).AceCount };
    for at in 0..u32::from(count) {
        let mut entry = null_mut();
        // SAFETY: the list is valid and has more than `at` entries.
        if unsafe { GetAce(list, at, &mut entry) } == 0 {
            return Err(last_error("GetAce"));
        }
        let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
        // SAFETY: every entry begins with this header.
        let header = unsafe { (*entry).Header };
        if u32::from(header.AceFlags) & INHERIT_ONLY_ACE != 0
            || u32::from(header.AceType) == ACCESS_DENIED_ACE_TYPE
        {
            continue;
        }
        if u32::from(header.AceType) != ACCESS_ALLOWED_ACE_TYPE {
            let kind = header.AceType;
            return Ok(Some(format!("its access list has an entry of type {kind}")));
        }
        // SAFETY: an entry of this type ends with a SID that begins here.
        let sid: PSID = unsafe { (&raw mut (*entry).SidStart).cast() };
        // SAFETY: as above.
        let mask = unsafe { (*entry).Mask };
        if mask != 0 && !user.is_one_of_us(sid) {
            return Ok(Some(format!("its access list lets {} in", shown(sid))));
        }
    }
    Ok(None)
}

/// A security descriptor that the system allocated.
struct Descriptor(PSECURITY_DESCRIPTOR);

impl Descriptor {
    /// Nothing inherited; full access, also for what is made inside, for this user and the system.
    fn private() -> Result<Self, CngError> {
        let sid = shown(User::current()?.sid());
        let text = Wide::new(&format!("D:P(A;OICI;FA;;;{sid})(A;OICI;FA;;;SY)"))?;
        let mut descriptor = null_mut();
        // SAFETY: the text ends with NUL; the descriptor is ours on success.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                null_mut(),
            )
        };
        if made == 0 {
            return Err(last_error(
                "ConvertStringSecurityDescriptorToSecurityDescriptorW",
            ));
        }
        Ok(Self(descriptor))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is ours, and this is the only place that frees it.
        unsafe { LocalFree(self.0) };
    }
}

/// The user this process runs as: a `TOKEN_USER`, aligned for it.
struct User(Vec<u64>);

impl User {
    fn current() -> Result<Self, CngError> {
        let mut token: HANDLE = null_mut();
        // SAFETY: the process handle is a constant; the token is ours on success.
        if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) } == 0 {
            return Err(last_error("OpenProcessToken"));
        }
        // A SID has at most 68 bytes (SECURITY_MAX_SID_SIZE).
        let mut user = vec![0_u64; 32];
        let mut len = 0;
        // SAFETY: the token is live, and the buffer has the size that is passed.
        let got = unsafe {
            GetTokenInformation(
                token,
                TokenUser,
                user.as_mut_ptr().cast(),
                (user.len() * 8) as u32,
                &mut len,
            )
        };
        let failed = (got == 0).then(|| last_error("GetTokenInformation"));
        // SAFETY: the token is ours, and not used after this.
        unsafe { CloseHandle(token) };
        failed.map_or(Ok(Self(user)), Err)
    }

    fn sid(&self) -> PSID {
        // SAFETY: the buffer was filled with this structure, is aligned for it, and holds the SID, too.
        unsafe { (*self.0.as_ptr().cast::<TOKEN_USER>()).User.Sid }
    }

    /// Whether a SID is this user, or one that gets in anyway.
    fn is_one_of_us(&self, sid: PSID) -> bool {
        const ALWAYS: [WELL_KNOWN_SID_TYPE; 4] = [
            WinLocalSystemSid,
            WinBuiltinAdministratorsSid,
            WinCreatorOwnerSid,
            WinCreatorOwnerRightsSid,
        ];
        // SAFETY: both are valid SIDs: one of the token, one of a descriptor that the system gave.
        unsafe {
            EqualSid(self.sid(), sid) != 0
                || ALWAYS.iter().any(|known| IsWellKnownSid(sid, *known) != 0)
        }
    }
}

/// A SID as text: `S-1-5-18`.
fn shown(sid: PSID) -> String {
    let mut start = null_mut();
    // SAFETY: the SID is valid; the text is ours on success.
    if unsafe { ConvertSidToStringSidW(sid, &mut start) } == 0 {
        return "an unknown user".into();
    }
    // SAFETY: the text ends with NUL, and nobody else frees it.
    unsafe {
        let text = c_text(start);
        LocalFree(start.cast());
        text
    }
}

fn check(call: &'static str, status: u32) -> Result<(), CngError> {
    match status {
        0 => Ok(()),
        code => Err(CngError::new(call, Hresult::from_win32(code))),
    }
}
