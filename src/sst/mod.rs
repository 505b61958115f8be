//! Sorted files: immutable, each key at most once, found by filter and a two-level index.
//!
//! Owns: the layout of the file, its handle and its description. Knows nothing of levels.
//!
//! ```text
//!   partition 0: data block, data block, …, index block, filter block
//!   partition 1: data block, data block, …, index block, filter block
//!   …
//!   top index block        a key for each partition: where its index and filter are
//!   properties block       what `SstMeta` says, so that a file explains itself
//!   footer                 one record (see `crate::record`) of 4 KiB: where top index and properties are
//! ```
//!
//! Every block is a frame of whole 4 KiB pages, read with one O_DIRECT transfer:
//!
//! ```text
//!  0 u32 crc          CRC-32 of the file's identity, the block's offset, and everything behind this field
//!  4 u32 pages        4 KiB pages of the frame
//!  8 u32 payload      bytes of the payload as stored
//! 12 u32 raw          bytes of the payload unpacked
//! 16 u8  kind         see `block::BlockKind`
//! 17 u8  compression  0 none, 1 LZ4
//! 18 u16 zero
//! 20     payload, then zeros
//! ```
//!
//! T1  Index, filter and top blocks are read through the cache like data blocks: memory does not grow with the
//!     number of keys on disk.
//! T2  A key of the file is never missed: separators are at or above every key of their block, and filters
//!     answer "no" only for keys that were never added.
//! T3  LZ4 is kept only where it saves a page, and never unpacks to more than 16 times the frame.

pub mod block;
pub mod builder;
pub mod cache;
pub mod filter;
pub mod reader;
pub mod run;
pub mod verify;

use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::CorruptionReason;
use crate::key::{Entry, FileNumber, SeqNo, ValueKind};
use crate::storage::BLOCK_BYTES;

/// Where a frame is: both numbers are multiples of the page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockHandle {
    /// Offset in the file.
    pub offset: u64,
    /// Length of the frame.
    pub bytes: u32,
}

impl BlockHandle {
    /// Appends the handle, in pages.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_varint(out, self.offset / BLOCK_BYTES as u64);
        put_varint(out, u64::from(self.bytes) / BLOCK_BYTES as u64);
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CorruptionReason> {
        let wrong = CorruptionReason::Damaged("a block handle is out of range");
        let offset = reader.varint()?.checked_mul(BLOCK_BYTES as u64).ok_or(wrong)?;
        let bytes = reader.varint()?.checked_mul(BLOCK_BYTES as u64).ok_or(wrong)?;
        let bytes = u32::try_from(bytes).map_err(|_| wrong)?;
        offset.checked_add(u64::from(bytes)).filter(|_| bytes != 0).ok_or(wrong)?;
        Ok(Self { offset, bytes })
    }
}

/// What is known of a file without opening it; the manifest keeps one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SstMeta {
    /// Its number.
    pub number: FileNumber,
    /// Its length.
    pub bytes: u64,
    /// Its first key.
    pub smallest: Box<[u8]>,
    /// Its last key.
    pub largest: Box<[u8]>,
    /// Its lowest SeqNo.
    pub first: SeqNo,
    /// Its highest SeqNo.
    pub last: SeqNo,
    /// Entries, tombstones counted.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
}

impl SstMeta {
    /// The description of a file with no entry yet.
    pub fn new(number: FileNumber) -> Self {
        Self {
            number,
            bytes: 0,
            smallest: Box::default(),
            largest: Box::default(),
            first: SeqNo(u64::MAX),
            last: SeqNo(0),
            entries: 0,
            tombstones: 0,
        }
    }

    /// Counts the next entry, in key order. The largest key is for the caller to set, who knows which is the last.
    pub fn count(&mut self, entry: &Entry<'_>) {
        if self.entries == 0 {
            self.smallest = entry.key.into();
        }
        self.entries += 1;
        self.tombstones += u64::from(entry.kind == ValueKind::Tombstone);
        self.first = self.first.min(entry.seqno);
        self.last = self.last.max(entry.seqno);
    }

    /// Whether the file may hold `key`.
    pub fn covers(&self, key: &[u8]) -> bool {
        *self.smallest <= *key && *key <= *self.largest
    }

    /// Whether the file may hold keys from `smallest` to `largest`.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        *self.smallest <= *largest && *smallest <= *self.largest
    }

    /// Appends all fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.number.0, self.bytes, self.first.0, self.last.0, self.entries, self.tombstones] {
            put_varint(out, number);
        }
        put_bytes(out, &self.smallest);
        put_bytes(out, &self.largest);
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CorruptionReason> {
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = reader.varint()?;
        }
        let [number, bytes, first, last, entries, tombstones] = numbers;
        let smallest = reader.length_and_bytes()?.into();
        let largest = reader.length_and_bytes()?.into();
        if largest < smallest || last < first || entries < tombstones || entries == 0 {
            return Err(CorruptionReason::Damaged("the description of a sorted file contradicts itself"));
        }
        Ok(Self {
            number: FileNumber(number),
            bytes,
            smallest,
            largest,
            first: SeqNo(first),
            last: SeqNo(last),
            entries,
            tombstones,
        })
    }
}
