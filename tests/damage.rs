//! Damage to the files of a store, on simulated storage: every bit flipped, WALs cut and zeroed at every length, blocks
//! and files zeroed, removed, misplaced, or taken from another shard or from the past (P5).
//!
//! After each damage the store refuses to start, refuses to answer, or answers correctly; and `ringkeep check` finds
//! the damage. A WAL under load is damaged as well: nothing that a mark covers is ever cut as a torn end (W4).
//! `RINGKEEP_FLIPS` is the number of bits to flip (default 20,000); 0 flips all of them.

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::{Row, setting};
use futures_executor::block_on;
use ringkeep::check::{Report, check_shard};
use ringkeep::config::DbConfig;
use ringkeep::db::Db;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::identity::{FileKind, Owner};
use ringkeep::key::{KeyHash, SLOT_COUNT, ShardId, UnixMillis};
use ringkeep::random::Random;
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::record::mark::Mark;
use ringkeep::storage::sim::{Failure, Fate, Fault, SimStorage};

/// Before every expiry.
const NOW: UnixMillis = UnixMillis::START;

const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 300_000,
    value_bytes_max: 3_000,
    large_value_bytes: 500,
    open_files_max: 16,
    // The WAL is full before the memtable.
    wal_bytes: DbConfig::wal_bytes_for(8_000, 3_000),
    // Small steps, so that WALs grow.
    wal_step_bytes: 8_192,
    manifest_bytes: 12_288,
    key_hash: KeyHash::with_seed(1),
};
const BLOCK: usize = 4096;

/// A store with everything that a shard can hold: two levels, tombstones, two WALs with writes, one WAL without.
struct Fixture {
    owner: Owner,
    storage: SimStorage,
    content: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The disk at earlier moments.
    past: Vec<SimStorage>,
}

impl Fixture {
    /// Makes a store, always the same for the same arguments. The last process was killed or, if `stopped`, ended
    /// cleanly.
    fn new(shard: u16, stopped: bool) -> Self {
        let fixture = block_on(async {
            let owner = Owner { store_id: 9, shard: ShardId(shard) };
            let storage = SimStorage::new(u64::from(shard));
            let random = &mut Random::new(u64::from(shard) + 3);
            let db = Db::create(storage.clone(), owner, CONFIG).await.unwrap();
            let (mut content, mut past) = (BTreeMap::new(), Vec::new());
            for round in 0..7 {
                for _ in 0..4 {
                    let key = format!("key-{:02}", random.below(24)).into_bytes();
                    let length = [0, 20, 300, 2_500][random.below(4) as usize];
                    let value = (random.below(4) != 0).then(|| vec![random.next_u64() as u8; length]);
                    db.grow_wal().await.unwrap();
                    match &value {
                        Some(value) => drop(db.set(&key, value).unwrap()),
                        None => drop(db.delete(&key, NOW).unwrap()),
                    }
                    content.insert(key, value);
                    db.commit_next().await.unwrap();
                    past.push(storage.crash(Fate::Kept));
                }
                if round == 6 {
                    break;
                }
                // Each round has a new WAL, so the bytes after its groups are zero.
                db.prepare_spare().await.unwrap();
                db.request_flush();
                db.prepare_spare().await.unwrap();
                if round < 5 {
                    while db.has_frozen() {
                        db.flush_next().await.unwrap();
                    }
                }
                if round == 3 {
                    assert!(db.compact_next(NOW).await.unwrap());
                    while db.remove_next().await.is_some() {}
                }
                past.push(storage.crash(Fate::Kept));
            }
            assert!(
                db.has_frozen() && !db.version().level(0).is_empty() && !db.version().level(1).is_empty()
            );
            if stopped {
                db.close(|_| {}).await.unwrap();
            } else {
                db.mark().await.unwrap();
                db.note_end().await.unwrap();
            }
            let storage = storage.crash(Fate::Kept);
            Self { owner, storage, content, past }
        });
        assert_eq!(fixture.look(&fixture.storage), Outcome::Right);
        let report = fixture.check(&fixture.storage);
        assert!(
            report.damage.is_empty() && report.unread.is_empty() && report.notes.is_empty(),
            "{report:?}"
        );
        fixture
    }

    fn files(&self) -> Vec<(FileName, u64)> {
        self.storage.files()
    }

    fn copy(&self) -> SimStorage {
        self.storage.crash(Fate::Kept)
    }

    /// Opens the store and reads all of it.
    fn look(&self, storage: &SimStorage) -> Outcome {
        block_on(async {
            let storage = storage.crash(Fate::Kept);
            let before = storage.files();
            let db = match Db::open(storage.clone(), self.owner, CONFIG).await {
                Ok((db, _)) => db,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                    assert_eq!(storage.files(), before, "a refused start leaves nothing behind: {error}");
                    return Outcome::Refused(error.to_string());
                }
            };
            let mut refused = None;
            for (key, expected) in &self.content {
                match db.get(key, NOW).await {
                    Ok(found) if found.as_deref() == expected.as_deref() => {}
                    Ok(_) => return Outcome::Wrong,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                        refused = Some(error.to_string());
                    }
                }
            }
            refused.map_or(Outcome::Right, Outcome::RefusedToAnswer)
        })
    }

    fn check(&self, storage: &SimStorage) -> Report {
        let slots = vec![self.owner.shard; SLOT_COUNT];
        block_on(check_shard(storage, self.owner, &slots, |_| {}))
    }

    /// Opens, reads and checks a damaged copy.
    fn try_damage(&self, damaged: &SimStorage, what: impl Fn() -> String, counts: &mut Counts) {
        let outcome = self.look(damaged);
        let report = self.check(damaged);
        let found = match &outcome {
            Outcome::Right => !report.damage.is_empty() || !report.notes.is_empty(),
            _ => !report.damage.is_empty(),
        };
        // An older manifest or WAL may be sound, and give the same answers.
        let unknowable = outcome == Outcome::Right && what().ends_with("old");
        assert!(found || unknowable, "{}: the check finds nothing, {outcome:?}", what());
        match outcome {
            Outcome::Right => counts.harmless += 1,
            Outcome::Refused(message) | Outcome::RefusedToAnswer(message) => {
                counts.detected += 1;
                let mut words = message.split([' ', ':', ',']);
                assert!(
                    words.any(|word| FileName::parse(word).is_some()),
                    "{}: the message names no file: {message}",
                    what()
                );
            }
            Outcome::Wrong => panic!("{}: a wrong answer", what()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The start was refused.
    Refused(String),
    /// The store started and refused some answers; the other answers were right.
    RefusedToAnswer(String),
    Right,
    Wrong,
}

#[derive(Debug, Default)]
struct Counts {
    detected: u64,
    harmless: u64,
}

fn report(name: &'static str, counts: &Counts, begin: Instant) {
    println!(
        "{name}: {} refused, {} answered correctly and found by the check",
        counts.detected, counts.harmless
    );
    let runs = counts.detected + counts.harmless;
    Row { name, runs, detected: counts.detected, seconds: begin.elapsed(), ..Row::default() }.report();
}

#[test]
fn a_check_that_cannot_read_says_so_and_calls_nothing_damaged() {
    const EIO: i32 = 5;
    let fixture = Fixture::new(0, false);
    let (first, last) = {
        let storage = fixture.copy();
        let first = storage.operations();
        fixture.check(&storage);
        (first, storage.operations())
    };
    assert!(20 < last - first);
    for operation in first + 1..=last {
        for for_ever in [false, true] {
            let storage = fixture.copy();
            storage.set_fault(Some(Fault { operation, failure: Failure::Errno(EIO), for_ever }));
            let report = fixture.check(&storage);
            let what = format!("operation {operation} of {first} to {last}: {report:?}");
            assert!(report.damage.is_empty(), "{what}");
            // A long read that fails is tried again as a short one, which may succeed.
            assert!(!for_ever || !report.unread.is_empty(), "{what}");
            assert!(report.unread.iter().all(|error| error.kind() == ErrorKind::Io), "{what}");
        }
    }
}

#[test]
fn p5_every_flipped_bit() {
    let begin = Instant::now();
    let wanted = setting("RINGKEEP_FLIPS", 20_000);
    let totals: Vec<Counts> = std::thread::scope(|scope| {
        let handles = [false, true].map(|stopped| {
            scope.spawn(move || {
                let fixture = Fixture::new(0, stopped);
                let mut counts = Counts::default();
                let bits: u64 = fixture.files().iter().map(|(_, bytes)| bytes * 8).sum();
                let stride = (2 * bits).checked_div(wanted).unwrap_or(1).max(1);
                let mut skip = setting("RINGKEEP_SEED", 7) % stride;
                for (name, bytes) in fixture.files() {
                    let mut bit = skip;
                    while bit < bytes * 8 {
                        let damaged = fixture.copy();
                        damaged.corrupt(name, bit / 8, 1 << (bit % 8));
                        fixture.try_damage(
                            &damaged,
                            || format!("stopped: {stopped}, {name}, bit {bit}"),
                            &mut counts,
                        );
                        bit += stride;
                    }
                    skip = bit - bytes * 8;
                }
                counts
            })
        });
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let [mut a, b] = <[Counts; 2]>::try_from(totals).unwrap();
    (a.detected, a.harmless) = (a.detected + b.detected, a.harmless + b.harmless);
    report("a flipped bit", &a, begin);
}

#[test]
fn p5_wals_cut_and_zeroed_at_every_length() {
    let begin = Instant::now();
    let mut counts = Counts::default();
    let fixture = Fixture::new(0, false);
    for (name, bytes) in fixture.files() {
        let FileName::Wal(_) = name else { continue };
        let whole = fixture.storage.bytes(name);
        for length in 0..bytes as usize {
            let damaged = fixture.copy();
            damaged.overwrite(name, &whole[..length]);
            fixture.try_damage(&damaged, || format!("{name} cut to {length} bytes"), &mut counts);
            if whole[length..].iter().any(|byte| *byte != 0) && (length % 64 == 0 || whole[length - 1] != 0) {
                let mut zeroed = whole.clone();
                zeroed[length..].fill(0);
                damaged.overwrite(name, &zeroed);
                fixture.try_damage(&damaged, || format!("{name} zeroed from {length}"), &mut counts);
            }
        }
    }
    report("a WAL cut at every length", &counts, begin);
}

/// A crash may tear the last group: the writes before it must be there, and the bytes that are cut must be reported.
#[test]
fn p4_torn_ends_at_every_length_leave_a_prefix_and_are_counted() {
    let begin = Instant::now();
    let storage = SimStorage::new(1);
    let owner = Owner { store_id: 9, shard: ShardId(0) };
    let mut ends = vec![FIRST_RECORD as usize];
    let db = block_on(Db::create(storage.clone(), owner, CONFIG)).unwrap();
    let name =
        storage.files().iter().map(|file| file.0).find(|name| matches!(name, FileName::Wal(_))).unwrap();
    for number in 0..6_u8 {
        block_on(db.grow_wal()).unwrap();
        db.set(&[b'a' + number], &vec![number; usize::from(number) * 300]).unwrap();
        block_on(db.commit_next()).unwrap();
        ends.push(storage.bytes(name).iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512 + 512);
    }
    let whole = storage.bytes(name);
    let mut counts = Counts::default();
    for length in FIRST_RECORD as usize..=*ends.last().unwrap() {
        let torn = storage.crash(Fate::Kept);
        let mut bytes = whole.clone();
        bytes[length..].fill(0);
        torn.overwrite(name, &bytes);
        let (db, recovered) = block_on(Db::open(torn, owner, CONFIG)).unwrap();
        // A group is whole if all its bytes from the cut on were zero anyway.
        let groups =
            ends.iter().filter(|end| whole[length.min(**end)..**end].iter().all(|byte| *byte == 0)).count()
                - 1;
        let found: Vec<bool> =
            (0..6_u8).map(|number| block_on(db.get(&[b'a' + number], NOW)).unwrap().is_some()).collect();
        let expected: Vec<bool> = (0..6).map(|number| number < groups).collect();
        assert_eq!(found, expected, "cut at {length}");
        // The header names the owner of a record. Once the header is complete, a torn group can be told from unused
        // space.
        let begun = 51 <= length.saturating_sub(ends[groups]);
        assert_eq!(recovered.torn_bytes != 0, begun && groups < 6, "cut at {length}: {recovered:?}");
        counts.detected += u64::from(recovered.torn_bytes != 0);
        counts.harmless += u64::from(recovered.torn_bytes == 0);
    }
    report("a torn end at every length", &counts, begin);
}

/// A shard that was killed under load, with one WAL.
struct UnderLoad {
    owner: Owner,
    storage: SimStorage,
    wal: FileName,
    /// Where each group ends; the first begins at `FIRST_RECORD`.
    ends: Vec<u64>,
    /// How far the WAL was durable, according to its newest mark.
    witnessed: u64,
    counts: Counts,
}

impl UnderLoad {
    const CONFIG: DbConfig =
        DbConfig { wal_bytes: DbConfig::wal_bytes_for(1 << 20, 3_000), memtable_bytes: 4 << 20, ..CONFIG };

    /// Commits `groups` groups of one write each, without a pause. A mark is requested every `a_second` groups.
    fn new(groups: u64, a_second: u64) -> Self {
        block_on(async {
            let owner = Owner { store_id: 9, shard: ShardId(0) };
            let storage = SimStorage::new(1);
            let db = Db::create(storage.clone(), owner, Self::CONFIG).await.unwrap();
            let mut ends = Vec::new();
            for group in 0..groups {
                db.grow_wal().await.unwrap();
                let ticket = db.set(&group.to_le_bytes(), &vec![7; group as usize * 37 % 900]).unwrap();
                if group % a_second == 0 {
                    db.request_mark();
                }
                db.commit_next().await.unwrap();
                ticket.await.unwrap();
                ends.push(db.durable().unwrap().1);
            }
            let wal = FileName::Wal(db.durable().unwrap().0);
            let (_, recovered) = Db::open(storage.crash(Fate::Kept), owner, Self::CONFIG).await.unwrap();
            let witnessed = recovered.log_end.unwrap().witnessed;
            Self { owner, storage, wal, ends, witnessed, counts: Counts::default() }
        })
    }

    fn start_of(&self, group: usize) -> u64 {
        group.checked_sub(1).map_or(FIRST_RECORD, |before| self.ends[before])
    }

    /// Opens the shard with other bytes in its WAL. These differ from the original bytes only from `damaged` on. All
    /// groups that were witnessed must be there, or the start must be refused, with the name of the file and an offset
    /// or a length. Later groups may be cut.
    fn try_bytes(&mut self, bytes: &[u8], damaged: u64, what: &str) {
        let storage = self.storage.crash(Fate::Kept);
        storage.overwrite(self.wal, bytes);
        let slots = vec![self.owner.shard; SLOT_COUNT];
        let report = block_on(check_shard(&storage, self.owner, &slots, |_| {}));
        match block_on(Db::open(storage, self.owner, Self::CONFIG)) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corruption, "{what}: {error}");
                let message = error.to_string();
                let named = message.contains(&self.wal.to_string());
                assert!(
                    named && message.contains("at offset") || message.contains("bytes"),
                    "{what}: {message}"
                );
                assert!(!report.damage.is_empty(), "{what}: the check finds nothing");
                self.counts.detected += 1;
            }
            Ok((_, recovered)) => {
                assert!(report.damage.is_empty(), "{what}: {report:?}");
                let left = self.ends.iter().filter(|end| **end <= recovered.log_end.unwrap().offset).count();
                assert_eq!(recovered.writes, left as u64, "{what}");
                let witnessed = self.ends.iter().filter(|end| **end <= self.witnessed).count();
                assert!(witnessed <= left, "{what}: {witnessed} groups were witnessed, {left} are left");
                assert!(self.witnessed <= damaged, "{what}: damage to witnessed bytes was not noticed");
                self.counts.harmless += 1;
            }
        }
    }
}

#[test]
fn w4_what_a_mark_knows_of_a_wal_under_load_is_never_cut() {
    let begin = Instant::now();
    let mut shard = UnderLoad::new(400, 50);
    let whole = shard.storage.bytes(shard.wal);
    let end = *shard.ends.last().unwrap();
    // At most the groups of a second, or of four steps, and the group that carries the mark are not witnessed.
    let unwitnessed = shard.ends.iter().filter(|end| shard.witnessed < **end).count();
    assert!(0 < unwitnessed && unwitnessed <= 51, "{unwitnessed} groups are not witnessed");
    assert!(end - shard.witnessed <= 5 * CONFIG.wal_step_bytes);

    shard.try_bytes(&whole, u64::MAX, "nothing");
    shard.try_bytes(&vec![0; whole.len()], 0, "replaced by zeros");
    for start in (0..FIRST_RECORD).step_by(64) {
        let mut zeroed = whole.clone();
        zeroed[start as usize..].fill(0);
        shard.try_bytes(&zeroed, start, &format!("zeroed from offset {start} on"));
    }
    for group in 0..shard.ends.len() {
        let start = shard.start_of(group);
        let mut zeroed = whole.clone();
        zeroed[start as usize..].fill(0);
        shard.try_bytes(&zeroed, start, &format!("zeroed from group {group} on"));
        if group % 40 < 2 || 398 < group {
            // These bytes are the header, and the used part of a short payload.
            for bit in 0..100 * 8 {
                let mut flipped = whole.clone();
                flipped[start as usize + bit / 8] ^= 1 << (bit % 8);
                shard.try_bytes(&flipped, start, &format!("bit {bit} of group {group}"));
            }
        }
    }
    let every = setting("RINGKEEP_CUT_EVERY", 61).max(1) as usize;
    for length in (0..whole.len()).step_by(every) {
        shard.try_bytes(&whole[..length], length as u64, &format!("cut to {length} bytes"));
    }
    report("a WAL under load, cut, zeroed and flipped", &shard.counts, begin);
}

/// The end of a WAL that is not the last one is witnessed by the next WAL.
#[test]
fn w4_the_second_group_of_a_wal_witnesses_the_wal_before() {
    block_on(async {
        let owner = Owner { store_id: 9, shard: ShardId(0) };
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), owner, UnderLoad::CONFIG).await.unwrap();
        let set = async |key: u8| {
            let ticket = db.set(&[key], &[key; 100]).unwrap();
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
            db.durable().unwrap().0
        };
        let first = FileName::Wal(set(1).await);
        db.request_flush();
        db.prepare_spare().await.unwrap();
        assert_ne!(first, FileName::Wal(set(2).await), "the write goes to the next WAL");
        set(3).await;
        assert!(!db.is_witnessed(), "the last group is not witnessed");
        let mut bytes = storage.bytes(first);
        bytes[FIRST_RECORD as usize..].fill(0);
        let damaged = storage.crash(Fate::Kept);
        damaged.overwrite(first, &bytes);
        let error = Db::open(damaged, owner, UnderLoad::CONFIG).await.err().expect("the start is refused");
        assert!(error.to_string().contains("writes are missing"), "{error}");
        // If the first group of the next WAL is gone as well, this loss is noticed instead.
        let next = FileName::Wal(db.durable().unwrap().0);
        let damaged = storage.crash(Fate::Kept);
        damaged.overwrite(first, &bytes);
        let mut bytes = storage.bytes(next);
        bytes[FIRST_RECORD as usize..].fill(0);
        damaged.overwrite(next, &bytes);
        let error = Db::open(damaged, owner, UnderLoad::CONFIG).await.err().expect("the start is refused");
        assert!(error.to_string().contains(&next.to_string()), "{error}");

        // Writes that are flushed need no witness any more.
        db.mark().await.unwrap();
        set(4).await;
        db.prepare_spare().await.unwrap();
        db.request_flush();
        while db.has_frozen() {
            db.flush_next().await.unwrap();
        }
        assert!(db.is_witnessed());
    });
}

/// A torn write that also damages the rest of its block, which is more than R1 allows for.
#[test]
fn w4_a_torn_write_that_takes_its_neighbours_along_is_noticed() {
    let begin = Instant::now();
    let mut shard = UnderLoad::new(300, 40);
    let whole = shard.storage.bytes(shard.wal);
    for group in 0..shard.ends.len() {
        let block = shard.start_of(group) as usize / BLOCK * BLOCK;
        for fill in [0, 0xff] {
            let mut damaged = whole.clone();
            damaged[block..block + BLOCK].fill(fill);
            // The disk looks as if later groups had never been written.
            let later = (shard.ends[group] as usize).next_multiple_of(BLOCK);
            damaged[later.max(block + BLOCK)..].fill(0);
            shard.try_bytes(
                &damaged,
                block as u64,
                &format!("the block of group {group} filled with {fill}"),
            );
        }
    }
    report("a torn write with its neighbours", &shard.counts, begin);
}

/// A device that confirms writes that it has not made. The store opens only if everything is there that the newest mark
/// on the device covers.
#[test]
fn w4_a_device_that_lies_is_found_out_where_a_mark_tells() {
    let begin = Instant::now();
    let (mut counts, owner) = (Counts::default(), Owner { store_id: 9, shard: ShardId(0) });
    for seed in setting("RINGKEEP_SEED", 7)..setting("RINGKEEP_SEED", 7) + 300 {
        let (storage, ends) = block_on(async {
            let storage = SimStorage::new(seed);
            let db = Db::create(storage.clone(), owner, UnderLoad::CONFIG).await.unwrap();
            let mut ends = Vec::new();
            for group in 0..40_u64 {
                storage.lie((20..35).contains(&group));
                db.grow_wal().await.unwrap();
                db.set(&group.to_le_bytes(), &[7; 300]).unwrap();
                if group % 4 == 0 {
                    db.request_mark();
                }
                db.commit_next().await.unwrap();
                ends.push(db.durable().unwrap().1);
            }
            (storage, ends)
        });
        // The power cut keeps only some of the falsely confirmed writes, which brings the lie to light.
        let left = storage.crash(Fate::Random);
        let wal =
            left.files().iter().map(|file| file.0).find(|name| matches!(name, FileName::Wal(_))).unwrap();
        let identity = owner.identity(FileKind::Wal, wal.number().unwrap());
        let known =
            Mark::newest(&left.bytes(wal)[..FIRST_RECORD as usize], identity).map(|(mark, _)| mark.durable);
        match block_on(Db::open(left, owner, UnderLoad::CONFIG)) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corruption, "seed {seed}: {error}");
                counts.detected += 1;
            }
            Ok((_, recovered)) => {
                let known = known.unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
                let witnessed = ends.iter().filter(|end| **end <= known).count() as u64;
                assert!(witnessed <= recovered.writes, "seed {seed}: {witnessed} of {}", recovered.writes);
                counts.harmless += 1;
            }
        }
    }
    assert!(0 < counts.detected && 0 < counts.harmless, "{counts:?}");
    report("a device that lies", &counts, begin);
}

#[test]
fn p5_blocks_zeroed_and_misplaced() {
    let begin = Instant::now();
    let mut counts = Counts::default();
    for stopped in [false, true] {
        let fixture = Fixture::new(0, stopped);
        let blocks: Vec<(FileName, u64)> = fixture
            .files()
            .iter()
            .flat_map(|&(name, bytes)| (0..bytes / BLOCK as u64).map(move |block| (name, block)))
            .collect();
        let content = |(name, block): (FileName, u64)| {
            fixture.storage.bytes(name)[block as usize * BLOCK..][..BLOCK].to_vec()
        };
        let contents: Vec<Vec<u8>> = blocks.iter().map(|block| content(*block)).collect();
        for (to, before) in blocks.iter().zip(&contents) {
            for (from, after) in blocks.iter().zip(&contents) {
                if before != after {
                    let damaged = fixture.copy();
                    damaged.misplace(*from, *to);
                    fixture.try_damage(&damaged, || format!("{from:?} in the place of {to:?}"), &mut counts);
                }
            }
        }
    }
    report("a block zeroed or misplaced", &counts, begin);
}

#[test]
fn p5_files_removed_emptied_zeroed_foreign_or_old() {
    let begin = Instant::now();
    let mut counts = Counts::default();
    for stopped in [false, true] {
        let (fixture, other) = (Fixture::new(0, stopped), Fixture::new(1, stopped));
        for (name, _) in fixture.files() {
            let whole = fixture.storage.bytes(name);
            let mut replacements = vec![("emptied", Vec::new()), ("zeroed", vec![0; whole.len()])];
            // Files of the same kind, and of every other kind, from another shard.
            replacements
                .extend(other.files().iter().map(|(name, _)| ("foreign", other.storage.bytes(*name))));
            for past in &fixture.past {
                if past.files().iter().any(|(found, _)| *found == name) {
                    replacements.push(("old", past.bytes(name)));
                }
            }
            let lost = fixture.copy();
            lost.lose(name);
            fixture.try_damage(&lost, || format!("stopped: {stopped}, {name} removed"), &mut counts);
            for (what, bytes) in replacements {
                if bytes != whole {
                    let damaged = fixture.copy();
                    damaged.overwrite(name, &bytes);
                    fixture.try_damage(
                        &damaged,
                        || format!("stopped: {stopped}, {name} {what}"),
                        &mut counts,
                    );
                }
            }
        }
    }
    report("a file removed, emptied, zeroed, foreign or old", &counts, begin);
}

#[test]
fn p5_an_old_store_file_does_not_make_a_new_store_over_the_data() {
    let fixture = Fixture::new(0, false);
    let storage = fixture.copy();
    let created = block_on(Db::create(storage.clone(), fixture.owner, CONFIG));
    assert_eq!(created.err().expect("the directory holds data").kind(), ErrorKind::Corruption);
    assert_eq!(fixture.look(&storage), Outcome::Right, "nothing was touched");
}
