//! The program: command line in, exit status out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use ringkeep::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("RINGKEEP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours =
        std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_target(false)
        // A reader of the log that has gone is no reason to end: the default writes about it to the same place,
        // and panics when that fails too.
        .log_internal_errors(false)
        .init();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.kind().exit_status())
        }
    }
}
