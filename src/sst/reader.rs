//! Reads a sorted file: its blocks, and one key by filter and index.
//!
//! Owns: the path from a key to its block, and the checks on that path. A [`PointLookup`] decides and never reads: it
//! names the block that it wants, and the caller fetches that block from the cache or the disk. For entries in order
//! see [`super::run`].

use bytes::Bytes;

use super::block::{Block, BlockKind, Frame, seek};
use super::{BlockHandle, SstMeta, filter};
use crate::codec::Reader;
use crate::config::SLICE_BYTES;
use crate::error::{CorruptionReason, Error, Result};
use crate::file_name::FileName;
use crate::identity::Identity;
use crate::key::{EntryKind, FileNumber, SeqNo};
use crate::record::decode_single;
use crate::storage::{Access, AlignedBuf, BLOCK_BYTES, File, Storage, open_file};

/// An open sorted file.
pub struct Sst<F: File> {
    pub(super) file: F,
    pub(super) label: String,
    pub(super) identity: Identity,
    pub(super) bytes: u64,
    pub(super) top: BlockHandle,
    pub(super) properties: BlockHandle,
}

impl<F: File> Sst<F> {
    /// Opens a file of `bytes` bytes and checks its footer.
    pub async fn open<S: Storage<File = F>>(storage: &S, identity: Identity, bytes: u64) -> Result<Self> {
        let name = FileName::Sst(identity.file);
        let label = storage.label(name);
        let file = open_file(storage, name, Access::Read).await?;
        let footer_at = bytes.saturating_sub(BLOCK_BYTES as u64);
        let footer = read(&file, &label, footer_at, AlignedBuf::zeroed(BLOCK_BYTES)).await?;
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

    /// Opens a file whose footer may be damaged, to read it in file order.
    pub async fn open_damaged<S: Storage<File = F>>(
        storage: &S,
        identity: Identity,
        bytes: u64,
    ) -> Result<Self> {
        let name = FileName::Sst(identity.file);
        let label = storage.label(name);
        let file = open_file(storage, name, Access::Read).await?;
        let none = BlockHandle::default();
        Ok(Self { file, label, identity, bytes, top: none, properties: none })
    }

    /// The name of the file in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The number of the file.
    pub fn number(&self) -> FileNumber {
        self.identity.file
    }

    /// Reads and verifies the frame at `handle`. `pause` is awaited between two slices of a long frame.
    ///
    /// # Errors
    /// `Corruption` or `Io`, with file and offset.
    pub async fn read_frame(&self, handle: BlockHandle, pause: impl AsyncFn()) -> Result<Frame> {
        self.check_handle(handle)?;
        let wanted = handle.bytes as usize;
        let mut buffer = AlignedBuf::with_capacity(wanted);
        while SLICE_BYTES < wanted - buffer.len() {
            buffer.resize(buffer.len() + SLICE_BYTES);
            pause().await;
        }
        buffer.resize(wanted);
        let bytes = read(&self.file, &self.label, handle.offset, buffer).await?;
        let frame = Frame::verify_in_slices(bytes, self.identity, handle.offset, pause).await;
        frame.map_err(|reason| self.corruption(handle, reason))
    }

    /// Refuses a handle that points past the end of the file.
    pub(super) fn check_handle(&self, handle: BlockHandle) -> Result<()> {
        if self.bytes < handle.offset + u64::from(handle.bytes) {
            let reason = CorruptionReason::Damaged("the block is past the end of the file");
            return Err(self.corruption(handle, reason));
        }
        Ok(())
    }

    /// Unpacks the frame that was at `handle`.
    ///
    /// # Errors
    /// `Corruption`, with file and offset.
    pub fn unpack(&self, handle: BlockHandle, frame: Frame) -> Result<Block> {
        frame.unpack().map_err(|reason| self.corruption(handle, reason))
    }

    pub(super) async fn read_block(&self, handle: BlockHandle) -> Result<Block> {
        self.unpack(handle, self.read_frame(handle, async || {}).await?)
    }

    /// The description of the file that its properties block holds.
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

/// Fills the whole `buffer`.
pub(super) async fn read<F: File>(
    file: &F,
    label: &str,
    offset: u64,
    buffer: AlignedBuf,
) -> Result<AlignedBuf> {
    let bytes = buffer.len();
    let (result, buffer) = file.read_at(buffer, offset).await;
    let count = result
        .map_err(|error| Error::read(format!("read {bytes} bytes at offset {offset} of {label}"), error))?;
    if count < bytes {
        let reason = CorruptionReason::Damaged("the file ends before the block does");
        return Err(Error::corruption(label, offset, reason));
    }
    Ok(buffer)
}

/// What a lookup learned from a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupStep {
    /// The lookup wants another block: see [`PointLookup::wanted`].
    More,
    /// The file does not hold the key.
    Absent,
    /// The file's entry for the key.
    Found {
        /// What was written, and when it expires.
        kind: EntryKind,
        /// The SeqNo of the write.
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

    /// Whether the next step needs the block that holds the entry.
    pub fn wants_data(&self) -> bool {
        matches!(self.stage, Stage::Data)
    }

    /// Whether the next step asks the filter.
    pub fn asks_filter(&self) -> bool {
        matches!(self.stage, Stage::Filter { .. })
    }

    /// Whether the filter has said that the key may be there.
    pub fn has_passed_filter(&self) -> bool {
        matches!(self.stage, Stage::Index | Stage::Data)
    }

    /// The block that the next step needs.
    pub fn wanted(&self) -> BlockHandle {
        self.wanted
    }

    /// Takes one step with the wanted block.
    pub fn step(&mut self, key: &[u8], block: &Block) -> Result<LookupStep, CorruptionReason> {
        let expect = |kind| {
            if block.kind == kind {
                Ok(())
            } else {
                Err(CorruptionReason::Damaged("the block is not of the kind that the index says"))
            }
        };
        match self.stage {
            Stage::Top => {
                expect(BlockKind::Top)?;
                let Some(located) = seek(&block.payload, key)? else { return Ok(LookupStep::Absent) };
                let mut reader = Reader::new(&block.payload[located.value]);
                let index = BlockHandle::decode(&mut reader)?;
                self.wanted = BlockHandle::decode(&mut reader)?;
                self.stage = Stage::Filter { index };
            }
            Stage::Filter { index } => {
                expect(BlockKind::Filter)?;
                if !filter::may_contain(&block.payload, self.hash)? {
                    return Ok(LookupStep::Absent);
                }
                self.wanted = index;
                self.stage = Stage::Index;
            }
            Stage::Index => {
                expect(BlockKind::Index)?;
                let Some(located) = seek(&block.payload, key)? else { return Ok(LookupStep::Absent) };
                self.wanted = BlockHandle::decode(&mut Reader::new(&block.payload[located.value]))?;
                self.stage = Stage::Data;
            }
            Stage::Data => {
                expect(BlockKind::Data)?;
                return Ok(match seek(&block.payload, key)? {
                    Some(located) if located.exact => LookupStep::Found {
                        kind: located.kind,
                        seqno: located.seqno,
                        value: block.payload.slice(located.value),
                    },
                    _ => LookupStep::Absent,
                });
            }
        }
        Ok(LookupStep::More)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use futures_executor::block_on;

    use super::*;
    use crate::codec::to_usize;
    use crate::error::ErrorKind;
    use crate::identity::FileKind;
    use crate::key::{Entry, ShardId, UnixMillis, filter_hash};
    use crate::random::Random;
    use crate::sst::builder::SstBuilder;
    use crate::storage::sim::{Fate, SimFile, SimStorage};

    const IDENTITY: Identity =
        Identity { store_id: 1, shard: ShardId(0), kind: FileKind::Sst, file: FileNumber(1) };

    async fn build(storage: &SimStorage, model: &BTreeMap<Vec<u8>, Vec<u8>>) -> SstMeta {
        let mut builder = SstBuilder::create(storage, IDENTITY).await.unwrap();
        for (index, (key, value)) in model.iter().enumerate() {
            let expires = (index % 7 == 0).then_some(UnixMillis(index as u64));
            let entry = Entry { key, seqno: SeqNo(index as u64 + 1), kind: EntryKind::value(expires), value };
            while !builder.add(&entry) {}
            builder.write_full().await.unwrap();
        }
        builder.finish().await.unwrap()
    }

    async fn get(sst: &Sst<SimFile>, key: &[u8]) -> Result<Option<Bytes>> {
        let mut lookup = PointLookup::new(sst, filter_hash(key));
        loop {
            let block = sst.read_block(lookup.wanted()).await?;
            match lookup.step(key, &block).map_err(|reason| sst.corruption(lookup.wanted(), reason))? {
                LookupStep::More => {}
                LookupStep::Absent => return Ok(None),
                LookupStep::Found { value, .. } => return Ok(Some(value)),
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
    fn t2_every_key_is_found_and_others_are_not() {
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
                                    assert_eq!(error.kind(), ErrorKind::Corruption);
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
