//! The `keybond` command.
#![forbid(unsafe_code)]
// A command line talks to people through these.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod failure;
mod harden;
mod log;
mod session;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{CertCommand, Cli, Command, KeyCommand},
    failure::Failure,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    let keep = matches!(&cli.command, Command::Doctor(args) if args.bundle.is_some());
    let started = log::start(&cli.global.log, keep).map(|()| harden::protect_memory());
    match started.and_then(|()| run(cli)) {
        Ok(code) => code,
        Err(failure) => failure.report(json),
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.global.json;
    match cli.command {
        Command::Doctor(args) => commands::doctor::run(&args, json).await,
        Command::Capabilities(args) => commands::capabilities::run(&args, json).await,
        Command::Key(command) => match command {
            KeyCommand::Show(key) => commands::key::show(&key, json).await,
            KeyCommand::Sign { scheme, key } => commands::key::sign(scheme, &key).await,
            KeyCommand::Public(key) => commands::key::public(&key, json).await,
            KeyCommand::Rotate(key) => commands::key::rotate(&key, json).await,
            KeyCommand::Delete { yes, place } => commands::key::delete(yes, &place, json).await,
        },
        Command::Pop(command) => commands::pop::run(command, json).await,
        Command::Csr(args) => commands::csr::run(&args, json).await,
        Command::Cert(command) => match command {
            CertCommand::Show(args) => commands::cert::show(&args, json).await,
            CertCommand::Renew(args) => commands::cert::renew(&args, json).await,
        },
        Command::Token(args) => commands::token::run(&args, json).await,
        Command::Call(args) => commands::call::run(args, json).await,
        Command::Explain { code } => commands::explain::run(code.as_deref(), json),
        Command::Emulate(args) => commands::emulate::run(&args, json).await,
        Command::Demo(args) => commands::demo::run(&args, json).await,
    }
}
