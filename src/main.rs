//! The program: command line in, exit status out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use ringkeep::cli::{Cli, Log};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = match Log::start() {
        Ok(log) => log,
        Err(error) => {
            eprintln!("ringkeep: {error}");
            return ExitCode::from(error.kind().exit_status());
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.failure(&error);
            ExitCode::from(error.kind().exit_status())
        }
    }
}
