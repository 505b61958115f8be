//! Finds the value of a key: memtables at once, then sorted files block by block.
//!
//! Owns: the order in which sources are asked, and why the first answer is the right one. A [`Lookup`] decides what to read
//! next and never reads. [`Lookup::poll_cached`] walks as far as cached blocks go, without an await;
//! [`Lookup::finish`] reads the rest.
//!
//! The first entry found is the newest visible one:
//!
//! - Memtables hold newer writes than any sorted file (D3), and newer memtables hold newer writes than older ones.
//! - A cached value is what the sorted files say (F1).
//! - Of two entries of a key in sorted files, the newer one is in the higher level (N3).
//! - Everything in a sorted file was committed (D3), so it is visible to every reader, and its SeqNo need not be compared
//!   with the snapshot.
//! - Memtables and version are taken in one synchronous step, so no flush can move an entry between them unseen.
//!
//! The newest entry alone decides. If it has expired the key is absent, whatever older entries say (P10).

use std::rc::Rc;

use bytes::Bytes;

use super::hold::{LARGE_CHECK_BYTES, SMALL_VALUE_BYTES, for_check, for_reader, hold};
use super::{Db, SeqNo};
use crate::error::{Error, Result};
use crate::key::{Entry, Key, UnixMillis, filter_hash};
use crate::manifest::damage::Damage;
use crate::manifest::{LEVELS, SharedMeta, Version};
use crate::memory::Permit;
use crate::memtable::Memtable;
use crate::sst::BlockHandle;
use crate::sst::block::{Block, TARGET_PAGES_MAX, unpacked_bytes_max};
use crate::sst::reader::{LookupStep, PointLookup, Sst};
use crate::storage::{BLOCK_BYTES, Storage};

/// A value that a lookup has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The value. If the lookup only asked whether there is a value, these bytes may be different.
    pub value: Bytes,
    /// The SeqNo of the write that set it.
    pub seqno: SeqNo,
    /// When it expires.
    pub expires: Option<UnixMillis>,
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// The value.
    Value,
    /// Only whether there is a value.
    Existence,
}

/// A search for one key.
pub struct Lookup<S: Storage>(State<S>);

enum State<S: Storage> {
    /// Memory had the answer.
    Known(Option<Found>),
    /// Memory has the answer: a value of this many bytes, for which no permit was free.
    Waiting { bytes: usize, snapshot: SeqNo, now: UnixMillis, memtables: Vec<Rc<Memtable>> },
    /// The answer is in the sorted files of a version.
    Searching(Search<S>),
}

struct Search<S: Storage> {
    version: Rc<Version>,
    /// The hash of the key for the filters.
    filter_hash: u64,
    /// The hash of the key for memtables and cached values.
    key_hash: u64,
    wants: Wants,
    now: UnixMillis,
    /// The next file to look at.
    position: Position,
    current: Option<(Rc<Sst<S::File>>, PointLookup)>,
    /// The permit to hold the block that was read last, if it needs one.
    permit: Option<Permit>,
}

/// A position in the order of the search.
#[derive(Clone, Copy)]
struct Position {
    level: usize,
    /// Index of the file; in L0 only.
    index: usize,
}

/// How far a lookup gets without reading.
pub enum Progress {
    /// It is finished.
    Done(Option<Found>),
    /// It needs the disk: see [`Lookup::finish`].
    NeedsDisk,
}

enum Need<S: Storage> {
    Open(SharedMeta),
    Block(Rc<Sst<S::File>>, BlockHandle),
    /// A permit for this block, which holds the value.
    Permit(Rc<Block>),
}

impl<S: Storage> Db<S> {
    /// Lends the entry that decides about a key at `snapshot`, if that entry is in memory. The entry may be a
    /// tombstone, or may have expired.
    pub(super) fn in_memory<R>(
        &self,
        key: Key<&[u8]>,
        snapshot: SeqNo,
        mut read: impl FnMut(Entry<'_>) -> R,
    ) -> Option<R> {
        let inner = &*self.0;
        inner.writes.find(key.hash(), key.bytes(), snapshot, &mut read).or_else(|| {
            let cached = inner.tree.values.get(key.hash(), key.bytes(), &mut read);
            let counts = &inner.counts;
            if cached.is_some() { &counts.value_hits } else { &counts.value_misses }.add(1);
            cached
        })
    }

    /// A search for a key in memory and, if need be, in sorted files.
    pub(super) fn begin_lookup(
        &self,
        key: Key<&[u8]>,
        snapshot: SeqNo,
        wants: Wants,
        now: UnixMillis,
    ) -> Lookup<S> {
        let known = self.in_memory(key, snapshot, |entry| {
            if !entry.kind.is_value_at(now) {
                return State::Known(None);
            }
            let value = match wants {
                Wants::Value => match self.copy(entry.value) {
                    Some(value) => value,
                    None => return self.wait_for_permit(entry.value.len(), snapshot, now).0,
                },
                Wants::Existence => Bytes::new(),
            };
            State::Known(Some(Found { value, seqno: entry.seqno, expires: entry.kind.expires }))
        });
        known.map_or_else(|| self.search(key, wants, now), Lookup)
    }

    /// A copy of a value in memory, with a permit if it needs one; `None` if none is free, or if the value is shared rather
    /// than copied.
    pub(super) fn copy(&self, value: &[u8]) -> Option<Bytes> {
        if value.len() <= SMALL_VALUE_BYTES {
            return Some(Bytes::copy_from_slice(value));
        }
        if self.0.config.large_value_bytes <= value.len() {
            return None;
        }
        let permit = self.0.memory.requests.try_take(value.len())?;
        Some(hold(Bytes::copy_from_slice(value), permit))
    }

    /// A lookup of a value of `bytes` bytes that is in memory, once there is a permit for it.
    pub(super) fn wait_for_permit(&self, bytes: usize, snapshot: SeqNo, now: UnixMillis) -> Lookup<S> {
        // The memtables are kept, so that the lookup finds what it has found, and nothing later.
        Lookup(State::Waiting { bytes, snapshot, now, memtables: self.0.writes.memtables() })
    }

    /// A search in the sorted files in force, for a key that is not in memory.
    pub(super) fn search(&self, key: Key<&[u8]>, wants: Wants, now: UnixMillis) -> Lookup<S> {
        Lookup(State::Searching(Search {
            version: self.version(),
            filter_hash: filter_hash(key.bytes()),
            key_hash: key.hash(),
            wants,
            now,
            position: Position { level: 0, index: 0 },
            current: None,
            permit: None,
        }))
    }
}

impl<S: Storage> Lookup<S> {
    /// The answer, if memory has it.
    pub(super) fn known(self) -> Option<Option<Found>> {
        if let State::Known(found) = self.0 { Some(found) } else { None }
    }

    /// Walks as far as cached blocks go.
    ///
    /// # Errors
    /// `Corruption` if a block does not decode.
    pub fn poll_cached(&mut self, db: &Db<S>, key: &[u8]) -> Result<Progress> {
        Ok(match &mut self.0 {
            State::Known(found) => Progress::Done(found.clone()),
            State::Waiting { .. } => Progress::NeedsDisk,
            State::Searching(search) => {
                match search.advance(db, key, None).map_err(|error| search.suspect(db, error))? {
                    Ok(found) => Progress::Done(found),
                    Err(_) => Progress::NeedsDisk,
                }
            }
        })
    }

    /// Walks to the end and reads what is not cached. The engine may freeze, flush and compact meanwhile: the lookup keeps
    /// the version that it began with, and files of that version are not removed.
    ///
    /// # Errors
    /// `Corruption` or `Io`; `Overloaded` if too many large values are being read.
    ///
    /// Cancel safety: safe; a read in flight is finished by the ring.
    pub async fn finish(self, db: &Db<S>, key: &[u8]) -> Result<Option<Found>> {
        let mut search = match self.0 {
            State::Known(found) => return Ok(found),
            State::Searching(search) => search,
            State::Waiting { bytes, snapshot, now, memtables } => {
                let permit = for_reader(&db.0.memory.requests, bytes).await?;
                let hash = db.key(key).hash();
                let found = memtables.iter().find_map(|memtable| {
                    memtable.get_owned(hash, key, snapshot, |entry, value| Found {
                        value,
                        seqno: entry.seqno,
                        expires: entry.kind.expires,
                    })
                });
                let found = found.filter(|found| found.expires.is_none_or(|at| now < at));
                return Ok(found.map(|found| Found { value: hold(found.value, permit), ..found }));
            }
        };
        let mut supplied = None;
        loop {
            let step = search.advance(db, key, supplied.take());
            match step.map_err(|error| search.suspect(db, error))? {
                Ok(found) => return Ok(found),
                Err(Need::Open(meta)) => {
                    let opened = db.0.tree.open(&db.0.storage, db.0.owner, &meta).await;
                    let sst = opened.map_err(|error| db.suspect(meta.number, error))?;
                    let lookup = PointLookup::new(&sst, search.filter_hash);
                    search.current = Some((sst, lookup));
                }
                // The block is handed over directly, because a small cache may already have evicted it.
                Err(Need::Block(sst, handle)) => {
                    let loaded = search.load(db, &sst, handle).await;
                    supplied = Some(loaded.map_err(|error| search.suspect(db, error))?);
                }
                Err(Need::Permit(block)) => {
                    search.permit = Some(for_reader(&db.0.memory.requests, block.memory).await?);
                    supplied = Some(block);
                }
            }
        }
    }
}

impl<S: Storage> Search<S> {
    /// The answer, or what is missing for it.
    fn advance(
        &mut self,
        db: &Db<S>,
        key: &[u8],
        mut supplied: Option<Rc<Block>>,
    ) -> Result<std::result::Result<Option<Found>, Need<S>>> {
        loop {
            if let Some((sst, lookup)) = &mut self.current {
                let handle = lookup.wanted();
                let (asks, passed) = (lookup.asks_filter(), lookup.has_passed_filter());
                let block = supplied.take().or_else(|| db.0.tree.blocks.get(sst.number(), handle.offset));
                let Some(block) = block else { return Ok(Err(Need::Block(sst.clone(), handle))) };
                match lookup.step(key, &block).map_err(|reason| sst.corruption(handle, reason))? {
                    LookupStep::More => continue,
                    LookupStep::Absent => {
                        let counts = &db.0.counts;
                        counts.filter_excluded.add(u64::from(asks));
                        counts.filter_mistaken.add(u64::from(passed));
                        self.position.pass();
                        self.current = None;
                    }
                    LookupStep::Found { kind, seqno, value } => {
                        db.0.counts.filter_right.add(1);
                        if !kind.is_value_at(self.now) {
                            return Ok(Ok(None));
                        }
                        let value = match self.wants {
                            Wants::Existence => Bytes::new(),
                            Wants::Value if value.len() <= SMALL_VALUE_BYTES => {
                                Bytes::copy_from_slice(&value)
                            }
                            Wants::Value => {
                                let pool = &db.0.memory.requests;
                                let permit = self.permit.take();
                                let permit = permit.filter(|held| pool.suffices(held, block.memory));
                                match permit.or_else(|| pool.try_take(block.memory)) {
                                    Some(permit) => hold(value, permit),
                                    None => return Ok(Err(Need::Permit(block))),
                                }
                            }
                        };
                        if self.wants == Wants::Value && db.is_current(&self.version, self.key_hash, key) {
                            db.0.tree.values.insert(self.key_hash, Entry { key, seqno, kind, value: &value });
                        }
                        return Ok(Ok(Some(Found { value, seqno, expires: kind.expires })));
                    }
                }
            }
            let next = self.position.next_file(&self.version, key).map_err(|damage| db.lost(damage))?;
            let Some(meta) = next else { return Ok(Ok(None)) };
            let Some(sst) = db.0.tree.opened(meta.number) else { return Ok(Err(Need::Open(meta.clone()))) };
            let lookup = PointLookup::new(&sst, self.filter_hash);
            self.current = Some((sst, lookup));
        }
    }

    /// Takes note that the present file may be damaged, if that is what the error says.
    fn suspect(&self, db: &Db<S>, error: Error) -> Error {
        match &self.current {
            Some((sst, _)) => db.suspect(sst.number(), error),
            None => error,
        }
    }

    /// Reads a block. If it may be long, takes the permit to hold it first.
    async fn load(&mut self, db: &Db<S>, sst: &Sst<S::File>, handle: BlockHandle) -> Result<Rc<Block>> {
        self.permit = None; // the block before is not needed any more
        let memory = &db.0.memory;
        let checks = self.wants == Wants::Existence;
        let holds_value = self.current.as_ref().is_some_and(|(_, lookup)| lookup.wants_data());
        let permit = async |bytes| {
            if checks {
                Ok(for_check(&memory.checks, bytes).await)
            } else {
                for_reader(&memory.requests, bytes).await
            }
        };
        let bytes = handle.bytes as usize;
        if LARGE_CHECK_BYTES < bytes || (!checks && holds_value && BLOCK_BYTES < bytes) {
            self.permit = Some(permit(unpacked_bytes_max(bytes)).await?);
        }
        let frame = sst.read_frame(handle, async || db.0.storage.pause().await).await?;
        let bytes = frame.unpacked_bytes();
        if let Some(permit) = &mut self.permit {
            permit.keep(bytes.max(handle.bytes as usize));
        } else if !checks && holds_value && TARGET_PAGES_MAX * BLOCK_BYTES < bytes {
            // One page that holds a long value of very few bytes.
            self.permit = Some(permit(bytes).await?);
        }
        let block = Rc::new(sst.unpack(handle, frame)?);
        if !(checks && self.permit.is_some()) {
            db.0.tree.blocks.insert(sst.number(), handle.offset, block.clone());
        }
        Ok(block)
    }
}

impl<S: Storage> Db<S> {
    /// Whether the value that a search of `version` has found for a key is still the value in the files in force, and
    /// no memtable hides it (F1).
    fn is_current(&self, version: &Rc<Version>, hash: u64, key: &[u8]) -> bool {
        self.0.catalog.is_in_force(version)
            && self.0.writes.find(hash, key, SeqNo(u64::MAX), |_| ()).is_none()
    }
}

impl Position {
    /// The next file, from here on, that may hold the key. Moves to that file.
    ///
    /// # Errors
    /// Damage that may have held the key, and that comes before any such file (N4).
    fn next_file<'a>(
        &mut self,
        version: &'a Version,
        key: &[u8],
    ) -> std::result::Result<Option<&'a SharedMeta>, &'a Damage> {
        let damaged = |level, last| match version.damage_for(level, key, last) {
            Some(damage) => Err(&**damage),
            None => Ok(()),
        };
        if self.level == 0 {
            let files = version.level(0);
            while self.index < files.len() {
                let file = &files[self.index];
                damaged(0, Some(file.last))?;
                if file.covers(key) {
                    return Ok(Some(file));
                }
                self.index += 1;
            }
            damaged(0, None)?;
            self.level = 1;
        }
        while self.level < LEVELS {
            damaged(self.level, None)?;
            if let Some(file) = version.file_for(self.level, key) {
                return Ok(Some(file));
            }
            self.level += 1;
        }
        Ok(None)
    }

    /// Moves past the file that was looked at.
    fn pass(&mut self) {
        if self.level == 0 {
            self.index += 1;
        } else {
            self.level += 1;
        }
    }
}
