//! Blocks: the frame around every block of a sorted file, and the sorted entries inside data and index blocks.
//! Pure; no decoder panics, whatever the bytes.
//!
//! An entry shares the beginning of its key with the entry before it. Every eighth entry is an exception, a restart
//! point: it holds its whole key, so that a lookup can search the restart points by bisection:
//!
//! ```text
//!   varint shared  varint unshared  kind (`EntryKind`)  varint seqno  varint value bytes  unshared key bytes  value
//!   …
//!   u32 offset of each restart point   u32 restart points
//! ```
//!
//! In an index block the key is a separator, at or above every key of the block that its value points to. A block fills
//! one page after compression: the builder expects the next block to compress like the last block. To check, unpack and
//! search such a block, a lookup takes 2.9 µs. Blocks of two, four and eight pages take 4.5, 7.7 and 15.6 µs (`cargo
//! bench --bench designs -- block_sizes`, on the machine of BENCHMARKS.md), and larger blocks save no space: a page of
//! a one-page block holds 57 entries, and a page of a larger block 56.

use std::ops::Range;

use bytes::Bytes;
use crc32fast::Hasher;

use super::BlockHandle;
use crate::codec::{Reader, VARINT_BYTES_MAX, put_varint, to_usize, varint};
use crate::config::SLICE_BYTES;
use crate::error::CorruptionReason;
use crate::identity::Identity;
use crate::key::{ENTRY_KIND_BYTES_MAX, Entry, EntryKind, SeqNo, common_prefix};
use crate::storage::{AlignedBuf, BLOCK_BYTES};

/// Bytes of a frame before the payload.
pub const FRAME_BYTES: usize = 20;
/// Entries from one restart point to the next. With 16, walking them took half of a lookup's time in blocks.
const RESTART_INTERVAL: usize = 8;
/// Larger payloads are not compressed. Compressing them would hold up the shard for longer than a slice of background
/// work.
pub(super) const COMPRESS_BYTES_MAX: usize = SLICE_BYTES;
/// The most pages that a block of many entries takes when it is unpacked: a lookup unpacks the whole block.
pub const TARGET_PAGES_MAX: usize = 4;
/// A builder keeps its buffer for the next payload if it has about this size.
const KEPT_BYTES: usize = 256 << 10;
/// The payload of a frame up to this length is copied out of the buffer that it was read into. Such a buffer is aligned to
/// a page, and the allocator loses up to a page beside it: cached blocks took twice their size.
const COPY_BYTES_MAX: usize = 64 << 10;
/// A frame unpacks to at most this many times its length (T3).
const UNPACK_RATIO_MAX: usize = 16;

/// What a block holds. On disk this is one byte, and the numbers never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Entries.
    Data = 1,
    /// Separators and handles of data blocks.
    Index = 2,
    /// A filter over the keys of a partition.
    Filter = 3,
    /// Separators and handles of index and filter blocks.
    Top = 4,
    /// What [`super::SstMeta`] says.
    Properties = 5,
}

impl BlockKind {
    fn decode(byte: u8) -> Result<Self, CorruptionReason> {
        Ok(match byte {
            1 => Self::Data,
            2 => Self::Index,
            3 => Self::Filter,
            4 => Self::Top,
            5 => Self::Properties,
            0 => return Err(CorruptionReason::Damaged("the block has no kind")),
            _ => return Err(CorruptionReason::LaterVersion { what: "block kind", found: byte, known: 5 }),
        })
    }
}

/// A verified and unpacked block.
#[derive(Debug, Clone)]
pub struct Block {
    /// What it holds.
    pub kind: BlockKind,
    /// The payload. Slices of it keep the memory of the block.
    pub payload: Bytes,
    /// Bytes of memory that the block keeps.
    pub memory: usize,
}

/// The checksum of a frame at `offset`; `rest` is everything after the checksum.
pub fn frame_crc(identity: Identity, offset: u64, rest: &[u8]) -> u32 {
    let mut crc = frame_hasher(identity, offset);
    crc.update(rest);
    crc.finalize()
}

/// The beginning of the checksum of a frame at `offset`.
fn frame_hasher(identity: Identity, offset: u64) -> Hasher {
    let mut crc = Hasher::new();
    crc.update(&identity.store_id.to_le_bytes());
    crc.update(&identity.file.0.to_le_bytes());
    crc.update(&identity.shard.0.to_le_bytes());
    crc.update(&offset.to_le_bytes());
    crc
}

/// Appends the header of a frame, with zeros for its checksum.
fn put_header(
    out: &mut AlignedBuf,
    kind: BlockKind,
    frame_pages: usize,
    (stored_bytes, payload_bytes): (usize, usize),
    compression: u8,
) {
    let narrow = |number: usize| u32::try_from(number).expect("blocks are far under 4 GiB").to_le_bytes();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&narrow(frame_pages));
    out.extend_from_slice(&narrow(stored_bytes));
    out.extend_from_slice(&narrow(payload_bytes));
    out.extend_from_slice(&[kind as u8, compression, 0, 0]);
}

fn handle_of(offset: u64, frame_pages: usize) -> BlockHandle {
    let bytes = u32::try_from(frame_pages * BLOCK_BYTES).expect("blocks are far under 4 GiB");
    BlockHandle { offset, bytes }
}

/// Appends a frame around `payload` to `out`; the frame will lie at `offset` of the file. Returns its handle, and the
/// bytes that the payload takes in the frame.
pub fn put_frame(
    out: &mut AlignedBuf,
    kind: BlockKind,
    payload: &[u8],
    identity: Identity,
    offset: u64,
) -> (BlockHandle, usize) {
    let start = out.len();
    let pages = |bytes: usize| (FRAME_BYTES + bytes).div_ceil(BLOCK_BYTES);
    let plain_pages = pages(payload.len());
    let compressed = if 1 < plain_pages && payload.len() <= COMPRESS_BYTES_MAX {
        Some(lz4_flex::block::compress(payload)).filter(|packed| {
            // T3: only if this saves a page. The limit on the ratio follows below.
            pages(packed.len()) < plain_pages
        })
    } else {
        None
    };
    let (stored, compression) = match &compressed {
        Some(packed) => (&packed[..], 1),
        None => (payload, 0),
    };
    let frame_pages = pages(stored.len()).max(payload.len().div_ceil(UNPACK_RATIO_MAX * BLOCK_BYTES));
    out.reserve(frame_pages * BLOCK_BYTES);
    put_header(out, kind, frame_pages, (stored.len(), payload.len()), compression);
    out.extend_from_slice(stored);
    out.resize(start + frame_pages * BLOCK_BYTES);
    let crc = frame_crc(identity, offset, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    (handle_of(offset, frame_pages), stored.len())
}

/// A data block with a single entry, whose value is too long to be compressed. It is built in slices, straight in its
/// frame.
pub struct LargeBlock {
    /// Where in the buffer the frame starts.
    start: usize,
    pages: usize,
    /// The checksum up to `hashed`.
    crc: Hasher,
    hashed: usize,
    /// Bytes of the value so far.
    filled: usize,
    handle: BlockHandle,
}

impl LargeBlock {
    /// Appends the beginning of the frame, which will lie at `offset` of the file, to `out`.
    pub fn begin(out: &mut AlignedBuf, entry: &Entry<'_>, identity: Identity, offset: u64) -> Self {
        let mut head = Vec::new();
        put_entry_head(&mut head, 0, entry);
        let payload_bytes = head.len() + entry.value.len() + ONE_RESTART.len();
        assert!(COMPRESS_BYTES_MAX < payload_bytes, "a shorter payload may be compressed");
        let pages = (FRAME_BYTES + payload_bytes).div_ceil(BLOCK_BYTES);
        let start = out.len();
        out.reserve(pages * BLOCK_BYTES);
        put_header(out, BlockKind::Data, pages, (payload_bytes, payload_bytes), 0);
        out.extend_from_slice(&head);
        let (crc, handle) = (frame_hasher(identity, offset), handle_of(offset, pages));
        Self { start, pages, crc, hashed: start + 4, filled: 0, handle }
    }

    /// Appends the next slice of the value. Returns whether that was the last one.
    pub fn fill(&mut self, out: &mut AlignedBuf, value: &[u8]) -> bool {
        let end = value.len().min(self.filled + SLICE_BYTES);
        out.extend_from_slice(&value[self.filled..end]);
        self.filled = end;
        self.hash(out);
        end == value.len()
    }

    fn hash(&mut self, out: &AlignedBuf) {
        self.crc.update(&out[self.hashed..]);
        self.hashed = out.len();
    }

    /// Completes the frame.
    pub fn finish(mut self, out: &mut AlignedBuf) -> BlockHandle {
        out.extend_from_slice(&ONE_RESTART);
        out.resize(self.start + self.pages * BLOCK_BYTES);
        self.hash(out);
        out[self.start..self.start + 4].copy_from_slice(&self.crc.finalize().to_le_bytes());
        self.handle
    }
}

/// The length of the frame that begins with `front`. The length is not verified yet, but is a multiple of the page
/// size.
pub fn frame_bytes(front: &[u8]) -> Result<u64, CorruptionReason> {
    let mut reader = Reader::new(front);
    reader.u32()?;
    match reader.u32()? {
        0 => Err(CorruptionReason::Damaged("no block begins here")),
        pages => Ok(u64::from(pages) * BLOCK_BYTES as u64),
    }
}

/// The most bytes of memory that the block of a frame of `bytes` bytes may take.
pub fn unpacked_bytes_max(bytes: usize) -> usize {
    bytes.max((UNPACK_RATIO_MAX * bytes).min(COMPRESS_BYTES_MAX))
}

/// A frame whose checksum and lengths were verified, and which is not unpacked yet.
pub struct Frame {
    bytes: AlignedBuf,
    kind: BlockKind,
    compressed: bool,
    stored_bytes: usize,
    raw_bytes: usize,
}

impl Frame {
    /// Verifies the frame in `bytes`, which lie at `offset`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn verify(bytes: AlignedBuf, identity: Identity, offset: u64) -> Result<Self, CorruptionReason> {
        let crc = frame_crc(identity, offset, bytes.get(4..).unwrap_or_default());
        Self::decode(bytes, crc)
    }

    /// As [`Self::verify`], and awaits `pause` between two slices of a long frame.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn verify_in_slices(
        bytes: AlignedBuf,
        identity: Identity,
        offset: u64,
        pause: impl AsyncFn(),
    ) -> Result<Self, CorruptionReason> {
        let mut crc = frame_hasher(identity, offset);
        let mut rest = bytes.get(4..).unwrap_or_default();
        while SLICE_BYTES < rest.len() {
            let slice;
            (slice, rest) = rest.split_at(SLICE_BYTES);
            crc.update(slice);
            pause().await;
        }
        crc.update(rest);
        Self::decode(bytes, crc.finalize())
    }

    /// Takes the frame in `bytes` apart, whose checksum should be `expected`.
    fn decode(bytes: AlignedBuf, expected: u32) -> Result<Self, CorruptionReason> {
        let mut reader = Reader::new(&bytes);
        if reader.u32()? != expected {
            return Err(CorruptionReason::Damaged("the checksum of the block does not match"));
        }
        let pages = reader.u32()? as usize;
        let stored_bytes = reader.u32()? as usize;
        let raw_bytes = reader.u32()? as usize;
        let kind = BlockKind::decode(reader.u8()?)?;
        let compression = reader.u8()?;
        reader.u16()?;
        reader.bytes(stored_bytes)?;
        if pages.checked_mul(BLOCK_BYTES) != Some(bytes.len()) || bytes.len() * UNPACK_RATIO_MAX < raw_bytes {
            return Err(CorruptionReason::Damaged("the lengths of the block contradict each other"));
        }
        let compressed = match compression {
            0 if raw_bytes == stored_bytes => false,
            1 => true,
            0 => return Err(CorruptionReason::Damaged("the lengths of the block contradict each other")),
            _ => {
                let what = "block compression";
                return Err(CorruptionReason::LaterVersion { what, found: compression, known: 1 });
            }
        };
        Ok(Self { bytes, kind, compressed, stored_bytes, raw_bytes })
    }

    /// Bytes of memory that the block will keep.
    pub fn unpacked_bytes(&self) -> usize {
        if self.compressed || self.bytes.len() <= COPY_BYTES_MAX {
            self.raw_bytes
        } else {
            self.bytes.capacity()
        }
    }

    /// Unpacks the frame.
    ///
    /// # Errors
    /// If the payload does not unpack to the length that the frame says.
    pub fn unpack(self) -> Result<Block, CorruptionReason> {
        let memory = self.unpacked_bytes();
        let Self { bytes, kind, compressed, stored_bytes, raw_bytes } = self;
        let stored = FRAME_BYTES..FRAME_BYTES + stored_bytes;
        if !compressed {
            let payload = if bytes.len() <= COPY_BYTES_MAX {
                Bytes::copy_from_slice(&bytes[stored])
            } else {
                Bytes::from_owner(bytes).slice(stored)
            };
            return Ok(Block { kind, payload, memory });
        }
        let mut payload = vec![0; raw_bytes];
        match lz4_flex::block::decompress_into(&bytes[stored], &mut payload) {
            Ok(count) if count == raw_bytes => {}
            _ => return Err(CorruptionReason::Damaged("the block does not unpack")),
        }
        Ok(Block { kind, payload: payload.into(), memory })
    }
}

/// What ends a payload with a single restart point, at its beginning.
const ONE_RESTART: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

/// Appends an entry up to its value.
fn put_entry_head(out: &mut Vec<u8>, shared: usize, entry: &Entry<'_>) {
    let unshared = &entry.key[shared..];
    put_varint(out, shared as u64);
    put_varint(out, unshared.len() as u64);
    out.extend_from_slice(entry.kind.encode(&mut [0; ENTRY_KIND_BYTES_MAX]));
    put_varint(out, entry.seqno.0);
    let mut length = [0; VARINT_BYTES_MAX];
    out.extend_from_slice(varint(entry.value.len() as u64, &mut length));
    out.extend_from_slice(unshared);
}

/// Builds the payload of a data or index block.
#[derive(Default)]
pub struct BlockBuilder {
    payload: Vec<u8>,
    restarts: Vec<u32>,
    since_restart: usize,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    /// Whether no entry was added.
    pub fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    /// Bytes of the payload if it were finished now.
    pub fn bytes(&self) -> usize {
        self.payload.len() + 4 * (self.restarts.len() + 1)
    }

    /// The most bytes that another entry can add.
    pub fn entry_bytes_max(entry: &Entry<'_>) -> usize {
        4 * VARINT_BYTES_MAX + ENTRY_KIND_BYTES_MAX + 4 + entry.key.len() + entry.value.len()
    }

    /// The key that was added last.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Adds an entry. Each key must be greater than the key before it.
    pub fn add(&mut self, entry: &Entry<'_>) {
        assert!(self.is_empty() || *self.last_key < *entry.key, "keys are added in order"); // T2
        let shared = if self.is_empty() || self.since_restart == RESTART_INTERVAL {
            let offset = u32::try_from(self.payload.len()).expect("blocks are far under 4 GiB");
            self.restarts.push(offset);
            self.since_restart = 0;
            0
        } else {
            common_prefix(&self.last_key, entry.key)
        };
        self.since_restart += 1;
        if KEPT_BYTES < entry.value.len() {
            self.payload.reserve_exact(Self::entry_bytes_max(entry) + 8); // with room for the restart points
        }
        put_entry_head(&mut self.payload, shared, entry);
        self.payload.extend_from_slice(entry.value);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&entry.key[shared..]);
    }

    /// Completes the payload. [`Self::clear`] makes the builder ready for the next payload.
    pub fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.payload.extend_from_slice(&restart.to_le_bytes());
        }
        let count = u32::try_from(self.restarts.len()).expect("restart points are fewer than bytes");
        self.payload.extend_from_slice(&count.to_le_bytes());
        &self.payload
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        if self.payload.capacity() <= 2 * KEPT_BYTES {
            self.payload.clear();
        } else {
            self.payload = Vec::new();
        }
        self.restarts.clear();
        self.since_restart = 0;
        self.last_key.clear();
    }
}

/// A payload split into its parts.
struct Parts<'a> {
    entries: &'a [u8],
    restarts: &'a [[u8; 4]],
}

impl<'a> Parts<'a> {
    fn of(payload: &'a [u8]) -> Result<Self, CorruptionReason> {
        let wrong = CorruptionReason::Damaged("the restart points of the block run past its end");
        let (rest, count) = payload.split_last_chunk::<4>().ok_or(wrong)?;
        let restart_bytes = (u32::from_le_bytes(*count) as usize).checked_mul(4).ok_or(wrong)?;
        let at = rest.len().checked_sub(restart_bytes).ok_or(wrong)?;
        let (entries, restarts) = rest.split_at(at);
        Ok(Self { entries, restarts: restarts.as_chunks().0 })
    }

    fn restart(&self, index: usize) -> usize {
        self.restarts.get(index).map_or(self.entries.len(), |bytes| u32::from_le_bytes(*bytes) as usize)
    }

    /// The last restart point whose key is at or below `key`, or the first one.
    fn last_restart_at_or_below(&self, key: &[u8]) -> Result<usize, CorruptionReason> {
        // The key of `low` is at or below `key`, or `low` is 0. The key of `high` is above `key`.
        let (mut low, mut high) = (0, self.restarts.len());
        while 1 < high - low.min(high) {
            let middle = low.midpoint(high);
            if self.entry(self.restart(middle))?.suffix <= key {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    #[inline]
    fn entry(&self, at: usize) -> Result<RawEntry<'a>, CorruptionReason> {
        let bytes =
            self.entries.get(at..).ok_or(CorruptionReason::Damaged("a restart point is past the end"))?;
        let mut reader = Reader::new(bytes);
        let shared = reader.length()?;
        let unshared = reader.length()?;
        let kind = EntryKind::decode(&mut reader)?;
        let seqno = SeqNo(reader.varint()?);
        let value_bytes = reader.length()?;
        let suffix = reader.bytes(unshared)?;
        reader.bytes(value_bytes)?;
        let end = self.entries.len() - reader.rest().len();
        Ok(RawEntry { shared, suffix, kind, seqno, value: end - value_bytes..end })
    }
}

/// An entry as stored; `value` is its range in the payload, which ends where the next entry begins.
struct RawEntry<'a> {
    shared: usize,
    suffix: &'a [u8],
    kind: EntryKind,
    seqno: SeqNo,
    value: Range<usize>,
}

/// The entry that a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Whether its key is the key that was searched for. Otherwise its key is the next greater one.
    pub exact: bool,
    /// Its kind.
    pub kind: EntryKind,
    /// Its SeqNo.
    pub seqno: SeqNo,
    /// The range of its value in the payload.
    pub value: Range<usize>,
}

/// The first entry at or above `key`. No whole key is assembled: it is enough to know how many bytes the entry before
/// shares with `key`. An entry that shares fewer bytes with the entry before it is greater than `key`. An entry that
/// shares more bytes is still smaller than `key`. If it shares exactly as many bytes, the rest of its key decides.
pub fn seek(payload: &[u8], key: &[u8]) -> Result<Option<Located>, CorruptionReason> {
    let parts = Parts::of(payload)?;
    let low = parts.last_restart_at_or_below(key)?;
    let mut at = parts.restart(low);
    let mut next_restart = low;
    let mut matched = 0;
    while at < parts.entries.len() {
        let entry = parts.entry(at)?;
        if at == parts.restart(next_restart) {
            // A restart point holds its whole key, so what the entry before shared with `key` does not matter.
            next_restart += 1;
            matched = 0;
            if entry.shared != 0 {
                return Err(CorruptionReason::Damaged(
                    "a restart point shares bytes with the entry before it",
                ));
            }
        }
        if entry.shared <= matched {
            let rest = key.get(entry.shared..).unwrap_or_default();
            if entry.shared < matched || rest <= entry.suffix {
                let exact = entry.shared == matched && entry.shared <= key.len() && rest == entry.suffix;
                return Ok(Some(Located { exact, kind: entry.kind, seqno: entry.seqno, value: entry.value }));
            }
            matched = entry.shared + common_prefix(rest, entry.suffix);
        }
        at = entry.value.end;
    }
    Ok(None)
}

/// Walks the entries of a payload in order.
pub struct Cursor {
    payload: Bytes,
    next: usize,
    key: Vec<u8>,
    current: Option<(SeqNo, EntryKind, Range<usize>)>,
    /// The cursor stands at the entry that it sought, and the next advance stays there.
    sought: bool,
}

impl Cursor {
    /// A cursor before the first entry.
    pub fn new(payload: Bytes) -> Self {
        Self { payload, next: 0, key: Vec::new(), current: None, sought: false }
    }

    /// Moves to just before the first entry at or above `key`.
    pub fn seek(&mut self, key: &[u8]) -> Result<(), CorruptionReason> {
        let parts = Parts::of(&self.payload)?;
        self.next = parts.restart(parts.last_restart_at_or_below(key)?);
        self.key.clear();
        self.sought = false;
        while self.advance()? {
            if key <= &*self.key {
                self.sought = true;
                break;
            }
        }
        Ok(())
    }

    /// Moves to the next entry. Returns `false` at the end.
    pub fn advance(&mut self) -> Result<bool, CorruptionReason> {
        if std::mem::take(&mut self.sought) {
            return Ok(true);
        }
        let parts = Parts::of(&self.payload)?;
        self.current = None;
        if parts.entries.len() <= self.next {
            return Ok(false);
        }
        let entry = parts.entry(self.next)?;
        if self.key.len() < entry.shared {
            return Err(CorruptionReason::Damaged("an entry shares more bytes than the key before it has"));
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(entry.suffix);
        self.next = entry.value.end;
        self.current = Some((entry.seqno, entry.kind, entry.value));
        Ok(true)
    }

    /// The entry at which the cursor stands.
    pub fn entry(&self) -> Option<Entry<'_>> {
        let (seqno, kind, value) = self.current.as_ref()?;
        Some(Entry { key: &self.key, seqno: *seqno, kind: *kind, value: &self.payload[value.clone()] })
    }
}

/// A short key at or above `last` and below `next`, which an index keeps instead of a whole key.
pub fn separator(last: &[u8], next: &[u8]) -> Vec<u8> {
    debug_assert!(last < next);
    let shared = common_prefix(last, next);
    match (last.get(shared), next.get(shared)) {
        // `last`, cut after the first byte that differs, with 1 added to that byte, if the result stays below `next`.
        (Some(&low), Some(&high)) if low < high => {
            if low + 1 < high || shared + 1 < next.len() {
                let mut key = last[..=shared].to_vec();
                key[shared] = low + 1;
                if *key < *next {
                    return key;
                }
            }
            last.to_vec()
        }
        _ => last.to_vec(),
    }
}

/// How many payload bytes the next block should take to fill one page, if it compresses like the last block, whose
/// `raw` bytes took `stored` bytes. The result is at most `TARGET_PAGES_MAX` pages.
pub fn raw_bytes_target(stored: usize, raw: usize) -> usize {
    let page = BLOCK_BYTES - FRAME_BYTES;
    if raw <= stored {
        return page;
    }
    // A tenth less than possible, because the next block may compress a little worse.
    let guess = (page as u64 * raw as u64 * 9) / (stored.max(1) as u64 * 10);
    to_usize(guess).clamp(page, TARGET_PAGES_MAX * page)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::identity::FileKind;
    use crate::key::{FileNumber, ShardId};

    const IDENTITY: Identity =
        Identity { store_id: 1, shard: ShardId(2), kind: FileKind::Sst, file: FileNumber(3) };

    fn build(model: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
        let mut builder = BlockBuilder::default();
        for (index, (key, value)) in model.iter().enumerate() {
            let seqno = SeqNo(index as u64);
            builder.add(&Entry { key, seqno, kind: EntryKind::VALUE, value });
        }
        builder.finish().to_vec()
    }

    proptest! {
        #[test]
        fn seek_and_cursor_agree_with_a_sorted_map(
            model in prop::collection::btree_map(
                prop::collection::vec(0_u8..3, 0..8), prop::collection::vec(any::<u8>(), 0..4), 1..120),
            probes in prop::collection::vec(prop::collection::vec(0_u8..3, 0..8), 50),
        ) {
            let payload = build(&model);
            for probe in probes.iter().chain(model.keys()) {
                let found = seek(&payload, probe).unwrap();
                let expected = model.range(probe.clone()..).next();
                prop_assert_eq!(
                    found.as_ref().map(|l| (l.exact, &payload[l.value.clone()])),
                    expected.map(|(k, v)| (k == probe, &v[..]))
                );
            }
            let mut cursor = Cursor::new(payload.into());
            for probe in &probes {
                cursor.seek(probe).unwrap();
                for (key, value) in model.range(probe.clone()..).take(10) {
                    prop_assert!(cursor.advance().unwrap());
                    let entry = cursor.entry().unwrap();
                    prop_assert_eq!((entry.key, entry.value), (&key[..], &value[..]));
                }
            }
            cursor.seek(b"").unwrap();
            for (key, value) in &model {
                prop_assert!(cursor.advance().unwrap());
                let entry = cursor.entry().unwrap();
                prop_assert_eq!((entry.key, entry.value), (&key[..], &value[..]));
            }
            prop_assert!(!cursor.advance().unwrap());
        }

        #[test]
        fn decoders_survive_any_payload(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = seek(&payload, b"key");
            let mut cursor = Cursor::new(payload.into());
            let _ = cursor.seek(b"key");
            while let Ok(true) = cursor.advance() {}
        }

        #[test]
        fn a_separator_separates(
            a in prop::collection::vec(any::<u8>(), 0..6), b in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            prop_assume!(a != b);
            let (last, next) = if a < b { (a, b) } else { (b, a) };
            let key = separator(&last, &next);
            prop_assert!(last <= key && key < next && key.len() <= last.len().max(1));
        }
    }

    #[test]
    fn a_frame_round_trips_and_every_flipped_bit_is_seen() {
        for payload in [vec![7; 100], vec![7; 20_000], (0..20_000_u32).map(|n| n.to_le_bytes()[1]).collect()]
        {
            let mut out = AlignedBuf::with_capacity(0);
            let (handle, _) = put_frame(&mut out, BlockKind::Data, &payload, IDENTITY, 8192);
            assert_eq!((out.len(), frame_bytes(&out)), (handle.bytes as usize, Ok(u64::from(handle.bytes))));
            let open = |bytes: &[u8]| Frame::verify(AlignedBuf::from(bytes), IDENTITY, 8192)?.unpack();
            assert_eq!(open(&out).unwrap().payload, payload);
            for bit in (0..out.len() * 8).step_by(37).chain(0..8 * FRAME_BYTES) {
                let mut flipped = AlignedBuf::from(&out[..]);
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(open(&flipped).is_err(), "bit {bit}");
            }
            let other = Identity { file: FileNumber(4), ..IDENTITY };
            assert!(Frame::verify(AlignedBuf::from(&out[..]), other, 8192).is_err());
            assert!(Frame::verify(AlignedBuf::from(&out[..]), IDENTITY, 4096).is_err());
        }
    }

    #[test]
    fn a_large_block_built_in_slices_is_the_same_and_so_is_its_check() {
        use std::cell::Cell;
        for length in [COMPRESS_BYTES_MAX + 1, 3 * SLICE_BYTES, 3 * SLICE_BYTES + 4_000] {
            let value: Vec<_> = (0..length).map(|at| at as u8).collect();
            let kind = EntryKind::value(Some(crate::key::UnixMillis(1 << 41)));
            let entry = Entry { key: b"key", seqno: SeqNo(300), kind, value: &value };
            let mut builder = BlockBuilder::default();
            builder.add(&entry);
            let (mut whole, mut sliced) = (AlignedBuf::with_capacity(0), AlignedBuf::with_capacity(0));
            whole.resize(BLOCK_BYTES);
            sliced.resize(BLOCK_BYTES);
            let (expected, _) = put_frame(&mut whole, BlockKind::Data, builder.finish(), IDENTITY, 8192);
            let mut block = LargeBlock::begin(&mut sliced, &entry, IDENTITY, 8192);
            let mut slices = 1;
            while !block.fill(&mut sliced, &value) {
                slices += 1;
            }
            assert_eq!(slices, length.div_ceil(SLICE_BYTES));
            assert_eq!(block.finish(&mut sliced), expected);
            assert!(whole[..] == sliced[..], "{length}");

            let pauses = Cell::new(0);
            let check = |flip: usize| {
                let mut frame = AlignedBuf::from(&whole[BLOCK_BYTES..]);
                frame[flip] ^= u8::from(flip != 0);
                let pause = async || pauses.set(pauses.get() + 1);
                futures_executor::block_on(Frame::verify_in_slices(frame, IDENTITY, 8192, pause)).is_ok()
            };
            assert!(check(0) && !check(100) && !check(length) && !check(SLICE_BYTES + 4));
            assert_eq!(pauses.get(), 4 * ((expected.bytes as usize - 5) / SLICE_BYTES));
        }
    }

    #[test]
    fn t3_compression_is_kept_only_where_it_saves_a_page_and_unpacks_within_the_ratio() {
        let frame = |payload: &[u8]| {
            let mut out = AlignedBuf::with_capacity(0);
            put_frame(&mut out, BlockKind::Data, payload, IDENTITY, 0);
            (out.len(), out[17])
        };
        assert_eq!(frame(&[0; 4000]), (4096, 0), "one page cannot become fewer");
        assert_eq!(frame(&[0; 8000]), (4096, 1));
        assert_eq!(frame(&[0; 200_000]).0, 16_384, "16 times at most");
        let mut random = crate::random::Random::new(1);
        let noise: Vec<u8> = (0..8000).map(|_| random.next_u64().to_le_bytes()[0]).collect();
        assert_eq!(frame(&noise), (8192, 0));
    }
}
