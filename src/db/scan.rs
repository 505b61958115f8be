//! Walks over a [`View`] in key order: every visible value, once.
//!
//! Memtables and sorted files are merged by the same sources as in a flush and a compaction ([`crate::source`]). The
//! walk is synchronous as long as everything that it needs is in memory. Between its steps, the caller supplies what is
//! missing, and may pause.

use std::rc::Rc;

use super::{Db, View};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Entry, FileNumber, UnixMillis};
use crate::manifest::Version;
use crate::manifest::damage::KeyRange;
use crate::memtable::order::{MemtableSource, Wants};
use crate::source::merge::Merge;
use crate::source::newest::Newest;
use crate::source::{PASSED_MAX, Source, Step};
use crate::sst::SstMeta;
use crate::sst::block::Block;
use crate::sst::reader::Sst;
use crate::sst::run::{OpenSst, Run};
use crate::sst::window::ReadAhead;
use crate::storage::Storage;

/// The visible values of a view, in key order. A [`Source`].
pub struct Scan<'a, O: OpenSst> {
    entries: Newest<Merge<Part<'a, O>>>,
    now: UnixMillis,
    version: Rc<Version>,
    /// The walk has come to this key. Every visible value below it was passed.
    position: Vec<u8>,
}

enum Part<'a, O: OpenSst> {
    Memtable(MemtableSource),
    Files(Box<Run<'a, O>>),
}

impl<S: Storage> Db<S> {
    /// A walk over `view` at `now`. It stands in front of its first entry.
    pub fn scan(&self, view: &View, now: UnixMillis) -> Scan<'_, Self> {
        Scan::over(self, view, now)
    }
}

impl<'a, O: OpenSst> Scan<'a, O> {
    /// A walk over `view` at `now`, whose files `opener` opens.
    pub(super) fn over(opener: &'a O, view: &View, now: UnixMillis) -> Self {
        let memtable = |memtable: &Rc<_>| {
            Part::Memtable(MemtableSource::new(Rc::clone(memtable), view.visible, Wants::FewRuns))
        };
        let mut parts: Vec<_> = view.memtables.iter().map(memtable).collect();
        for (level, files) in view.version.levels() {
            let run = |files: &[Rc<SstMeta>]| {
                Part::Files(Box::new(Run::new(opener, files.iter().cloned(), ReadAhead::Growing)))
            };
            if level == 0 {
                parts.extend(files.iter().map(|file| run(std::slice::from_ref(file))));
            } else {
                parts.push(run(files));
            }
        }
        let entries = Newest::new(Merge::new(parts), view.visible);
        Self { entries, now, version: view.version.clone(), position: Vec::new() }
    }

    /// Refuses to go on past keys of which values may be lost (N4). `to` is the key that comes next.
    fn check_damage(&self, to: Option<&[u8]>) -> Result<()> {
        for damage in self.version.damage() {
            let touches =
                |range: &KeyRange| *self.position < *range.to && to.is_none_or(|to| *range.from <= *to);
            if damage.ranges.iter().any(touches) {
                let message = "a damaged file may have held more keys in this range: set them again, or restore a backup";
                return Err(Error::new(ErrorKind::Corruption, message));
            }
        }
        Ok(())
    }
}

impl<O: OpenSst> Source for Scan<'_, O> {
    fn seek(&mut self, key: &[u8]) {
        self.entries.seek(key);
        self.position = key.to_vec();
    }

    fn step(&mut self) -> Result<Step> {
        for _ in 0..PASSED_MAX {
            let step = self.entries.step()?;
            let now = self.now;
            if !self.version.damage().is_empty() {
                match step {
                    Step::Entry => {
                        let key = self.entries.read(|entry| entry.key.to_vec());
                        self.check_damage(Some(&key))?;
                        self.position = key;
                    }
                    Step::End => self.check_damage(None)?,
                    Step::Need | Step::Pause => {}
                }
            }
            // The newest entry of a key decides: a tombstone or an expired entry hides all older ones.
            if step != Step::Entry || self.entries.read(|entry| entry.kind.is_value_at(now)) {
                return Ok(step);
            }
        }
        Ok(Step::Pause) // many keys are deleted, or have expired
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        self.entries.read(read)
    }

    async fn supply(&mut self) -> Result<()> {
        self.entries.supply().await
    }
}

impl<O: OpenSst> Source for Part<'_, O> {
    fn seek(&mut self, key: &[u8]) {
        match self {
            Self::Memtable(source) => source.seek(key),
            Self::Files(source) => source.seek(key),
        }
    }

    fn step(&mut self) -> Result<Step> {
        match self {
            Self::Memtable(source) => source.step(),
            Self::Files(source) => source.step(),
        }
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        match self {
            Self::Memtable(source) => source.read(read),
            Self::Files(source) => source.read(read),
        }
    }

    async fn supply(&mut self) -> Result<()> {
        match self {
            Self::Memtable(source) => source.supply().await,
            Self::Files(source) => source.supply().await,
        }
    }
}

impl<S: Storage> OpenSst for Db<S> {
    type File = S::File;

    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<S::File>>> {
        self.0.tree.open(&self.0.storage, self.0.owner, meta).await
    }

    async fn pause(&self) {
        self.0.storage.pause().await;
    }

    fn cached(&self, file: FileNumber, offset: u64) -> Option<Rc<Block>> {
        self.0.tree.blocks.get(file, offset)
    }
}
