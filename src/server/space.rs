//! The state of the disk, and the space that is reserved for the work that makes room on it.
//!
//! ```text
//!   there is space ──(an operation finds none)──► full ──(the reserve fits again, with a margin)──► there is space
//!     RESERVE is allocated                          RESERVE is empty; sets are refused
//! ```
//!
//! A store that has filled its volume could neither flush nor compact, and a delete, which needs space in the log, could
//! not make room either. So one file of the store, `RESERVE`, holds space and no data. When the disk is full, its space is
//! given back at once. Sets are refused from then on, so only work that makes room uses the space: one flush or one
//! compaction at a time ([`crate::shard::space`]), and the logs of deletes. Sets are accepted again once the reserve can be
//! allocated anew and a margin is left, so that the state does not change back and forth.
//!
//! A crash needs no care: `RESERVE` holds no data, and a start allocates it, or finds the disk full. A start on a full disk
//! gives the reserve back before it opens the shards, because an open writes a new log and a new manifest for each.

use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::watch;

use crate::config::{Config, WAL_STEP_BYTES};
use crate::data_dir::DataDir;
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::shard::space::Space;
use crate::storage::uring::{UringFile, UringStorage};
use crate::storage::{Access, File, Storage, list_files};

/// How often the space is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// The reserve of a store without data, in addition to a step of a WAL for each shard.
const RESERVE_BYTES_MIN: u64 = 16 << 20;
/// The reserve takes no more than this part of the volume.
const VOLUME_PART: u64 = 8;

/// What the reserve should hold: a memtable's SST, a file of L0, and two outputs, as far as there is data, and what a start
/// needs.
fn wanted_bytes(volume_bytes: u64, shards: u16, memtable_bytes: usize, data_bytes: u64) -> u64 {
    let start = u64::from(shards) * WAL_STEP_BYTES + RESERVE_BYTES_MIN;
    let work = (4 * memtable_bytes as u64).min(data_bytes);
    (start + work).min(volume_bytes / VOLUME_PART)
}

/// The largest memtable with which the reserve of a volume suffices.
pub(super) fn memtable_bytes_max(volume_bytes: u64) -> u64 {
    volume_bytes / VOLUME_PART / 4
}

/// Watches the disk.
pub(super) struct Monitor {
    space: Space,
    data_dir: &'static DataDir,
    file: UringFile,
    shards: u16,
    memtable_bytes: usize,
    /// Bytes that the reserve holds.
    held: u64,
}

impl Monitor {
    /// Allocates the reserve. If there is not enough space for it, the disk counts as full from the start.
    ///
    /// # Errors
    /// `Io`; `Permission`.
    pub(super) async fn open(
        data_dir: &'static DataDir,
        root: &UringStorage,
        config: &Config,
        shards: u16,
    ) -> Result<(Self, Space)> {
        let attempt = |error| Error::io(format!("open {}", root.label(FileName::Reserve)), error);
        let found = list_files(root)?.get(&FileName::Reserve).copied();
        let file = match found {
            Some(_) => root.open(FileName::Reserve, Access::Write).await,
            None => root.create(FileName::Reserve).await,
        };
        let space = Space::new(false);
        let mut monitor = Self {
            space: space.clone(),
            data_dir,
            file: file.map_err(attempt)?,
            shards,
            memtable_bytes: config.memtable_bytes,
            held: 0,
        };
        // An open writes a new WAL and a new manifest for each shard. What was allocated by the server before is allocated
        // still, unless the disk was full then.
        let start_bytes = 2 * u64::from(shards) * WAL_STEP_BYTES;
        if !monitor.allocate(monitor.wanted()).await || monitor.available() < start_bytes {
            monitor.begin_full().await;
        }
        Ok((monitor, space))
    }

    /// Watches until `stopped`.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let full = tokio::select! {
                _ = stopped.changed() => return,
                () = self.space.reported() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            match (self.space.is_full(), full) {
                (false, true) => self.begin_full().await,
                (false, false) => self.grow().await,
                (true, _) => self.try_to_end_full().await,
            }
        }
    }

    fn wanted(&self) -> u64 {
        let volume = self.data_dir.directory().volume().map_or(0, |volume| volume.bytes);
        wanted_bytes(volume, self.shards, self.memtable_bytes, self.space.data_bytes())
    }

    fn available(&self) -> u64 {
        self.data_dir.directory().volume().map_or(0, |volume| volume.available_bytes)
    }

    /// Allocates `bytes` in all. `false` if there is not enough space.
    async fn allocate(&mut self, bytes: u64) -> bool {
        match self.file.allocate(bytes).await {
            Ok(()) => {
                self.held = bytes;
                true
            }
            Err(error) => {
                tracing::debug!(%error, bytes, "cannot allocate the reserve");
                false
            }
        }
    }

    /// Lets the reserve grow with the data.
    async fn grow(&mut self) {
        let wanted = self.wanted();
        if self.held < wanted && wanted - self.held + wanted / 2 <= self.available() {
            self.allocate(wanted).await;
        }
    }

    async fn begin_full(&mut self) {
        // On ext4 freed blocks can be used again once the journal has committed, so the file is synced.
        let mut freed = self.file.release(0).await;
        if freed.is_ok() {
            freed = self.file.sync().await;
        }
        self.held = 0;
        let wanted = self.wanted();
        tracing::warn!(
            available = %ByteSize(self.available()),
            "the disk is full: sets are refused until {} are free; reads and deletes go on",
            ByteSize(wanted + wanted / 2)
        );
        if let Err(error) = freed {
            tracing::warn!(%error, "the reserve for deletes cannot be given back");
        }
        self.space.announce(true);
    }

    async fn try_to_end_full(&mut self) {
        let wanted = self.wanted();
        if wanted + wanted / 2 <= self.available() && self.allocate(wanted).await {
            tracing::info!(available = %ByteSize(self.available()), "the disk has space again: sets are accepted");
            self.space.announce(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_the_data_and_leaves_a_small_volume_its_space() {
        const GIB: u64 = 1 << 30;
        let memtable = 64 << 20;
        let empty = wanted_bytes(100 * GIB, 64, memtable, 0);
        assert!(empty + 129 * (1 << 20) <= 256 << 20, "an empty store of 64 shards stays below 256 MiB");
        assert_eq!(wanted_bytes(100 * GIB, 2, memtable, 1 << 20), (2 + 16 + 1) << 20);
        assert_eq!(wanted_bytes(100 * GIB, 2, memtable, GIB), (2 + 16 + 256) << 20);
        assert_eq!(wanted_bytes(200 << 20, 2, memtable, GIB), 25 << 20);
        assert_eq!(memtable_bytes_max(2 * GIB), 64 << 20);
    }
}
