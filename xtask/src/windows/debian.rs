//! Where rustup cannot reach its server: Debian's newest Rust (`rustc-web`) and the source of its standard
//! library, unpacked into a folder and built for Windows once. Nothing is installed in the system.
//!
//! All packages must be of one version, and linting must be done by the compiler that builds: another one does
//! not read its libraries.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use super::{TARGET, Toolchain};
use crate::run::{Failure, run_with};

/// Programs of the toolchain; their libraries lie beside them, where only a wrapper finds them.
const PROGRAMS: &[&str] = &["rustc", "rustdoc", "clippy-driver", "cargo-clippy"];

pub(super) fn toolchain(work: &Path) -> Result<Toolchain, Failure> {
    let version = candidate("rustc-web")?;
    let home = work.join("debian");
    let stamp = home.join("stamp");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == version) {
        return Ok(describe(&home, &version));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", home.display());
    if home.exists() {
        fs::remove_dir_all(&home).map_err(failed)?;
    }
    for directory in ["debs", "tc", "bin", "build/src"] {
        fs::create_dir_all(home.join(directory)).map_err(failed)?;
    }
    unpack(&home, &version)?;
    for program in PROGRAMS {
        let tc = home.join("tc/usr");
        let wrapper = format!(
            "#!/bin/sh\nexport LD_LIBRARY_PATH=\"{0}/lib/x86_64-linux-gnu${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\nexec \"{0}/bin/{program}\" \"$@\"\n",
            tc.display()
        );
        let path = home.join("bin").join(program);
        fs::write(&path, wrapper).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    build_std(&home)?;
    fs::write(&stamp, &version).map_err(failed)?;
    Ok(describe(&home, &version))
}

fn describe(home: &Path, version: &str) -> Toolchain {
    let bin = |program: &str| home.join("bin").join(program).display().to_string();
    // Another compiler than the host's: a target directory of its own.
    let target = home.join("target");
    Toolchain {
        way: format!("Debian's rustc-web {version}, its library built here"),
        cargo: "cargo".into(),
        clippy: bin("cargo-clippy"),
        environment: vec![
            ("RUSTC".into(), bin("rustc")),
            ("RUSTDOC".into(), bin("rustdoc")),
            ("CARGO_TARGET_DIR".into(), target.display().to_string()),
        ],
        programs: target.join(TARGET).join("debug"),
    }
}

/// Downloads the packages, all of one version, and unpacks them.
fn unpack(home: &Path, version: &str) -> Result<(), Failure> {
    let upstream = version.split(['+', '-', '~']).next().unwrap_or(version);
    let minor = upstream
        .rsplit_once('.')
        .map_or(upstream, |(minor, _)| minor);
    let library = format!("libstd-rust-web-{minor}");
    let depends = field(&format!("{library}={version}"), "Depends")?;
    let llvm = depends
        .split([' ', ','])
        .find(|word| word.starts_with("libllvm"))
        .ok_or("Debian's Rust names no LLVM")?;
    let mut download = vec!["-qq".to_owned(), "download".to_owned(), llvm.to_owned()];
    for package in [
        "rustc-web",
        "rust-web-src",
        &library,
        "libstd-rust-web-dev",
        "rust-web-clippy",
    ] {
        download.push(format!("{package}={version}"));
    }
    let debs = home.join("debs");
    let status = Command::new("apt-get")
        .args(&download)
        .current_dir(&debs)
        .status()
        .map_err(|error| format!("apt-get: {error}"))?;
    if !status.success() {
        return Err(format!(
            "`apt-get {}` failed ({status})",
            download.join(" ")
        ));
    }
    let unpack = "set -e; for deb in debs/*.deb; do case $deb in \
        */rust-web-src*) dpkg --fsys-tarfile \"$deb\" | tar -x -C tc --wildcards './usr/src/*/library' './usr/lib/rustlib/*';; \
        *) dpkg -x \"$deb\" tc;; esac; done; rm -rf debs tc/usr/share";
    shell(home, unpack)
}

/// Builds the standard library and puts it where the compiler looks for it.
fn build_std(home: &Path) -> Result<(), Failure> {
    let build = home.join("build");
    let manifest = "[package]\nname = \"std-for-windows\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n\
                    [profile.release]\ndebug = 0\nopt-level = 0\ncodegen-units = 16\n";
    fs::write(build.join("Cargo.toml"), manifest)
        .and_then(|()| fs::write(build.join("src/lib.rs"), ""))
        .map_err(|error| format!("{}: {error}", build.display()))?;
    let rustc = home.join("bin/rustc").display().to_string();
    let manifest = build.join("Cargo.toml").display().to_string();
    let target = build.join("target").display().to_string();
    run_with(
        "cargo",
        &[
            "build",
            "--quiet",
            "--release",
            "-Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test",
            "--target",
            TARGET,
            "--manifest-path",
            &manifest,
        ],
        &[
            ("RUSTC", &rustc),
            // The library is part of the compiler and built with its rights; keybond is not.
            ("RUSTC_BOOTSTRAP", "1"),
            ("CARGO_TARGET_DIR", &target),
            (
                "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER",
                "x86_64-w64-mingw32-gcc",
            ),
        ],
    )?;
    let install = format!(
        "set -e; lib=tc/usr/lib/rustlib/{TARGET}/lib; mkdir -p $lib; \
         cp build/target/{TARGET}/release/deps/*.rlib $lib/; rm -rf $lib/libstd_for_windows-* build"
    );
    shell(home, &install)
}

fn shell(directory: &Path, script: &str) -> Result<(), Failure> {
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .status()
        .map_err(|error| format!("sh: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{script}` failed ({status})"))
    }
}

/// The version apt would install.
fn candidate(package: &str) -> Result<String, Failure> {
    field(package, "Version")
}

/// One field of what apt knows about a package.
fn field(package: &str, name: &str) -> Result<String, Failure> {
    let output = Command::new("apt-cache")
        .args(["show", "--no-all-versions", package])
        .output()
        .map_err(|error| format!("apt-cache: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = format!("{name}: ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map(ToOwned::to_owned).ok_or_else(|| {
        format!(
            "no standard library for {TARGET}: rustup cannot add the target, and apt knows no {package}; \
             `apt-get update` may mend that"
        )
    })
}
