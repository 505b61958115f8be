//! Tells the program which commit it is built from, for `--version` and for the reports of the load tool.

use std::process::Command;

fn main() {
    // Every commit and checkout writes to the log of HEAD; a change below `src` makes the commit a dirty one.
    for path in [".git/logs/HEAD", "src", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let described = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    // A source archive has no commit.
    let commit = match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    };
    println!("cargo:rustc-env=RINGKEEP_COMMIT={commit}");
}
