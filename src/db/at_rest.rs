//! A shard that nobody serves, read where it is: a backup, or the shard of a store that is stopped. Nothing is changed.
//!
//! Writes that are only in WALs are read into one memtable. As at a start, a torn group at the end counts for nothing.

use std::rc::Rc;

use super::View;
use super::scan::Scan;
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{KeyHash, SeqNo, UnixMillis};
use crate::manifest::{State, load_in_use};
use crate::memtable::Memtable;
use crate::presence::missing;
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::sst::run::OpenSst;
use crate::storage::{Storage, list_files};
use crate::wal::reader::{Source, read};

/// A shard at rest.
pub struct AtRest<S: Storage> {
    storage: S,
    owner: Owner,
    state: State,
    memtable: Rc<Memtable>,
    last: SeqNo,
}

impl<S: Storage> AtRest<S> {
    /// Reads the manifest and the WALs.
    ///
    /// # Errors
    /// `Corruption`, `Configuration` if a later version wrote a file, or `Io`.
    pub async fn open(storage: S, owner: Owner) -> Result<Self> {
        let state = load_in_use(&storage, owner).await?.state;
        let files = list_files(&storage)?;
        if let Some((_, error)) = missing(&storage, &state, &files).into_iter().next() {
            return Err(error);
        }
        let memtable = Memtable::new(KeyHash::random());
        let mut next = state.flushed.next();
        for &number in state.wals.keys() {
            let file_bytes = files.get(&FileName::Wal(number)).copied().unwrap_or_default();
            let source = Source { number, file_bytes, known_end: state.known_end(number) };
            read(&storage, owner, source, &mut next, |entry| memtable.insert_entry(entry)).await?;
        }
        let last = memtable.last().max(state.flushed);
        Ok(Self { storage, owner, state, memtable: Rc::new(memtable), last })
    }

    /// The last write of the shard.
    pub fn last(&self) -> SeqNo {
        self.last
    }

    /// Bytes of the sorted files.
    pub fn bytes(&self) -> u64 {
        self.state.version.files().map(|file| file.bytes).sum()
    }

    /// Whether keys of the shard are lost to damage. A walk ends with an error when it comes to them.
    pub fn is_damaged(&self) -> bool {
        !self.state.version.damage().is_empty()
    }

    /// A walk over all values at `now`, in key order.
    pub fn scan(&self, now: UnixMillis) -> Scan<'_, Self> {
        let memtables = vec![self.memtable.clone()];
        let view = View { visible: self.last, memtables, version: self.state.version.clone() };
        Scan::over(self, &view, now)
    }
}

impl<S: Storage> OpenSst for AtRest<S> {
    type File = S::File;

    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<S::File>>> {
        let identity = self.owner.identity(FileKind::Sst, meta.number);
        Ok(Rc::new(Sst::open(&self.storage, identity, meta.bytes).await?))
    }
}

/// The error for a store whose keys are lost to damage.
pub fn damaged(what: &str) -> Error {
    let message = format!(
        "keys of {what} are lost to damage: restore a backup, or give them up with `ringkeep repair`; `ringkeep check` \
         lists them"
    );
    Error::new(crate::error::ErrorKind::Corruption, message)
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::db::tests::{NOW, OWNER, create};
    use crate::source::Source as _;
    use crate::storage::sim::{Fate, SimStorage};

    #[test]
    fn a_shard_at_rest_has_what_a_start_would_find_and_stays_as_it_is() {
        let storage = SimStorage::new(7);
        let db = create(&storage);
        block_on(async {
            for key in 0..50_u8 {
                db.set(&[key], &[1]).unwrap();
            }
            db.commit_next().await.unwrap();
            db.prepare_spare().await.unwrap();
            db.request_flush();
            db.flush_next().await.unwrap();
            db.set_expiring(b"late", b"x", Some(UnixMillis(1_000))).unwrap();
            db.set(&[7], &[2]).unwrap();
            db.delete(&[8], NOW).unwrap();
            db.commit_next().await.unwrap();
            db.set(b"torn", b"never durable").unwrap();
            let crashed = storage.crash(Fate::Lost);
            let before: Vec<_> =
                crashed.files().into_iter().map(|(name, _)| (name, crashed.bytes(name))).collect();
            for (now, late) in [(NOW, true), (UnixMillis(1_000), false)] {
                let shard = AtRest::open(crashed.clone(), OWNER).await.unwrap();
                let mut scan = shard.scan(now);
                let mut found = Vec::new();
                while scan.advance().await.unwrap() {
                    found.push(scan.read(|entry| (entry.key.to_vec(), entry.value.to_vec())));
                }
                let mut expected: Vec<_> = (0..50_u8)
                    .filter(|key| *key != 8)
                    .map(|key| (vec![key], vec![if key == 7 { 2 } else { 1 }]))
                    .collect();
                if late {
                    expected.push((b"late".to_vec(), b"x".to_vec()));
                }
                assert_eq!(found, expected);
                assert_eq!((shard.last(), shard.is_damaged()), (SeqNo(53), false));
            }
            let after: Vec<_> =
                crashed.files().into_iter().map(|(name, _)| (name, crashed.bytes(name))).collect();
            assert!(before == after);
        });
    }
}
