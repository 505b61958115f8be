//! The device below the data directory: what it offers, and how a commit reaches its stable storage.
//!
//! The sync primitive depends on the device, and follows what the kernel can turn into a forced-unit-access (FUA) write
//! (its `iomap_dio_can_use_fua`):
//!
//! | `write_cache` | `fua` | commit |
//! | --- | --- | --- |
//! | write through | any | O_DSYNC overwrite: there is nothing volatile to flush, and it is one operation fewer |
//! | write back | 1 | both are timed on a file in the data directory, and the faster one is used |
//! | write back | 0 | write, then fdatasync: O_DSYNC would be the same flush after the write |
//! | unknown | unknown | write, then fdatasync |
//!
//! On the machine of BENCHMARKS.md, whose device has a write cache and no FUA, the two ways to commit 4 KiB take 113 µs
//! and 117 µs (`cargo bench --bench designs -- commits`, without a ring).

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::directory::Directory;
use super::{AlignedBuf, BLOCK_BYTES};
use crate::error::is_full;
use crate::file_name::FileName;

/// How a commit reaches stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPrimitive {
    /// A write, then `fdatasync`.
    Fdatasync,
    /// A write to a file opened with O_DSYNC.
    Dsync,
}

impl fmt::Display for SyncPrimitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fdatasync => "write+fdatasync",
            Self::Dsync => "O_DSYNC",
        })
    }
}

/// The device below the data directory; examined once at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Whether files can be opened with O_DIRECT.
    pub direct: bool,
    /// How the WAL is synced.
    pub sync_primitive: SyncPrimitive,
}

impl Device {
    /// Examines the file system and the device below `directory`. Writes and removes a small file there.
    pub fn probe(directory: &Directory) -> io::Result<Self> {
        with_probe_file(directory, || Self::probe_with(directory))
    }

    /// As [`Self::probe`], but writes nothing and only finds out whether `STORE` can be read with O_DIRECT.
    pub fn for_reading(directory: &Directory) -> io::Result<Self> {
        let direct = match reads_direct(directory, &FileName::Store.to_string()) {
            // The later read of `STORE` reports that the file is missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            direct => direct?,
        };
        Ok(Self { direct, sync_primitive: SyncPrimitive::Fdatasync })
    }

    fn probe_with(directory: &Directory) -> io::Result<Self> {
        open_probe_file(directory, OFlags::CREATE | OFlags::TRUNC)?.set_len(BLOCK_BYTES as u64)?;
        // Some file systems accept the flag and refuse the transfer.
        let written = open_probe_file(directory, OFlags::DIRECT)
            .and_then(|file| file.write_all_at(&AlignedBuf::zeroed(BLOCK_BYTES), 0));
        // A full disk refuses the write, too, but that says nothing about O_DIRECT. A hole can still be read.
        let full = written.as_ref().is_err_and(is_full);
        let direct = if full { reads_direct(directory, PROBE)? } else { allows_direct(written)? };
        if full || !direct {
            return Ok(Self { direct, sync_primitive: SyncPrimitive::Fdatasync });
        }
        let sync_primitive = match queue_settings(directory)? {
            Some((cache, _)) if cache == "write through" => SyncPrimitive::Dsync,
            Some((_, fua)) if fua == "1" => faster_primitive(directory)?,
            _ => SyncPrimitive::Fdatasync,
        };
        Ok(Self { direct, sync_primitive })
    }
}

/// Whether a file system allows what was tried with O_DIRECT. Any other failure is returned, because it does not answer
/// the question. Taken for a no, a full disk or one bad read would let the process go on through the page cache.
fn allows_direct<T>(tried: io::Result<T>) -> io::Result<bool> {
    match tried {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the file `name` can be read with O_DIRECT.
fn reads_direct(directory: &Directory, name: &str) -> io::Result<bool> {
    let opened = directory.open_file(name, OFlags::RDONLY | OFlags::DIRECT);
    allows_direct(opened.and_then(|file| file.read_at(&mut AlignedBuf::zeroed(BLOCK_BYTES), 0)))
}

/// The name of a small file that is created to try something, and then removed.
const PROBE: &str = "PROBE.tmp";

/// Runs `work`, which creates the probe file in `directory`, and then removes that file.
fn with_probe_file<T>(directory: &Directory, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let result = work();
    match directory.remove_file(PROBE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => result.and(Err(error)),
        _ => result,
    }
}

fn open_probe_file(directory: &Directory, flags: OFlags) -> io::Result<std::fs::File> {
    directory.open_file(PROBE, OFlags::RDWR | flags)
}

/// `write_cache` and `fua` of the block device below `directory`; `None` if there is no such device (tmpfs, overlay).
pub fn queue_settings(directory: &Directory) -> io::Result<Option<(String, String)>> {
    let device = rustix::fs::fstat(directory.file())?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(node) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { return Ok(None) };
    // A partition has no queue of its own, but its parent has one.
    for folder in [Some(node.as_path()), node.parent()].into_iter().flatten() {
        let read = |file: &str| std::fs::read_to_string(folder.join("queue").join(file));
        if let (Ok(cache), Ok(fua)) = (read("write_cache"), read("fua")) {
            return Ok(Some((cache.trim().to_owned(), fua.trim().to_owned())));
        }
    }
    Ok(None)
}

/// Times how long `device` takes to commit one block as the WAL does, in place, one commit after the other for
/// `duration`. No write of a lone client can take less. Writes and removes a small file.
pub fn time_commits(directory: &Directory, device: Device, duration: Duration) -> io::Result<Vec<Duration>> {
    with_probe_file(directory, || {
        let block = AlignedBuf::zeroed(BLOCK_BYTES);
        open_probe_file(directory, OFlags::CREATE | OFlags::TRUNC)?.write_all_at(&block, 0)?;
        let dsync = device.sync_primitive == SyncPrimitive::Dsync;
        let direct = if device.direct { OFlags::DIRECT } else { OFlags::empty() };
        let file = open_probe_file(directory, direct | if dsync { OFlags::DSYNC } else { OFlags::empty() })?;
        file.sync_all()?;
        let (begin, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || begin.elapsed() < duration {
            let start = Instant::now();
            file.write_all_at(&block, 0)?;
            if !dsync {
                file.sync_data()?;
            }
            times.push(start.elapsed());
        }
        Ok(times)
    })
}

/// Times both primitives alternately on one preallocated block, for about 50 ms each, and returns the faster one.
fn faster_primitive(directory: &Directory) -> io::Result<SyncPrimitive> {
    let block = AlignedBuf::zeroed(BLOCK_BYTES);
    let plain = open_probe_file(directory, OFlags::DIRECT)?;
    let dsync = open_probe_file(directory, OFlags::DIRECT | OFlags::DSYNC)?;
    plain.sync_all()?;
    let (mut with_fdatasync, mut with_dsync) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(100) {
        let start = Instant::now();
        plain.write_all_at(&block, 0)?;
        plain.sync_data()?;
        let middle = Instant::now();
        dsync.write_all_at(&block, 0)?;
        with_fdatasync.push(middle - start);
        with_dsync.push(middle.elapsed());
    }
    with_fdatasync.sort_unstable();
    with_dsync.sort_unstable();
    let middle = with_dsync.len() / 2;
    Ok(if with_dsync[middle] < with_fdatasync[middle] {
        SyncPrimitive::Dsync
    } else {
        SyncPrimitive::Fdatasync
    })
}
