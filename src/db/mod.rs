//! One shard's engine: sets, gets and deletes over WAL, memtables and sorted files.
//!
//! A [`Db`] is a facade over four owners that never call each other:
//!
//! | owner | what it owns |
//! | --- | --- |
//! | `writes` | memtables, WALs, SeqNos, group commit ([`commit`]), how long WALs are kept ([`retention`]) |
//! | `tree` | caches, open and obsolete files, how far behind compaction is |
//! | `admission` | who may write now, the queue for room, the slices of background work ([`pressure`]) |
//! | `catalog` | the manifest, the version in force, file numbers |
//!
//! The other modules orchestrate them: `operate` carries out operations, [`read`] finds a key, [`scan`] walks over a
//! [`View`], `flush`, `wals` and `compact` are background work, `names` notices files that somebody else has moved or
//! removed, `snapshot` lends files to backups, [`at_rest`] reads a
//! shard that nobody serves, `close` is the clean stop, and `recovery` opens a shard.
//!
//! A `Db` spawns nothing and reads no clock. Background work is offered as futures that the shard drives (`commit_next`,
//! `flush_next`, `grow_wal`, `prepare_spare`, `compact_next`, `remove_next`), so that a seeded test can drive them on
//! simulated storage. All state is `Cell`s and `RefCell`s of one thread, never borrowed across an await.
//!
//! ```text
//!   set ──► SeqNo, forming group, active memtable ──(commit)──► visible, ticket answered
//!                                  │ full, or WAL full, or asked to
//!                                  ▼
//!                             frozen memtable ──(flush)──► L0 SST ──► manifest edit ──► WAL recycled
//!   get ──► active memtable ──► frozen, newest first ──► L0, newest first ──► L1 … L6        (at `visible`)
//! ```
//!
//! What a crash may leave, at each step of a flush, and why it is survived:
//!
//! - before the manifest edit: nothing names the SST, and the next open removes it. The WAL is replayed;
//! - after the edit: no manifest names the WAL, and the next open removes it. The SST and its name were synced before
//!   the edit was written (P7);
//! - while the WAL is recycled: it has the old or the new name. No manifest names either, and the next open removes it.

mod admission;
pub mod at_rest;
mod catalog;
mod close;
pub mod commit;
mod compact;
mod flush;
mod hold;
mod names;
mod operate;
mod quarantine;
pub mod pressure;
pub mod read;
mod recovery;
pub mod retention;
mod sample;
pub mod scan;
mod snapshot;
mod tree;
mod wals;
mod writes;

use std::rc::Rc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub use self::admission::WaitPosition;
use self::admission::{Admission, Work};
use self::catalog::Catalog;
pub use self::close::CloseStep;
pub use self::commit::Ticket;
pub use self::hold::SMALL_VALUE_BYTES;
pub use self::operate::{Pending, Started};
use self::pressure::{Backlog, Pressure};
pub use self::read::{Found, Lookup, Progress};
pub use self::recovery::{LogEnd, Recovered};
use self::retention::Retention;
use self::sample::Counts;
pub use self::sample::Sample;
pub use self::snapshot::Snapshot;
use self::tree::Tree;
use self::writes::Writes;
use crate::config::DbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::{FileNumber, SeqNo};
use crate::manifest::{State, Version, VersionEdit};
use crate::memory::Memory;
use crate::memtable::Memtable;
use crate::record::replay::KnownEnd;
use crate::storage::Storage;

/// Most keys that are prefetched together; further keys are left out.
const PREFETCHED: usize = 64;

/// The engine of one shard. Clones share it.
pub struct Db<S: Storage>(Rc<Inner<S>>);

impl<S: Storage> Clone for Db<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<S: Storage> {
    storage: S,
    owner: Owner,
    config: DbConfig,
    memory: Memory,
    writes: Writes<S>,
    tree: Tree<S>,
    admission: Admission,
    catalog: Catalog<S>,
    /// See [`Db::set_disk_full`].
    space_changed: Notify,
    /// An edit was made, or there will be none any more.
    edited: Notify,
    counts: Counts,
}

/// The shard at one moment, for readers that outlive a turn of the thread. It does not change, whatever is written,
/// flushed or compacted meanwhile, and the files that it needs are not removed.
pub struct View {
    /// The last write that is visible.
    pub visible: SeqNo,
    /// The memtables, the newest first. They may hold writes above `visible`.
    pub memtables: Vec<Rc<Memtable>>,
    /// The sorted files.
    pub version: Rc<Version>,
}

impl<S: Storage> Db<S> {
    /// The shard as it is now.
    pub fn view(&self) -> View {
        View { visible: self.visible(), memtables: self.0.writes.memtables(), version: self.version() }
    }

    /// The SSTs in force.
    pub fn version(&self) -> Rc<Version> {
        self.0.catalog.version()
    }

    /// The last SeqNo that readers see (D1).
    pub fn visible(&self) -> SeqNo {
        self.0.writes.queue.visible()
    }

    /// Which shard this is.
    pub fn owner(&self) -> Owner {
        self.0.owner
    }

    /// Loads what memory holds of keys with these hashes into the processor's caches. The cache misses of many keys
    /// then overlap (see [`crate::hash_index`]). For keys that are only going to be set, it loads only where they are
    /// in the active memtable. Changes no answer.
    pub fn prefetch(&self, hashes: impl Iterator<Item = u64>, sets: bool) {
        let mut found = [0; PREFETCHED];
        let mut count = 0;
        for (slot, hash) in found.iter_mut().zip(hashes) {
            *slot = hash;
            count += 1;
        }
        let hashes = &found[..count];
        self.0.writes.prefetch_active(hashes, !sets);
        if !sets {
            self.0.writes.prefetch_frozen(hashes);
            self.0.tree.values.prefetch(hashes);
        }
    }

    /// Completes when a write that was refused as `Overloaded` is worth another try. The future counts from its
    /// creation, not from its first poll: create it before the write is tried.
    ///
    /// Cancel safety: safe.
    pub fn room(&self) -> Notified<'_> {
        self.0.admission.room()
    }

    /// Joins the queue of writes that wait for room. As long as a write is in this queue, [`Self::start`] refuses other
    /// writes.
    pub fn wait_for_room(&self) -> WaitPosition {
        self.0.admission.wait_for_room()
    }

    /// How far behind background work is.
    pub fn pressure(&self) -> Pressure {
        Pressure::of(&self.backlog())
    }

    fn backlog(&self) -> Backlog {
        let inner = &*self.0;
        Backlog {
            frozen: inner.writes.frozen(),
            active_percent: inner.writes.active_percent(),
            l0_files: inner.tree.l0_files(&inner.catalog.version()),
            debt_bytes: inner.tree.debt_bytes(),
            base_bytes: inner.tree.limits.base_bytes,
        }
    }

    /// Takes note of whether the disk is full. While it is, only deletes are accepted, and WALs that are released give their
    /// space back.
    pub fn set_disk_full(&self, full: bool) {
        if self.0.admission.set_full(full) {
            if !full {
                self.0.tree.stuck.borrow_mut().clear(); // with more space, more can go down
            }
            self.0.space_changed.notify_waiters();
            self.0.catalog.look_again();
        }
    }

    /// Takes note that the memory for memtables has become short, or has come free. If it is short, a memtable of some size is
    /// flushed, so that others can go on.
    pub fn memory_changed(&self) {
        if !self.0.admission.is_closing() {
            self.0.writes.freeze_if_short();
        }
        self.0.admission.make_room();
    }

    /// Waits until the disk is full, or no longer full. Cancel safety: safe.
    pub async fn space_changed(&self) {
        self.0.space_changed.notified().await;
    }

    /// Takes note that nobody has written for a while: what is in memory is flushed, upper levels are merged into the last
    /// one, and WALs that are released give their space back. The next write ends the rest.
    pub fn rest(&self) {
        self.0.writes.rest();
        self.0.catalog.look_again();
    }

    /// From now on, `policy` decides how long flushed WALs are kept.
    pub fn set_retention(&self, policy: Rc<dyn Retention>) {
        self.0.writes.retention.replace(policy);
    }

    /// Waits until there is a group to commit. Cancel safety: safe.
    pub async fn commit_due(&self) {
        self.0.writes.queue.commit_due().await;
    }

    /// Lets every other ready task, and the kernel, go first.
    pub async fn pause(&self) {
        self.0.storage.pause().await;
    }

    /// Whether a group waits to be committed.
    pub fn has_uncommitted(&self) -> bool {
        !self.0.writes.queue.is_empty()
    }

    /// Commit groups and writes so far: their ratio is the mean size of a group.
    pub fn committed(&self) -> (u64, u64) {
        self.0.writes.queue.committed()
    }

    /// Appends the oldest group, if there is one, to its WAL, syncs the WAL if every group is synced, and answers the
    /// group's writers. The caller may wait before the call, to slow writers down. One call at a time.
    ///
    /// # Errors
    /// `Poisoned`: every waiting writer has been told, and the process has to end (P6).
    ///
    /// Cancel safety: not safe.
    pub async fn commit_next(&self) -> Result<()> {
        let result = self.0.writes.queue.commit(async || self.0.storage.pause().await).await;
        self.0.admission.make_room();
        result
    }

    /// Syncs groups that were committed without a sync (`--sync DURATION`). Errors and cancel safety are those of
    /// [`Self::commit_next`].
    pub async fn sync(&self) -> Result<()> {
        let result = self.0.writes.queue.sync().await;
        self.0.admission.make_room(); // after a failure, waiting writes are told
        result
    }

    /// The WAL of the last group, and how far it is durable; `None` before the first group.
    pub fn durable(&self) -> Option<(FileNumber, u64)> {
        self.0.writes.queue.durable()
    }

    /// Whether a mark says how far the WAL is durable, so that its end cannot be lost unnoticed (W4).
    pub fn is_witnessed(&self) -> bool {
        self.0.writes.queue.is_witnessed()
    }

    /// Waits until a group is committed or synced, or until commits have failed. Cancel safety: safe.
    pub async fn commit_seen(&self) {
        self.0.writes.queue.progressed().await;
    }

    /// Lets the next group carry a mark (W4). The caller does this every second.
    pub fn request_mark(&self) {
        self.0.writes.queue.request_mark();
    }

    /// Writes and syncs a mark, unless the last mark already covers everything that is durable (W4). Meant for a moment
    /// without writes.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6).
    ///
    /// Cancel safety: not safe.
    pub async fn mark(&self) -> Result<()> {
        let result = self.0.writes.queue.write_mark().await;
        self.0.admission.make_room(); // as for `sync`
        result
    }

    /// Records in the manifest how far the last WAL is durable, so that an older copy of the WAL is not taken for the
    /// WAL (W4). Meant for a longer pause in the writes.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6); after any other error the manifest is as it was.
    ///
    /// Cancel safety: not safe.
    pub async fn note_end(&self) -> Result<()> {
        let Some((number, durable)) = self.durable() else { return Ok(()) };
        let edit = VersionEdit { durable_wals: vec![(number, durable)], ..VersionEdit::default() };
        self.edit_if(edit, |state| {
            // The WAL may have been flushed and released by now.
            state.wals.get(&number).is_some_and(|wal| match wal.end {
                KnownEnd::AtLeast(known) => known < durable,
                KnownEnd::Exactly(_) => false,
            })
        })
        .await
    }

    /// Refuses every write from now on, and tells every writer that waits (D4).
    fn poison(&self, error: &Error) -> Error {
        let first = self.0.writes.queue.fail(error);
        self.0.admission.make_room();
        self.0.edited.notify_waiters();
        first
    }

    /// Records how background work ended (J3). A failed sync of names is reported to writers here, because only the
    /// work that asked for the sync knows of the failure (D4).
    fn note<T>(&self, work: Work, result: Result<T>) -> Result<T> {
        let result = result.map_err(|error| match error.kind() {
            ErrorKind::Poisoned => self.poison(&error),
            _ => error,
        });
        self.0.admission.note(work, result)
    }

    /// Appends an edit to the manifest and puts the new version in force.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6); after any other error the edit is certainly not durable.
    async fn edit(&self, edit: VersionEdit) -> Result<()> {
        self.edit_if(edit, |_| true).await
    }

    /// As [`Self::edit`], but only if the state `agrees` when it is the edit's turn.
    async fn edit_if(&self, edit: VersionEdit, agrees: impl Fn(&State) -> bool) -> Result<()> {
        let inner = &*self.0;
        let agrees = |state: &State| match inner.writes.queue.failure() {
            Some(error) if agrees(state) => Err(error), // D4
            _ => Ok(agrees(state)),
        };
        match inner.catalog.edit(edit, agrees).await {
            Ok(None) => Ok(()),
            Ok(Some(removed)) => {
                inner.tree.version_changed(&inner.catalog.version(), removed);
                inner.admission.make_room();
                inner.edited.notify_waiters();
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Poisoned => Err(self.poison(&error)),
            Err(error) => Err(error),
        }
    }

    /// Counts background work, and pauses when the slice of this work is used up (X2).
    async fn slice(&self, work: Work, bytes: usize) {
        if self.0.admission.spend(work, bytes, || self.backlog()) {
            self.0.storage.pause().await;
        }
    }
}

#[cfg(test)]
mod tests {
    //! What the tests of this folder share: a shard on simulated storage, and futures that are polled by hand.

    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use futures_executor::block_on;

    use super::*;
    use crate::config::tests::SMALL;
    use crate::file_name::FileName;
    use crate::key::{ShardId, UnixMillis};
    use crate::storage::sim::SimStorage;

    /// Before every expiry.
    pub(super) const NOW: UnixMillis = UnixMillis::START;

    pub(super) const OWNER: Owner = Owner { store_id: 5, shard: ShardId(0) };

    pub(super) fn create(storage: &SimStorage) -> Db<SimStorage> {
        block_on(Db::create(storage.clone(), OWNER, SMALL)).unwrap()
    }

    /// Polls a future once. Returns its output, if it has ended.
    pub(super) fn step<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// Polls a future until it ends, at most 10,000 times. A future that waits only for the disk ends well before that.
    pub(super) fn run_on<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        (0..10_000).find_map(|_| step(future))
    }

    /// Freezes the active memtable. Returns whether that was possible.
    pub(super) fn freeze(db: &Db<SimStorage>) -> bool {
        block_on(db.prepare_spare()).unwrap();
        let before = db.0.writes.frozen();
        db.request_flush();
        before < db.0.writes.frozen()
    }

    /// The sorted files on the disk.
    pub(super) fn ssts(storage: &SimStorage) -> Vec<FileNumber> {
        let number = |(name, _)| if let FileName::Sst(number) = name { Some(number) } else { None };
        storage.files().into_iter().filter_map(number).collect()
    }
}
