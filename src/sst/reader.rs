//! Reads a sorted file: one key by filter and index, or all entries in order.
//!
//! Owns: the way from a key to its block, and the checks on it. A [`PointLookup`] decides and never reads: it
//! names the block that it wants, and the caller brings it from the cache or the disk. Knows nothing of levels.

use bytes::Bytes;

use super::block::{Block, BlockKind, Cursor, FRAME_BYTES, Frame, frame_bytes, seek};
use super::{BlockHandle, SstMeta, filter};
use crate::codec::{Reader, to_usize};
use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::key::{Entry, FileNumber, SeqNo, ValueKind};
use crate::merge::Source;
use crate::record::{Identity, decode_single};
use crate::storage::{Access, AlignedBuf, BLOCK_BYTES, File, Storage, open_file};

/// Bytes that a scan reads at a time.
const SCAN_BYTES: usize = 256 << 10;

/// An open sorted file.
pub struct Sst<F: File> {
    file: F,
    label: String,
    identity: Identity,
    bytes: u64,
    pub(super) top: BlockHandle,
    pub(super) properties: BlockHandle,
}

impl<F: File> Sst<F> {
    /// Opens a file of `bytes` and checks its footer.
    pub async fn open<S: Storage<File = F>>(storage: &S, identity: Identity, bytes: u64) -> Result<Self> {
        let name = FileName::Sst(identity.file);
        let label = storage.label(name);
        let file = open_file(storage, name, Access::Read).await?;
        let footer_at = bytes.saturating_sub(BLOCK_BYTES as u64);
        let footer = read(&file, &label, footer_at, BLOCK_BYTES).await?;
        let (top, properties) = decode_single(&footer, identity, footer_at)
            .and_then(|payload| {
                let mut reader = Reader::new(payload);
                let handles = (BlockHandle::decode(&mut reader)?, BlockHandle::decode(&mut reader)?);
                for handle in [handles.0, handles.1] {
                    if footer_at < handle.offset + u64::from(handle.bytes) {
                        return Err(CorruptionReason::Damaged("the footer points past the end of the file"));
                    }
                }
                Ok(handles)
            })
            .map_err(|reason| Error::undecodable(&label, footer_at, reason))?;
        Ok(Self { file, label, identity, bytes, top, properties })
    }

    /// Its number.
    pub fn number(&self) -> FileNumber {
        self.identity.file
    }

    /// Reads and verifies the frame at `handle`.
    ///
    /// # Errors
    /// `Corruption` or `Io`, with file and offset.
    pub async fn read_frame(&self, handle: BlockHandle) -> Result<Frame> {
        if self.bytes < handle.offset + u64::from(handle.bytes) {
            return Err(
                self.corruption(handle, CorruptionReason::Damaged("the block is past the end of the file"))
            );
        }
        let bytes = read(&self.file, &self.label, handle.offset, handle.bytes as usize).await?;
        Frame::verify(bytes, self.identity, handle.offset).map_err(|reason| self.corruption(handle, reason))
    }

    /// Unpacks the frame that was at `handle`. `guard` is kept as long as the block is in memory.
    ///
    /// # Errors
    /// `Corruption`, with file and offset.
    pub fn unpack<G: Send + 'static>(&self, handle: BlockHandle, frame: Frame, guard: G) -> Result<Block> {
        frame.unpack(guard).map_err(|reason| self.corruption(handle, reason))
    }

    async fn read_block(&self, handle: BlockHandle) -> Result<Block> {
        self.unpack(handle, self.read_frame(handle).await?, ())
    }

    /// The description that the file carries of itself.
    pub async fn properties(&self) -> Result<SstMeta> {
        let block = self.read_block(self.properties).await?;
        SstMeta::decode(&mut Reader::new(&block.payload))
            .map(|meta| SstMeta { bytes: self.bytes, ..meta })
            .map_err(|reason| self.corruption(self.properties, reason))
    }

    /// An error about the block at `handle`.
    pub fn corruption(&self, handle: BlockHandle, reason: CorruptionReason) -> Error {
        Error::undecodable(&self.label, handle.offset, reason)
    }
}

async fn read<F: File>(file: &F, label: &str, offset: u64, bytes: usize) -> Result<AlignedBuf> {
    let (result, mut buffer) = file.read_at(AlignedBuf::zeroed(bytes), offset).await;
    let count = result
        .map_err(|error| Error::io(format!("read {bytes} bytes at offset {offset} of {label}"), error))?;
    if count < bytes {
        let reason = CorruptionReason::Damaged("the file ends before the block does");
        return Err(Error::corruption(label, offset, reason));
    }
    buffer.truncate(count);
    Ok(buffer)
}

/// What a lookup found out from a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The lookup wants another block: see [`PointLookup::wanted`].
    More,
    /// The file does not hold the key.
    Absent,
    /// The file's entry for the key.
    Found {
        /// What was written.
        kind: ValueKind,
        /// When.
        seqno: SeqNo,
        /// The value: a slice of the block.
        value: Bytes,
    },
}

/// The search for one key in one file: top index → filter → index → data.
pub struct PointLookup {
    hash: u64,
    wanted: BlockHandle,
    stage: Stage,
}

enum Stage {
    Top,
    Filter { index: BlockHandle },
    Index,
    Data,
}

impl PointLookup {
    /// A search in `sst` for a key with this [`crate::key::filter_hash`].
    pub fn new<F: File>(sst: &Sst<F>, hash: u64) -> Self {
        Self { hash, wanted: sst.top, stage: Stage::Top }
    }

    /// The block that the next step needs.
    pub fn wanted(&self) -> BlockHandle {
        self.wanted
    }

    /// Takes one step with the wanted block.
    pub fn step(&mut self, key: &[u8], block: &Block) -> Result<Step, CorruptionReason> {
        let expect = |kind| {
            if block.kind == kind {
                Ok(())
            } else {
                Err(CorruptionReason::Damaged("the block is of another kind than the index says"))
            }
        };
        match self.stage {
            Stage::Top => {
                expect(BlockKind::Top)?;
                let Some(located) = seek(&block.payload, key)? else { return Ok(Step::Absent) };
                let mut reader = Reader::new(&block.payload[located.value]);
                let index = BlockHandle::decode(&mut reader)?;
                self.wanted = BlockHandle::decode(&mut reader)?;
                self.stage = Stage::Filter { index };
            }
            Stage::Filter { index } => {
                expect(BlockKind::Filter)?;
                if !filter::may_contain(&block.payload, self.hash)? {
                    return Ok(Step::Absent);
                }
                self.wanted = index;
                self.stage = Stage::Index;
            }
            Stage::Index => {
                expect(BlockKind::Index)?;
                let Some(located) = seek(&block.payload, key)? else { return Ok(Step::Absent) };
                self.wanted = BlockHandle::decode(&mut Reader::new(&block.payload[located.value]))?;
                self.stage = Stage::Data;
            }
            Stage::Data => {
                expect(BlockKind::Data)?;
                return Ok(match seek(&block.payload, key)? {
                    Some(located) if located.exact => Step::Found {
                        kind: located.kind,
                        seqno: located.seqno,
                        value: block.payload.slice(located.value),
                    },
                    _ => Step::Absent,
                });
            }
        }
        Ok(Step::More)
    }
}

/// Walks the frames of a file in order, reading large steps past the cache.
pub(super) struct Frames<F: File> {
    sst: std::rc::Rc<Sst<F>>,
    window: AlignedBuf,
    window_at: u64,
    /// Offset of the next frame.
    next: u64,
    /// Where the walk ends.
    end: u64,
}

impl<F: File> Frames<F> {
    /// The data, index and filter blocks.
    fn of_entries(sst: std::rc::Rc<Sst<F>>) -> Self {
        let end = sst.top.offset;
        Self { sst, window: AlignedBuf::with_capacity(0), window_at: 0, next: 0, end }
    }

    /// All blocks.
    pub(super) fn of_all(sst: std::rc::Rc<Sst<F>>) -> Self {
        let end = sst.bytes.saturating_sub(BLOCK_BYTES as u64);
        Self { end, ..Self::of_entries(sst) }
    }

    /// Where the next frame begins.
    pub(super) fn position(&self) -> BlockHandle {
        BlockHandle { offset: self.next, bytes: 0 }
    }

    /// The next block and its place; `None` at the end. After an error it stands where it stood.
    pub(super) async fn next(&mut self) -> Result<Option<(BlockHandle, Block)>> {
        if self.end <= self.next {
            return Ok(None);
        }
        let at = self.position();
        if !self.window_holds(FRAME_BYTES) {
            self.fill(BLOCK_BYTES).await?;
        }
        let from = to_usize(self.next - self.window_at);
        let bytes = frame_bytes(&self.window[from..]).map_err(|reason| self.sst.corruption(at, reason))?;
        if self.end < self.next + bytes {
            let reason = CorruptionReason::Damaged("the block runs past the end of the blocks");
            return Err(self.sst.corruption(at, reason));
        }
        let bytes = to_usize(bytes);
        let frame = if SCAN_BYTES < bytes {
            // Read by itself: a merge of large values holds each of them once.
            self.window = AlignedBuf::with_capacity(0);
            read(&self.sst.file, &self.sst.label, self.next, bytes).await?
        } else {
            if !self.window_holds(bytes) {
                self.fill(bytes).await?;
            }
            let from = to_usize(self.next - self.window_at);
            AlignedBuf::from(&self.window[from..from + bytes])
        };
        let block = Frame::verify(frame, self.sst.identity, self.next)
            .and_then(|frame| frame.unpack(()))
            .map_err(|reason| self.sst.corruption(at, reason))?;
        self.next += bytes as u64;
        let bytes = u32::try_from(bytes).map_err(|_| {
            self.sst.corruption(at, CorruptionReason::Damaged("the block is longer than any block can be"))
        })?;
        Ok(Some((BlockHandle { bytes, ..at }, block)))
    }

    /// Passes over one page: the next frame may begin behind it.
    pub(super) fn skip_page(&mut self) {
        self.next += BLOCK_BYTES as u64;
    }

    fn window_holds(&self, bytes: usize) -> bool {
        self.window_at <= self.next && self.next + bytes as u64 <= self.window_at + self.window.len() as u64
    }

    /// Reads at least `bytes` from here, and more of what follows if that can be read, too.
    async fn fill(&mut self, bytes: usize) -> Result<()> {
        let step = bytes.max(SCAN_BYTES.min(to_usize(self.end - self.next)));
        self.window = match read(&self.sst.file, &self.sst.label, self.next, step).await {
            Err(error) if error.kind() == ErrorKind::Io => {
                read(&self.sst.file, &self.sst.label, self.next, bytes).await?
            }
            result => result?,
        };
        self.window_at = self.next;
        Ok(())
    }
}

/// Walks all entries of a file in order. A [`Source`] of a merge.
pub struct Scanner<F: File> {
    frames: Frames<F>,
    cursor: Option<Cursor>,
}

impl<F: File> Scanner<F> {
    /// A scanner before the first entry.
    pub fn new(sst: std::rc::Rc<Sst<F>>) -> Self {
        Self { frames: Frames::of_entries(sst), cursor: None }
    }
}

impl<F: File> Source for Scanner<F> {
    async fn advance(&mut self) -> Result<()> {
        loop {
            if let Some(cursor) = &mut self.cursor {
                let at = self.frames.position();
                if cursor.advance().map_err(|reason| self.frames.sst.corruption(at, reason))? {
                    return Ok(());
                }
            }
            match self.frames.next().await? {
                None => return Ok(()),
                Some((_, block)) if block.kind == BlockKind::Data => {
                    self.cursor = Some(Cursor::new(block.payload));
                }
                Some(_) => {}
            }
        }
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.cursor.as_ref()?.entry()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use futures_executor::block_on;

    use super::*;
    use crate::key::{ShardId, filter_hash};
    use crate::random::Random;
    use crate::record::Kind;
    use crate::sst::builder::SstBuilder;
    use crate::storage::sim::{Fate, SimFile, SimStorage};

    const IDENTITY: Identity =
        Identity { store_id: 1, shard: ShardId(0), kind: Kind::Sst, file: FileNumber(1) };

    async fn build(storage: &SimStorage, model: &BTreeMap<Vec<u8>, Vec<u8>>) -> SstMeta {
        let mut builder = SstBuilder::create(storage, IDENTITY).await.unwrap();
        for (index, (key, value)) in model.iter().enumerate() {
            let entry = Entry { key, seqno: SeqNo(index as u64 + 1), kind: ValueKind::Value, value };
            builder.add(&entry).await.unwrap();
        }
        builder.finish().await.unwrap()
    }

    async fn get(sst: &Sst<SimFile>, key: &[u8]) -> Result<Option<Bytes>> {
        let mut lookup = PointLookup::new(sst, filter_hash(key));
        loop {
            let block = sst.read_block(lookup.wanted()).await?;
            match lookup.step(key, &block).map_err(|reason| sst.corruption(lookup.wanted(), reason))? {
                Step::More => {}
                Step::Absent => return Ok(None),
                Step::Found { value, .. } => return Ok(Some(value)),
            }
        }
    }

    /// Keys and values of all sizes, compressible and not, over several partitions.
    fn model(seed: u64, count: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut random = Random::new(seed);
        (0..count)
            .map(|_| {
                let length = [1, 8, 16, 40, 300, 5_000][to_usize(random.below(6))];
                let key = format!("{:0>length$}", random.below(1_000_000));
                let bytes_max = [10, 100, 1_000, 40_000][to_usize(random.below(4))];
                let bytes = to_usize(random.below(bytes_max));
                let noise = random.below(2) == 0;
                let value = (0..bytes).map(|_| if noise { random.next_u64().to_le_bytes()[0] } else { 7 });
                (key.into_bytes(), value.collect())
            })
            .collect()
    }

    #[test]
    fn t2_every_key_is_found_others_are_not_and_a_scan_sees_all_in_order() {
        block_on(async {
            for seed in 0..3 {
                let storage = SimStorage::new(seed);
                let model = model(seed, 600);
                let meta = build(&storage, &model).await;
                storage.sync_dir().await.unwrap();
                let storage = storage.crash(Fate::Lost);
                assert_eq!(storage.files(), [(FileName::Sst(FileNumber(1)), meta.bytes)]);
                let sst = Rc::new(Sst::open(&storage, IDENTITY, meta.bytes).await.unwrap());
                assert_eq!(sst.properties().await.unwrap(), meta, "seed {seed}");
                assert_eq!(meta.entries, model.len() as u64);
                assert_eq!(Some(&*meta.smallest), model.keys().next().map(|key| &key[..]));
                assert_eq!(Some(&*meta.largest), model.keys().next_back().map(|key| &key[..]));
                for (key, value) in &model {
                    assert_eq!(get(&sst, key).await.unwrap().unwrap(), value, "seed {seed}");
                    let mut other = key.clone();
                    other.push(b'!');
                    assert_eq!(get(&sst, &other).await.unwrap(), None);
                }
                let mut scanner = Scanner::new(sst);
                for (key, value) in &model {
                    scanner.advance().await.unwrap();
                    let entry = scanner.entry().unwrap();
                    assert_eq!((entry.key, entry.value), (&key[..], &value[..]));
                }
                scanner.advance().await.unwrap();
                assert_eq!(scanner.entry(), None);
            }
        });
    }

    #[test]
    fn a_flipped_bit_is_an_error_with_file_and_offset_never_another_answer() {
        block_on(async {
            let storage = SimStorage::new(1);
            let model = model(9, 40);
            let meta = build(&storage, &model).await;
            let original = storage.bytes(FileName::Sst(FileNumber(1)));
            let mut random = Random::new(2);
            let mut seen = 0;
            for _ in 0..500 {
                let at = random.below(meta.bytes);
                storage.corrupt(FileName::Sst(FileNumber(1)), at, 1 << random.below(8));
                match Sst::open(&storage, IDENTITY, meta.bytes).await {
                    Err(error) => {
                        assert!(error.to_string().starts_with("000001.sst is damaged at offset"));
                        seen += 1;
                    }
                    Ok(sst) => {
                        let mut errors = 0;
                        for (key, value) in &model {
                            match get(&sst, key).await {
                                Ok(found) => assert_eq!(found.unwrap(), value),
                                Err(error) => {
                                    assert_eq!(error.kind(), crate::error::ErrorKind::Corruption);
                                    errors += 1;
                                }
                            }
                        }
                        seen += usize::from(0 < errors || sst.properties().await.is_err());
                    }
                }
                storage.overwrite(FileName::Sst(FileNumber(1)), &original);
            }
            assert_eq!(seen, 500, "every flip is seen");
        });
    }
}
