//! Reads a sorted file from front to back, ahead of what was asked for, without the block cache.

use std::rc::Rc;

use super::BlockHandle;
use super::block::{Block, FRAME_BYTES, Frame, frame_bytes};
use super::reader::{Sst, read};
use crate::codec::to_usize;
use crate::error::{CorruptionReason, ErrorKind, Result};
use crate::storage::{AlignedBuf, BLOCK_BYTES, File};

/// The most bytes that are read ahead.
const READ_AHEAD_BYTES_MAX: usize = 256 << 10;
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

    /// The `bytes` bytes at `offset`, if the window holds them.
    pub(super) fn get(&self, offset: u64, bytes: usize) -> Option<&[u8]> {
        let from = to_usize(offset.checked_sub(self.at)?);
        self.bytes.get(from..from.checked_add(bytes)?)
    }

    /// Reads the `bytes` bytes at `offset`, and what follows them up to `end` if that can be read as well.
    ///
    /// # Errors
    /// `Io`, or `Corruption` if the file ends before that.
    pub(super) async fn fill<F: File>(
        &mut self,
        sst: &Sst<F>,
        offset: u64,
        bytes: usize,
        end: u64,
    ) -> Result<()> {
        let step = if READ_AHEAD_BYTES_MAX < bytes {
            bytes // alone: a merge of large values then holds each of them once
        } else {
            bytes.max(self.ahead.min(to_usize(end.saturating_sub(offset))))
        };
        self.ahead = (2 * self.ahead).min(READ_AHEAD_BYTES_MAX);
        self.bytes = AlignedBuf::with_capacity(0);
        self.bytes = match read(&sst.file, &sst.label, offset, step).await {
            // A block after the wanted bytes may be unreadable.
            Err(error) if error.kind() == ErrorKind::Io && bytes < step => {
                read(&sst.file, &sst.label, offset, bytes).await?
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
            .and_then(|frame| frame.unpack(()))
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
}

impl<F: File> Frames<F> {
    /// All blocks.
    pub(super) fn new(sst: Rc<Sst<F>>) -> Self {
        let end = sst.bytes.saturating_sub(BLOCK_BYTES as u64);
        Self { sst, window: Window::new(ReadAhead::Full), next: 0, end }
    }

    /// Where the next frame begins.
    pub(super) fn position(&self) -> BlockHandle {
        BlockHandle { offset: self.next, bytes: 0 }
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
