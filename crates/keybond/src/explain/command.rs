//! What the `keybond` command and its emulator give beside the codes of the library.

use super::{Entry, Retry, entry};

const fn command(
    code: &'static str,
    retry: Retry,
    meaning: &'static str,
    causes: &'static [&'static str],
    actions: &'static [&'static str],
) -> Entry {
    entry(code, &[], retry, meaning, causes, actions)
}

const REPORT: &[&str] = &["Run again with `--log debug` and report what it shows."];

pub(super) const TABLE: &[Entry] = &[
    command(
        "usage",
        Retry::No,
        "The command was asked for in the wrong way. Nothing was done.",
        &["A typo in an option, a variable or a value."],
        &["See `keybond help` and the help of the verb."],
    ),
    command(
        "io",
        Retry::No,
        "A local file or stream cannot be used.",
        &[
            "A wrong path.",
            "Permissions.",
            "The reader of a pipe went away.",
        ],
        &["Check the path and its permissions."],
    ),
    command(
        "unknown_code",
        Retry::No,
        "There is no such error code.",
        &["A typo, or a code of another program."],
        &["`keybond explain` lists them all."],
    ),
    command(
        "http_status",
        Retry::Depends,
        "With `--fail`: the resource answered with a status of 400 or above.",
        &["The resource refused the request in its own words."],
        &["Read the resource's answer."],
    ),
    command(
        "key_not_kept",
        Retry::No,
        "The key lives in the memory of one process, so that no other can rotate it.",
        &["The machine has no key store that keeps keys."],
        &["Restart the process whose key is to be new."],
    ),
    command(
        "demo_failed",
        Retry::No,
        "A step of the demonstration did not end as it must.",
        &["A fault of keybond or of its emulator."],
        REPORT,
    ),
    command(
        "emulator_listen_failed",
        Retry::Later,
        "The emulator cannot listen at a port.",
        &[
            "Another program holds it.",
            "Ports below 1024 need privileges.",
        ],
        &["Use port 0 for one that is free, or end the program that holds this one."],
    ),
    command(
        "emulator_state_failed",
        Retry::Depends,
        "The emulator's folder cannot be used.",
        &["Permissions.", "Another emulator holds it."],
        &["Give a folder that this user may write to, or end the other emulator."],
    ),
    command(
        "emulator_state_corrupt",
        Retry::No,
        "A file of the emulator's folder cannot be understood. It was left as it is.",
        &["It was cut off or changed."],
        &["Move the file away; clients must then trust the emulator anew."],
    ),
    command(
        "emulator_invalid_setting",
        Retry::No,
        "A setting of the emulator makes no sense; the error names it.",
        &["A typo."],
        &["Correct the value."],
    ),
    command(
        "emulator_crypto_failed",
        Retry::No,
        "The emulator could not make a key, a signature or a certificate.",
        &["A build with other libraries than the tested ones."],
        REPORT,
    ),
    command(
        "emulator_tls_failed",
        Retry::No,
        "The emulator's TLS configuration was refused.",
        &["A build with other libraries than the tested ones."],
        REPORT,
    ),
];
