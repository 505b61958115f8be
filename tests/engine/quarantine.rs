//! A damaged block costs its own keys and nothing else: on simulated disks, by a flipped bit and by an unreadable block, in
//! every level, through flushes, compactions, restarts and crashes.

use std::collections::{BTreeMap, BTreeSet};

use futures_executor::block_on;
use ringkeep::config::{BLOCK_BYTES, DbConfig};
use ringkeep::db::Db;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::identity::Owner;
use ringkeep::key::{FileNumber, KeyHash, ShardId, UnixMillis};
use ringkeep::random::Random;
use ringkeep::storage::sim::{Fate, SimStorage};

const NOW: UnixMillis = UnixMillis(1_000_000);
const OWNER: Owner = Owner { store_id: 7, shard: ShardId(0) };
const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 256 << 10,
    value_bytes_max: 1 << 20,
    large_value_bytes: 64 << 10,
    open_files_max: 16,
    wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1 << 20),
    wal_step_bytes: 1 << 20,
    manifest_bytes: 1 << 16,
    key_hash: KeyHash::with_seed(1),
};
const KEYS: u64 = 1_500;

/// A shard, and what it should hold.
struct Shard {
    db: Db<SimStorage>,
    storage: SimStorage,
    expected: BTreeMap<String, Option<Vec<u8>>>,
    random: Random,
    context: String,
}

impl Shard {
    fn new(seed: u64, context: String) -> Self {
        let storage = SimStorage::new(seed);
        let db = block_on(Db::create(storage.clone(), OWNER, CONFIG)).unwrap();
        let context = format!("seed {seed}, {context}");
        Self { db, storage, expected: BTreeMap::new(), random: Random::new(seed), context }
    }

    fn key(&mut self) -> String {
        format!("key-{:05}", self.random.below(KEYS))
    }

    fn set(&mut self, key: &str) {
        let value: Vec<u8> = (0..20).flat_map(|_| self.random.next_u64().to_le_bytes()).collect();
        let db = &self.db;
        block_on(async {
            let mut ticket = db.set(key.as_bytes(), &value);
            for _ in 0..3 {
                if !ticket.as_ref().is_err_and(|error| error.kind() == ErrorKind::Overloaded) {
                    break;
                }
                db.grow_wal().await.unwrap();
                db.prepare_spare().await.unwrap();
                db.flush_next().await.unwrap();
                ticket = db.set(key.as_bytes(), &value);
            }
            let ticket = ticket.unwrap_or_else(|error| panic!("{}: writes go on: {error}", self.context));
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
        });
        self.expected.insert(key.into(), Some(value));
    }

    /// Deletes a key. `false` if the shard refused.
    fn delete(&mut self, key: &str) -> bool {
        let db = &self.db;
        let op = ringkeep::op::Op::Delete { key: db.key(key.as_bytes()) };
        let done = block_on(async {
            match db.start(&op, NOW, |_| false) {
                Ok(ringkeep::db::Started::Committing(ticket, _)) => {
                    db.commit_next().await.unwrap();
                    ticket.await.unwrap();
                    true
                }
                Ok(ringkeep::db::Started::Pending(pending)) => {
                    let later = pending.writes_later();
                    let mut finish = Box::pin(pending.finish(db));
                    let outcome = loop {
                        tokio::select! {
                            biased;
                            outcome = &mut finish => break outcome,
                            () = db.commit_due() => db.commit_next().await.unwrap(),
                        }
                    };
                    while db.has_uncommitted() {
                        db.commit_next().await.unwrap();
                    }
                    // If the damage was met only now, the tombstone is there.
                    outcome.is_ok() || !later
                }
                Ok(_) => panic!("a delete is a write"),
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io), "{error}");
                    false
                }
            }
        });
        if done {
            self.expected.insert(key.into(), None);
        }
        done
    }

    fn flush(&self) {
        block_on(async {
            self.db.prepare_spare().await.unwrap();
            self.db.request_flush();
            while self.db.has_frozen() {
                self.db.flush_next().await.unwrap();
            }
        });
    }

    /// Compacts until nothing is due. That must end.
    fn compact(&self) {
        for _ in 0..200 {
            if !block_on(self.db.compact_next(NOW)).unwrap() {
                while block_on(self.db.remove_next()).is_some() {}
                return;
            }
        }
        panic!("{}: compaction does not come to an end", self.context);
    }

    /// Reads every key. Returns the keys for which the shard has no answer.
    fn read_all(&self) -> BTreeSet<String> {
        let mut without = BTreeSet::new();
        for (key, expected) in &self.expected {
            match block_on(self.db.get(key.as_bytes(), NOW)) {
                Ok(found) => {
                    let expected = expected.as_deref();
                    assert!(found.as_deref() == expected, "{}: {key} has another value", self.context);
                }
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io), "{error}");
                    without.insert(key.clone());
                }
            }
        }
        without
    }

    fn reopen(&mut self, fate: Fate) {
        self.storage = self.storage.crash(fate);
        self.db = block_on(Db::open(self.storage.clone(), OWNER, CONFIG)).unwrap().0;
    }

    /// The files in force, with their levels.
    fn files(&self) -> Vec<(usize, FileNumber, u64)> {
        let version = self.db.version();
        let of_level = |(level, files): (usize, &[_])| {
            let numbers: Vec<_> = files
                .iter()
                .map(|file: &std::rc::Rc<ringkeep::sst::SstMeta>| (level, file.number, file.bytes))
                .collect();
            numbers
        };
        version.levels().flat_map(of_level).collect()
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Flip,
    Unreadable,
}

/// Fills a shard so that it has files in L0 and in two levels below.
fn filled(seed: u64, context: String) -> Shard {
    let mut shard = Shard::new(seed, context);
    for round in 0..9 {
        for number in 0..KEYS {
            // The first round writes every key.
            let key = if round == 0 { format!("key-{number:05}") } else { shard.key() };
            if 0 < round && number % 5 == 0 {
                shard.delete(&key);
            } else if round == 0 || number % 3 == 0 {
                shard.set(&key);
            }
        }
        shard.flush();
        if round < 7 {
            shard.compact();
        }
    }
    shard
}

#[test]
fn n4_a_damaged_block_costs_its_own_keys_through_everything_that_follows() {
    let (mut in_l0, mut below, mut lost_some) = (0, 0, 0);
    for seed in 0..24 {
        let kind = if seed % 2 == 0 { Kind::Flip } else { Kind::Unreadable };
        let mut shard = filled(seed, format!("{kind:?}"));
        let files = shard.files();
        let wanted: Vec<_> =
            files.iter().filter(|(level, ..)| (*level == 0) == (seed / 2 % 2 == 0)).collect();
        let (level, number, bytes) = *wanted[shard.random.below(wanted.len() as u64) as usize];
        if level == 0 {
            in_l0 += 1
        } else {
            below += 1
        }
        let block = shard.random.below(bytes / BLOCK_BYTES as u64);
        let name = FileName::Sst(number);
        match kind {
            Kind::Flip => shard.storage.corrupt(name, block * BLOCK_BYTES as u64 + 7, 0x10),
            Kind::Unreadable => shard.storage.make_unreadable(name, block),
        }
        shard.context += &format!(", block {block} of {number:?} in L{level}");
        // What is not damaged is served, and reads make the shard look at the file.
        shard.reopen(Fate::Killed);
        shard.read_all();
        shard.compact();
        let lost = shard.read_all();
        assert!(lost.len() < 450, "{}: {} keys", shard.context, lost.len());
        lost_some += usize::from(!lost.is_empty());
        assert_eq!(shard.db.damaged_files().is_empty(), shard.db.version().damage().is_empty());
        // A delete of such a key is refused, and leaves no tombstone. A set works.
        let mut open = lost.clone();
        if let Some(key) = lost.first() {
            assert!(!shard.delete(key), "{}", shard.context);
            assert_eq!(shard.read_all(), lost);
            shard.set(key);
            open.remove(key);
            assert_eq!(shard.read_all(), open, "{}", shard.context);
        }
        // Many flushes, compactions and restarts change nothing about it.
        for round in 0..24 {
            for _ in 0..150 {
                let key = shard.key();
                // Keys in quarantine stay unknown until they are set again, which happens late.
                if open.contains(&key) && round < 16 {
                    continue;
                }
                if shard.random.below(4) == 0 {
                    shard.delete(&key);
                } else {
                    shard.set(&key);
                    open.remove(&key);
                }
            }
            shard.flush();
            shard.compact();
            let version = shard.db.version();
            assert!(version.level(0).len() < 12, "{}: {}", shard.context, version.level(0).len());
            if round % 4 == 3 {
                shard.reopen(if round % 8 == 3 { Fate::Killed } else { Fate::Lost });
                assert_eq!(shard.read_all(), open, "{}, round {round}", shard.context);
            }
        }
        assert_eq!(shard.read_all(), open, "{}", shard.context);
        assert!(lost.is_empty() || !shard.db.version().damage().is_empty(), "{}", shard.context);
    }
    assert!(3 < in_l0 && 3 < below && 8 < lost_some, "{in_l0} in L0, {below} below, {lost_some} lost keys");
}

#[test]
fn a_compaction_that_meets_damage_goes_on_around_it() {
    for seed in 0..6 {
        let mut shard = filled(seed, "without reads".into());
        for (_, number, bytes) in shard.files() {
            let block = shard.random.below(bytes / BLOCK_BYTES as u64);
            if seed % 2 == 0 {
                shard.storage.corrupt(FileName::Sst(number), block * BLOCK_BYTES as u64 + 9, 1);
            } else {
                shard.storage.make_unreadable(FileName::Sst(number), block);
            }
        }
        // Every file is damaged, and nobody reads.
        shard.reopen(Fate::Killed);
        for _ in 0..30 {
            for _ in 0..100 {
                let key = shard.key();
                shard.set(&key);
            }
            shard.flush();
            shard.compact();
        }
        let lost = shard.read_all();
        shard.compact();
        let after = shard.read_all();
        assert!(after.len() <= KEYS as usize / 3, "{}: {} of {KEYS} keys", shard.context, after.len());
        assert!(lost.len() <= KEYS as usize / 2, "{}: {}", shard.context, lost.len());
    }
}

#[test]
fn what_stays_above_damage_does_not_keep_compaction_busy_for_ever() {
    for seed in 0..8 {
        let mut shard = filled(seed, "ascending keys".into());
        let files = shard.files();
        let &(level, number, bytes) = files.iter().max_by_key(|(level, ..)| *level).unwrap();
        let block = shard.random.below(bytes / BLOCK_BYTES as u64 / 2);
        shard.context += &format!(", block {block} of {number:?} in L{level}");
        shard.storage.corrupt(FileName::Sst(number), block * BLOCK_BYTES as u64 + 7, 0x10);
        shard.reopen(Fate::Killed);
        shard.read_all();
        shard.compact();
        let mut lost = shard.read_all();
        // A few of these keys are set again, alone, and then only keys far away from them.
        for key in lost.clone().iter().take(3) {
            shard.set(key);
            lost.remove(key);
        }
        shard.flush();
        shard.compact();
        for round in 0..20 {
            for number in 0..60 {
                shard.set(&format!("z-{round:02}-{number:02}"));
            }
            shard.flush();
            shard.db.set_disk_full(round % 5 == 4);
            shard.compact();
            shard.db.set_disk_full(false);
            if round % 3 == 2 {
                shard.db.rest();
                shard.flush();
                shard.compact();
            }
            assert!(shard.db.version().level(0).len() < 12, "{}", shard.context);
        }
        assert_eq!(shard.read_all(), lost, "{}", shard.context);
    }
}
