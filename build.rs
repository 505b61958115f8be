//! Tells the program which commit it is built from, for `--version` and for the reports of the load tool.

use std::path::Path;
use std::process::Command;

fn main() {
    // Every commit and checkout appends to the log of HEAD. A change to any of the sources makes the commit a dirty
    // one.
    for path in [".git/logs/HEAD", "src", "Cargo.toml", "Cargo.lock", "build.rs"] {
        if Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let described = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    // A source archive has no commit, even if it was unpacked inside another repository.
    let commit = match described {
        Ok(output) if output.status.success() && Path::new(".git").exists() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    };
    println!("cargo:rustc-env=RINGKEEP_COMMIT={commit}");
}
