//! Sorted entries → a sorted file, in one pass and bounded memory.
//!
//! Owns: where one block ends and the next begins, and what the index says about each block. The file is complete and
//! synced when `finish` returns. Its name is not synced: the caller syncs the directory before a manifest names the
//! file (P7).

use super::block::{
    BlockBuilder, BlockKind, COMPRESS_BYTES_MAX, LargeBlock, TARGET_PAGES_MAX, put_frame, raw_bytes_target,
    separator,
};
use super::{BlockHandle, SstMeta, filter};
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::identity::Identity;
use crate::key::{Entry, EntryKind, SeqNo, filter_hash};
use crate::record::encode_single;
use crate::storage::{AlignedBuf, BLOCK_BYTES, File, Storage};

/// Bytes written at a time.
const WRITE_BYTES: usize = 512 << 10;
/// Payload of a full page.
const PAGE_PAYLOAD_BYTES: usize = BLOCK_BYTES - super::block::FRAME_BYTES;
/// A partition ends at this many keys: its filter is then two or three pages long, and is built within a slice.
const PARTITION_KEYS_MAX: usize = 8 << 10;
/// If entries do not compress, one large block is tried in this many blocks, in case later entries compress.
const RETRY_BLOCKS: u32 = 64;

/// Entries up to this size are read and written in buffers that are there anyway.
pub const LARGE_ENTRY_BYTES: usize = 256 << 10;
/// The buffers for entries that are not large.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes of memory that it takes to write a file whose longest entry has `longest` bytes.
pub fn memory_bytes(longest: usize) -> usize {
    BUFFER_BYTES + if longest <= LARGE_ENTRY_BYTES { 0 } else { longest }
}

/// A sorted file being written.
pub struct SstBuilder<F: File> {
    file: F,
    label: String,
    identity: Identity,
    /// Frames that are not written yet; they start at offset `written`.
    out: AlignedBuf,
    written: u64,
    data: BlockBuilder,
    data_target: usize,
    blocks_until_retry: u32,
    /// The block of a large entry that is not complete.
    large: Option<LargeBlock>,
    /// The last complete data block. Its separator needs the next key.
    unindexed: Option<BlockHandle>,
    last_key: Vec<u8>,
    index: BlockBuilder,
    hashes: Vec<u64>,
    top: BlockBuilder,
    meta: SstMeta,
}

impl<F: File> SstBuilder<F> {
    /// Creates the file.
    pub async fn create<S: Storage<File = F>>(storage: &S, identity: Identity) -> Result<Self> {
        let name = FileName::Sst(identity.file);
        let label = storage.label(name);
        let file = storage.create(name).await.map_err(|error| Error::io(format!("create {label}"), error))?;
        Ok(Self {
            file,
            label,
            identity,
            out: AlignedBuf::with_capacity(WRITE_BYTES + (64 << 10)),
            written: 0,
            data: BlockBuilder::default(),
            data_target: TARGET_PAGES_MAX * PAGE_PAYLOAD_BYTES,
            blocks_until_retry: RETRY_BLOCKS,
            large: None,
            unindexed: None,
            last_key: Vec::new(),
            index: BlockBuilder::default(),
            hashes: Vec::new(),
            top: BlockBuilder::default(),
            meta: SstMeta::new(identity.file),
        })
    }

    /// Bytes of the file so far, roughly.
    pub fn bytes(&self) -> u64 {
        self.written + (self.out.len() + self.data.bytes()) as u64
    }

    /// Adds an entry, or the next slice of a large entry. Each key must be greater than the key before it. Returns `false`
    /// if the caller has to add the same entry again; meanwhile the caller may pause. After `true` the caller calls
    /// [`Self::write_full`].
    #[must_use]
    pub fn add(&mut self, entry: &Entry<'_>) -> bool {
        if let Some(block) = &mut self.large {
            let complete = block.fill(&mut self.out, entry.value);
            if complete {
                self.unindexed = self.large.take().map(|block| block.finish(&mut self.out));
            }
            return complete;
        }
        if let Some(handle) = self.unindexed.take() {
            self.index_block(handle, Some(entry.key));
        }
        let full = self.data_target < self.data.bytes() + BlockBuilder::entry_bytes_max(entry);
        if full && !self.data.is_empty() {
            let handle = self.end_data_block();
            self.index_block(handle, Some(entry.key));
        }
        self.hashes.push(filter_hash(entry.key));
        self.last_key.clear();
        self.last_key.extend_from_slice(entry.key);
        self.meta.count(entry);
        if COMPRESS_BYTES_MAX < entry.value.len() {
            let offset = self.offset();
            self.large = Some(LargeBlock::begin(&mut self.out, entry, self.identity, offset));
            return self.add(entry);
        }
        self.data.add(entry);
        if self.data_target <= self.data.bytes() {
            self.unindexed = Some(self.end_data_block());
        }
        true
    }

    /// Writes the complete blocks, if there are enough of them for a write.
    ///
    /// # Errors
    /// `Io` or `DiskFull`.
    pub async fn write_full(&mut self) -> Result<()> {
        if WRITE_BYTES <= self.out.len() { self.write_out().await } else { Ok(()) }
    }

    /// Completes, writes and syncs the file. At least one entry must have been added.
    pub async fn finish(mut self) -> Result<SstMeta> {
        assert!(0 < self.meta.entries, "a sorted file has at least one entry");
        assert!(self.large.is_none(), "the last entry is complete");
        if !self.data.is_empty() {
            self.unindexed = Some(self.end_data_block());
        }
        if let Some(handle) = self.unindexed.take() {
            self.index_block(handle, None);
        }
        if !self.index.is_empty() {
            self.end_partition();
        }
        let offset = self.offset();
        let (top, _) = put_frame(&mut self.out, BlockKind::Top, self.top.finish(), self.identity, offset);
        self.meta.largest = self.last_key.as_slice().into();
        let mut properties = Vec::new();
        self.meta.encode(&mut properties); // without the length of the file, which a reader knows
        let offset = self.offset();
        let (properties, _) =
            put_frame(&mut self.out, BlockKind::Properties, &properties, self.identity, offset);
        let mut footer = Vec::new();
        top.encode(&mut footer);
        properties.encode(&mut footer);
        let footer = encode_single(&footer, self.identity, self.offset());
        self.out.extend_from_slice(&footer);
        self.meta.bytes = self.offset();
        self.write_out().await?;
        self.file.sync().await.map_err(|error| Error::io(format!("sync {}", self.label), error))?;
        Ok(self.meta)
    }

    fn offset(&self) -> u64 {
        self.written + self.out.len() as u64
    }

    fn end_data_block(&mut self) -> BlockHandle {
        let offset = self.offset();
        let payload = self.data.finish();
        let raw = payload.len();
        let (handle, stored) = put_frame(&mut self.out, BlockKind::Data, payload, self.identity, offset);
        self.data.clear();
        self.blocks_until_retry -= 1;
        if self.blocks_until_retry == 0 {
            self.blocks_until_retry = RETRY_BLOCKS;
            self.data_target = TARGET_PAGES_MAX * PAGE_PAYLOAD_BYTES;
        } else {
            self.data_target = raw_bytes_target(stored, raw);
        }
        handle
    }

    /// Adds the block at `handle`, which ends at `last_key`, to the index. `next` is the key after the block.
    fn index_block(&mut self, handle: BlockHandle, next: Option<&[u8]>) {
        let key = match next {
            Some(next) => separator(&self.last_key, next),
            None => self.last_key.clone(),
        };
        let mut value = Vec::new();
        handle.encode(&mut value);
        let entry = index_entry(&key, &value);
        self.index.add(&entry);
        let full = PAGE_PAYLOAD_BYTES <= self.index.bytes() + BlockBuilder::entry_bytes_max(&entry);
        if full || PARTITION_KEYS_MAX <= self.hashes.len() {
            self.end_partition();
        }
    }

    fn end_partition(&mut self) {
        let key = self.index.last_key().to_vec();
        let offset = self.offset();
        let (index, _) =
            put_frame(&mut self.out, BlockKind::Index, self.index.finish(), self.identity, offset);
        self.index.clear();
        let offset = self.offset();
        let bits = filter::build(&self.hashes);
        let (filter, _) = put_frame(&mut self.out, BlockKind::Filter, &bits, self.identity, offset);
        self.hashes.clear();
        let mut value = Vec::new();
        index.encode(&mut value);
        filter.encode(&mut value);
        self.top.add(&index_entry(&key, &value));
    }

    async fn write_out(&mut self) -> Result<()> {
        let buffer = std::mem::replace(&mut self.out, AlignedBuf::with_capacity(0));
        let (offset, length) = (self.written, buffer.len());
        let (result, mut buffer) = self.file.write_at(buffer, offset).await;
        result.map_err(|error| {
            Error::io(format!("write {length} bytes at offset {offset} of {}", self.label), error)
        })?;
        self.written += length as u64;
        if buffer.capacity() <= 2 * BUFFER_BYTES {
            buffer.truncate(0);
            self.out = buffer;
        } else {
            self.out = AlignedBuf::with_capacity(WRITE_BYTES + (64 << 10)); // a large entry is behind us
        }
        Ok(())
    }
}

fn index_entry<'a>(key: &'a [u8], value: &'a [u8]) -> Entry<'a> {
    Entry { key, seqno: SeqNo(0), kind: EntryKind::VALUE, value }
}
