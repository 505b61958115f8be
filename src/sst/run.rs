//! The entries of disjoint sorted files, in key order: a level, or one file.
//!
//! A run walks from the top index of a file to an index block, to a data block, and from entry to entry. It opens a
//! file when it comes to that file. Blocks come from the cache if the opener has one, otherwise from a window that
//! reads ahead. Blocks that a run reads are not put into the cache, where they would evict blocks that point lookups
//! use.

use std::rc::Rc;

use super::block::{Block, BlockKind, Cursor};
use super::reader::Sst;
use super::window::{READ_AHEAD_BYTES_MAX, ReadAhead, Window};
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

    /// Lets other work go first, between two slices of a long block.
    async fn pause(&self) {}

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
            Some(walk) => walk.supply(self.opener).await,
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
            return Err(CorruptionReason::Damaged("the block is not of the kind that the index says"));
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

    async fn supply<O: OpenSst<File = F>>(&mut self, opener: &O) -> Result<()> {
        match self.wanted {
            // Without the window, so that a merge of large values holds each value once.
            Some((handle, BlockKind::Data)) if READ_AHEAD_BYTES_MAX < handle.bytes as usize => {
                self.window.clear();
                let frame = self.sst.read_frame(handle, async || opener.pause().await).await?;
                self.supplied = Some(Rc::new(self.sst.unpack(handle, frame)?));
                Ok(())
            }
            // Index blocks lie after their data blocks, and are read without the window, which stays where it is.
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, HashMap};
    use std::ops::Bound;

    use futures_executor::block_on;

    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::file_name::FileName;
    use crate::identity::{FileKind, Identity, Owner};
    use crate::key::{EntryKind, SeqNo, ShardId, UnixMillis};
    use crate::random::Random;
    use crate::sst::builder::SstBuilder;
    use crate::sst::window::Frames;
    use crate::storage::sim::{SimFile, SimStorage};

    /// An entry without its key.
    type Stored = (SeqNo, EntryKind, Vec<u8>);
    type Model = BTreeMap<Vec<u8>, Stored>;

    fn identity(file: FileNumber) -> Identity {
        Owner { store_id: 4, shard: ShardId(1) }.identity(FileKind::Sst, file)
    }

    /// Sorted files, and a cache.
    struct Files {
        storage: SimStorage,
        metas: Vec<Rc<SstMeta>>,
        cached: HashMap<(FileNumber, u64), Rc<Block>>,
        opened: RefCell<Vec<FileNumber>>,
    }

    impl OpenSst for Files {
        type File = SimFile;

        async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<SimFile>>> {
            self.opened.borrow_mut().push(meta.number);
            Ok(Rc::new(Sst::open(&self.storage, identity(meta.number), meta.bytes).await?))
        }

        fn cached(&self, file: FileNumber, offset: u64) -> Option<Rc<Block>> {
            self.cached.get(&(file, offset)).cloned()
        }
    }

    impl Files {
        /// `count` files with the entries of `model`. The first file has the greatest number.
        async fn new(model: &Model, count: usize) -> Self {
            let storage = SimStorage::new(1);
            let (mut metas, mut entries) = (Vec::new(), model.iter().peekable());
            for part in 0..count {
                let number = FileNumber((count - part) as u64);
                let mut builder = SstBuilder::create(&storage, identity(number)).await.unwrap();
                let part_end = (part + 1) * model.len() / count - part * model.len() / count;
                for (key, (seqno, kind, value)) in entries.by_ref().take(part_end) {
                    while !builder.add(&Entry { key, seqno: *seqno, kind: *kind, value }) {}
                    builder.write_full().await.unwrap();
                }
                metas.push(Rc::new(builder.finish().await.unwrap()));
            }
            assert!(entries.next().is_none());
            Self { storage, metas, cached: HashMap::new(), opened: RefCell::default() }
        }

        fn run(&self, ahead: ReadAhead) -> Run<'_, Self> {
            Run::new(self, self.metas.iter().cloned(), ahead)
        }

        /// All blocks of all files.
        async fn blocks(&self) -> Vec<(FileNumber, BlockHandle, Block)> {
            let mut blocks = Vec::new();
            for meta in &self.metas {
                let mut frames = Frames::new(self.open(meta).await.unwrap());
                while let Some((handle, block)) = frames.next().await.unwrap() {
                    blocks.push((meta.number, handle, block));
                }
            }
            self.opened.borrow_mut().clear();
            blocks
        }

        /// Caches about `share` of every four blocks.
        async fn cache(&mut self, share: u64, random: &mut Random) {
            let blocks = self.blocks().await.into_iter().filter(|_| random.below(4) < share);
            self.cached =
                blocks.map(|(file, handle, block)| ((file, handle.offset), Rc::new(block))).collect();
        }

        /// The file that holds `key`.
        fn file_of(&self, key: &[u8]) -> FileNumber {
            self.metas.iter().find(|meta| meta.covers(key)).expect("a file holds the key").number
        }
    }

    /// Random keys, and values of up to `value_bytes_max` bytes.
    fn model(seed: u64, count: u64, value_bytes_max: u64) -> Model {
        let mut random = Random::new(seed);
        (1..=count)
            .map(|seqno| {
                // Keys with a long common prefix have long separators, and a partition is full after a few of these
                // separators.
                let length = [0, 40, 300, 2_000, 5_000][random.below(5) as usize];
                let key = format!("{:02}{:p>length$}{}", random.below(20), "", random.below(1_000_000));
                let bytes_max = [10, 100, 1_000, value_bytes_max][random.below(4) as usize];
                let noise = random.below(2) == 0;
                let value = (0..random.below(bytes_max + 1))
                    .map(|_| if noise { random.next_u64().to_le_bytes()[0] } else { 7 })
                    .collect();
                let stored = match random.below(8) {
                    0 => (SeqNo(seqno), EntryKind::TOMBSTONE, Vec::new()),
                    1 => (SeqNo(seqno), EntryKind::value(Some(UnixMillis(seqno))), value),
                    _ => (SeqNo(seqno), EntryKind::VALUE, value),
                };
                (key.into_bytes(), stored)
            })
            .collect()
    }

    /// The next entry; `None` at the end.
    async fn next<O: OpenSst>(run: &mut Run<'_, O>) -> Result<Option<(Vec<u8>, Stored)>> {
        if !run.advance().await? {
            return Ok(None);
        }
        let own = |entry: Entry<'_>| (entry.key.to_vec(), (entry.seqno, entry.kind, entry.value.to_vec()));
        Ok(Some(run.read(own)))
    }

    /// Reads `count` entries, or up to the end, and compares them with those of `model` from `from` on.
    async fn compare<O: OpenSst>(
        run: &mut Run<'_, O>,
        model: &Model,
        from: &[u8],
        count: usize,
        context: &str,
    ) {
        let mut expected = model.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        for _ in 0..count {
            let found = next(run).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            let wanted = expected.next();
            let found = found.as_ref().map(|(key, stored)| (key, stored));
            assert!(found == wanted, "{context}: {:?}, not {:?}", found.map(|f| f.0), wanted.map(|w| w.0));
            if wanted.is_none() {
                break;
            }
        }
    }

    #[test]
    fn a_run_gives_the_entries_of_a_sorted_map_from_any_key() {
        block_on(async {
            for seed in 0..4 {
                let mut random = Random::new(seed);
                let model = model(seed, 700, [3_000, 30_000, 400_000, 0][seed as usize]);
                let mut files = Files::new(&model, 1 + seed as usize).await;
                for meta in &files.metas {
                    let of_file = |(file, _, block): &&(_, _, Block)| {
                        *file == meta.number && block.kind == BlockKind::Index
                    };
                    let partitions = files.blocks().await.iter().filter(of_file).count();
                    assert!(1 < partitions, "seed {seed}: file {} has one partition", meta.number.0);
                }
                let keys: Vec<_> = model.keys().cloned().collect();
                for (ahead, cached) in [ReadAhead::Full, ReadAhead::Growing]
                    .into_iter()
                    .flat_map(|ahead| [0, 1, 4].map(|cached| (ahead, cached)))
                {
                    files.cache(cached, &mut random).await;
                    let context = format!("seed {seed}, {ahead:?}, {cached} of 4 blocks cached");
                    let mut run = files.run(ahead);
                    compare(&mut run, &model, b"", usize::MAX, &context).await;
                    // Forward and back, to keys of the files and to other keys.
                    for _ in 0..30 {
                        let mut from = keys[random.below(keys.len() as u64) as usize].clone();
                        match random.below(4) {
                            0 => from.push(0),
                            1 => from.truncate(random.below(from.len() as u64) as usize),
                            2 => *from.last_mut().expect("no key is empty") ^= 1,
                            _ => {}
                        }
                        run.seek(&from);
                        let count = [1, 20, 200][random.below(3) as usize];
                        compare(&mut run, &model, &from, count, &format!("{context}, from {from:?}")).await;
                    }
                    for (from, left) in [(keys[0].clone(), keys.len()), (vec![0xff], 0)] {
                        run.seek(&from);
                        compare(&mut run, &model, &from, usize::MAX, &context).await;
                        assert_eq!(model.range(from..).count(), left);
                    }
                }
            }
        });
    }

    #[test]
    fn a_run_opens_each_file_only_when_it_comes_to_it() {
        block_on(async {
            let model = model(7, 400, 100);
            let files = Files::new(&model, 4).await;
            let numbers: Vec<_> = files.metas.iter().map(|meta| meta.number).collect();
            let keys: Vec<_> = model.keys().cloned().collect();
            for from in [0, 99, 150, 250, 399] {
                files.opened.borrow_mut().clear();
                let mut run = files.run(ReadAhead::Full);
                run.seek(&keys[from]);
                assert!(files.opened.borrow().is_empty(), "a seek opens nothing");
                let first = numbers.iter().position(|number| *number == files.file_of(&keys[from])).unwrap();
                for key in &keys[from..] {
                    let found = next(&mut run).await.unwrap().map(|(key, _)| key);
                    assert_eq!(found.as_ref(), Some(key));
                    let file = files.file_of(key);
                    assert_eq!(run.file().map(|meta| meta.number), Some(file));
                    let last = numbers.iter().position(|number| *number == file).unwrap();
                    assert_eq!(*files.opened.borrow(), numbers[first..=last], "from key {from}");
                }
                assert_eq!(next(&mut run).await.unwrap(), None);
                assert_eq!(*files.opened.borrow(), numbers[first..], "from key {from}");
            }
            // A missing file is an error only for a run that comes to it.
            files.storage.lose(FileName::Sst(numbers[2]));
            let mut run = files.run(ReadAhead::Growing);
            for key in &keys[..200] {
                assert_eq!(next(&mut run).await.unwrap().map(|(key, _)| key).as_ref(), Some(key));
            }
            let error = next(&mut run).await.unwrap_err();
            assert!(error.to_string().contains(&FileName::Sst(numbers[2]).to_string()), "{error}");
            run.seek(&keys[300]);
            compare(&mut run, &model, &keys[300], usize::MAX, "after the missing file").await;
        });
    }

    #[test]
    fn a_flipped_bit_is_an_error_with_file_and_offset_and_never_another_entry() {
        block_on(async {
            let seed = 8;
            let mut random = Random::new(seed);
            let model = model(seed, 250, 20_000);
            let mut files = Files::new(&model, 2).await;
            let mut kinds = [0; 6];
            for (number, handle, block) in files.blocks().await {
                let name = FileName::Sst(number);
                // The header of the frame, and other places.
                let mut places: Vec<_> = (0..24).step_by(3).collect();
                places.extend((0..4).map(|_| random.below(u64::from(handle.bytes))));
                for (index, place) in places.into_iter().enumerate() {
                    let mask = 1 << random.below(8);
                    let ahead = [ReadAhead::Full, ReadAhead::Growing][index % 2];
                    let context = format!("seed {seed}: byte {place} of a {:?} block of {name}", block.kind);
                    files.storage.corrupt(name, handle.offset + place, mask);
                    let mut run = files.run(ahead);
                    let error = walk_to_error(&mut run, &model, &context).await;
                    if matches!(block.kind, BlockKind::Data | BlockKind::Index | BlockKind::Top) {
                        let error = error.unwrap_or_else(|| panic!("{context}: nothing was noticed"));
                        assert_eq!(error.kind(), ErrorKind::Corruption, "{context}: {error}");
                        let said = format!("{name} is damaged at offset {}: ", handle.offset);
                        assert!(error.to_string().starts_with(&said), "{context}: {error}");
                    } else {
                        assert!(error.is_none(), "{context}: a run does not read the block");
                    }
                    files.cached.insert((number, handle.offset), Rc::new(block.clone()));
                    let mut run = files.run(ahead);
                    let error = walk_to_error(&mut run, &model, &context).await;
                    assert!(error.is_none(), "{context}: the block is cached");
                    files.cached.clear();
                    files.storage.corrupt(name, handle.offset + place, mask);
                }
                kinds[block.kind as usize] += 1;
            }
            assert!(kinds[1..].iter().all(|count| 1 < *count), "blocks of each kind: {kinds:?}");
        });
    }

    /// Walks to the first error, or to the end. Every entry on the way is the next entry of `model`.
    async fn walk_to_error<O: OpenSst>(run: &mut Run<'_, O>, model: &Model, context: &str) -> Option<Error> {
        let mut expected = model.iter();
        loop {
            let wanted = expected.next();
            match next(run).await {
                Ok(found) => {
                    assert!(found.as_ref().map(|(key, stored)| (key, stored)) == wanted, "{context}");
                    wanted?;
                }
                Err(error) => return Some(error),
            }
        }
    }

    #[test]
    fn an_unreadable_block_is_an_error_only_for_a_run_that_comes_to_it() {
        block_on(async {
            let model = model(9, 200, 20_000);
            let files = Files::new(&model, 1).await;
            let blocks = files.blocks().await;
            let name = FileName::Sst(files.metas[0].number);
            let data: Vec<_> = blocks.iter().filter(|(_, _, block)| block.kind == BlockKind::Data).collect();
            for (index, (_, handle, _)) in data.iter().enumerate().step_by(7) {
                files.storage.make_unreadable(name, handle.offset / crate::storage::BLOCK_BYTES as u64);
                let first_key = |block: &Block| {
                    let mut cursor = Cursor::new(block.payload.clone());
                    assert!(cursor.advance().unwrap());
                    cursor.entry().map(|entry| entry.key.to_vec()).expect("a block has an entry")
                };
                let before = model.range(..first_key(&data[index].2)).count();
                for ahead in [ReadAhead::Full, ReadAhead::Growing] {
                    let context = format!("data block {index}, {ahead:?}");
                    let mut run = files.run(ahead);
                    compare(&mut run, &model, b"", before, &context).await;
                    let error = next(&mut run).await.expect_err(&context);
                    assert_eq!(error.kind(), ErrorKind::Io, "{context}: {error}");
                    let said = format!("read {} bytes at offset {} of {name}", handle.bytes, handle.offset);
                    assert!(error.to_string().contains(&said), "{context}: {error}");
                    if let Some((_, _, next)) = data.get(index + 1) {
                        let from = first_key(next);
                        run.seek(&from);
                        compare(&mut run, &model, &from, usize::MAX, &context).await;
                    }
                }
                // The block is readable again.
                files.storage.overwrite(name, &files.storage.bytes(name));
            }
        });
    }
}
