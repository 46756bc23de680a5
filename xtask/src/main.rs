//! `cargo xtask <command>`: every check and chore of this repository under one name.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod fixed;
mod fuzz;
mod mutants;
mod run;
mod setup;
mod soak;
mod test;
mod windows;

use std::{env, process::ExitCode};

const HELP: &str = "\
Usage: cargo xtask <command>

  demo [options]   the whole way of a bound token, on loopback (options: those of `keybond demo`;
                   `--tpm swtpm` starts a software TPM and keeps the key in it)
  test             setup, check, every test, also for Windows, 30 s of fuzzing; ends with the totals
  check            formatting, lints, documentation, dependencies
  windows          lints and builds for Windows, runs the tests under Wine
  fuzz             a TPM's answers, key files and records, 30 s each (--seconds N, or the name of one)
  soak [N]         70,000 (or N) signatures in a software TPM, with a second session idle beside
  soak cold-starts [N]
                   8 processes start 200 (or N) times, one of them is killed; one valid key each time
  soak rotation    ten minutes of calls with certificates of 90 seconds; none fails or mixes versions
  soak lives       forty times two years of certificates and tokens, and a thousand kills
  mutants [K/N]    changes the key provider's code, in every way or every N-th, and sees what its tests notice
  bench            what the TPM layer adds to the bare exchange with the TPM
  static           the command as one static file, and its demo with a software TPM
  setup            installs the system packages and cargo tools that the tests need
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let outcome = match (command, rest) {
        ("demo", options) => test::demo(options),
        ("test", []) => test::test(),
        ("check", []) => setup::cargo_tools().and_then(|()| check::check()),
        ("windows", []) => windows::windows(&mut test::Totals::default()),
        ("fuzz", options) => fuzz::fuzz(options),
        ("soak", options) => soak::soak(options),
        ("mutants", options) => mutants::mutants(options),
        ("bench", []) => bench::bench(),
        ("static", []) => fixed::build(),
        ("setup", []) => setup::everything(),
        ("help" | "--help" | "-h", _) => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!(
                "error: unknown command or argument: {}\n\n{HELP}",
                arguments.join(" ")
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
