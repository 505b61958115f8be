//! A copy of a shard that can be taken while the shard serves: the sorted files that hold every write up to a moment.
//!
//! A snapshot needs no WAL. What is in memory is flushed first, so all files of a snapshot are immutable, and another
//! snapshot a while later has most of them in common.

use std::rc::Rc;

use bytes::Bytes;

use super::Db;
use super::hold::{for_reader, hold};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::key::FileNumber;
use crate::manifest::{State, Version};
use crate::storage::{Access, AlignedBuf, File, Storage, open_file};

/// The sorted files of a shard at one moment. No file of a snapshot is removed while the snapshot is held.
pub struct Snapshot {
    state: State,
}

impl Snapshot {
    /// What a shard with nothing but these files consists of.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn version(&self) -> &Rc<Version> {
        &self.state.version
    }

    /// The length of a file of the snapshot; `None` for any other file.
    pub fn bytes(&self, number: FileNumber) -> Option<u64> {
        self.version().files().find(|file| file.number == number).map(|file| file.bytes)
    }
}

impl<S: Storage> Db<S> {
    /// Flushes every write that is visible now, and returns the files that hold them.
    ///
    /// # Errors
    /// `ShuttingDown` if the shard closes; the failure of the shard.
    ///
    /// Cancel safety: safe. The flush goes on.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let inner = &*self.0;
        let wanted = self.visible();
        loop {
            // Registered before the checks, so that no edit between the checks and the wait is missed.
            let edited = inner.edited.notified();
            self.check_serving()?;
            let state = inner.catalog.state().await;
            if wanted <= state.flushed {
                return Ok(Snapshot { state: state.without_wals() });
            }
            self.request_flush();
            edited.await;
        }
    }

    /// Fails if there will be no more edits.
    pub(super) fn check_serving(&self) -> Result<()> {
        if let Some(error) = self.0.writes.queue.failure() {
            return Err(error);
        }
        if self.0.admission.is_closing() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the server is stopping"));
        }
        Ok(())
    }

    /// Reads `bytes` bytes of a sorted file from `offset` on. Both are multiples of the block size.
    ///
    /// # Errors
    /// `Overloaded` if there is no memory for them; `Io`; `Corruption` if the file is shorter.
    ///
    /// Cancel safety: safe; the buffer belongs to the read until it ends.
    pub async fn read_part(&self, number: FileNumber, offset: u64, bytes: usize) -> Result<Bytes> {
        let permit = for_reader(&self.0.memory.requests, bytes).await?;
        let name = FileName::Sst(number);
        let label = self.0.storage.label(name);
        let file = open_file(&self.0.storage, name, Access::Read).await?;
        let (result, buffer) = file.read_at(AlignedBuf::zeroed(bytes), offset).await;
        let count = result.map_err(|error| Error::read(format!("read {label} at offset {offset}"), error))?;
        if count < bytes {
            return Err(Error::corruption(&label, offset + count as u64, "the file ends here"));
        }
        Ok(hold(Bytes::from_owner(buffer), permit))
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::config::tests::SMALL;
    use crate::db::tests::{NOW, OWNER, create, run_on, step};
    use crate::manifest::Manifest;
    use crate::storage::sim::SimStorage;

    /// Copies a snapshot to another disk, as a backup does.
    async fn copy(snapshot: &Snapshot, from: &Db<SimStorage>, to: &SimStorage) {
        for meta in snapshot.version().files() {
            let bytes = usize::try_from(meta.bytes).unwrap();
            let part = from.read_part(meta.number, 0, bytes).await.unwrap();
            let file = to.create(FileName::Sst(meta.number)).await.unwrap();
            file.write_at(AlignedBuf::from(&part[..]), 0).await.0.unwrap();
            file.sync().await.unwrap();
        }
        to.sync_dir().await.unwrap();
        let state = snapshot.state().clone();
        Manifest::create(to.clone(), OWNER, state, SMALL.manifest_bytes).await.unwrap();
    }

    #[test]
    fn a_snapshot_holds_what_was_visible_and_stays_while_the_shard_goes_on() {
        let storage = SimStorage::new(1);
        let db = create(&storage);
        block_on(async {
            for round in 0..3_u8 {
                for key in 0..20_u8 {
                    db.set(&[key], &[round]).unwrap();
                }
                db.commit_next().await.unwrap();
            }
            db.delete(&[3], NOW).unwrap();
            db.commit_next().await.unwrap();
            db.set(b"late", b"not visible yet").unwrap();
            let snapshot = {
                let mut taking = Box::pin(db.snapshot());
                assert!(step(&mut taking).is_none(), "the memtable has to be flushed");
                db.prepare_spare().await.unwrap();
                assert!(step(&mut taking).is_none());
                db.commit_next().await.unwrap();
                db.flush_next().await.unwrap();
                run_on(&mut taking).unwrap().unwrap()
            };
            // The shard goes on, and its files are replaced.
            for round in 0..6_u8 {
                for key in 0..20_u8 {
                    db.set(&[key], &[100 + round]).unwrap();
                }
                db.commit_next().await.unwrap();
                db.prepare_spare().await.unwrap();
                db.request_flush();
                db.flush_next().await.unwrap();
            }
            while db.compact_next(NOW).await.unwrap() {}
            while db.remove_next().await.is_some() {}
            assert!(
                snapshot
                    .version()
                    .files()
                    .all(|file| db.version().files().all(|now| now.number != file.number))
            );
            let target = SimStorage::new(2);
            copy(&snapshot, &db, &target).await;
            let (copied, recovered) = Db::open(target, OWNER, SMALL).await.unwrap();
            assert_eq!(recovered.writes, 0, "there is no WAL");
            for key in 0..20_u8 {
                let expected = (key != 3).then(|| vec![2]);
                let found = copied.get(&[key], NOW).await.unwrap();
                assert_eq!(found.map(|value| value.to_vec()), expected, "{key}");
            }
            // The files go when nobody holds them any more.
            drop(snapshot);
            let mut removed = 0;
            while db.remove_next().await.is_some() {
                removed += 1;
            }
            assert_ne!(removed, 0);
        });
    }

    #[test]
    fn a_snapshot_of_an_empty_or_flushed_shard_waits_for_nothing() {
        let storage = SimStorage::new(1);
        let db = create(&storage);
        block_on(async {
            let snapshot = db.snapshot().await.unwrap();
            assert_eq!(snapshot.version().files().count(), 0);
            let target = SimStorage::new(2);
            copy(&snapshot, &db, &target).await;
            let (copied, _) = Db::open(target, OWNER, SMALL).await.unwrap();
            copied.set(b"k", b"v").unwrap();
            copied.commit_next().await.unwrap();
        });
    }

    #[test]
    fn a_shard_that_closes_gives_no_snapshot() {
        let storage = SimStorage::new(1);
        let db = create(&storage);
        block_on(async {
            db.set(b"k", b"v").unwrap();
            db.commit_next().await.unwrap();
            let mut taking = Box::pin(db.snapshot());
            assert!(step(&mut taking).is_none());
            db.begin_close();
            let result = run_on(&mut taking).expect("it does not wait for ever");
            assert_eq!(result.err().unwrap().kind(), ErrorKind::ShuttingDown);
        });
    }
}
