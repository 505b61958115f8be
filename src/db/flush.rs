//! Frozen memtable → L0 SST. Steps in the order of P7: the file is synced, then its name, then an edit puts it in force and
//! gives up the WAL, then the WAL is released.

use std::rc::Rc;

use super::writes::Frozen;
use super::{Db, Work};
use crate::compaction::executor::ENTRY_COST_BYTES;
use crate::config::SLICE_BYTES;
use crate::error::{ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Identity};
use crate::key::SeqNo;
use crate::manifest::VersionEdit;
use crate::memory::Pool;
use crate::memtable::Memtable;
use crate::memtable::order::{MemtableSource, Wants};
use crate::source::newest::Newest;
use crate::source::{Source, Step};
use crate::sst::SstMeta;
use crate::sst::builder::{LARGE_ENTRY_BYTES, SstBuilder, memory_bytes};
use crate::storage::{Storage, sync_names};

impl<S: Storage> Db<S> {
    /// Asks for a flush of what is in memory, however little that is. The flush runs in the background.
    pub fn request_flush(&self) {
        self.0.writes.request_freeze();
    }

    /// Waits until there is a memtable to flush. Cancel safety: safe.
    pub async fn flush_due(&self) {
        self.0.writes.frozen_came().await;
    }

    /// Whether a memtable waits for its flush.
    pub fn has_frozen(&self) -> bool {
        0 < self.0.writes.frozen()
    }

    /// Flushes the oldest frozen memtable, if there is one.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6). After any other error the memtable is still there, and the flush can be tried
    /// again.
    ///
    /// Cancel safety: not safe.
    pub async fn flush_next(&self) -> Result<()> {
        let Some(oldest) = self.0.writes.oldest_frozen() else { return Ok(()) };
        let result = self.flush(&oldest).await;
        self.note(Work::Flush, result).map(|_| ())
    }

    /// Writes the memtable, puts the SST in force, and releases the WAL.
    pub(super) async fn flush(&self, frozen: &Rc<Frozen<S>>) -> Result<Option<SstMeta>> {
        let inner = &*self.0;
        let last = frozen.memtable.last();
        inner.writes.queue.committed_up_to(last).await?; // D3
        let meta = if last == SeqNo(0) { None } else { Some(self.write_sst(&frozen.memtable).await?) };
        let kept = inner.writes.retention.borrow().keeps(frozen.wal, Some(last));
        if kept {
            // If not every group is synced, the end of the WAL may not be durable yet. Nothing else would sync it,
            // because recovery does not need the WAL any more.
            self.sync().await?; // I1
        }
        let mut edit = VersionEdit {
            flushed: meta.as_ref().map(|meta| meta.last),
            add_ssts: meta.iter().map(|meta| (0, Rc::new(meta.clone()))).collect(),
            ..VersionEdit::default()
        };
        if kept {
            edit.keep_wals.push((frozen.wal, frozen.wal_bytes())); // I1
        } else {
            edit.remove_wals.push(frozen.wal);
        }
        if let Err(error) = self.edit(edit).await {
            if let Some(meta) = &meta
                && error.kind() != ErrorKind::Poisoned
            {
                // The old manifest is in force, and does not name the SST.
                let _ = inner.storage.remove(FileName::Sst(meta.number)).await;
            }
            return Err(error);
        }
        if let Some(meta) = &meta {
            inner.counts.flushes.add(1);
            inner.counts.flushed_bytes.add(meta.bytes);
        }
        // The new version is in force. No await lies between that and the release, so no reader misses an entry.
        inner.writes.release_oldest(frozen);
        self.freeze_if_due();
        inner.admission.make_room();
        if kept {
            frozen.held.take();
            return Ok(meta);
        }
        if let Err(error) = self.release_wal(frozen).await {
            if error.kind() == ErrorKind::Poisoned {
                return Err(error);
            }
            tracing::warn!(%error, "cannot release a WAL that is not needed any more; the next start will");
        }
        Ok(meta)
    }

    async fn write_sst(&self, memtable: &Rc<Memtable>) -> Result<SstMeta> {
        let inner = &*self.0;
        let identity = inner.owner.identity(FileKind::Sst, inner.catalog.new_file());
        let hidden = |key: &[u8]| inner.tree.values.remove(inner.config.key_hash.of(key), key); // F1
        let spend = async |bytes| self.slice(Work::Flush, bytes).await;
        write_sst(&inner.storage, identity, memtable, &inner.memory.flushes, hidden, spend).await
    }

    /// Carries out a freeze that was requested when it was not possible.
    pub(super) fn freeze_if_due(&self) {
        if !self.0.admission.is_closing() {
            self.0.writes.freeze_if_due();
        }
    }
}

/// Writes what a memtable holds to a new sorted file, and syncs the file and its name. Of each key the newest entry is
/// written, and `hidden` gets the key. `spend` accounts for the work, and may pause.
///
/// # Errors
/// Any. No file is left over, unless its removal fails, too; then the next open removes it.
///
/// Cancel safety: not safe.
pub(super) async fn write_sst<S: Storage>(
    storage: &S,
    identity: Identity,
    memtable: &Rc<Memtable>,
    pool: &Pool,
    hidden: impl Fn(&[u8]),
    spend: impl AsyncFn(usize),
) -> Result<SstMeta> {
    let _permit = match memtable.longest() {
        longest if longest <= LARGE_ENTRY_BYTES => None,
        longest => pool.take(memory_bytes(longest)).await,
    };
    let result = async {
        let mut builder = SstBuilder::create(storage, identity).await?;
        let last = memtable.last();
        let mut source = Newest::new(MemtableSource::new(memtable.clone(), last, Wants::SortedRuns), last);
        loop {
            match source.step()? {
                Step::Entry => {}
                Step::End => break,
                step => {
                    if step == Step::Need {
                        source.supply().await?;
                    }
                    storage.pause().await;
                    continue;
                }
            }
            let bytes = source.read(|entry| {
                hidden(entry.key);
                ENTRY_COST_BYTES + entry.key.len() + entry.value.len().min(SLICE_BYTES)
            });
            while !source.read(|entry| builder.add(&entry)) {
                spend(SLICE_BYTES).await;
            }
            builder.write_full().await?;
            let passed = source.take_passed();
            spend(bytes + passed.bytes + passed.versions * ENTRY_COST_BYTES).await;
        }
        let meta = builder.finish().await?;
        // The last write of a memtable is the newest of its key, so it was not left out.
        assert_eq!(meta.last, last);
        sync_names(storage).await?;
        Ok(meta)
    }
    .await;
    if result.is_err() {
        let _ = storage.remove(FileName::Sst(identity.file)).await; // nothing names it
    }
    result
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use futures_executor::block_on;

    use super::*;
    use crate::config::DbConfig;
    use crate::config::tests::SMALL;
    use crate::identity::Owner;
    use crate::key::ShardId;
    use crate::storage::sim::SimStorage;

    const CONFIG: DbConfig = DbConfig {
        memtable_bytes: 16 << 20,
        value_bytes_max: 4_000,
        wal_bytes: DbConfig::wal_bytes_for(16 << 20, 4_000),
        wal_step_bytes: 8 << 20,
        manifest_bytes: 1 << 14,
        ..SMALL
    };

    #[test]
    fn x2_a_flush_of_many_versions_of_one_key_pauses_on_its_way() {
        const VERSIONS: usize = 60_000;
        let storage = SimStorage::new(1);
        let owner = Owner { store_id: 1, shard: ShardId(0) };
        let db = block_on(async {
            let db = Db::create(storage.clone(), owner, CONFIG).await.unwrap();
            for _ in 0..VERSIONS {
                db.set(b"key", b"value").unwrap();
            }
            while db.has_uncommitted() {
                db.commit_next().await.unwrap();
            }
            db.request_flush();
            db.prepare_spare().await.unwrap();
            assert!(db.has_frozen());
            db
        });
        let mut flush = pin!(db.flush_next());
        let mut turns = 0;
        while flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            turns += 1;
        }
        assert_eq!(db.version().level(0).len(), 1);
        // One turn for every 512 versions that are sorted, and one for every 512 that are passed over.
        assert!(2 * VERSIONS / 512 <= turns, "{turns}");
    }
}
