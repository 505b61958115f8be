//! The clean stop: everything is flushed, and an empty WAL is left for the next start.
//!
//! A crash during the stop leaves what a crash of a serving shard leaves: each flush is in force or not. The last edit
//! says that the stop was clean, and nothing becomes durable after this edit.

use super::Db;
use super::wals::unused;
use crate::error::{ErrorKind, Result};
use crate::manifest::VersionEdit;
use crate::sst::SstMeta;
use crate::storage::Storage;

/// A step of a clean stop, for a caller that reports progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseStep {
    /// The memtable is in this SST; `None` if the memtable was empty.
    Flushed(Option<SstMeta>),
    /// The WAL holds nothing any more.
    WalCleaned,
}

impl<S: Storage> Db<S> {
    /// Refuses writes from now on, and makes a compaction in progress give up.
    pub fn begin_close(&self) {
        self.0.admission.close();
        self.0.edited.notify_waiters(); // what waits for an edit may wait in vain
    }

    /// The clean stop: refuses writes, commits what waits, flushes everything, leaves an empty WAL. The caller has stopped
    /// the background futures, and no request is in flight.
    ///
    /// # Errors
    /// Any. What was acknowledged is then in WALs and sorted files, and the next open finds it.
    ///
    /// Cancel safety: not safe.
    pub async fn close(&self, mut watch: impl FnMut(CloseStep)) -> Result<()> {
        let inner = &*self.0;
        self.begin_close();
        while !inner.writes.queue.is_empty() {
            self.commit_next().await?;
        }
        self.sync().await?;
        let used = inner.writes.freeze_last();
        let mut last = None;
        while let Some(oldest) = inner.writes.oldest_frozen() {
            last = self.flush(&oldest).await?.or(last);
        }
        watch(CloseStep::Flushed(last));
        while self.remove_next().await.is_some() {}
        // The active WAL if it took no write; otherwise the WAL that was recycled or prepared.
        let empty = if used { inner.writes.spare.get() } else { Some(inner.writes.active_wal()) };
        let edit = VersionEdit {
            clean_wal: empty.as_ref().map(|wal| wal.number()),
            // This records the length that the next start may rely on.
            add_wals: empty.iter().map(|wal| (wal.number(), unused(wal))).collect(),
            ..VersionEdit::default()
        };
        self.edit(edit).await?;
        match self.check_store().await {
            Err(error) if error.kind() == ErrorKind::Poisoned => return Err(error),
            _ => {} // a file that cannot be looked at proves nothing
        }
        watch(CloseStep::WalCleaned);
        Ok(())
    }
}
