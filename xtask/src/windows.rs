//! `cargo xtask windows`: what can be said about Windows without Windows.
//!
//! Lints and builds for `x86_64-pc-windows-gnu`, then runs the tests under Wine: as it comes, and with the fake
//! `ncrypt.dll` that has named keys, KeyGuard and a TPM. `docs/windows.md` says which statement rests on what.

mod debian;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::{
    run::{Failure, answers, follow_with, root, run_with, target_dir},
    setup,
    test::Totals,
};

const TARGET: &str = "x86_64-pc-windows-gnu";
const WINE: &str = "/usr/lib/wine/wine64";
const WINESERVER: &str = "/usr/lib/wine/wineserver";
const GCC: &str = "/usr/bin/x86_64-w64-mingw32-gcc";

/// Debian package and a file that shows it is there. Wine's cryptography is libgnutls.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc-mingw-w64-x86-64-posix", GCC),
    ("wine64", WINE),
    ("libgnutls30", "/usr/lib/x86_64-linux-gnu/libgnutls.so.30"),
];

/// Parts of the workspace that exist on Unix alone, or drive it.
const NOT_FOR_WINDOWS: &[&str] = &["keybond-testkit", "keybond-tpm", "xtask"];

/// A library that Rust programs import and Wine 8 lacks; one function of it.
const BCRYPT_PRIMITIVES: &str = "\
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) {
    while (size) {
        ULONG part = size > 0x10000000 ? 0x10000000 : (ULONG)size;
        if (!RtlGenRandom(data, part)) return FALSE;
        data += part;
        size -= part;
    }
    return TRUE;
}
";

/// How cargo is called, and what it needs to know.
struct Toolchain {
    /// Which way the standard library for Windows was had.
    way: String,
    /// `cargo`, and the program that lints with the same compiler.
    cargo: String,
    clippy: String,
    environment: Vec<(String, String)>,
    /// Where programs for Windows end up.
    programs: PathBuf,
}

/// The system packages that this needs.
pub(crate) fn packages() -> Result<(), Failure> {
    setup::install(PACKAGES)
}

/// Everything about Windows that must be true before a change lands. What the test beds counted is added to `all`,
/// also when they fail.
pub(crate) fn windows(all: &mut Totals) -> Result<(), Failure> {
    let started = Instant::now();
    packages()?;
    let work = target_dir().join("windows");
    fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let toolchain = toolchain(&work)?;
    println!("\nstandard library for {TARGET}: {}", toolchain.way);
    let wine = Wine::start(&work)?;
    println!("set up after {} s", started.elapsed().as_secs());

    let mut workspace = vec!["--workspace"];
    for package in NOT_FOR_WINDOWS {
        workspace.extend(["--exclude", package]);
    }
    let environment = toolchain.environment(&wine, Ncrypt::Stock);
    let lint = [
        &["clippy"],
        &workspace[..],
        &["--all-targets", "--", "-D", "warnings"],
    ]
    .concat();
    run_with(&toolchain.clippy, &lint, &borrow(&environment))?;
    let build = [&["build"], &workspace[..], &["--all-targets"]].concat();
    run_with(&toolchain.cargo, &build, &borrow(&environment))?;

    let fake = toolchain.programs.join("keybond_fake_ncrypt.dll");
    // Beside the tests, and beside the command that some of them run.
    for directory in [toolchain.programs.join("deps"), toolchain.programs.clone()] {
        fs::copy(&fake, directory.join("ncrypt.dll"))
            .map_err(|error| format!("{}: {error}", fake.display()))?;
    }

    let mut beds = Vec::new();
    let mut failures = Vec::new();
    let machine = work.join("fake");
    for (bed, ncrypt, arguments) in BEDS {
        machine_with_everything(&machine)
            .map_err(|error| format!("{}: {error}", machine.display()))?;
        let mut totals = Totals::default();
        let environment = toolchain.environment(&wine, *ncrypt);
        let test = [&["test"], &workspace[..], arguments].concat();
        let passed = follow_with(&toolchain.cargo, &test, &borrow(&environment), |line| {
            totals.read(line);
        })?;
        if !passed || totals.failed > 0 || totals.passed == 0 {
            failures.push(format!("the tests {bed} failed"));
        }
        beds.push(format!("{:4} {bed}", totals.passed));
        *all += totals;
    }
    drop(wine);
    if !failures.is_empty() {
        return Err(failures.join("; "));
    }

    println!("\nWindows, verified by");
    println!(
        "  types    clippy and build for {TARGET}, {}",
        toolchain.way
    );
    for bed in &beds {
        println!("  tests  {bed}");
    }
    println!("SKIPPED {NOT_UNDER_WINE}: Wine does not reset connections");
    for (test, why) in NOT_OVER_THE_FAKE {
        println!("SKIPPED {test}: {why}");
    }
    println!(
        "  nothing  real KeyGuard and TPM, Windows' own error codes, access lists, windows-msvc:\n\
         \x20          `cargo test -p keybond-cng -- --ignored` on a real machine (docs/windows.md)"
    );
    let ended = started.elapsed().as_secs();
    println!("Windows: {} min {} s", ended / 60, ended % 60);
    Ok(())
}

/// Which `ncrypt.dll` the programs load.
#[derive(Clone, Copy)]
enum Ncrypt {
    Stock,
    Fake,
}

/// Tests for real machines that Wine cannot serve, and why.
const NOT_OVER_THE_FAKE: [(&str, &str); 2] = [
    ("access_lists", "Wine has no icacls that changes anything"),
    (
        "protected_data_that_was_changed",
        "Wine's data protection sees some changes only",
    ),
];

/// Wine closes a connection in order where it was told to reset it.
const NOT_UNDER_WINE: &str = "a_panic_or_a_reset_ends_one_connection_only";

/// What is run, and over which `ncrypt.dll`. Tests are chosen by their names among the whole workspace, never by
/// package: that would build dependencies once more, with other features.
const BEDS: &[(&str, Ncrypt, &[&str])] = &[
    (
        "under Wine as it comes",
        Ncrypt::Stock,
        &[
            "--no-fail-fast",
            "--lib",
            "--test",
            "windows",
            "--",
            "--skip",
            NOT_UNDER_WINE,
        ],
    ),
    (
        "under Wine as it comes: it lies, we do not",
        Ncrypt::Stock,
        &["--test", "stock", "--", "--ignored"],
    ),
    (
        "under Wine with the fake ncrypt.dll",
        Ncrypt::Fake,
        &["--test", "fake", "--test", "conformance", "--", "--ignored"],
    ),
    (
        "meant for real machines, tried over the fake ncrypt.dll",
        Ncrypt::Fake,
        &[
            "--test",
            "real",
            "--",
            "--ignored",
            "--skip",
            NOT_OVER_THE_FAKE[0].0,
            "--skip",
            NOT_OVER_THE_FAKE[1].0,
        ],
    ),
];

impl Toolchain {
    fn environment(&self, wine: &Wine, ncrypt: Ncrypt) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        let which = match ncrypt {
            Ncrypt::Stock => "b",
            Ncrypt::Fake => "n",
        };
        let fake = wine.prefix.with_file_name("fake");
        let pairs = [
            ("CARGO_BUILD_TARGET", TARGET.to_owned()),
            ("CARGO_INCREMENTAL", "0".to_owned()),
            (
                "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER",
                "x86_64-w64-mingw32-gcc".to_owned(),
            ),
            // Endless loops exist; a display or a library path of ours does not concern Wine.
            (
                "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER",
                format!("timeout 300 env -u LD_LIBRARY_PATH -u DISPLAY {WINE}"),
            ),
            ("WINEPREFIX", wine.prefix.display().to_string()),
            ("WINEDEBUG", "-all".to_owned()),
            (
                "WINEDLLOVERRIDES",
                format!("ncrypt={which};mscoree,mshtml,winedbg.exe="),
            ),
            ("KEYBOND_FAKE_NCRYPT", windows_path(&fake)),
        ];
        environment.extend(pairs.map(|(name, value)| (name.to_owned(), value)));
        environment
    }
}

/// A Wine prefix, kept between runs; its processes end with this value.
struct Wine {
    prefix: PathBuf,
}

impl Wine {
    fn start(work: &Path) -> Result<Self, Failure> {
        let wine = Self {
            prefix: work.join("wine"),
        };
        let ready = wine.prefix.join("keybond-ready");
        if !ready.exists() {
            println!("\n$ wineboot -i ({})", wine.prefix.display());
            // Half of a prefix is none.
            if wine.prefix.exists() {
                fs::remove_dir_all(&wine.prefix).map_err(|error| format!("Wine: {error}"))?;
            }
            wine.run(&["wineboot", "-i"])?;
            let source = work.join("bcryptprimitives.c");
            fs::write(&source, BCRYPT_PRIMITIVES).map_err(|error| format!("Wine: {error}"))?;
            let library = wine
                .prefix
                .join("drive_c/windows/system32/bcryptprimitives.dll");
            let (library, source) = (library.display().to_string(), source.display().to_string());
            let flags = [
                "-shared",
                "-O2",
                "-s",
                "-o",
                &library,
                &source,
                "-ladvapi32",
            ];
            run_with(GCC, &flags, &[])?;
            fs::write(&ready, "").map_err(|error| format!("Wine: {error}"))?;
        }
        // The first process starts services that would hold on to the output of the tests.
        wine.run(&["cmd", "/c", "exit"])?;
        Ok(wine)
    }

    fn run(&self, arguments: &[&str]) -> Result<(), Failure> {
        let status = Command::new("timeout")
            .args(["120", WINE])
            .args(arguments)
            .env("WINEPREFIX", &self.prefix)
            .env("WINEDEBUG", "-all")
            .env("WINEDLLOVERRIDES", "mscoree,mshtml,winedbg.exe=")
            .env_remove("DISPLAY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| format!("Wine: {error}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("Wine: `{}` failed ({status})", arguments.join(" ")))
        }
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        // Only the processes of this prefix. It fails when they have gone by themselves.
        let _ = Command::new(WINESERVER)
            .arg("-k")
            .env("WINEPREFIX", &self.prefix)
            .status();
    }
}

/// Rustup's standard library if it can be had, else one built from Debian's sources.
fn toolchain(work: &Path) -> Result<Toolchain, Failure> {
    let forced = std::env::var("KEYBOND_WINDOWS_TOOLCHAIN").unwrap_or_default();
    if forced == "debian" || !rustup_has_target() {
        return debian::toolchain(work);
    }
    Ok(Toolchain {
        way: "rustup target add (the compiler of the host)".into(),
        cargo: "cargo".into(),
        clippy: "cargo".into(),
        environment: vec![],
        programs: target_dir().join(TARGET).join("debug"),
    })
}

fn rustup_has_target() -> bool {
    let listed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .current_dir(root())
        .output();
    let installed = listed.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line == TARGET)
    });
    installed || answers("timeout", &["120", "rustup", "target", "add", TARGET])
}

/// The fake machine, empty, with VBS and a TPM.
fn machine_with_everything(directory: &Path) -> std::io::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)?;
    fs::write(directory.join("config"), "vbs=on\ntpm=on\n")
}

/// A path as a program under Wine sees it.
fn windows_path(path: &Path) -> String {
    format!("Z:{}", path.display()).replace('/', "\\")
}

fn borrow(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}
