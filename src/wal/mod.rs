//! Write-ahead log of one shard: its writes were acknowledged, or were about to be.
//!
//! Owns: the payload of a commit group, the space of a WAL that is reserved for groups ([`writer`]), and replay
//! ([`reader`]). `crate::record` owns framing, torn ends and recycling; `db` owns the waiting for a group.
//!
//! ```text
//!   reserved: bytes go into the forming group ──► appended: one O_DIRECT write ──► synced: acknowledged
//! ```
//!
//! A group is one record. Its payload, integers little-endian:
//!
//! ```text
//!   0  u64 first      SeqNo of the first write; the SeqNos of the others count up from it
//!   8  u64 published  position of the group in an external log; 0, because there is none yet
//!  16  u32 count      writes in the group
//!  20  writes: kind (see `EntryKind`)  varint key bytes  varint value bytes  key  value
//! ```
//!
//! A lone client makes groups of one small write. Such a group takes a sector, not a 4 KiB block: the writer rewrites
//! the block that the last group ended in (`crate::record::file` says why a torn rewrite cannot hurt). The alternative,
//! a block for each group and several WAL files for one memtable, takes eight times the space, and a start replays all
//! of it.
//!
//! W1  SeqNos have no gaps, within a group, from group to group, and from one WAL to the next. So a missing group or
//!     WAL is noticed, unless nothing was written after it.
//! W2  A group is replayed as a whole or not at all: it has one checksum.
//! W3  A new WAL takes its first group only after all of the WAL before it was synced. So a crash leaves a prefix of
//!     the writes, in every sync mode (P4).
//! W4  The end of the WAL is witnessed: a mark near the front of the WAL says how far it is durable (see
//!     [`crate::record::mark`]). If anything below the offset in the newest mark is damaged or gone, the WAL is
//!     refused. A mark is due every second, every 4 MiB, and a few milliseconds after the queue of groups has run
//!     empty. Only what was acknowledged since the newest mark can be taken for the torn end of a crash; it is then
//!     cut, and reported. After 200 ms without a write the manifest knows the end as well. From then on an older copy
//!     of the whole WAL is noticed, too.
//!
//! The end of a WAL that is not the last one is witnessed by the next WAL as well: its first group continues the
//! SeqNos.

pub mod reader;
pub mod writer;

use bytes::Bytes;

use crate::codec::{Reader, VARINT_BYTES_MAX, varint};
use crate::config::SLICE_BYTES;
use crate::error::CorruptionReason;
use crate::key::{ENTRY_KIND_BYTES_MAX, Entry, EntryKind, NewValue, SeqNo};
use crate::record::RecordBuilder;
use crate::storage::AlignedBuf;

const PUBLISHED_AT: usize = 8;
const COUNT_AT: usize = 16;
/// What precedes the writes.
const HEAD_BYTES: usize = 20;

/// A commit group being formed.
pub struct GroupBuilder {
    /// The payload, without large values until it is complete.
    record: RecordBuilder,
    first: SeqNo,
    pub(crate) count: u32,
    /// Large values, and where in the payload so far each of them belongs.
    large: Vec<(usize, Bytes)>,
    large_bytes: usize,
}

impl GroupBuilder {
    /// An empty group at `offset` of its WAL, whose first write will be `first`. `buffer` is memory to reuse.
    pub fn new(buffer: AlignedBuf, offset: u64, first: SeqNo) -> Self {
        let mut record = RecordBuilder::new(buffer, offset);
        record.extend_from_slice(&first.0.to_le_bytes());
        record.extend_from_slice(&0_u64.to_le_bytes());
        record.extend_from_slice(&0_u32.to_le_bytes());
        Self { record, first, count: 0, large: Vec::new(), large_bytes: 0 }
    }

    /// Adds a write and returns its SeqNo.
    pub fn add<'a>(&mut self, key: &[u8], kind: EntryKind, value: impl Into<NewValue<'a>>) -> SeqNo {
        let value = value.into();
        let mut length = [0; VARINT_BYTES_MAX];
        self.record.extend_from_slice(kind.encode(&mut [0; ENTRY_KIND_BYTES_MAX]));
        self.record.extend_from_slice(varint(key.len() as u64, &mut length));
        self.record.extend_from_slice(varint(value.as_ref().len() as u64, &mut length));
        self.record.extend_from_slice(key);
        match value {
            NewValue::Short(value) => self.record.extend_from_slice(value),
            NewValue::Large(value) => {
                self.large_bytes += value.len();
                self.large.push((self.record.payload_bytes(), value));
            }
        }
        self.count += 1;
        self.last()
    }

    /// SeqNo of the last write.
    pub fn last(&self) -> SeqNo {
        SeqNo(self.first.0 + u64::from(self.count) - 1)
    }

    /// Bytes of the payload so far.
    pub fn bytes(&self) -> usize {
        self.record.payload_bytes() + self.large_bytes
    }

    /// Where in the WAL the group would end if it were closed now.
    pub fn end(&self) -> u64 {
        self.record.end_with(self.large_bytes)
    }

    /// Notes the position of the group in an external log.
    pub fn set_published(&mut self, position: u64) {
        self.record.patch(PUBLISHED_AT, &position.to_le_bytes());
    }

    /// Completes the payload. No write is added afterwards. If there are large values, `pause` is awaited between two slices
    /// of the payload.
    ///
    /// Cancel safety: not safe; the payload would be incomplete.
    pub async fn complete(&mut self, pause: impl AsyncFn()) {
        assert!(0 < self.count, "an empty group is not written");
        self.record.patch(COUNT_AT, &self.count.to_le_bytes());
        if self.large.is_empty() {
            return;
        }
        let mut record = RecordBuilder::new(AlignedBuf::with_capacity(0), self.record.offset());
        record.reserve(self.bytes());
        let short = self.record.payload();
        record.extend_from_slice(&short[..HEAD_BYTES]);
        record.begin_checksum();
        let (mut from, mut left) = (HEAD_BYTES, SLICE_BYTES);
        let mut copy = async |mut bytes: &[u8]| {
            while left < bytes.len() {
                let slice;
                (slice, bytes) = bytes.split_at(left);
                record.extend_from_slice(slice);
                pause().await;
                left = SLICE_BYTES;
            }
            record.extend_from_slice(bytes);
            left -= bytes.len();
        };
        for (at, value) in self.large.drain(..) {
            copy(&short[from..at]).await;
            copy(&value).await;
            from = at;
        }
        copy(&short[from..]).await;
        self.record = record;
        self.large_bytes = 0;
    }

    /// The payload, once it is complete.
    pub fn payload(&self) -> &[u8] {
        self.record.payload()
    }
}

/// A commit group that was written, with its bytes.
pub struct Group {
    /// SeqNo of the first write.
    pub first: SeqNo,
    /// SeqNo of the last write.
    pub last: SeqNo,
    /// What was written to the WAL, the payload included.
    written: AlignedBuf,
    payload: std::ops::Range<usize>,
}

impl Group {
    /// The payload: see [`decode_group`].
    pub fn payload(&self) -> &[u8] {
        &self.written[self.payload.clone()]
    }

    /// The memory of the group, for reuse.
    pub fn into_buffer(self) -> AlignedBuf {
        self.written
    }
}

/// Reads the payload of a group, and gives each write to `visit`. Returns the first SeqNo and the count.
pub fn decode_group(
    payload: &[u8],
    mut visit: impl FnMut(Entry<'_>),
) -> Result<(SeqNo, u32), CorruptionReason> {
    let mut reader = Reader::new(payload);
    let first = SeqNo(reader.u64()?);
    reader.u64()?; // the position in an external log, which nothing reads yet
    let count = reader.u32()?;
    if count == 0 || first.0.checked_add(u64::from(count)).is_none() {
        return Err(CorruptionReason::Damaged("the commit group has no writes, or too many"));
    }
    for index in 0..count {
        let kind = EntryKind::decode(&mut reader)?;
        let key_bytes = reader.length()?;
        let value_bytes = reader.length()?;
        let key = reader.bytes(key_bytes)?;
        let value = reader.bytes(value_bytes)?;
        if key.is_empty() || crate::config::KEY_BYTES_MAX < key.len() {
            return Err(CorruptionReason::Damaged("the length of a key is out of range"));
        }
        visit(Entry { key, seqno: SeqNo(first.0 + u64::from(index)), kind, value });
    }
    if !reader.is_empty() {
        return Err(CorruptionReason::Damaged("the commit group is longer than its writes"));
    }
    Ok((first, count))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::UnixMillis;

    #[test]
    fn w2_a_group_round_trips_and_its_length_is_exact() {
        let mut group = GroupBuilder::new(AlignedBuf::with_capacity(0), 4096, SeqNo(10));
        let soon = EntryKind::value(Some(UnixMillis(300)));
        assert_eq!(group.add(b"k", EntryKind::VALUE, b"v"), SeqNo(10));
        assert_eq!(group.add(b"e", soon, b""), SeqNo(11));
        assert_eq!(group.add(b"gone", EntryKind::TOMBSTONE, b""), SeqNo(12));
        assert_eq!((group.last(), group.end()), (SeqNo(12), 4096 + 512));
        let mut payload = 10_u64.to_le_bytes().to_vec();
        payload.extend_from_slice(&[0; 8]);
        payload.extend_from_slice(&[3, 0, 0, 0, 1, 1, 1, b'k', b'v', 0x11, 0xac, 2, 1, 0, b'e', 0, 4, 0]);
        payload.extend_from_slice(b"gone");
        let mut seen = Vec::new();
        let result =
            decode_group(&payload, |e| seen.push((e.key.to_vec(), e.seqno.0, e.kind, e.value.to_vec())));
        assert_eq!(result, Ok((SeqNo(10), 3)));
        assert_eq!(seen[1], (b"e".to_vec(), 11, soon, vec![]));
        assert_eq!(seen[2], (b"gone".to_vec(), 12, EntryKind::TOMBSTONE, vec![]));
        for length in 0..payload.len() {
            assert!(decode_group(&payload[..length], |_| {}).is_err());
        }
        payload.push(0);
        assert!(decode_group(&payload, |_| {}).is_err());
    }

    #[test]
    fn large_values_make_the_same_group_as_short_ones() {
        use std::cell::Cell;
        let offset = 4096 + 1536;
        let values = [vec![1; 3], vec![2; 2 * SLICE_BYTES + 5], vec![3; 40], vec![4; 600], Vec::new()];
        let group = |large: &[usize]| {
            let mut group = GroupBuilder::new(AlignedBuf::with_capacity(0), offset, SeqNo(10));
            for (index, value) in values.iter().enumerate() {
                let key = [index as u8 + 1];
                if large.contains(&index) {
                    group.add(&key, EntryKind::VALUE, NewValue::Large(value.clone().into()));
                } else {
                    group.add(&key, EntryKind::VALUE, value);
                }
            }
            let (bytes, end, pauses) = (group.bytes(), group.end(), Cell::new(0));
            futures_executor::block_on(group.complete(async || pauses.set(pauses.get() + 1)));
            assert_eq!((group.bytes(), group.end()), (bytes, end));
            group.set_published(7);
            (group.payload().to_vec(), pauses.get())
        };
        let (expected, pauses) = group(&[]);
        assert_eq!(pauses, 0);
        for (large, pauses) in [(&[1][..], 2), (&[0, 1, 3], 2), (&[3, 4], 2)] {
            assert!(group(large) == (expected.clone(), pauses), "{large:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_group(&payload, |_| {});
        }
    }
}
