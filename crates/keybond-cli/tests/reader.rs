//! Who is at the other end of `keybond call`: a reader that goes away, a terminal, a pipe.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::Azure;

const RESOURCE: [&str; 2] = ["--resource", "https://vault.azure.net"];
/// What surely ends within this time, ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// Carriage return, and erase to the end of the line.
const ERASE: &str = "\r\x1b[K";

/// Lets the vault answer the next request with a body that nobody reads to its end.
fn endless(azure: &Azure) {
    let faults = format!(
        "{}/_emulator/faults",
        azure.env["AZURE_POD_IDENTITY_AUTHORITY_HOST"].trim_end_matches('/')
    );
    let fault = r#"{"leg":"vault","kind":{"huge_body":{"bytes":1000000000000000}},"times":1}"#;
    let posted = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--data", fault])
        .arg(faults)
        .output();
    support::ok(posted.unwrap());
}

/// The end of a child, which is killed if it does not come to one.
fn end(mut child: Child) -> Output {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (done, waiting) = channel();
    let id = child.id();
    thread::spawn(move || {
        let mut output = (Vec::new(), Vec::new());
        if let Some(stdout) = &mut stdout {
            stdout.read_to_end(&mut output.0).unwrap();
        }
        if let Some(stderr) = &mut stderr {
            stderr.read_to_end(&mut output.1).unwrap();
        }
        let _ = done.send(Output {
            status: child.wait().unwrap(),
            stdout: output.0,
            stderr: output.1,
        });
    });
    waiting.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let id = rustix::process::Pid::from_raw(id.cast_signed()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
        panic!("it went on and on");
    })
}

/// A terminal: its end for programs, and what they write to it.
fn terminal() -> (File, Receiver<String>) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let near = openpt(flags).unwrap();
    grantpt(&near).unwrap();
    unlockpt(&near).unwrap();
    let name = ptsname(&near, Vec::new()).unwrap();
    let far = OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let (sender, seen) = channel();
    thread::spawn(move || {
        let mut near = File::from(near);
        let mut piece = [0; 4096];
        // When nobody has the other end any more, reading fails.
        while let Ok(count @ 1..) = near.read(&mut piece) {
            let text = String::from_utf8_lossy(&piece[..count]).into_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    (far, seen)
}

/// All that is still written.
fn rest(seen: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match seen.recv_timeout(PATIENCE) {
            Ok(more) => text.push_str(&more),
            Err(RecvTimeoutError::Disconnected) => return text,
            Err(RecvTimeoutError::Timeout) => panic!("somebody still has the terminal: {text}"),
        }
    }
}

/// An upload from standard input, whose standard error goes to `errors`.
fn upload(azure: &Azure, errors: Stdio) -> (Child, ChildStdin) {
    let url = format!(
        "{}/checksum?api-version=7.4",
        azure.env["KEYBOND_DEMO_VAULT_URL"]
    );
    let mut command = azure.command(&["call", &url, "-d", "@-", "--fail"]);
    let mut child = command
        .args(RESOURCE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    (child, input)
}

#[test]
fn a_reader_that_leaves_ends_the_transfer() {
    let azure = Azure::start();
    endless(&azure);
    let mut command = azure.command(&["call", &azure.secret_url()]);
    let mut child = command
        .args(RESOURCE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    let output = end(child);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(141), "{said}");
    assert_eq!(said, "");
}

/// A transfer of more than a second, seen at a terminal and, at the same time, at a pipe.
#[test]
fn progress_is_for_terminals_and_leaves_nothing_behind() {
    let azure = Azure::start();
    let (far, seen) = terminal();
    let (watched, mut to_watched) = upload(&azure, far.into());
    let (piped, mut to_piped) = upload(&azure, Stdio::piped());
    let mut shown = String::new();
    while !shown.contains("sent ") {
        to_piped.write_all(&[b'p'; 1024]).unwrap();
        to_watched.write_all(&[b'w'; 1024]).unwrap();
        match seen.recv_timeout(Duration::from_millis(50)) {
            Ok(more) => shown.push_str(&more),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("it is over: {shown}"),
        }
    }
    drop((to_watched, to_piped));
    let (watched, piped) = (end(watched), end(piped));
    shown.push_str(&rest(&seen));
    for output in [&watched, &piped] {
        assert!(output.status.success(), "{shown}");
        assert!(output.stdout.starts_with(b"{\"bytes\":"));
    }
    assert_eq!(String::from_utf8_lossy(&piped.stderr), "");
    let start = format!("{ERASE}sent ");
    assert!(
        shown.starts_with(&start) && shown.contains(" MiB/s"),
        "{shown:?}"
    );
    let left = shown.rsplit(ERASE).next().unwrap();
    assert_eq!(left, "", "{shown:?}");
}

#[test]
fn progress_makes_room_for_an_error() {
    let azure = Azure::start();
    endless(&azure);
    let (far, seen) = terminal();
    let arguments = [
        "call",
        &azure.secret_url(),
        "-o",
        "/dev/null",
        "--max-time",
        "3",
    ];
    let mut command = azure.command(&arguments);
    let child = command.args(RESOURCE).stderr(far).spawn().unwrap();
    // The command holds the terminal, too.
    drop(command);
    let output = end(child);
    assert_eq!(output.status.code(), Some(4));
    let shown = rest(&seen);
    assert!(shown.contains(&format!("{ERASE}received ")), "{shown:?}");
    let left = shown.rsplit(ERASE).next().unwrap();
    assert!(left.starts_with("error: "), "{shown:?}");
}

/// Where the answer itself goes to the terminal, a line in its midst would only spoil it.
#[test]
fn an_answer_on_the_terminal_is_shown_alone() {
    let azure = Azure::start();
    endless(&azure);
    let (far, seen) = terminal();
    let (out, answer) = terminal();
    let mut command = azure.command(&["call", &azure.secret_url(), "--max-time", "3"]);
    let child = command
        .args(RESOURCE)
        .stdout(out)
        .stderr(far)
        .spawn()
        .unwrap();
    drop(command);
    let output = end(child);
    assert_eq!(output.status.code(), Some(4));
    assert!(!rest(&answer).is_empty());
    let shown = rest(&seen);
    assert!(shown.starts_with("error: "), "{shown:?}");
}
