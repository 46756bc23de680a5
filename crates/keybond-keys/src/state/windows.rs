//! On Windows an access list says whose a file is.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt as _,
    path::Path,
};

use keybond_cng::{CngError, acl};

const GENERIC_READ: u32 = 0x8000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
/// Links are opened themselves, not what they point to.
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

pub(super) fn create_private_dirs(path: &Path) -> io::Result<()> {
    acl::create_private_dir(path).map_err(other)
}

pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options
        .access_mode(GENERIC_READ | GENERIC_WRITE | acl::PRIVATE_ACCESS)
        .custom_flags(OPEN_REPARSE_POINT)
        .open(path)
}

pub(super) fn make_private(file: &File) -> io::Result<()> {
    acl::make_private(file).map_err(other)
}

pub(super) fn is_symlink_refusal(_error: &io::Error) -> bool {
    false
}

pub(super) fn check_private_dir(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let directory = acl::open_directory(path).map_err(|error| error.to_string())?;
    check_private(&directory, metadata)
}

pub(super) fn check_private(file: &File, _metadata: &Metadata) -> Result<(), String> {
    match acl::stranger(file) {
        Ok(None) => Ok(()),
        Ok(Some(stranger)) => Err(stranger),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

fn other(error: CngError) -> io::Error {
    match error.kind() {
        keybond_cng::ErrorKind::PermissionDenied => {
            io::Error::new(io::ErrorKind::PermissionDenied, error)
        }
        _ => io::Error::other(error),
    }
}
