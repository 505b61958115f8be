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
use tokio::time::Instant;

use crate::config::{Config, WAL_STEP_BYTES};
use crate::data_dir::DataDir;
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::host::file_size_max;
use crate::shard::space::Space;
use crate::storage::uring::{UringFile, UringStorage};
use crate::storage::{Access, File, Storage, list_files};
use crate::store::Store;

/// How often the space is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// The disk stays full until no operation has found it full for this long; longer each time that it is full again soon.
const HOLD_OFF_MIN: Duration = Duration::from_secs(1);
const HOLD_OFF_MAX: Duration = Duration::from_secs(300);
/// After this time the disk counts as having had space.
const STEADY_TIME: Duration = Duration::from_secs(60);
/// The reserve of a store without data, in addition to a step of a WAL for each shard.
const RESERVE_BYTES_MIN: u64 = 16 << 20;
/// The reserve takes no more than this part of the volume.
const VOLUME_PART: u64 = 8;

/// What the reserve should hold: a memtable's SST, a file of L0, and two outputs, as far as there is data, and what a start
/// needs.
fn wanted_bytes(volume_bytes: u64, shards: u16, file_bytes: u64, data_bytes: u64) -> u64 {
    let start = u64::from(shards) * WAL_STEP_BYTES + RESERVE_BYTES_MIN;
    let work = (4 * file_bytes).min(data_bytes);
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
    memtable_bytes: u64,
    /// Bytes that the reserve holds.
    held: u64,
    /// When an operation last found no space.
    reported_at: Option<Instant>,
    /// When the disk was last found to have space again.
    ended_at: Option<Instant>,
    /// The disk stays full until nothing was reported for this long.
    hold_off: Duration,
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
        store: &Store,
    ) -> Result<(Self, Space)> {
        let attempt = |error| Error::io(format!("open {}", root.label(FileName::Reserve)), error);
        let found = list_files(root)?.get(&FileName::Reserve).copied();
        let file = match found {
            Some(_) => root.open(FileName::Reserve, Access::Write).await,
            None => root.create(FileName::Reserve).await,
        };
        let space = Space::new(store.shards, data_dir.sst_bytes(store));
        let mut monitor = Self {
            space: space.clone(),
            data_dir,
            file: file.map_err(attempt)?,
            shards: store.shards,
            memtable_bytes: config.memtable_bytes as u64,
            held: 0,
            reported_at: None,
            ended_at: None,
            hold_off: HOLD_OFF_MIN,
        };
        // An open writes a new WAL and a new manifest for each shard. What was allocated by the server before is allocated
        // still, unless the disk was full then.
        let start_bytes = 2 * u64::from(store.shards) * WAL_STEP_BYTES;
        if !monitor.allocate(monitor.wanted()).await
            || monitor.available() < start_bytes.min(monitor.volume_bytes())
        {
            monitor.begin_full().await;
        }
        Ok((monitor, space))
    }

    /// Watches until `stopped`. Then the reserve is given back to the flushes of the stop, because no set comes any more.
    /// [`Self::restore`] comes after them.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Self {
        loop {
            let reported = tokio::select! {
                _ = stopped.changed() => break,
                () = self.space.reported() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            if reported {
                self.reported_at = Some(Instant::now());
            }
            match (self.space.is_full(), reported) {
                (false, true) => self.begin_full().await,
                (false, false) => self.adjust().await,
                (true, true) => {}
                (true, false) => self.try_to_end_full().await,
            }
        }
        if let Err(error) = self.give_back().await {
            tracing::warn!(%error, "the space of the reserve cannot be given back");
        }
        self
    }

    /// Allocates the reserve for the next start, if it fits.
    pub(super) async fn restore(mut self) {
        self.allocate(self.wanted()).await;
    }

    fn wanted(&self) -> u64 {
        let file_bytes = self.memtable_bytes.max(self.space.longest_bytes());
        let wanted = wanted_bytes(self.volume_bytes(), self.shards, file_bytes, self.space.data_bytes());
        wanted.min(file_size_max().unwrap_or(u64::MAX))
    }

    /// The size of the volume; 0 if the file system does not tell.
    fn volume_bytes(&self) -> u64 {
        self.data_dir.directory().volume().map_or(0, |volume| volume.bytes)
    }

    fn available(&self) -> u64 {
        self.data_dir.directory().volume().map_or(0, |volume| volume.available_bytes)
    }

    /// Allocates `bytes` in all. `false` if there is not enough space.
    async fn allocate(&mut self, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        match self.file.allocate(bytes).await {
            Ok(()) => {
                self.held = bytes;
                true
            }
            Err(error) => {
                tracing::debug!(%error, bytes, "cannot allocate the reserve");
                // A part may have been allocated.
                if let Err(error) = self.file.release(self.held).await {
                    tracing::debug!(%error, "cannot give back a part of the reserve");
                }
                false
            }
        }
    }

    async fn give_back(&mut self) -> std::io::Result<()> {
        self.held = 0;
        self.file.release(0).await?;
        // On ext4, freed blocks can be used again once the journal has committed.
        self.file.sync().await
    }

    /// Lets the reserve grow with the data, and shrink when half of it is too much.
    async fn adjust(&mut self) {
        let wanted = self.wanted();
        if 2 * wanted <= self.held && self.file.release(wanted).await.is_ok() {
            self.held = wanted;
        }
        if self.held < wanted && wanted - self.held + wanted / 2 <= self.available() {
            self.allocate(wanted).await;
        }
    }

    async fn begin_full(&mut self) {
        let freed = self.give_back().await;
        // A limit that the file system does not show, such as a quota, would end the state at once, again and again.
        let again = self.ended_at.is_some_and(|ended| ended.elapsed() < STEADY_TIME);
        self.hold_off = if again { (2 * self.hold_off).min(HOLD_OFF_MAX) } else { HOLD_OFF_MIN };
        let wanted = self.wanted();
        tracing::warn!(
            available = %ByteSize(self.available()),
            "the disk is full: sets are refused until {} are free; reads and deletes go on",
            ByteSize(2 * wanted)
        );
        if let Err(error) = freed {
            tracing::warn!(%error, "the reserve for deletes cannot be given back");
        }
        self.space.announce(true);
    }

    async fn try_to_end_full(&mut self) {
        if self.reported_at.is_some_and(|reported| reported.elapsed() < self.hold_off) {
            return;
        }
        let (wanted, available) = (self.wanted(), self.available()); // of which a part becomes the reserve
        if 2 * wanted <= available && self.allocate(wanted).await {
            self.ended_at = Some(Instant::now());
            tracing::info!(available = %ByteSize(available), "the disk has space again: sets are accepted");
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
        let memtable: u64 = 64 << 20;
        let empty = wanted_bytes(100 * GIB, 64, memtable, 0);
        assert!(empty + 129 * (1 << 20) <= 256 << 20, "an empty store of 64 shards stays below 256 MiB");
        assert_eq!(wanted_bytes(100 * GIB, 2, memtable, 1 << 20), (2 + 16 + 1) << 20);
        assert_eq!(wanted_bytes(100 * GIB, 2, memtable, GIB), (2 + 16 + 256) << 20);
        assert_eq!(wanted_bytes(200 << 20, 2, memtable, GIB), 25 << 20);
        assert_eq!(memtable_bytes_max(2 * GIB), 64 << 20);
    }
}
