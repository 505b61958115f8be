//! The program: command line in, exit status out. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringkeep::cli::run()
}
