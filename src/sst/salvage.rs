//! Takes everything that verifies out of a damaged sorted file.
//!
//! Data blocks are read in file order, without the index: a damaged index or filter costs nothing. Between two blocks
//! that verify there may be one that does not. Its keys lie between those of its neighbours, and nothing more is known
//! about them. If as many entries verify as the manifest says, none was lost.

use std::rc::Rc;

use super::SstMeta;
use super::block::{Block, BlockKind, Cursor};
use super::reader::Sst;
use super::window::Frames;
use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::key::Entry;
use crate::storage::File;

/// A walk over the entries that verify, in key order.
pub struct Salvage<F: File> {
    frames: Frames<F>,
    /// The description of the file in the manifest.
    meta: Rc<SstMeta>,
    data: Option<Cursor>,
    last_key: Option<Vec<u8>>,
    entries: u64,
    /// Something did not verify since the last entry.
    gap: bool,
    lost: Vec<Gap>,
    /// The first read that the device refused.
    unreadable: Option<Error>,
}

/// Keys above `after` and below `before` may be lost. At an end of the file there is no neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The last key before the gap.
    pub after: Option<Vec<u8>>,
    /// The first key after the gap.
    pub before: Option<Vec<u8>>,
}

impl Gap {
    /// A whole file.
    pub const ALL: Self = Self { after: None, before: None };
}

impl<F: File> Salvage<F> {
    /// A walk over a file that the manifest describes as `meta`.
    pub fn new(sst: Rc<Sst<F>>, meta: Rc<SstMeta>) -> Self {
        Self {
            frames: Frames::new(sst),
            meta,
            data: None,
            last_key: None,
            entries: 0,
            gap: false,
            lost: Vec::new(),
            unreadable: None,
        }
    }

    /// Why nothing at all could be read, if that is so.
    pub fn unreadable(&self) -> Option<Error> {
        if self.entries == 0 { self.unreadable.clone() } else { None }
    }

    /// Moves to the next entry that verifies. `false` at the end.
    ///
    /// # Errors
    /// Anything but damage: `Configuration` if a later version wrote a block, `Io`.
    pub async fn advance(&mut self) -> Result<bool> {
        loop {
            if let Some(data) = &mut self.data {
                match data.advance() {
                    Ok(true) if self.take() => return Ok(true),
                    Ok(true) | Err(_) => self.gap = true,
                    Ok(false) => {}
                }
                self.data = None;
            }
            match self.frames.next().await {
                Ok(Some((_, block))) => self.enter(&block),
                Ok(None) => return Ok(false),
                Err(error) if error.is_damage() => {
                    self.gap = true;
                    if error.kind() == ErrorKind::Io {
                        self.unreadable.get_or_insert(error);
                    }
                    self.frames.skip_page();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn enter(&mut self, block: &Block) {
        if block.kind == BlockKind::Data {
            self.data = Some(Cursor::new(block.payload.clone()));
        }
    }

    /// Takes the entry of the cursor, if it may follow the entry before it.
    fn take(&mut self) -> bool {
        let Some(entry) = self.data.as_ref().and_then(Cursor::entry) else { return false };
        let follows = self.last_key.as_deref().is_none_or(|last| last < entry.key);
        if !follows || !self.meta.covers(entry.key) {
            return false;
        }
        let key = entry.key.to_vec();
        let before = self.last_key.replace(key.clone());
        if std::mem::take(&mut self.gap) {
            self.lost.push(Gap { after: before, before: Some(key) });
        }
        self.entries += 1;
        true
    }

    /// The number of entries that verify, so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Lends the entry that the walk stands at.
    pub fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        read(self.data.as_ref().and_then(Cursor::entry).expect("the walk stands at an entry"))
    }

    /// Where entries may be lost, once the walk has ended.
    ///
    /// # Errors
    /// If there are more entries than the manifest says.
    pub fn lost(mut self) -> std::result::Result<Vec<Gap>, CorruptionReason> {
        if self.meta.entries < self.entries {
            return Err(CorruptionReason::Damaged("the file has more entries than the manifest says"));
        }
        if self.entries == self.meta.entries {
            return Ok(Vec::new());
        }
        // Too few entries without a gap: the whole file is in doubt.
        if self.gap || self.lost.is_empty() {
            let after = if self.lost.is_empty() && !self.gap { None } else { self.last_key.take() };
            self.lost.push(Gap { after, before: None });
        }
        Ok(self.lost)
    }
}
