//! The process keeps its memory to itself.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
};

#[test]
fn neither_core_files_nor_attaching() {
    let keybond = env!("CARGO_BIN_EXE_keybond");
    // The owner of /proc/PID tells whether the process is dumpable (proc(5)), unless that is root anyway.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("keybond");
    fs::copy(keybond, &binary).unwrap();
    fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut command = if root {
        Command::new("setpriv")
    } else {
        Command::new(&binary)
    };
    if root {
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&binary);
    }
    let mut child = command
        .args(["emulate", "--print-env"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let process = format!("/proc/{}", child.id());
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let owner = fs::metadata(format!("{process}/mem")).unwrap().uid();
    child.kill().unwrap();
    child.wait().unwrap();

    assert!(line.starts_with("export "), "{line}");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(owner, 0, "another process of this user may attach");
}
