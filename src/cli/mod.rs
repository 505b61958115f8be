//! The command line: one file per command, each thin over the library.

mod bench;
mod check;
mod serve;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("RINGKEEP_COMMIT"), ")");

/// A durable key-value server: HTTP outside, io_uring inside, and a 200 means on disk.
#[derive(Debug, Parser)]
#[command(name = "ringkeep", version = VERSION, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests; this is what happens without a command, too.
    Serve(serve::Serve),
    /// Load a running server, measure it, and check every answer
    Bench(Box<bench::Bench>),
    /// Read a store from end to end and list what is damaged; changes nothing.
    Check(check::Check),
}

impl Cli {
    /// Carries out the command.
    ///
    /// # Errors
    /// Its kind has the exit status.
    pub fn run(self) -> Result<()> {
        match self.command {
            Some(Command::Serve(serve)) => serve.run(),
            Some(Command::Bench(bench)) => bench.run(),
            Some(Command::Check(check)) => check.run(),
            None => self.serve.run(),
        }
    }
}

/// Drawn on standard error, and only if that is a terminal.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar, // the plain one shows the same numbers
    }
}
