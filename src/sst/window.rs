//! Reads a sorted file from front to back, and ahead of the blocks that were asked for, without the block cache.

use std::rc::Rc;

use super::BlockHandle;
use super::block::{Block, FRAME_BYTES, Frame, frame_bytes};
use super::reader::{Sst, read};
use crate::codec::to_usize;
use crate::error::{CorruptionReason, Result};
use crate::storage::{AlignedBuf, BLOCK_BYTES, File};

/// The most bytes that are read ahead.
pub(super) const READ_AHEAD_BYTES_MAX: usize = 256 << 10;
/// Bytes of the first read of a reader that may stop soon. Every read doubles them.
const READ_AHEAD_BYTES_MIN: usize = 16 << 10;

/// How far ahead a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAhead {
    /// As far as allowed, at once: the reader wants the whole file.
    Full,
    /// A little first, then more and more: the reader may stop soon.
    Growing,
}

/// A part of a file in memory.
pub(super) struct Window {
    bytes: AlignedBuf,
    /// Offset of the part.
    at: u64,
    /// Bytes that the next read takes.
    ahead: usize,
}

impl Window {
    /// An empty window.
    pub(super) fn new(ahead: ReadAhead) -> Self {
        let ahead = match ahead {
            ReadAhead::Full => READ_AHEAD_BYTES_MAX,
            ReadAhead::Growing => READ_AHEAD_BYTES_MIN,
        };
        Self { bytes: AlignedBuf::with_capacity(0), at: 0, ahead }
    }

    /// Gives the memory of the window back.
    pub(super) fn clear(&mut self) {
        self.bytes = AlignedBuf::with_capacity(0);
    }

    /// The `bytes` bytes at `offset`, if the window holds them.
    pub(super) fn get(&self, offset: u64, bytes: usize) -> Option<&[u8]> {
        let from = to_usize(offset.checked_sub(self.at)?);
        self.bytes.get(from..from.checked_add(bytes)?)
    }

    /// Reads the `bytes` bytes at `offset`, and bytes after them, up to `end`, if those can be read as well.
    ///
    /// # Errors
    /// `Io`, or `Corruption` if the file ends too early.
    pub(super) async fn fill<F: File>(
        &mut self,
        sst: &Sst<F>,
        offset: u64,
        bytes: usize,
        end: u64,
    ) -> Result<()> {
        let step = if READ_AHEAD_BYTES_MAX < bytes {
            bytes // without read-ahead, so that a merge of large values holds each value once
        } else {
            bytes.max(self.ahead.min(to_usize(end.saturating_sub(offset))))
        };
        self.ahead = (2 * self.ahead).min(READ_AHEAD_BYTES_MAX);
        self.clear();
        self.bytes = match read(&sst.file, &sst.label, offset, AlignedBuf::zeroed(step)).await {
            // What follows the wanted bytes may be unreadable, or cut off.
            Err(error) if error.is_damage() && bytes < step => {
                read(&sst.file, &sst.label, offset, AlignedBuf::zeroed(bytes)).await?
            }
            result => result?,
        };
        self.at = offset;
        Ok(())
    }

    /// Takes the frame at `handle` out of the window and unpacks it. `None` if the window does not hold the frame.
    ///
    /// # Errors
    /// `Corruption`.
    pub(super) fn unpack<F: File>(&mut self, sst: &Sst<F>, handle: BlockHandle) -> Result<Option<Block>> {
        let bytes = handle.bytes as usize;
        let frame = match self.get(handle.offset, bytes) {
            None => return Ok(None),
            Some(_) if self.bytes.len() == bytes => {
                std::mem::replace(&mut self.bytes, AlignedBuf::with_capacity(0))
            }
            Some(frame) => AlignedBuf::from(frame),
        };
        Frame::verify(frame, sst.identity, handle.offset)
            .and_then(Frame::unpack)
            .map(Some)
            .map_err(|reason| sst.corruption(handle, reason))
    }
}

/// Walks all frames of a file in file order.
pub(super) struct Frames<F: File> {
    sst: Rc<Sst<F>>,
    window: Window,
    /// Offset of the next frame.
    next: u64,
    /// Where the walk ends.
    end: u64,
    /// Where the page after the last damaged page begins, if one was passed over.
    passed: Option<u64>,
}

impl<F: File> Frames<F> {
    /// All blocks.
    pub(super) fn new(sst: Rc<Sst<F>>) -> Self {
        let end = sst.bytes.saturating_sub(BLOCK_BYTES as u64);
        Self { sst, window: Window::new(ReadAhead::Full), next: 0, end, passed: None }
    }

    /// Where the next frame begins.
    pub(super) fn position(&self) -> BlockHandle {
        BlockHandle { offset: self.next, bytes: 0 }
    }

    /// As [`Self::next`], but the walk goes on after damage. A run of damaged pages has one error.
    pub(super) async fn next_or_damage(&mut self) -> Option<Result<(BlockHandle, Block)>> {
        loop {
            let at = self.next;
            match self.next().await {
                Ok(found) => return found.map(Ok),
                Err(error) => {
                    self.skip_page();
                    if self.passed.replace(self.next) != Some(at) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    /// The next block and its handle; `None` at the end. After an error the walk stays where it was.
    pub(super) async fn next(&mut self) -> Result<Option<(BlockHandle, Block)>> {
        if self.end <= self.next {
            return Ok(None);
        }
        let at = self.position();
        let damaged = |reason| self.sst.corruption(at, CorruptionReason::Damaged(reason));
        if self.window.get(self.next, FRAME_BYTES).is_none() {
            self.window.fill(&self.sst, self.next, BLOCK_BYTES, self.end).await?;
        }
        let front = self.window.get(self.next, FRAME_BYTES).unwrap_or_default();
        let bytes = frame_bytes(front).map_err(|reason| self.sst.corruption(at, reason))?;
        if self.end < self.next + bytes {
            return Err(damaged("the block runs into the footer"));
        }
        let bytes = u32::try_from(bytes).map_err(|_| damaged("the block is longer than any block can be"))?;
        let handle = BlockHandle { bytes, ..at };
        if self.window.get(self.next, bytes as usize).is_none() {
            self.window.fill(&self.sst, self.next, bytes as usize, self.end).await?;
        }
        let block = self.window.unpack(&self.sst, handle)?;
        let block = block.ok_or_else(|| damaged("the file ends before the block does"))?;
        self.next += u64::from(bytes);
        Ok(Some((handle, block)))
    }

    /// Skips one page. The next frame may begin after it.
    pub(super) fn skip_page(&mut self) {
        self.next += BLOCK_BYTES as u64;
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::error::ErrorKind;
    use crate::file_name::FileName;
    use crate::identity::{FileKind, Identity, Owner};
    use crate::key::{Entry, EntryKind, FileNumber, SeqNo, ShardId};
    use crate::random::Random;
    use crate::sst::block::BlockKind;
    use crate::sst::builder::SstBuilder;
    use crate::storage::sim::{SimFile, SimStorage};

    const NUMBER: FileNumber = FileNumber(1);

    fn identity() -> Identity {
        Owner { store_id: 4, shard: ShardId(1) }.identity(FileKind::Sst, NUMBER)
    }

    /// A file with values of these lengths, which do not compress.
    async fn sst(storage: &SimStorage, lengths: impl Iterator<Item = usize>) -> Rc<Sst<SimFile>> {
        let mut random = Random::new(1);
        let mut builder = SstBuilder::create(storage, identity()).await.unwrap();
        for (number, length) in (1..).zip(lengths) {
            let value: Vec<_> = (0..length).map(|_| random.next_u64().to_le_bytes()[0]).collect();
            let key = format!("{number:06}").into_bytes();
            let entry = Entry { key: &key, seqno: SeqNo(number), kind: EntryKind::VALUE, value: &value };
            while !builder.add(&entry) {}
            builder.write_full().await.unwrap();
        }
        let meta = builder.finish().await.unwrap();
        Rc::new(Sst::open(storage, identity(), meta.bytes).await.unwrap())
    }

    #[test]
    fn a_growing_window_doubles_with_each_read_and_does_not_reach_beyond_the_end() {
        block_on(async {
            let storage = SimStorage::new(1);
            let sst = sst(&storage, (0..300).map(|_| 4_000)).await;
            let contents = storage.bytes(FileName::Sst(NUMBER));
            for (ahead, kib) in [
                (ReadAhead::Growing, &[16, 32, 64, 128, 256, 256, 20, 4][..]),
                (ReadAhead::Full, &[256, 256, 20, 4]),
            ] {
                let (mut window, mut at) = (Window::new(ahead), 0);
                // `end` lies in front of the last block. A block that is asked for is read even beyond `end`.
                let end = kib[..kib.len() - 1].iter().sum::<usize>() << 10;
                for kib in kib {
                    let length = kib << 10;
                    let operations = storage.operations();
                    window.fill(&sst, at as u64, BLOCK_BYTES, end as u64).await.unwrap();
                    assert_eq!(storage.operations(), operations + 1, "{ahead:?}: one read");
                    let held = window.get(at as u64, length);
                    assert_eq!(held, Some(&contents[at..at + length]), "{ahead:?} at {at}");
                    assert!(
                        window.get(at as u64, length + 1).is_none(),
                        "{ahead:?} at {at}: no more is read"
                    );
                    at += length;
                }
            }
        });
    }

    #[test]
    fn a_window_holds_what_it_has_read_and_nothing_around_it() {
        block_on(async {
            let storage = SimStorage::new(1);
            let sst = sst(&storage, (0..60).map(|_| 4_000)).await;
            let mut window = Window::new(ReadAhead::Growing);
            let at = 10 * BLOCK_BYTES as u64;
            window.fill(&sst, at, BLOCK_BYTES, sst.top.offset).await.unwrap();
            assert!(window.get(at, 4 * BLOCK_BYTES).is_some());
            assert!(window.get(at - 1, 1).is_none(), "before it");
            assert!(window.get(at - 1, 4 * BLOCK_BYTES).is_none(), "a part of it");
            assert!(window.get(at + 1, 4 * BLOCK_BYTES).is_none(), "beyond it");
            assert!(window.get(u64::MAX, usize::MAX).is_none());
        });
    }

    #[test]
    fn a_block_longer_than_the_window_is_read_by_itself_and_held_once() {
        block_on(async {
            let storage = SimStorage::new(1);
            let long = READ_AHEAD_BYTES_MAX + 10_000;
            let sst = sst(&storage, [100, long, 100, long, 100].into_iter()).await;
            let mut frames = Frames::new(sst.clone());
            let mut lengths = Vec::new();
            while let Some((handle, block)) = frames.next().await.unwrap() {
                if READ_AHEAD_BYTES_MAX < handle.bytes as usize {
                    let mut window = Window::new(ReadAhead::Full);
                    window.fill(&sst, handle.offset, handle.bytes as usize, sst.top.offset).await.unwrap();
                    assert_eq!(window.bytes.len(), handle.bytes as usize, "nothing after the block is read");
                    let memory = window.bytes.as_ptr_range();
                    let found = window.unpack(&sst, handle).unwrap().expect("the window holds the block");
                    assert_eq!(found.payload, block.payload);
                    assert!(memory.contains(&found.payload.as_ptr()), "the block is not copied");
                    assert!(window.bytes.is_empty(), "the window has given its memory away");
                    lengths.push(block.payload.len());
                }
            }
            assert_eq!(lengths.len(), 2);
            assert!(lengths.iter().all(|length| long < *length));
        });
    }

    #[test]
    fn an_unreadable_block_ahead_is_an_error_only_for_who_asks_for_it() {
        block_on(async {
            let storage = SimStorage::new(1);
            let sst = sst(&storage, (0..40).map(|_| 4_000)).await;
            let name = FileName::Sst(NUMBER);
            let contents = storage.bytes(name);
            let bad = 5;
            storage.make_unreadable(name, bad);
            for ahead in [ReadAhead::Full, ReadAhead::Growing] {
                for block in 0..20 {
                    let mut window = Window::new(ahead);
                    let at = block * BLOCK_BYTES as u64;
                    let result = window.fill(&sst, at, BLOCK_BYTES, sst.top.offset).await;
                    if block == bad {
                        assert_eq!(result.unwrap_err().kind(), ErrorKind::Io, "{ahead:?}, block {block}");
                        assert!(window.get(at, BLOCK_BYTES).is_none(), "{ahead:?}");
                    } else {
                        result.unwrap();
                        let held = window.get(at, BLOCK_BYTES);
                        assert_eq!(
                            held,
                            Some(&contents[to_usize(at)..][..BLOCK_BYTES]),
                            "{ahead:?}, {block}"
                        );
                    }
                }
            }
            // A block of two pages, one of which is unreadable.
            let mut window = Window::new(ReadAhead::Full);
            let at = (bad - 1) * BLOCK_BYTES as u64;
            assert!(window.fill(&sst, at, 2 * BLOCK_BYTES, sst.top.offset).await.is_err());
        });
    }

    #[test]
    fn frames_come_in_the_order_of_the_file_and_a_damaged_one_is_passed_over_by_page() {
        block_on(async {
            let storage = SimStorage::new(1);
            let sst = sst(&storage, (0..40).map(|number| 500 * number)).await;
            let mut frames = Frames::new(sst.clone());
            let mut handles = Vec::new();
            while let Some((handle, block)) = frames.next().await.unwrap() {
                handles.push((handle, block.kind));
            }
            let mut next = 0;
            for (handle, _) in &handles {
                assert_eq!(handle.offset, next);
                next += u64::from(handle.bytes);
            }
            assert_eq!(next, sst.bytes - BLOCK_BYTES as u64, "only the footer follows");
            let last_kinds = handles[handles.len() - 4..].iter().map(|(_, kind)| *kind);
            let expected = [BlockKind::Index, BlockKind::Filter, BlockKind::Top, BlockKind::Properties];
            assert_eq!(last_kinds.collect::<Vec<_>>(), expected);

            let (damaged, _) = handles[3];
            storage.corrupt(FileName::Sst(NUMBER), damaged.offset + 100, 1);
            let mut frames = Frames::new(sst);
            let mut found = Vec::new();
            loop {
                let at = frames.position().offset;
                match frames.next().await {
                    Ok(None) => break,
                    Ok(Some((handle, kind))) => found.push((handle, kind.kind)),
                    Err(error) => {
                        let said = format!("000001.sst is damaged at offset {at}: ");
                        assert!(error.to_string().starts_with(&said), "{error}");
                        assert!(damaged.offset <= at && at < damaged.offset + u64::from(damaged.bytes));
                        frames.skip_page();
                    }
                }
            }
            handles.remove(3);
            assert_eq!(found, handles);
        });
    }
}
