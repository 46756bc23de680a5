//! On Unix the owner and the mode say whose a file is.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

pub(super) fn create_private_dirs(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

pub(super) fn is_symlink_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The mode it is made with says it already.
#[expect(clippy::unnecessary_wraps, reason = "it can fail on Windows")]
pub(super) fn make_private(_file: &File) -> io::Result<()> {
    Ok(())
}

pub(super) fn check_private_dir(_path: &Path, metadata: &Metadata) -> Result<(), String> {
    private(metadata)
}

pub(super) fn check_private(_file: &File, metadata: &Metadata) -> Result<(), String> {
    private(metadata)
}

fn private(metadata: &Metadata) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(format!(
            "it belongs to user {}, keybond runs as user {me}",
            metadata.uid()
        ));
    }
    let open = metadata.mode() & 0o077;
    if open != 0 {
        return Err(format!(
            "its mode {:04o} lets others in; `chmod go-rwx` mends that",
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
