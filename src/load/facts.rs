//! Where a figure comes from: the program, the host, and the storage below the data. Collected once, before the run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::host;
use crate::storage::device::{Device, queue_settings, time_commits};
use crate::storage::directory::Directory;

/// The commit that the program was built from.
pub const COMMIT: &str = env!("RINGKEEP_COMMIT");

/// How long to measure commits of single blocks, one after the other.
const COMMITS_TIME: Duration = Duration::from_millis(500);

/// The program and its command line.
pub fn program() -> Value {
    let command: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    json!({ "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT, "command": command })
}

/// The machine that the load runs on.
pub fn machine() -> Value {
    let name = rustix::system::uname();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    json!({
        "kernel": name.release().to_string_lossy(),
        "cpu": model,
        "processors": cpu.lines().filter(|line| line.starts_with("processor")).count(),
        "load_processors": host::processors(),
        "memory_bytes": host::memory_bytes(),
    })
}

/// Describes the storage below the server's data. Writes and removes a small file in `directory`, and takes half a
/// second.
///
/// # Errors
/// The directory does not exist or cannot be written to.
pub fn storage(directory: &Path) -> Result<Value> {
    let failed = |error| Error::io(format!("examine the storage of {}", directory.display()), error);
    let path = fs::canonicalize(directory).map_err(failed)?;
    let held = Directory::open(&path).map_err(failed)?;
    let device = Device::probe(&held).map_err(failed)?;
    let cache = queue_settings(&held).map_err(failed)?;
    let mut commits = time_commits(&held, device, COMMITS_TIME).map_err(failed)?;
    commits.sort_unstable();
    let quantile = |share: f64| {
        let index = ((commits.len() - 1) as f64 * share) as usize;
        commits.get(index).map(|time| time.as_secs_f64() * 1e6)
    };
    let (file_system, source) = mount(&path).unwrap_or_default();
    Ok(json!({
        "path": path.to_string_lossy(),
        "file_system": file_system,
        "device": source,
        "o_direct": device.direct,
        "sync_primitive": device.sync_primitive.to_string(),
        "write_cache": cache.as_ref().map(|(cache, _)| cache),
        "fua": cache.as_ref().map(|(_, fua)| fua),
        "commit_4k_us": { "count": commits.len(), "p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1.0) },
    }))
}

/// Type and source of the file system that holds `path`.
fn mount(path: &Path) -> Option<(String, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    holder(&mounts, path)
}

/// The mount whose point is the longest prefix of `path`; the last one, if several have the same point.
fn holder(mounts: &str, path: &Path) -> Option<(String, String)> {
    let parse = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let mut kind = kind.split(' ');
        let found = (kind.next()?.to_owned(), kind.next()?.to_owned());
        path.starts_with(&point).then_some((point.len(), found))
    };
    mounts.lines().filter_map(parse).max_by_key(|(length, _)| *length).map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 22 0:25 / /data rw - tmpfs tmpfs rw\n\
                      31 22 8:1 / /data/my\\040disk rw master:1 - xfs /dev/sda1 rw\n";
        let holder = |path| holder(mounts, Path::new(path)).unwrap();
        assert_eq!(holder("/home/x"), ("ext4".into(), "/dev/vda".into()));
        assert_eq!(holder("/data/other"), ("tmpfs".into(), "tmpfs".into()));
        assert_eq!(holder("/data/my disk/x"), ("xfs".into(), "/dev/sda1".into()));
        assert_eq!(holder("/database"), ("ext4".into(), "/dev/vda".into()));
    }

    #[test]
    fn a_directory_has_a_commit_time() {
        let folder = tempfile::tempdir().unwrap();
        let facts = storage(folder.path()).unwrap();
        assert!(0.0 < facts["commit_4k_us"]["p50"].as_f64().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        assert!(storage(&folder.path().join("missing")).is_err());
    }
}
