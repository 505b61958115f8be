//! The commands of the real binary, run to their end.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a command.
pub fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(words).output().unwrap()
}

/// What a command has printed, on standard output and then on standard error.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Expects that a command has succeeded. Returns its standard output.
pub fn succeeds(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
