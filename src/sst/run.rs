//! The entries of disjoint sorted files, in key order: a level, or one file.
//!
//! A run walks from the top index of a file to an index block, to a data block, and from entry to entry. It opens a
//! file when it comes to that file. Blocks come from the cache if the opener has one, otherwise from a window that
//! reads ahead. Blocks that a run reads are not put into the cache, where they would evict what point lookups use.

use std::rc::Rc;

use super::block::{Block, BlockKind, Cursor};
use super::reader::Sst;
use super::window::{ReadAhead, Window};
use super::{BlockHandle, SstMeta};
use crate::codec::Reader;
use crate::error::{CorruptionReason, Result};
use crate::key::{Entry, FileNumber};
use crate::source::{Source, Step};
use crate::storage::File;

/// Opens files for a run.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait OpenSst {
    /// The type of the open files.
    type File: File;

    /// Opens the file.
    ///
    /// # Errors
    /// `Corruption` or `Io`.
    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<Self::File>>>;

    /// The block at `offset` of a file, if it is in a cache.
    fn cached(&self, _file: FileNumber, _offset: u64) -> Option<Rc<Block>> {
        None
    }
}

/// Files in key order, as one source.
pub struct Run<'a, O: OpenSst> {
    opener: &'a O,
    ahead: ReadAhead,
    /// The files. No two of them overlap.
    files: Vec<Rc<SstMeta>>,
    /// Index of the file that is opened next.
    next: usize,
    /// Entries below this key are skipped.
    from: Vec<u8>,
    walk: Option<Walk<O::File>>,
}

/// The walk through an open file.
struct Walk<F: File> {
    sst: Rc<Sst<F>>,
    window: Window,
    /// The block that the walk needs next; `None` while the current data block has entries left.
    wanted: Option<(BlockHandle, BlockKind)>,
    /// The wanted block, if it was read without the window.
    supplied: Option<Rc<Block>>,
    top: Option<Cursor>,
    index: Option<Cursor>,
    data: Option<Cursor>,
}

impl<'a, O: OpenSst> Run<'a, O> {
    /// A run that stands before its first entry.
    pub fn new(opener: &'a O, files: impl IntoIterator<Item = Rc<SstMeta>>, ahead: ReadAhead) -> Self {
        Self { opener, ahead, files: files.into_iter().collect(), next: 0, from: Vec::new(), walk: None }
    }

    /// The file of the current entry.
    pub fn file(&self) -> Option<&SstMeta> {
        self.files.get(self.next.checked_sub(1)?).map(|file| &**file)
    }
}

impl<O: OpenSst> Source for Run<'_, O> {
    fn seek(&mut self, key: &[u8]) {
        self.next = self.files.partition_point(|file| *file.largest < *key);
        self.from = key.to_vec();
        self.walk = None;
    }

    fn step(&mut self) -> Result<Step> {
        loop {
            let Some(walk) = &mut self.walk else {
                return Ok(if self.next < self.files.len() { Step::Need } else { Step::End });
            };
            match walk.step(self.opener, &self.from)? {
                Step::End => self.walk = None,
                step => {
                    if step == Step::Entry {
                        self.from.clear(); // every later entry is above it
                    }
                    return Ok(step);
                }
            }
        }
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        let data = self.walk.as_ref().and_then(|walk| walk.data.as_ref());
        read(data.and_then(Cursor::entry).expect("the last step returned an entry"))
    }

    async fn supply(&mut self) -> Result<()> {
        match &mut self.walk {
            Some(walk) => walk.supply().await,
            None => {
                if let Some(file) = self.files.get(self.next) {
                    let sst = self.opener.open(file).await?;
                    self.walk = Some(Walk::new(sst, self.ahead));
                    self.next += 1;
                }
                Ok(())
            }
        }
    }
}

impl<F: File> Walk<F> {
    fn new(sst: Rc<Sst<F>>, ahead: ReadAhead) -> Self {
        let wanted = Some((sst.top, BlockKind::Top));
        Self { sst, window: Window::new(ahead), wanted, supplied: None, top: None, index: None, data: None }
    }

    fn step<O: OpenSst<File = F>>(&mut self, opener: &O, from: &[u8]) -> Result<Step> {
        loop {
            if let Some((handle, kind)) = self.wanted {
                let Some(block) = self.take(opener, handle)? else { return Ok(Step::Need) };
                self.enter(&block, kind, from).map_err(|reason| self.sst.corruption(handle, reason))?;
                self.wanted = None;
            }
            let at = BlockHandle { offset: self.sst.top.offset, bytes: 0 };
            let corrupt = |reason| self.sst.corruption(at, reason);
            if let Some(data) = &mut self.data {
                if data.advance().map_err(corrupt)? {
                    return Ok(Step::Entry);
                }
                self.data = None;
            }
            if let Some(index) = &mut self.index {
                match next_handle(index).map_err(corrupt)? {
                    Some(handle) => self.wanted = Some((handle, BlockKind::Data)),
                    None => self.index = None,
                }
            } else if let Some(top) = &mut self.top {
                match next_handle(top).map_err(corrupt)? {
                    Some(handle) => self.wanted = Some((handle, BlockKind::Index)),
                    None => return Ok(Step::End),
                }
            }
        }
    }

    /// The block at `handle`, if it is in memory.
    fn take<O: OpenSst<File = F>>(&mut self, opener: &O, handle: BlockHandle) -> Result<Option<Rc<Block>>> {
        if let Some(block) = self.supplied.take() {
            return Ok(Some(block));
        }
        if let Some(block) = opener.cached(self.sst.number(), handle.offset) {
            return Ok(Some(block));
        }
        Ok(self.window.unpack(&self.sst, handle)?.map(Rc::new))
    }

    /// Makes the block the current one of its kind.
    fn enter(&mut self, block: &Block, kind: BlockKind, from: &[u8]) -> Result<(), CorruptionReason> {
        if block.kind != kind {
            return Err(CorruptionReason::Damaged("the block is of another kind than the index says"));
        }
        let mut cursor = Cursor::new(block.payload.clone());
        if !from.is_empty() {
            cursor.seek(from)?;
        }
        match kind {
            BlockKind::Data => self.data = Some(cursor),
            BlockKind::Index => self.index = Some(cursor),
            _ => self.top = Some(cursor),
        }
        Ok(())
    }

    async fn supply(&mut self) -> Result<()> {
        match self.wanted {
            // Index blocks lie after their data blocks. They are read without the window, which stays where it is.
            Some((handle, BlockKind::Data)) => {
                self.sst.check_handle(handle)?;
                self.window.fill(&self.sst, handle.offset, handle.bytes as usize, self.sst.top.offset).await
            }
            Some((handle, _)) => {
                self.supplied = Some(Rc::new(self.sst.read_block(handle).await?));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The first handle of the next entry of an index; `None` at its end.
fn next_handle(index: &mut Cursor) -> Result<Option<BlockHandle>, CorruptionReason> {
    if !index.advance()? {
        return Ok(None);
    }
    let value = index.entry().map(|entry| entry.value).unwrap_or_default();
    BlockHandle::decode(&mut Reader::new(value)).map(Some)
}
