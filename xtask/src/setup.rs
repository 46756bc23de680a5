//! Installs what the tests need, as often as it is asked and only what is missing.

use crate::{
    run::{Failure, answers, run, run_with},
    windows,
};

/// Debian package and a file that shows it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "/usr/bin/gcc"),
    ("g++", "/usr/bin/g++"),
    ("libssl-dev", "/usr/include/openssl/ssl.h"),
    ("openssl", "/usr/bin/openssl"),
    ("curl", "/usr/bin/curl"),
    ("gnutls-bin", "/usr/bin/gnutls-cli"),
    ("swtpm", "/usr/bin/swtpm"),
    ("swtpm-tools", "/usr/bin/swtpm_setup"),
    ("tpm2-tools", "/usr/bin/tpm2"),
    (
        "tpm2-openssl",
        "/usr/lib/x86_64-linux-gnu/ossl-modules/tpm2.so",
    ),
    ("gdb", "/usr/bin/gcore"),
    // Users other than root mount with its help.
    ("fuse3", "/usr/bin/fusermount3"),
    ("softhsm2", "/usr/bin/softhsm2-util"),
    ("apache2-bin", "/usr/sbin/apache2"),
    (
        "python3-jwcrypto",
        "/usr/lib/python3/dist-packages/jwcrypto",
    ),
];

/// Cargo tool and its version.
const TOOLS: &[(&str, &str)] = &[("cargo-deny", "0.20.2")];

/// System packages and cargo tools.
pub(crate) fn everything() -> Result<(), Failure> {
    packages()?;
    windows::packages()?;
    cargo_tools()
}

/// System packages.
pub(crate) fn packages() -> Result<(), Failure> {
    install(PACKAGES)
}

/// Those of these system packages that are missing.
pub(crate) fn install(packages: &[(&'static str, &str)]) -> Result<(), Failure> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, file)| !std::path::Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get update && apt-get install -y {}", missing.join(" "));
    let (program, prefix): (&str, &[&str]) = if is_root() {
        ("apt-get", &[])
    } else if answers("sudo", &["-n", "true"]) {
        ("sudo", &["-n", "apt-get"])
    } else {
        return Err(format!(
            "these tests need more packages; as root, run:\n  {install}"
        ));
    };
    let quiet: &[(&str, &str)] = &[("DEBIAN_FRONTEND", "noninteractive")];
    let with = |arguments: &[&'static str]| [prefix, arguments].concat();
    run_with(program, &with(&["update", "-qq"]), quiet)?;
    let mut arguments: Vec<&str> = with(&["install", "-y", "-qq", "--no-install-recommends"]);
    arguments.extend(&missing);
    run_with(program, &arguments, quiet).map_err(|error| {
        format!("{error}\ninstall the packages by hand, then try again:\n  {install}")
    })
}

/// Cargo tools, in the versions that are known to work.
pub(crate) fn cargo_tools() -> Result<(), Failure> {
    for (tool, version) in TOOLS {
        if !answers(tool, &["--version"]) {
            run(
                "cargo",
                &["install", "--locked", "--version", version, tool],
            )?;
        }
    }
    Ok(())
}

fn is_root() -> bool {
    std::process::Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
