//! Finds the value of a key: memtables at once, then SSTs block by block.
//!
//! Owns: the order in which sources are asked, and why the first answer is the right one. A [`Lookup`] decides
//! what to read next and never reads; [`Lookup::poll_cached`] walks as far as cached blocks go, without an
//! await, and [`Lookup::finish`] reads the rest.
//!
//! Why the first entry found is the newest visible one: memtables hold newer writes than any SST (D3), a cached value
//! is what the SSTs say (F1 of `values`), and among SSTs N3 holds. Everything in an SST was committed (D3), so it
//! is visible to every reader, and no SST entry needs to be compared with the snapshot. The memtables and the version
//! are looked at in one synchronous step, so no flush can move an entry between them unseen.

use std::rc::Rc;

use bytes::Bytes;

use super::Db;
use crate::error::Result;
use crate::key::{SeqNo, ValueKind, filter_hash};
use crate::manifest::{LEVELS, SharedMeta, Version};
use crate::memtable::Memtable;
use crate::sst::BlockHandle;
use crate::sst::block::Block;
use crate::sst::reader::{PointLookup, Sst, Step};
use crate::storage::Storage;

/// A search for one key.
pub struct Lookup<S: Storage>(State<S>);

enum State<S: Storage> {
    /// The memtables had the answer.
    Known(Option<Result<Bytes>>),
    /// The SSTs of this version have it.
    Searching {
        version: Rc<Version>,
        /// Of the key, for the filters.
        filter_hash: u64,
        /// Of the key, for what is in memory.
        key_hash: u64,
        wants: Wants,
        /// The next file to look at.
        place: Place,
        current: Option<(Rc<Sst<S::File>>, PointLookup)>,
    },
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// The value.
    Value,
    /// Only whether there is one; the answer then holds no bytes, or others.
    Existence,
}

/// A place in the order of the search.
#[derive(Clone, Copy)]
struct Place {
    level: usize,
    /// Index of the file; in L0 only.
    index: usize,
}

/// How far a lookup came without reading.
pub enum Progress {
    /// It is finished.
    Done(Option<Bytes>),
    /// It needs the disk: see [`Lookup::finish`].
    NeedsDisk,
}

enum Need<S: Storage> {
    Open(SharedMeta),
    Block(Rc<Sst<S::File>>, BlockHandle),
}

impl<S: Storage> Lookup<S> {
    pub(super) fn new(db: &Db<S>, key: &[u8], snapshot: SeqNo, wants: Wants) -> Self {
        let inner = &*db.0;
        let hash = inner.config.key_hash.of(key);
        let in_memtable = |memtable: &Memtable| {
            memtable.get(hash, key, snapshot).map(|entry| match entry.kind {
                ValueKind::Value if wants == Wants::Existence => Some(Ok(Bytes::new())),
                ValueKind::Value => Some(db.copy_for_reader(entry.value)),
                ValueKind::Tombstone => None,
            })
        };
        let known = in_memtable(&inner.active.borrow().memtable)
            .or_else(|| inner.frozen.borrow().iter().rev().find_map(|frozen| in_memtable(&frozen.memtable)))
            .or_else(|| inner.values.get(hash, key).map(|value| Some(Ok(value))));
        Self(match known {
            Some(answer) => State::Known(answer),
            None => State::Searching {
                version: inner.version.borrow().clone(),
                filter_hash: filter_hash(key),
                key_hash: hash,
                wants,
                place: Place { level: 0, index: 0 },
                current: None,
            },
        })
    }

    /// Walks as far as cached blocks go.
    ///
    /// # Errors
    /// `Corruption` if a block does not decode.
    pub fn poll_cached(&mut self, db: &Db<S>, key: &[u8]) -> Result<Progress> {
        Ok(match self.advance(db, key, None)? {
            Ok(answer) => Progress::Done(answer),
            Err(_) => Progress::NeedsDisk,
        })
    }

    /// Walks to the end, reading what is not cached. The engine may freeze, flush and compact meanwhile: the
    /// lookup keeps the version that it began with, and files of it are not removed.
    ///
    /// # Errors
    /// `Corruption` or `Io`.
    ///
    /// Cancel safety: safe; a read in flight is finished by the ring.
    pub async fn finish(mut self, db: &Db<S>, key: &[u8]) -> Result<Option<Bytes>> {
        let mut supplied = None;
        loop {
            match self.advance(db, key, supplied.take())? {
                Ok(answer) => return Ok(answer),
                Err(Need::Open(meta)) => {
                    let sst = db.open_sst(&meta).await?;
                    if let State::Searching { current, filter_hash, .. } = &mut self.0 {
                        let lookup = PointLookup::new(&sst, *filter_hash);
                        *current = Some((sst, lookup));
                    }
                }
                Err(Need::Block(sst, handle)) => {
                    let checks = matches!(self.0, State::Searching { wants: Wants::Existence, .. });
                    let hold = async |bytes| {
                        if checks { Ok(db.hold_for_check(bytes).await) } else { db.hold_for_reader(bytes) }
                    };
                    let mut guard = hold(handle.bytes as usize).await?;
                    let frame = sst.read_frame(handle).await?;
                    // Small on disk, it may be large in memory. A check that has leave holds it, or four of them would
                    // wait for each other.
                    let bytes = frame.unpacked_bytes();
                    if (handle.bytes as usize) < bytes && !(checks && guard.is_some()) {
                        guard = hold(bytes).await?;
                    }
                    // The cache would keep the leave of a check, and those that wait for one would wait for ever.
                    let cached = !(checks && guard.is_some());
                    let block = Rc::new(sst.unpack(handle, frame, guard)?);
                    if cached {
                        db.0.cache.insert(sst.number(), handle.offset, block.clone());
                    }
                    // Handed over directly: a small cache may have dropped it again.
                    supplied = Some(block);
                }
            }
        }
    }

    /// The answer, or what is missing for it.
    fn advance(
        &mut self,
        db: &Db<S>,
        key: &[u8],
        mut supplied: Option<Rc<Block>>,
    ) -> Result<std::result::Result<Option<Bytes>, Need<S>>> {
        let State::Searching { version, filter_hash, key_hash, place, current, wants } = &mut self.0 else {
            let State::Known(answer) = &self.0 else { unreachable!("the other state was matched above") };
            return answer.clone().transpose().map(Ok);
        };
        loop {
            if let Some((sst, lookup)) = current {
                let handle = lookup.wanted();
                let cached = supplied.take().or_else(|| db.0.cache.get(sst.number(), handle.offset));
                let Some(block) = cached else { return Ok(Err(Need::Block(sst.clone(), handle))) };
                match lookup.step(key, &block).map_err(|reason| sst.corruption(handle, reason))? {
                    Step::More => continue,
                    Step::Absent => {
                        place.pass();
                        *current = None;
                    }
                    Step::Found { kind: ValueKind::Tombstone, .. } => return Ok(Ok(None)),
                    Step::Found { kind: ValueKind::Value, value, .. } => {
                        if *wants == Wants::Value && db.is_current(version, *key_hash, key) {
                            db.0.values.insert(*key_hash, key, &value);
                        }
                        return Ok(Ok(Some(value)));
                    }
                }
            }
            let Some(meta) = place.next_file(version, key) else { return Ok(Ok(None)) };
            let Some(sst) = db.opened_sst(meta.number) else { return Ok(Err(Need::Open(meta.clone()))) };
            let lookup = PointLookup::new(&sst, *filter_hash);
            *current = Some((sst, lookup));
        }
    }
}

impl<S: Storage> Db<S> {
    /// Whether what a search of `version` has found for `key` is still what files say, and no memtable hides it
    /// (F1 of `values`).
    fn is_current(&self, version: &Rc<Version>, hash: u64, key: &[u8]) -> bool {
        let inner = &*self.0;
        let hides = |memtable: &Memtable| memtable.get(hash, key, SeqNo(u64::MAX)).is_some();
        Rc::ptr_eq(version, &inner.version.borrow())
            && !hides(&inner.active.borrow().memtable)
            && !inner.frozen.borrow().iter().any(|frozen| hides(&frozen.memtable))
    }
}

impl Place {
    /// The next file that may hold the key, from here on; the place is then at that file.
    fn next_file<'a>(&mut self, version: &'a Version, key: &[u8]) -> Option<&'a SharedMeta> {
        if self.level == 0 {
            let files = version.level(0);
            while self.index < files.len() {
                if files[self.index].covers(key) {
                    return Some(&files[self.index]);
                }
                self.index += 1;
            }
            self.level = 1;
        }
        while self.level < LEVELS {
            if let Some(file) = version.file_for(self.level, key) {
                return Some(file);
            }
            self.level += 1;
        }
        None
    }

    /// Moves on behind the file that was looked at.
    fn pass(&mut self) {
        if self.level == 0 {
            self.index += 1;
        } else {
            self.level += 1;
        }
    }
}
