//! Sorted files: immutable, each key at most once, found by filter and a two-level index.
//!
//! Owns: the layout of the file, its handle and its description.
//!
//! ```text
//!   partition 0: data block, data block, …, index block, filter block
//!   partition 1: data block, data block, …, index block, filter block
//!   …
//!   top index block        a key for each partition: where its index and filter are
//!   properties block       the fields of `SstMeta`, so that a file describes itself
//!   footer                 one record (see `crate::record`) of 4 KiB: where top index and properties are
//! ```
//!
//! Every block is a frame of whole 4 KiB pages, read with one O_DIRECT transfer:
//!
//! ```text
//!  0 u32 crc          CRC-32 of the file's identity, the block's offset, and everything after this field
//!  4 u32 pages        4 KiB pages of the frame
//!  8 u32 payload      bytes of the payload as stored
//! 12 u32 raw          bytes of the payload once unpacked
//! 16 u8  kind         see `block::BlockKind`
//! 17 u8  compression  0 none, 1 LZ4
//! 18 u16 zero
//! 20     payload, then zeros
//! ```
//!
//! T1  Index, filter and top blocks are read through the cache like data blocks. So memory does not grow with the
//!     number of keys on disk.
//! T2  A key of the file is never missed: separators are at or above every key of their block, and filters answer "no"
//!     only for keys that were never added.
//! T3  LZ4 is used only where it saves a page, and a frame never unpacks to more than 16 times its length.

pub mod block;
pub mod builder;
pub mod filter;
pub mod reader;
pub mod run;
pub mod salvage;
pub mod survey;
pub mod verify;
pub mod window;

use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::CorruptionReason;
use crate::key::{Entry, FileNumber, SeqNo, UnixMillis, ValueKind};
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

/// What is known about a file without opening it. The manifest keeps one `SstMeta` for each file.
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
    /// Entries, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes of the key and the value of its longest entry: a reader of the file has to hold as much.
    pub longest: u64,
    /// What is known about the entries that expire; `None` if no entry expires.
    pub expiry: Option<Expiry>,
}

/// The entries of a file that expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Their number.
    pub entries: u64,
    /// When the first of them expires.
    pub first: UnixMillis,
    /// When the last of them expires.
    pub last: UnixMillis,
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
            longest: 0,
            expiry: None,
        }
    }

    /// Counts the next entry, in key order. Only the caller knows which key is the last, and sets the largest key.
    pub fn count(&mut self, entry: &Entry<'_>) {
        if self.entries == 0 {
            self.smallest = entry.key.into();
        }
        self.entries += 1;
        self.tombstones += u64::from(entry.kind.value == ValueKind::Tombstone);
        if let Some(at) = entry.kind.expires {
            let so_far = self.expiry.unwrap_or(Expiry { entries: 0, first: at, last: at });
            self.expiry = Some(Expiry {
                entries: so_far.entries + 1,
                first: so_far.first.min(at),
                last: so_far.last.max(at),
            });
        }
        self.longest = self.longest.max((entry.key.len() + entry.value.len()) as u64);
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
        let Self { number, bytes, first, last, entries, tombstones, longest, .. } = *self;
        for number in [number.0, bytes, first.0, last.0, entries, tombstones, longest] {
            put_varint(out, number);
        }
        put_varint(out, self.expiry.map_or(0, |expiry| expiry.entries));
        if let Some(expiry) = self.expiry {
            put_varint(out, expiry.first.0);
            put_varint(out, expiry.last.0);
        }
        put_bytes(out, &self.smallest);
        put_bytes(out, &self.largest);
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CorruptionReason> {
        let mut numbers = [0; 7];
        for number in &mut numbers {
            *number = reader.varint()?;
        }
        let [number, bytes, first, last, entries, tombstones, longest] = numbers;
        let expiry = match reader.varint()? {
            0 => None,
            entries => {
                let (first, last) = (UnixMillis(reader.varint()?), UnixMillis(reader.varint()?));
                Some(Expiry { entries, first, last })
            }
        };
        let expiry_fits = expiry.is_none_or(|expiry| {
            expiry.first <= expiry.last
                && tombstones.checked_add(expiry.entries).is_some_and(|sum| sum <= entries)
        });
        let smallest = reader.length_and_bytes()?.into();
        let largest = reader.length_and_bytes()?.into();
        if largest < smallest || last < first || entries < tombstones || entries == 0 || !expiry_fits {
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
            longest,
            expiry,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::EntryKind;

    #[test]
    fn a_description_counts_what_expires_and_round_trips() {
        let entry = |key: &'static [u8], kind| Entry { key, seqno: SeqNo(3), kind, value: b"" };
        let mut meta = SstMeta::new(FileNumber(1));
        let round_trip = |meta: &SstMeta| {
            let mut bytes = Vec::new();
            meta.encode(&mut bytes);
            SstMeta::decode(&mut Reader::new(&bytes))
        };
        for (key, kind) in [
            (&b"a"[..], EntryKind::VALUE),
            (b"b", EntryKind::value(Some(UnixMillis(70)))),
            (b"c", EntryKind::TOMBSTONE),
            (b"d", EntryKind::value(Some(UnixMillis(7_000)))),
            (b"e", EntryKind::value(Some(UnixMillis(700)))),
        ] {
            meta.count(&entry(key, kind));
            meta.largest = key.into();
            assert_eq!(round_trip(&meta), Ok(meta.clone()));
        }
        assert_eq!(meta.expiry, Some(Expiry { entries: 3, first: UnixMillis(70), last: UnixMillis(7_000) }));
        let too_many = Expiry { entries: 5, ..meta.expiry.unwrap() };
        let reversed = Expiry { first: UnixMillis(8_000), ..meta.expiry.unwrap() };
        for wrong in [too_many, reversed] {
            assert!(round_trip(&SstMeta { expiry: Some(wrong), ..meta.clone() }).is_err());
        }
    }
}
