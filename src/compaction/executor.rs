//! Merges the inputs of a compaction into new files, in slices.
//!
//! Owns: which entries are kept, where an output ends, and the slices. The caller swaps inputs for outputs in the
//! manifest.
//!
//! X1  Of each key the newest entry stays. A tombstone is dropped if no deeper level may hold its key.
//! X2  Between two pauses at most a slice of work is done, so that requests on this thread wait no longer than that.
//! X3  After an error no output is left over, unless its removal fails, too; then the next open removes it.
//! X4  An entry that has expired becomes a tombstone with the same SeqNo, and X1 decides the rest. So it goes on hiding
//!     older entries of its key for as long as there may be any. If the wall clock is set back afterwards, the key may
//!     stay lost, but an older value never comes back.

use super::picker::{Compaction, Limits};
use crate::config::SLICE_BYTES;
use crate::error::Result;
use crate::file_name::FileName;
use crate::key::{Entry, EntryKind, FileNumber, SeqNo, UnixMillis, ValueKind};
use crate::manifest::{SharedMeta, Version};
use crate::source::Source;
use crate::source::merge::Merge;
use crate::source::newest::Newest;
use crate::sst::SstMeta;
use crate::sst::builder::SstBuilder;
use crate::sst::run::{OpenSst, Run};
use crate::sst::window::ReadAhead;
use crate::storage::Storage;

/// What an entry costs in addition to its bytes when it is flushed or merged: comparing, hashing, encoding.
pub const ENTRY_COST_BYTES: usize = 64;

/// What the executor needs from its caller.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Environment: OpenSst<File = <Self::Storage as Storage>::File> {
    /// The type of the storage.
    type Storage: Storage;
    /// The storage of the shard.
    fn storage(&self) -> &Self::Storage;
    /// The identity of a new file.
    fn new_file(&self) -> crate::identity::Identity;
    /// Accounts for `bytes` of work, and pauses when a slice is used up (X2).
    ///
    /// # Errors
    /// `ShuttingDown` if the work has to end here, or the failure that ended the shard.
    async fn spend(&self, bytes: usize) -> Result<()>;
}

/// What a compaction has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    /// The files of the target level, in key order.
    pub merged: Vec<SstMeta>,
    /// The file that takes the place of the input, if the compaction was split and anything is left of it.
    pub rest: Option<SstMeta>,
    /// Whether any entry of the inputs went down.
    pub went_down: bool,
}

impl Outputs {
    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &SstMeta> {
        self.merged.iter().chain(&self.rest)
    }
}

/// Runs a compaction. Entries that have expired at `now` become tombstones. The outputs are synced, their names are
/// not.
///
/// # Errors
/// Any. No output is left over (X3).
pub async fn execute<E: Environment>(
    environment: &E,
    compaction: &Compaction,
    version: &Version,
    limits: &Limits,
    now: UnixMillis,
) -> Result<Outputs> {
    let mut created = Vec::new();
    let result = merge(environment, compaction, version, limits, now, &mut created).await;
    if result.is_err() {
        for number in created {
            // X3: nothing names the file. If it cannot be removed now, the next open removes it.
            let _ = environment.storage().remove(FileName::Sst(number)).await;
        }
    }
    result
}

async fn merge<E: Environment>(
    environment: &E,
    compaction: &Compaction,
    version: &Version,
    limits: &Limits,
    now: UnixMillis,
    created: &mut Vec<FileNumber>,
) -> Result<Outputs> {
    let run = |files: &[SharedMeta]| Run::new(environment, files.iter().cloned(), ReadAhead::Full);
    let mut runs: Vec<_> = compaction.inputs.iter().map(|input| run(std::slice::from_ref(input))).collect();
    let below = runs.len();
    runs.push(run(&compaction.overlapping));
    let mut source = Newest::new(Merge::new(runs), SeqNo(u64::MAX)); // X1
    let mut outputs = Outputs::default();
    let (mut builder, mut rest): (Option<SstBuilder<_>>, Option<SstBuilder<_>>) = (None, None);
    while source.advance().await? {
        let from_above = source.source().current() != Some(below);
        let (bytes, beyond, stays) = source.read(|entry| {
            let beyond = from_above && compaction.stays_above(entry.key);
            let tombstone = what_stays(entry, now).kind.value == ValueKind::Tombstone;
            // X1. What stays above may hide an entry of the target level, too.
            let stays = beyond || !tombstone || version.may_hold_below(compaction.target(), entry.key);
            (entry.key.len() + entry.value.len().min(SLICE_BYTES), beyond, stays)
        });
        outputs.went_down |= from_above && !beyond;
        let passed = source.take_passed(); // older entries of the last key
        environment.spend(bytes + passed.bytes + (1 + passed.versions) * ENTRY_COST_BYTES).await?;
        if !stays {
            continue;
        }
        if !beyond
            && builder.as_ref().is_some_and(|builder| limits.sst_bytes <= builder.bytes())
            && let Some(full) = builder.take()
        {
            outputs.merged.push(full.finish().await?);
        }
        // The rest is one file, because its SeqNos must not overlap those of another file of L0 (N2).
        let output = if beyond { &mut rest } else { &mut builder };
        let output = match output {
            Some(output) => output,
            None => {
                let identity = environment.new_file();
                created.push(identity.file);
                output.insert(SstBuilder::create(environment.storage(), identity).await?)
            }
        };
        while !source.read(|entry| output.add(&what_stays(entry, now))) {
            environment.spend(SLICE_BYTES).await?;
        }
        output.write_full().await?;
    }
    if let Some(last) = builder {
        outputs.merged.push(last.finish().await?);
    }
    if let Some(rest) = rest {
        outputs.rest = Some(rest.finish().await?);
    }
    Ok(outputs)
}

/// The entry, or the tombstone that takes its place once it has expired (X4).
fn what_stays(entry: Entry<'_>, now: UnixMillis) -> Entry<'_> {
    if entry.kind.has_expired_at(now) {
        Entry { kind: EntryKind::TOMBSTONE, value: b"", ..entry }
    } else {
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use futures_executor::block_on;

    use super::*;
    use crate::compaction::Stuck;
    use crate::config::BLOCK_BYTES;
    use crate::error::{Error, ErrorKind};
    use crate::identity::{FileKind, Identity, Owner};
    use crate::key::ShardId;
    use crate::manifest::{LEVELS, VersionEdit};
    use crate::random::Random;
    use crate::sst::reader::Sst;
    use crate::storage::sim::{Failure, Fate, Fault, SimFile, SimStorage};

    const OWNER: Owner = Owner { store_id: 6, shard: ShardId(2) };
    const LIMITS: Limits = Limits { base_bytes: 1 << 20, sst_bytes: 8 << 10, merge_bytes: usize::MAX };
    const NOW: UnixMillis = UnixMillis(1_000);

    /// An entry without its key.
    type Stored = (SeqNo, EntryKind, Vec<u8>);
    type Entries = BTreeMap<Vec<u8>, Stored>;

    /// Takes the place of the engine.
    struct TestEnvironment {
        storage: SimStorage,
        next_file: Cell<u64>,
        /// The argument of each call of `spend`.
        spent: RefCell<Vec<usize>>,
        /// The call of `spend` that ends the work.
        ends_at: Option<usize>,
    }

    impl OpenSst for TestEnvironment {
        type File = SimFile;

        async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<SimFile>>> {
            let identity = OWNER.identity(FileKind::Sst, meta.number);
            Ok(Rc::new(Sst::open(&self.storage, identity, meta.bytes).await?))
        }
    }

    impl Environment for TestEnvironment {
        type Storage = SimStorage;

        fn storage(&self) -> &SimStorage {
            &self.storage
        }

        fn new_file(&self) -> Identity {
            let number = self.next_file.get();
            self.next_file.set(number + 1);
            OWNER.identity(FileKind::Sst, FileNumber(number))
        }

        async fn spend(&self, bytes: usize) -> Result<()> {
            let mut spent = self.spent.borrow_mut();
            spent.push(bytes);
            if self.ends_at == Some(spent.len()) {
                return Err(Error::new(ErrorKind::ShuttingDown, "the server is stopping"));
            }
            Ok(())
        }
    }

    impl TestEnvironment {
        fn new(storage: SimStorage) -> Self {
            Self { storage, next_file: Cell::new(1), spent: RefCell::default(), ends_at: None }
        }

        /// Another environment with the same files.
        fn copy(&self) -> Self {
            let storage = self.storage.crash(Fate::Kept);
            Self { next_file: self.next_file.clone(), ..Self::new(storage) }
        }

        async fn build(&self, entries: &Entries) -> SharedMeta {
            let mut builder = SstBuilder::create(&self.storage, self.new_file()).await.unwrap();
            for (key, (seqno, kind, value)) in entries {
                while !builder.add(&Entry { key, seqno: *seqno, kind: *kind, value }) {}
                builder.write_full().await.unwrap();
            }
            let meta = builder.finish().await.unwrap();
            self.storage.sync_dir().await.unwrap();
            Rc::new(meta)
        }

        /// All entries of disjoint files.
        async fn read(&self, files: impl IntoIterator<Item = SharedMeta>) -> Result<Vec<(Vec<u8>, Stored)>> {
            let mut run = Run::new(self, files, ReadAhead::Full);
            let mut found = Vec::new();
            while run.advance().await? {
                found.push(
                    run.read(|entry| (entry.key.to_vec(), (entry.seqno, entry.kind, entry.value.to_vec()))),
                );
            }
            Ok(found)
        }

        fn contents(&self) -> BTreeMap<FileName, Vec<u8>> {
            self.storage.files().into_iter().map(|(name, _)| (name, self.storage.bytes(name))).collect()
        }
    }

    /// A shard with files in several levels.
    struct Shard {
        environment: TestEnvironment,
        version: Version,
        contents: BTreeMap<FileNumber, Entries>,
    }

    impl Shard {
        /// Random files, with older entries in deeper levels. `l0_files` files are in L0.
        async fn new(seed: u64, l0_files: u64) -> Self {
            let mut random = Random::new(seed);
            let environment = TestEnvironment::new(SimStorage::new(seed));
            let (mut add_ssts, mut contents, mut last) = (Vec::new(), BTreeMap::new(), SeqNo(0));
            for level in (1..5).rev() {
                if random.below(4) == 0 {
                    continue;
                }
                let entries: Vec<_> = some_entries(&mut random, &mut last, 30).into_iter().collect();
                for part in entries.chunks(4 + random.below(12) as usize) {
                    let entries: Entries = part.iter().cloned().collect();
                    let meta = environment.build(&entries).await;
                    contents.insert(meta.number, entries);
                    add_ssts.push((level, meta));
                }
            }
            for _ in 0..l0_files {
                let entries = some_entries(&mut random, &mut last, 20);
                let meta = environment.build(&entries).await;
                contents.insert(meta.number, entries);
                add_ssts.push((0, meta));
            }
            let edit = VersionEdit { add_ssts, ..VersionEdit::default() };
            Self { environment, version: Version::default().apply(&edit).unwrap(), contents }
        }

        /// The compaction of all of L0, or of one file of a deeper level.
        fn compaction(&self, level: usize, file: usize) -> Compaction {
            let files = self.version.level(level);
            let inputs = if level == 0 { files.to_vec() } else { vec![files[file % files.len()].clone()] };
            let smallest = inputs.iter().map(|file| &file.smallest).min().expect("there is an input");
            let largest = inputs.iter().map(|file| &file.largest).max().expect("there is an input");
            let overlapping = self.version.overlapping(level + 1, smallest, largest).to_vec();
            Compaction { level, inputs, overlapping, split: None, stays: Vec::new() }
        }

        /// Every entry of the files that a compaction merges.
        fn merged<'a>(
            &'a self,
            compaction: &'a Compaction,
        ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Stored)> {
            let files = compaction.inputs.iter().chain(&compaction.overlapping);
            files.flat_map(|file| &self.contents[&file.number])
        }

        /// The entries that a compaction should write.
        fn expected(&self, compaction: &Compaction) -> Vec<(Vec<u8>, Stored)> {
            let mut newest: Entries = BTreeMap::new();
            for (key, stored) in self.merged(compaction) {
                let kept = newest.entry(key.clone()).or_insert_with(|| stored.clone());
                if kept.0 < stored.0 {
                    *kept = stored.clone();
                }
            }
            let below = |key: &[u8]| {
                let deeper = compaction.target() + 1..LEVELS;
                deeper.flat_map(|level| self.version.level(level)).any(|file| file.covers(key))
            };
            let mut expected = Vec::new();
            for (key, (seqno, kind, value)) in newest {
                let gone = kind.value == ValueKind::Tombstone || kind.expires.is_some_and(|at| at <= NOW);
                if !gone {
                    expected.push((key, (seqno, kind, value)));
                } else if below(&key) || compaction.split.as_deref().is_some_and(|split| *split < *key) {
                    expected.push((key, (seqno, EntryKind::TOMBSTONE, Vec::new())));
                }
            }
            expected
        }

        async fn execute(&self, compaction: &Compaction) -> Result<Outputs> {
            execute(&self.environment, compaction, &self.version, &LIMITS, NOW).await
        }
    }

    /// New entries of at most `keys_max` of 60 keys. `last` is the last SeqNo.
    fn some_entries(random: &mut Random, last: &mut SeqNo, keys_max: u64) -> Entries {
        let mut entries = Entries::new();
        for _ in 0..=random.below(keys_max) {
            *last = last.next();
            let key = format!("{:02}", random.below(60)).into_bytes();
            let expires = [None, Some(UnixMillis(NOW.0 - 1)), Some(NOW), Some(UnixMillis(NOW.0 + 1))];
            let value = (0..random.below(2_000)).map(|_| random.next_u64().to_le_bytes()[0]).collect();
            let stored = match random.below(3) {
                0 => (*last, EntryKind::TOMBSTONE, Vec::new()),
                1 => (*last, EntryKind::VALUE, value),
                _ => (*last, EntryKind::value(expires[random.below(4) as usize]), value),
            };
            entries.insert(key, stored);
        }
        entries
    }

    #[test]
    fn x1_of_each_key_the_newest_entry_stays_and_a_tombstone_only_above_a_file_with_its_key() {
        block_on(async {
            let (mut outputs_max, mut gone, mut stayed, mut split) = (0, 0, 0, 0);
            for seed in 0..150 {
                let shard = Shard::new(seed, 1 + seed % 5).await;
                for level in 0..4 {
                    if shard.version.level(level).is_empty() {
                        continue;
                    }
                    let context = format!("seed {seed}, level {level}");
                    let mut compaction = shard.compaction(level, seed as usize);
                    if seed % 3 == 0 {
                        compaction = compaction.within(30_000 * (seed % 5), &Stuck::new());
                        split += u32::from(compaction.split.is_some());
                    }
                    let outputs = shard.execute(&compaction).await.unwrap();
                    let expected = shard.expected(&compaction);
                    let files = || outputs.files().cloned().map(Rc::new);
                    let found = shard.environment.read(files()).await.unwrap();
                    assert!(found == expected, "{context}: {:?}", differing(&found, &expected));
                    // No output overlaps another file of its level (N1).
                    let mut edit = VersionEdit::default();
                    for (level, files) in [(level, &compaction.inputs), (level + 1, &compaction.overlapping)]
                    {
                        edit.remove_ssts.extend(files.iter().map(|file| (level, file.number)));
                    }
                    edit.add_ssts
                        .extend(outputs.merged.iter().map(|file| (level + 1, Rc::new(file.clone()))));
                    edit.add_ssts.extend(outputs.rest.iter().map(|file| (level, Rc::new(file.clone()))));
                    shard.version.apply(&edit).unwrap_or_else(|reason| panic!("{context}: {reason}"));
                    for meta in outputs.files() {
                        let sst = shard.environment.open(meta).await.unwrap();
                        assert_eq!(sst.properties().await.unwrap(), *meta, "{context}");
                    }
                    outputs_max = outputs_max.max(outputs.merged.len());
                    let tombstones =
                        found.iter().filter(|(_, stored)| stored.1 == EntryKind::TOMBSTONE).count();
                    stayed += tombstones;
                    let keys = shard.merged(&compaction).map(|(key, _)| key);
                    gone += keys.collect::<std::collections::BTreeSet<_>>().len() - found.len();
                }
            }
            assert!(
                2 < outputs_max && 100 < gone && 100 < stayed && 20 < split,
                "{outputs_max}, {gone}, {stayed}, {split}"
            );
        });
    }

    /// Describes the entries that only one of the two has.
    fn differing(a: &[(Vec<u8>, Stored)], b: &[(Vec<u8>, Stored)]) -> Vec<String> {
        let only = |a: &[(Vec<u8>, Stored)], b: &[(Vec<u8>, Stored)]| {
            let keys = a.iter().filter(|entry| !b.contains(entry)).map(|(key, stored)| {
                format!("{} {} {:?}", String::from_utf8_lossy(key), stored.0.0, stored.1)
            });
            keys.collect::<Vec<_>>()
        };
        [vec!["found".into()], only(a, b), vec!["expected".into()], only(b, a)].concat()
    }

    #[test]
    fn x2_work_is_counted_for_every_entry_that_is_read() {
        block_on(async {
            for seed in 0..20 {
                let shard = Shard::new(seed, 12).await;
                let compaction = shard.compaction(0, 0);
                shard.execute(&compaction).await.unwrap();
                let cost = |(key, stored): (&Vec<u8>, &Stored)| key.len() + stored.2.len() + ENTRY_COST_BYTES;
                let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for (key, stored) in shard.merged(&compaction) {
                    by_key.entry(key).or_default().push((stored.0, cost((key, stored))));
                }
                by_key
                    .values_mut()
                    .for_each(|costs| costs.sort_by_key(|(seqno, _)| std::cmp::Reverse(*seqno)));
                // A call counts the newest entry of a key, and the older entries of the key before.
                let mut expected = Vec::new();
                let mut older = 0;
                for costs in by_key.values() {
                    expected.push(costs[0].1 + older);
                    older = costs[1..].iter().map(|(_, cost)| cost).sum();
                }
                assert_eq!(*shard.environment.spent.borrow(), expected, "seed {seed}");
            }
        });
    }

    #[test]
    fn x3_after_a_failed_operation_no_output_is_left_over() {
        block_on(async {
            let shard = Shard::new(5, 6).await;
            let compaction = shard.compaction(0, 0);
            let before = shard.environment.contents();
            let mut failed = 0;
            for (failure, for_ever) in
                [Failure::Errno(libc::EIO), Failure::Errno(libc::ENOSPC), Failure::Short]
                    .into_iter()
                    .flat_map(|failure| [(failure, false), (failure, true)])
            {
                for nth in 1.. {
                    let environment = shard.environment.copy();
                    let operation = environment.storage.operations() + nth;
                    environment.storage.set_fault(Some(Fault { operation, failure, for_ever }));
                    let context = format!("operation {operation}, {failure:?}, for ever: {for_ever}");
                    let result = execute(&environment, &compaction, &shard.version, &LIMITS, NOW).await;
                    let mut after = environment.contents();
                    if environment.storage.operations() < operation {
                        assert!(result.is_ok() && before.len() + 2 < after.len(), "{context}");
                        break;
                    }
                    if result.is_ok() {
                        continue; // a read ahead failed, and the block itself could be read
                    }
                    if for_ever {
                        // The removal fails as well. Only new files may be left over, which nothing names.
                        let first_output = FileNumber(shard.environment.next_file.get());
                        after.retain(|name, _| name.number() < Some(first_output));
                    }
                    assert!(after == before, "{context}: {:?}", after.keys());
                    failed += 1;
                }
            }
            assert!(100 < failed, "{failed}");
        });
    }

    #[test]
    fn x3_when_the_engine_stops_or_an_input_is_damaged_no_output_is_left_over() {
        block_on(async {
            let shard = Shard::new(5, 6).await;
            let compaction = shard.compaction(0, 0);
            for call in 1.. {
                let environment = TestEnvironment { ends_at: Some(call), ..shard.environment.copy() };
                let before = environment.contents();
                let result = execute(&environment, &compaction, &shard.version, &LIMITS, NOW).await;
                if environment.spent.borrow().len() < call {
                    result.unwrap();
                    break;
                }
                assert_eq!(result.unwrap_err().kind(), ErrorKind::ShuttingDown, "call {call}");
                assert!(environment.contents() == before, "call {call}");
            }

            let environment = shard.environment.copy();
            let input = &compaction.inputs[0];
            // The last data block. After it come an index, a filter, the top index, the properties and the footer.
            let offset = input.bytes - 6 * BLOCK_BYTES as u64;
            environment.storage.corrupt(FileName::Sst(input.number), offset, 1);
            let before = environment.contents();
            let result = execute(&environment, &compaction, &shard.version, &LIMITS, NOW).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Corruption);
            assert!(environment.contents() == before);
        });
    }

    #[test]
    fn x4_an_expired_entry_becomes_a_tombstone_with_its_seqno_as_long_as_it_hides_an_older_entry() {
        block_on(async {
            let expiring = |at| EntryKind::value(Some(UnixMillis(at)));
            let one = |key: &[u8], seqno, kind, value: &[u8]| {
                Entries::from([(key.to_vec(), (SeqNo(seqno), kind, value.to_vec()))])
            };
            for older_level in [1, 2, 6] {
                for (expires, expired) in [(NOW.0 - 1, true), (NOW.0, true), (NOW.0 + 1, false)] {
                    let environment = TestEnvironment::new(SimStorage::new(1));
                    let older = environment.build(&one(b"k", 3, EntryKind::VALUE, b"old")).await;
                    let newer = environment.build(&one(b"k", 8, expiring(expires), b"new")).await;
                    let add_ssts = vec![(older_level, older.clone()), (0, newer.clone())];
                    let edit = VersionEdit { add_ssts, ..VersionEdit::default() };
                    let version = Version::default().apply(&edit).unwrap();
                    let overlapping = version.overlapping(1, b"k", b"k").to_vec();
                    let compaction = Compaction {
                        level: 0,
                        inputs: vec![newer],
                        overlapping,
                        split: None,
                        stays: Vec::new(),
                    };
                    let outputs = execute(&environment, &compaction, &version, &LIMITS, NOW).await.unwrap();
                    let found = environment.read(outputs.merged.into_iter().map(Rc::new)).await.unwrap();
                    let context = format!("expires at {expires}, the older entry is in level {older_level}");
                    let (kind, value) = if expired {
                        (EntryKind::TOMBSTONE, b"".to_vec())
                    } else {
                        (expiring(expires), b"new".to_vec())
                    };
                    let stays = vec![(b"k".to_vec(), (SeqNo(8), kind, value))];
                    // If the older entry is merged as well, nothing is left to hide.
                    let expected = if expired && older_level == 1 { Vec::new() } else { stays };
                    assert_eq!(found, expected, "{context}");
                }
            }
        });
    }
}
