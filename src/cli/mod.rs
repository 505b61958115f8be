//! The command line: one file per command, each thin over the library.

mod check;
mod serve;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// A durable key-value server: HTTP outside, io_uring inside, and a 200 means on disk.
#[derive(Debug, Parser)]
#[command(name = "ringkeep", version, args_conflicts_with_subcommands = true)]
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
            Some(Command::Check(check)) => check.run(),
            None => self.serve.run(),
        }
    }
}
