//! Tests of the check: damage of each kind is found, and what a crash may leave is not called damage.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_executor::block_on;

use super::*;
use crate::codec::to_usize;
use crate::config::tests::SMALL;
use crate::config::{BLOCK_BYTES, DbConfig, SECTOR_BYTES};
use crate::db::Db;
use crate::key::{Entry, EntryKind, SLOT_COUNT, UnixMillis};
use crate::manifest::{Manifest, SharedMeta, VersionEdit};
use crate::random::Random;
use crate::record::file::{FIRST_RECORD, Sizes};
use crate::sst::Expiry;
use crate::sst::builder::SstBuilder;
use crate::storage::sim::{Fate, SimStorage};
use crate::wal::writer::Wal;

const OWNER: Owner = Owner { store_id: 3, shard: ShardId(1) };
const CONFIG: DbConfig = DbConfig {
    value_bytes_max: 4_000,
    large_value_bytes: 1_000,
    wal_bytes: DbConfig::wal_bytes_for(1 << 20, 4_000),
    wal_step_bytes: 1 << 16,
    manifest_bytes: 1 << 14,
    ..SMALL
};
/// Entries of a sorted file. One more write went into its memtable.
const ENTRIES: u64 = 30;
/// The last write in the sorted files.
const FLUSHED: u64 = 2 * (ENTRIES + 1);

fn key(number: u64) -> Vec<u8> {
    format!("key {number:02}").into_bytes()
}

/// A shard whose process was killed.
struct Shard {
    storage: SimStorage,
    /// The sorted files, the older file first. They hold the same keys.
    ssts: [FileNumber; 2],
    /// The WALs, the older WAL first. Each holds three groups of one write.
    wals: [FileNumber; 2],
    /// The bytes of the older WAL after its first group.
    one_group: Vec<u8>,
}

/// A part of a file that holds something.
struct Part {
    name: FileName,
    bytes: Range<u64>,
    /// The part is one of two marks: the other mark is enough to read the file.
    is_mark: bool,
}

impl Shard {
    async fn new() -> Self {
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
        for generation in 0..2 {
            for number in 0..ENTRIES {
                let expires = (number == 4).then_some(UnixMillis(50));
                db.set_expiring(&key(number), &[generation; 600], expires).unwrap();
            }
            db.delete(&key(5), UnixMillis::START).unwrap();
            db.commit_next().await.unwrap();
            freeze(&db).await;
            db.flush_next().await.unwrap();
        }
        let write = async |number| {
            db.set(&key(number), b"in a WAL").unwrap();
            db.commit_next().await.unwrap();
            db.durable().expect("a group was committed").0
        };
        let older = write(0).await;
        let one_group = storage.bytes(FileName::Wal(older));
        write(1).await;
        write(2).await;
        db.mark().await.unwrap();
        freeze(&db).await;
        write(0).await;
        write(1).await;
        let newer = write(2).await;
        db.mark().await.unwrap();
        let version = db.version();
        let [newer_sst, older_sst] = version.level(0) else { panic!("two memtables were flushed") };
        let ssts = [older_sst.number, newer_sst.number];
        Self { storage: storage.crash(Fate::Kept), ssts, wals: [older, newer], one_group }
    }

    /// The same shard, to be damaged.
    fn copy(&self) -> SimStorage {
        self.storage.crash(Fate::Kept)
    }

    async fn parts(&self) -> Vec<Part> {
        let loaded = load_in_use(&self.storage, OWNER).await.unwrap();
        let whole = |name, length| Part { name, bytes: 0..length, is_mark: false };
        let mut parts = vec![whole(FileName::Current, BLOCK_BYTES as u64)];
        parts.extend(loaded.state.version.files().map(|file| whole(FileName::Sst(file.number), file.bytes)));
        let groups_end = FIRST_RECORD + 3 * SECTOR_BYTES as u64;
        let wals = self.wals.map(|number| (FileName::Wal(number), groups_end));
        for (name, end) in wals.into_iter().chain([(FileName::Manifest(loaded.number), loaded.end.offset)]) {
            parts.push(Part { name, bytes: FIRST_RECORD..end, is_mark: false });
            for mark in (0..FIRST_RECORD).step_by(BLOCK_BYTES) {
                parts.push(Part { name, bytes: mark..mark + SECTOR_BYTES as u64, is_mark: true });
            }
        }
        parts
    }
}

/// Freezes the memtable. The next writes go to another WAL.
async fn freeze(db: &Db<SimStorage>) {
    db.request_flush();
    if !db.has_frozen() {
        db.prepare_spare().await.unwrap();
    }
    assert!(db.has_frozen());
}

/// Checks a shard that owns all slots, except those of `foreign` keys.
async fn check_without(storage: &SimStorage, foreign: &[Vec<u8>]) -> Report {
    let mut slots = vec![OWNER.shard; SLOT_COUNT];
    foreign.iter().for_each(|key| slots[Slot::of(key).index()] = ShardId(0));
    let contents = || storage.files().into_iter().map(|(name, _)| (name, storage.bytes(name)));
    let before: BTreeMap<_, _> = contents().collect();
    let report = check_shard(storage, OWNER, &slots, |_| {}).await;
    assert!(before == contents().collect(), "a check changes nothing");
    report
}

async fn check(storage: &SimStorage) -> Report {
    check_without(storage, &[]).await
}

/// Whether an error says all of this.
fn says(error: &Error, words: &[&str]) -> bool {
    words.iter().all(|word| error.to_string().contains(word))
}

fn assert_damaged(report: &Report, words: &[&str]) {
    assert!(report.damage.iter().any(|error| says(error, words)), "no {words:?}: {report:?}");
}

fn assert_not_damaged(report: &Report, context: &str) {
    let errors = [&report.damage, &report.unread, &report.later];
    assert!(errors.iter().all(|errors| errors.is_empty()), "{context}: {report:?}");
}

/// Replaces the manifest by a manifest with another state.
async fn rewrite_manifest(storage: &SimStorage, change: impl FnOnce(&mut State)) {
    let mut state = load_in_use(storage, OWNER).await.unwrap().state;
    change(&mut state);
    Manifest::create(storage.clone(), OWNER, state, CONFIG.manifest_bytes).await.unwrap();
}

fn version(add_ssts: Vec<(usize, SharedMeta)>) -> Rc<Version> {
    Rc::new(Version::default().apply(&VersionEdit { add_ssts, ..VersionEdit::default() }).unwrap())
}

/// A sorted file with these keys and SeqNos.
async fn sst(storage: &SimStorage, number: FileNumber, entries: &[(&[u8], u64)]) -> SharedMeta {
    let identity = OWNER.identity(FileKind::Sst, number);
    let mut builder = SstBuilder::create(storage, identity).await.unwrap();
    for &(key, seqno) in entries {
        assert!(builder.add(&Entry { key, seqno: SeqNo(seqno), kind: EntryKind::VALUE, value: b"" }));
    }
    Rc::new(builder.finish().await.unwrap())
}

#[test]
fn a_sound_shard_is_read_as_a_whole() {
    block_on(async {
        let report = check(&Shard::new().await.storage).await;
        assert_not_damaged(&report, "a sound shard");
        assert!(report.notes.is_empty(), "{report:?}");
        assert_eq!(report.files, 6, "CURRENT, the manifest, two sorted files, two WALs");
        assert_eq!(report.entries, 2 * ENTRIES + 6);
        assert_eq!(report.log_ends.len(), 2, "one for each WAL");
    });
}

#[test]
fn a1_a_file_that_is_missing_or_has_another_length_is_damage() {
    block_on(async {
        let shard = Shard::new().await;
        for (name, bytes) in shard.storage.files() {
            let label = name.to_string();
            let lost = shard.copy();
            lost.lose(name);
            assert_damaged(&check(&lost).await, &[&label, "missing"]);

            let mut contents = shard.storage.bytes(name);
            let shorter = shard.copy();
            shorter.overwrite(name, &contents[..to_usize(bytes) - BLOCK_BYTES]);
            assert_damaged(&check(&shorter).await, &[&label]);

            contents.extend_from_slice(&[0; BLOCK_BYTES]);
            let longer = shard.copy();
            longer.overwrite(name, &contents);
            let report = check(&longer).await;
            match name {
                // Files of records grow.
                FileName::Wal(_) | FileName::Manifest(_) => assert_not_damaged(&report, &label),
                _ => assert_damaged(&report, &[&label]),
            }
        }
    });
}

#[test]
fn a1_every_flipped_bit_is_found() {
    block_on(async {
        let seed = 11;
        let mut random = Random::new(seed);
        let shard = Shard::new().await;
        for Part { name, bytes, is_mark } in shard.parts().await {
            for _ in 0..40 {
                let at = bytes.start + random.below(bytes.end - bytes.start);
                let context = format!("seed {seed}: a bit in byte {at} of {name}");
                let damaged = shard.copy();
                damaged.corrupt(name, at, 1 << random.below(8));
                let report = check(&damaged).await;
                assert!(report.unread.is_empty() && report.later.is_empty(), "{context}: {report:?}");
                let label = name.to_string();
                let noted = |words: &str| {
                    report.notes.iter().any(|note| note.contains(&label) && note.contains(words))
                };
                let found = report.damage.iter().any(|error| says(error, &[&label, "damaged at offset"]));
                // The last edit of a manifest looks torn, and the WAL that it names is missed.
                let found = found || (noted("torn end") && !report.damage.is_empty());
                assert!(if is_mark { noted("one of the two marks") } else { found }, "{context}: {report:?}");
            }
        }
    });
}

#[test]
fn a1_what_cannot_be_read_is_not_called_damage() {
    block_on(async {
        let shard = Shard::new().await;
        for Part { name, bytes, is_mark } in shard.parts().await {
            for block in bytes.start / BLOCK_BYTES as u64..bytes.end.div_ceil(BLOCK_BYTES as u64) {
                let unreadable = shard.copy();
                unreadable.make_unreadable(name, block);
                let report = check(&unreadable).await;
                let unread = report.unread.iter().any(|error| says(error, &[&name.to_string()]));
                let expected = (true, !is_mark, is_mark);
                let found = (report.damage.is_empty(), unread, !report.notes.is_empty());
                assert_eq!(found, expected, "block {block} of {name}: {report:?}");
            }
        }
    });
}

#[test]
fn a2_a_gap_in_the_writes_is_damage() {
    block_on(async {
        let shard = Shard::new().await;
        let [older, newer] = shard.wals.map(|number| FileName::Wal(number).to_string());
        // An older copy of a WAL verifies. The next WAL tells that groups are missing.
        let gap = shard.copy();
        gap.overwrite(FileName::Wal(shard.wals[0]), &shard.one_group);
        let at = format!("{newer} is damaged at offset {FIRST_RECORD}");
        let (found, next) = (format!("write {}", FLUSHED + 4), format!("write {} must", FLUSHED + 2));
        assert_damaged(&check(&gap).await, &[&at, &found, &next]);
        // The first WAL does not begin where the sorted files end.
        for flushed in [FLUSHED - 1, FLUSHED + 1] {
            let gap = shard.copy();
            rewrite_manifest(&gap, |state| state.flushed = SeqNo(flushed)).await;
            let next = format!("write {} must come next", flushed + 1);
            assert_damaged(&check(&gap).await, &[&older, &next]);
        }
    });
}

#[test]
fn a2_a_wal_that_nothing_names_is_damage_only_if_its_writes_are_nowhere_else() {
    block_on(async {
        let shard = Shard::new().await;
        let [older, newer] = shard.wals;
        let unnamed = shard.copy();
        rewrite_manifest(&unnamed, |state| assert!(state.wals.remove(&newer).is_some())).await;
        let first = format!("holds write {}", FLUSHED + 4);
        assert_damaged(&check(&unnamed).await, &[&FileName::Wal(newer).to_string(), &first]);

        // A crash may come after a WAL was made and before an edit names it, or while the WAL is being made.
        let unused = shard.copy();
        let [finished, unfinished] = [newer.0 + 50, newer.0 + 51].map(FileNumber);
        let sizes = Sizes { capacity: CONFIG.wal_bytes, step: CONFIG.wal_step_bytes };
        Wal::create(&unused, OWNER, finished, sizes).await.unwrap();
        unused.create(FileName::Wal(unfinished)).await.unwrap();
        unused.overwrite(FileName::Wal(unfinished), &[0; 4 * BLOCK_BYTES]);
        let report = check(&unused).await;
        assert_not_damaged(&report, "two WALs without a write");
        for name in [finished, unfinished].map(FileName::Wal) {
            let label = name.to_string();
            let noted =
                report.notes.iter().any(|note| note.contains(&label) && note.contains("nothing names"));
            assert!(noted, "{label}: {report:?}");
        }

        // A WAL with a lower number than a named WAL was flushed and released.
        let released = shard.copy();
        rewrite_manifest(&released, |state| {
            assert!(state.wals.remove(&older).is_some());
            state.flushed = SeqNo(FLUSHED + 3);
        })
        .await;
        assert_not_damaged(&check(&released).await, "a released WAL");
    });
}

#[test]
fn a3_the_properties_of_a_sorted_file_are_what_the_manifest_says() {
    fn expiry(meta: &mut SstMeta) -> &mut Expiry {
        meta.expiry.as_mut().expect("an entry of the file expires")
    }
    block_on(async {
        let shard = Shard::new().await;
        type Change = fn(&mut SstMeta);
        let changes: [(&str, Change); 10] = [
            ("the smallest key", |meta| meta.smallest = b"key".as_slice().into()),
            ("the largest key", |meta| meta.largest = b"key 99".as_slice().into()),
            ("the first SeqNo", |meta| meta.first.0 += 1),
            ("the last SeqNo", |meta| meta.last.0 -= 1),
            ("the number of entries", |meta| meta.entries += 1),
            ("the number of tombstones", |meta| meta.tombstones += 1),
            ("whether anything expires", |meta| meta.expiry = None),
            ("how many entries expire", |meta| expiry(meta).entries += 1),
            ("when the first entry expires", |meta| expiry(meta).first.0 -= 1),
            ("when the last entry expires", |meta| expiry(meta).last.0 += 1),
        ];
        for (number, (what, change)) in shard.ssts.into_iter().flat_map(|n| changes.map(|c| (n, c))) {
            let wrong = shard.copy();
            rewrite_manifest(&wrong, |state| {
                let mut files: Vec<_> = state.version.level(0).iter().map(|file| (0, file.clone())).collect();
                let file = files.iter_mut().find(|(_, file)| file.number == number);
                change(Rc::make_mut(&mut file.expect("the file is in L0").1));
                state.version = version(files);
            })
            .await;
            let report = check(&wrong).await;
            let label = FileName::Sst(number).to_string();
            for words in ["the entries are not what", "the properties are not what"] {
                let found = report.damage.iter().any(|error| says(error, &[&label, words]));
                assert!(found, "{what} of {label}, {words}: {report:?}");
            }
        }
    });
}

#[test]
fn a3_every_write_of_a_sorted_file_was_flushed() {
    block_on(async {
        let shard = Shard::new().await;
        let wrong = shard.copy();
        rewrite_manifest(&wrong, |state| state.flushed = SeqNo(FLUSHED - 1)).await;
        let label = FileName::Sst(shard.ssts[1]).to_string();
        assert_damaged(&check(&wrong).await, &[&label, "above the last flushed write"]);
    });
}

#[test]
fn a3_the_number_of_every_file_is_below_the_number_of_the_next_file() {
    block_on(async {
        let shard = Shard::new().await;
        let ([a, b], [c, d]) = (shard.ssts, shard.wals);
        let named =
            [(a, FileName::Sst(a)), (b, FileName::Sst(b)), (c, FileName::Wal(c)), (d, FileName::Wal(d))];
        for next_file in named.into_iter().flat_map(|(number, _)| [number, number.next()]) {
            let wrong = shard.copy();
            // The manifest takes the number below.
            rewrite_manifest(&wrong, |state| state.next_file = FileNumber(next_file.0 - 1)).await;
            let report = check(&wrong).await;
            for (number, name) in named {
                let words = [&name.to_string(), "its number is not below that of the next file"];
                let found = report.damage.iter().any(|error| says(error, &words));
                assert_eq!(found, next_file <= number, "{name}, next file {}: {report:?}", next_file.0);
            }
        }
    });
}

#[test]
fn a4_an_older_entry_above_a_newer_entry_is_damage() {
    block_on(async {
        let shard = Shard::new().await;
        let files = load_in_use(&shard.storage, OWNER).await.unwrap().state.version;
        let file = |number| files.files().find(|file| file.number == number).expect("it is named").clone();
        let [older, newer] = shard.ssts.map(file);
        let label = FileName::Sst(newer.number).to_string();
        for (level, deeper) in [(0, 1), (0, 6), (1, 2), (3, 5)] {
            let context = format!("levels {level} and {deeper}");
            let sound = shard.copy();
            let files = vec![(level, newer.clone()), (deeper, older.clone())];
            rewrite_manifest(&sound, |state| state.version = version(files)).await;
            assert_not_damaged(&check(&sound).await, &context);
            let wrong = shard.copy();
            let files = vec![(level, older.clone()), (deeper, newer.clone())];
            rewrite_manifest(&wrong, |state| state.version = version(files)).await;
            assert_damaged(
                &check(&wrong).await,
                &[&label, "newer than an entry of its key in a higher level"],
            );
        }
    });
}

#[test]
fn a4_the_file_of_the_newer_entry_is_named_even_if_the_entry_is_the_last_of_the_file() {
    block_on(async {
        let storage = Shard::new().await.storage;
        let numbers = [101, 102, 103].map(FileNumber);
        let files = vec![
            (2, sst(&storage, numbers[0], &[(b"a", 3), (b"c", 4)]).await),
            (3, sst(&storage, numbers[1], &[(b"a", 1), (b"b", 2), (b"c", 5)]).await),
            (3, sst(&storage, numbers[2], &[(b"d", 6)]).await),
        ];
        rewrite_manifest(&storage, |state| {
            state.version = version(files);
            state.next_file = FileNumber(200);
        })
        .await;
        let label = FileName::Sst(numbers[1]).to_string();
        let words = [&label, "newer than an entry of its key in a higher level"];
        assert_damaged(&check(&storage).await, &words);
    });
}

#[test]
fn a4_a_key_of_another_shard_is_damage() {
    block_on(async {
        let shard = Shard::new().await;
        let report = check_without(&shard.storage, &[key(ENTRIES - 1)]).await;
        for number in shard.ssts {
            assert_damaged(&report, &[&FileName::Sst(number).to_string(), "belongs to another shard"]);
        }
        assert!(!report.damage.iter().any(|error| says(error, &[".wal"])), "no WAL has the key: {report:?}");
        let report = check_without(&shard.storage, &[key(2)]).await;
        let label = FileName::Wal(shard.wals[0]).to_string();
        assert_damaged(&report, &[&label, "belongs to another shard"]);
    });
}
