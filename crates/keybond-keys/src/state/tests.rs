//! What the state directory trusts, and what it leaves behind.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn fresh() -> (tempfile::TempDir, StateDir) {
    let parent = tempfile::tempdir().unwrap();
    let dir = StateDir::open(parent.path().join("a/b")).unwrap();
    (parent, dir)
}

#[test]
fn directories_and_files_are_private() {
    let (_parent, dir) = fresh();
    dir.write("x", b"one").unwrap();
    dir.write("x", b"two").unwrap();
    assert_eq!(dir.read("x").unwrap().unwrap(), b"two");
    assert_eq!(dir.read("y").unwrap(), None);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(dir.path()), mode(&dir.path().join("x"))),
        (0o700, 0o600)
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "temporary files are left"
    );
}

#[test]
fn writers_of_one_file_do_not_mix() {
    let (_parent, dir) = fresh();
    std::thread::scope(|scope| {
        for byte in b'a'..b'e' {
            let dir = &dir;
            scope.spawn(move || {
                for _ in 0..50 {
                    dir.write("x", &[byte; 9_000]).unwrap();
                    let read = dir.read("x").unwrap().unwrap();
                    assert!(read.len() == 9_000 && read.iter().all(|b| *b == read[0]));
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn links_and_open_modes_are_refused() {
    let (parent, dir) = fresh();
    dir.write("real", b"x").unwrap();
    symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    assert!(matches!(
        dir.read("link"),
        Err(StateError::NotTrusted { .. })
    ));
    fs::set_permissions(dir.path().join("real"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = dir.read("real").unwrap_err().to_string();
    assert!(error.contains("0640"), "{error}");
    symlink(dir.path(), parent.path().join("dirlink")).unwrap();
    assert!(matches!(
        StateDir::open(parent.path().join("dirlink")),
        Err(StateError::NotTrusted { .. })
    ));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(
        StateDir::open(dir.path()),
        Err(StateError::NotTrusted { .. })
    ));
}

#[test]
fn what_is_set_aside_is_kept_under_a_name_of_its_own() {
    let (_parent, dir) = fresh();
    let now = UNIX_EPOCH + std::time::Duration::from_secs(1_000);
    for content in ["one", "two"] {
        dir.write("key.pem", content.as_bytes()).unwrap();
        dir.set_aside("key.pem", "corrupt", now).unwrap().unwrap();
    }
    assert_eq!(dir.read("key.pem").unwrap(), None);
    assert_eq!(dir.read("key.pem.1000.corrupt").unwrap().unwrap(), b"one");
    assert_eq!(dir.read("key.pem.1000-1.corrupt").unwrap().unwrap(), b"two");
    assert_eq!(dir.set_aside("key.pem", "corrupt", now).unwrap(), None);
}

#[test]
fn one_holder_of_a_lock_at_a_time() {
    let (_parent, dir) = fresh();
    let held = dir.try_lock("k.lock").unwrap().unwrap();
    assert!(dir.try_lock("k.lock").unwrap().is_none());
    drop(held);
    assert!(dir.try_lock("k.lock").unwrap().is_some());
}

fn is_io<T: std::fmt::Debug>(result: Result<T, StateError>) -> bool {
    matches!(result, Err(StateError::Io { .. }))
}

/// A name that no file system takes, which is no answer about what is there.
fn impossible() -> String {
    "x".repeat(300)
}

#[test]
fn what_cannot_be_asked_is_neither_absent_nor_a_link() {
    let (_parent, dir) = fresh();
    assert!(is_io(dir.read(&impossible())));
    assert!(is_io(dir.write(&impossible(), b"x")));
    assert!(is_io(dir.remove(&impossible())));
    assert!(is_io(dir.set_aside(&impossible(), "corrupt", UNIX_EPOCH)));
    assert!(is_io(dir.try_lock(&impossible())));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_removed_is_gone_and_what_was_not_there_is_told() {
    let (_parent, dir) = fresh();
    dir.write("x", b"x").unwrap();
    assert!(dir.remove("x").unwrap());
    assert_eq!(dir.read("x").unwrap(), None);
    assert!(!dir.remove("x").unwrap());
    dir.subdirectory("folder").unwrap();
    assert!(is_io(dir.remove("folder")), "it is no file");
    assert!(dir.path().join("folder").is_dir());
}

#[test]
fn files_up_to_a_mebibyte_are_read() {
    let (_parent, dir) = fresh();
    let most = vec![b'x'; 1 << 20];
    dir.write("x", &most).unwrap();
    assert_eq!(dir.read("x").unwrap().unwrap(), most);
    dir.write("x", &[&most[..], b"x"].concat()).unwrap();
    assert!(matches!(dir.read("x"), Err(StateError::TooLarge { .. })));
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let (parent, dir) = fresh();
    dir.subdirectory("folder").unwrap();
    let pipe = dir.path().join("pipe");
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, mode, 0).unwrap();
    for name in ["folder", "pipe"] {
        let read = dir.read(name);
        assert!(
            matches!(read, Err(StateError::NotTrusted { .. })),
            "{read:?}"
        );
    }
    fs::write(parent.path().join("file"), "x").unwrap();
    let opened = StateDir::open(parent.path().join("file"));
    assert!(opened.is_err(), "{opened:?}");
}

#[test]
fn a_lock_behind_a_link_is_not_taken() {
    let (_parent, dir) = fresh();
    dir.write("real", b"x").unwrap();
    symlink(dir.path().join("real"), dir.path().join("k.lock")).unwrap();
    assert!(is_io(dir.try_lock("k.lock")));
    assert_eq!(dir.read("real").unwrap().unwrap(), b"x");
}
