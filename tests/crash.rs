//! Power cuts and failing operations at every point of a workload, on simulated storage. Afterwards every acknowledged
//! write is there, and a prefix in commit order of the other writes (P1, P2, P4, P6).
//!
//! The workload ([`common::lives`]) covers the first write of a new store, group commit, marks, growth and rotation of
//! the WAL, flush, compaction, the switch of the manifest, the clean stop, and recovery after each of them. A store
//! lives several lives, and each life ends at a random operation. Before each operation, the test looks at the disks
//! that the different fates of unsynced bytes would leave. Now and then it damages such a disk as well: then everything
//! that was witnessed is there, or the start is refused (W4).
//!
//! `RINGKEEP_STATES` says how many states to visit in all, `RINGKEEP_SEED` where the seeds begin. The scenarios at the
//! end of this file test single cases, each of which needs its own order of events.

mod common;

use std::cell::RefCell;
use std::ops::ControlFlow;

use common::campaign::{Tried, campaign};
use common::lives::{Content, Ledger, Scene, content, key, live, watch};
use common::setting;
use common::sim::{CONFIG, NOW, OWNER, Shard};
use futures_executor::block_on;
use ringkeep::config::DbConfig;
use ringkeep::db::{Db, LogEnd};
use ringkeep::error::{Error, ErrorKind};
use ringkeep::file_name::FileName;
use ringkeep::manifest::load;
use ringkeep::random::Random;
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::storage::sim::{Failure, Fate, Fault, SimStorage};
use ringkeep::storage::{Access, AlignedBuf, BLOCK_BYTES, File, Storage};

/// Short files, which fill, grow and are replaced within a life.
const SMALL: Scene = Scene {
    config: DbConfig {
        cache_bytes: 300_000,
        value_bytes_max: 20_000,
        large_value_bytes: 100,
        // The WAL is full before the memtable.
        wal_bytes: DbConfig::wal_bytes_for(16_000, 20_000),
        // A large value reaches beyond the limit, and beyond what is allocated.
        wal_step_bytes: 8_192,
        manifest_bytes: 16_384,
        ..CONFIG
    },
    value_bytes: [0, 3, 500, 6_000],
    lives: 5,
};
/// Groups are committed before their sync, and synced now and then.
const INTERVAL: Scene = Scene { config: DbConfig { sync_every_group: false, ..SMALL.config }, ..SMALL };
/// Sorted files take several writes.
const LARGE: Scene = Scene {
    config: DbConfig {
        memtable_bytes: 2 << 20,
        value_bytes_max: 200_000,
        large_value_bytes: 20_000,
        wal_bytes: DbConfig::wal_bytes_for(2 << 20, 200_000),
        wal_step_bytes: 1 << 18,
        ..SMALL.config
    },
    value_bytes: [0, 500, 60_000, 190_000],
    lives: 2,
};

#[test]
fn p1_p2_p4_a_power_cut_at_every_operation() {
    let states = setting("RINGKEEP_STATES", 20_000);
    campaign("power cut at every operation", states, |seed| power_cuts(SMALL, seed));
}

#[test]
fn p4_a_power_cut_at_every_operation_with_a_sync_now_and_then() {
    let states = setting("RINGKEEP_STATES", 20_000) / 4;
    campaign("power cut at every operation, synced now and then", states, |seed| power_cuts(INTERVAL, seed));
}

#[test]
fn p4_a_power_cut_at_every_operation_with_files_of_several_writes() {
    let states = setting("RINGKEEP_STATES", 20_000) / 10;
    campaign("power cut at every operation, files of several writes", states, |seed| power_cuts(LARGE, seed));
}

#[test]
fn p6_every_operation_fails_once_and_for_ever() {
    campaign("failure of every operation", setting("RINGKEEP_STATES", 20_000) / 10, failures);
}

/// The fates with which each state of the disk is tried.
const FATES: [Fate; 5] = [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random, Fate::Random];

/// Runs several lives of one store. For every state of its disk on the way, checks what a crash of each fate leaves.
fn power_cuts(scene: Scene, seed: u64) -> Tried {
    let mut storage = SimStorage::new(seed);
    let mut random = Random::new(seed);
    let ledger = RefCell::new(Ledger::new(scene));
    let mut tried = Tried::default();
    for life in 0..scene.lives {
        // Some lives end with a clean stop before they come to this operation.
        let cut = storage.operations() + random.below(600);
        let before = ledger.borrow().acknowledged;
        let life_seed = random.next_u64();
        let mut dice = Random::new(life_seed);
        let run = live(&storage, life_seed, &ledger);
        let ended = watch(&storage, &ledger, run, |snapshot, acknowledged| {
            for fate in FATES {
                let state = State {
                    storage: snapshot.crash(fate),
                    ledger: &ledger.borrow(),
                    acknowledged,
                    name: format!("seed {seed}, life {life}, operation {}, {fate:?}", snapshot.operations()),
                };
                state.check_some_more(&mut dice, &mut tried);
            }
            if snapshot.operations() == cut {
                return ControlFlow::Break((snapshot.clone(), acknowledged));
            }
            ControlFlow::Continue(())
        });
        let (left, acknowledged) = match ended {
            ControlFlow::Break(left) => left,
            ControlFlow::Continue(result) => {
                result.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
                (storage.clone(), ledger.borrow().acknowledged)
            }
        };
        ledger.borrow_mut().acknowledged = acknowledged;
        tried.acknowledged += acknowledged.saturating_sub(before) as u64;
        storage = left.crash(if random.below(2) == 0 { Fate::Random } else { Fate::Killed });
    }
    tried
}

/// Runs a life with one failing operation, for every operation and every failure. Odd seeds run the first life of a
/// store, even seeds the second.
fn failures(seed: u64) -> Tried {
    let mut tried = Tried::default();
    let first = SimStorage::new(seed);
    let ledger_before = RefCell::new(Ledger::new(SMALL));
    if seed.is_multiple_of(2) {
        block_on(live(&first, seed, &ledger_before)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let ledger_before = ledger_before.into_inner();
    for failure in [Failure::Errno(libc::EIO), Failure::Errno(libc::ENOSPC), Failure::Short] {
        for for_ever in [false, true] {
            for operation in first.operations() + 1.. {
                let fault = Fault { operation, failure, for_ever };
                let storage = first.crash(Fate::Killed);
                storage.set_fault(Some(fault));
                let ledger = RefCell::new(ledger_before.clone());
                let result = block_on(live(&storage, seed + 1, &ledger));
                if storage.operations() < operation {
                    break;
                }
                let ledger = ledger.into_inner();
                if let Err(error) = result {
                    // A shard that has taken writes ends only by a failure of its WAL or manifest.
                    let served = ledger_before.sent.len() < ledger.sent.len();
                    assert!(
                        !served || error.kind() == ErrorKind::Poisoned,
                        "seed {seed}, {fault:?}: {error:?}"
                    );
                }
                for fate in [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random] {
                    let state = State {
                        storage: storage.crash(fate),
                        ledger: &ledger,
                        acknowledged: ledger.acknowledged,
                        name: format!("seed {seed}, {fault:?}, {fate:?}"),
                    };
                    state.check();
                    tried.runs += 1;
                }
                tried.acknowledged += ledger.acknowledged as u64;
            }
        }
    }
    tried
}

/// The disk as a crash has left it, and what is known about the writes before the crash.
struct State<'a> {
    storage: SimStorage,
    ledger: &'a Ledger,
    /// How many of the first writes were acknowledged.
    acknowledged: usize,
    /// Seed, operation and fate, for messages.
    name: String,
}

impl State<'_> {
    /// Checks the state. Now and then also checks a damaged copy of it, or a second crash during its recovery.
    fn check_some_more(&self, dice: &mut Random, tried: &mut Tried) {
        tried.runs += 1;
        if dice.below(40) == 0 && !self.storage.files().is_empty() {
            // The copy is made before the check below, which writes to the disk.
            let damaged = Self { storage: self.storage.crash(Fate::Kept), name: self.name.clone(), ..*self };
            tried.detected += u64::from(damaged.check_damaged(dice));
            tried.runs += 1;
        }
        if dice.below(40) == 0 {
            tried.runs += self.check_recovery();
        } else {
            self.check();
        }
    }

    /// The next process finds every acknowledged write and a prefix of the others (P1, P4). What that process shows is
    /// there after the next crash (P2). The shard takes writes again.
    fn check(&self) {
        block_on(async {
            // Before the manifest of a new shard is in force, nothing can have been acknowledged.
            let loaded = load(&self.storage, OWNER).await;
            if loaded.unwrap_or_else(|error| self.fail(&error)).is_none() {
                assert_eq!(self.acknowledged, 0, "{}", self.name);
                return;
            }
            let (db, shown) = self.open(&self.storage).await;
            if self.ledger.prefix(&shown, self.acknowledged).is_none() {
                let sent = self.ledger.sent.len();
                panic!("{}: {} of {sent} acknowledged, found {shown:?}", self.name, self.acknowledged);
            }
            let (_, again) = self.open(&self.storage.crash(Fate::Lost)).await;
            assert_eq!(again, shown, "{}: shown, and then taken back", self.name);
            self.check_takes_writes(&db).await;
        });
    }

    /// Opens a disk as the next process does. Returns the shard, and the content that it shows.
    async fn open(&self, storage: &SimStorage) -> (Db<SimStorage>, Content) {
        let opened = Db::open(storage.clone(), OWNER, self.ledger.scene.config).await;
        let (db, _) = opened.unwrap_or_else(|error| self.fail(&error));
        let shown = content(&db, self.ledger.scene).await.unwrap_or_else(|error| self.fail(&error));
        (db, shown)
    }

    /// Checks that the shard takes a write, if need be after a flush.
    async fn check_takes_writes(&self, db: &Db<SimStorage>) {
        let ticket = match db.set(b"alive", b"yes") {
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                db.flush_next().await.unwrap();
                db.set(b"alive", b"yes")
            }
            result => result,
        };
        let ticket = ticket.unwrap_or_else(|error| self.fail(&error));
        db.commit_next().await.unwrap();
        ticket.await.unwrap();
        assert_eq!(db.get(b"alive", NOW).await.unwrap().unwrap(), "yes");
    }

    fn fail(&self, error: &Error) -> ! {
        panic!("{}: {error}", self.name)
    }

    /// Checks the state that a second power cut leaves before each operation of the recovery. Returns the number of
    /// these states.
    fn check_recovery(&self) -> u64 {
        self.storage.record();
        self.check();
        let snapshots = self.storage.take_snapshots();
        for snapshot in &snapshots {
            let again = Self {
                storage: snapshot.crash(Fate::Random),
                name: format!("{}, and again at operation {}", self.name, snapshot.operations()),
                ..*self
            };
            again.check();
        }
        snapshots.len() as u64
    }

    /// Damages the disk. Then the start or an answer must be refused, or every write that was witnessed must be there
    /// (W4). Returns whether the start or an answer was refused.
    fn check_damaged(&self, random: &mut Random) -> bool {
        let witnessed = block_on(self.witnessed());
        let damage = damage(&self.storage, random);
        let opened = block_on(async {
            match load(&self.storage, OWNER).await? {
                None => Ok(Content::default()),
                Some(_) => {
                    let scene = self.ledger.scene;
                    let (db, _) = Db::open(self.storage.clone(), OWNER, scene.config).await?;
                    content(&db, scene).await
                }
            }
        });
        let name = format!("{}, {damage}", self.name);
        match opened {
            Err(error) => {
                let refused = matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io);
                assert!(refused, "{name}: {error:?}");
                true
            }
            Ok(found) => {
                let count = self.ledger.prefix(&found, 0);
                let count = count.unwrap_or_else(|| panic!("{name}: no prefix of the writes"));
                let least = self.ledger.prefix(&found, witnessed);
                assert!(least.is_some(), "{name}: {count} writes are left, and {witnessed} were witnessed");
                false
            }
        }
    }

    /// How many writes are witnessed: those that are left if the last WAL ends where its newest mark says.
    async fn witnessed(&self) -> usize {
        let scene = self.ledger.scene;
        let whole = self.storage.crash(Fate::Kept);
        if load(&whole, OWNER).await.is_ok_and(|loaded| loaded.is_none()) {
            return 0;
        }
        let (mut db, recovered) = Db::open(whole, OWNER, scene.config).await.expect("nothing is damaged yet");
        if let Some(LogEnd { wal, witnessed, .. }) = recovered.log_end {
            let cut = self.storage.crash(Fate::Kept);
            let mut bytes = cut.bytes(FileName::Wal(wal));
            bytes[witnessed as usize..].fill(0);
            cut.overwrite(FileName::Wal(wal), &bytes);
            (db, _) = Db::open(cut, OWNER, scene.config).await.expect("it ends where a mark says");
        }
        let left = content(&db, scene).await.expect("nothing is damaged");
        self.ledger.prefix(&left, 0).expect("a prefix of the writes")
    }
}

/// Damages a block of a file, the file from that block on, or the whole file. Returns a description of the damage.
fn damage(storage: &SimStorage, random: &mut Random) -> String {
    let (name, bytes) = storage.files()[random.below(storage.files().len() as u64) as usize];
    let block = random.below((bytes / BLOCK_BYTES as u64).max(1));
    let kind = random.below(4);
    if kind == 0 {
        storage.make_unreadable(name, block);
        return format!("block {block} of {name} unreadable");
    }
    let mut damaged = storage.bytes(name);
    let start = (block as usize * BLOCK_BYTES).min(damaged.len());
    let what = match kind {
        1 => {
            // A torn write that also damages the rest of its block.
            let end = (start + BLOCK_BYTES).min(damaged.len());
            damaged[start..end].fill_with(|| random.next_u64() as u8);
            format!("block {block} of {name} overwritten")
        }
        2 => {
            damaged[start..].fill(0);
            format!("{name} zeroed from block {block} on")
        }
        _ => {
            damaged.fill(0);
            format!("{name} replaced by zeros")
        }
    };
    storage.overwrite(name, &damaged);
    what
}

#[test]
fn w3_without_syncs_a_crash_leaves_a_prefix_across_wals() {
    for seed in 0..60 {
        block_on(async {
            let shard = Shard::create(INTERVAL.config, seed).await;
            let mut ledger = Ledger::new(INTERVAL);
            for (index, number) in [7, 3, 11, 2, 15, 1].into_iter().enumerate() {
                shard.db.grow_wal().await.unwrap();
                shard.set(&key(index), &INTERVAL.value(number)).await;
                ledger.sent.push((index, Some(number)));
                if index == 2 {
                    shard.freeze().await;
                    assert!(shard.db.has_frozen(), "the next writes go to another WAL");
                }
            }
            let next = shard.after_crash(Fate::Random).await;
            let found = content(&next.db, INTERVAL).await.unwrap();
            assert!(ledger.prefix(&found, 0).is_some(), "seed {seed}: {found:?}");
        });
    }
}

/// A shard whose last edit is damaged: the edit that names the WAL of write 2. The damage cannot be told from a torn
/// edit.
async fn shard_without_its_last_edit() -> Shard {
    let shard = Shard::create(SMALL.config, 1).await;
    shard.set(b"a", b"1").await;
    shard.freeze().await;
    shard.set(b"b", b"2").await;
    let manifest = shard.files(|name| matches!(name, FileName::Manifest(_)))[0];
    // The edit lies after the snapshot, which takes a sector.
    shard.storage.corrupt(manifest, FIRST_RECORD + 512 + 60, 1);
    shard
}

#[test]
fn w1_a_wal_whose_edit_is_lost_is_missed_not_removed() {
    block_on(async {
        let shard = shard_without_its_last_edit().await;
        let error = Shard::open(shard.storage, shard.config).await.err().expect("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Corruption);
        assert!(error.to_string().contains("holds write 2"), "{error}");
    });
}

#[test]
fn w1_a_wal_that_nothing_names_and_whose_writes_are_damaged_is_not_removed() {
    block_on(async {
        let shard = shard_without_its_last_edit().await;
        let wal = shard.last_wal();
        shard.db.mark().await.unwrap();
        shard.storage.corrupt(wal, FIRST_RECORD + 60, 1);
        let opened = Shard::open(shard.storage.clone(), shard.config).await;
        let error = opened.err().expect("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Corruption);
        assert!(error.to_string().contains(&wal.to_string()), "{error}");
        assert_eq!(shard.files(|name| *name == wal), [wal], "it is there still");
    });
}

#[test]
fn p6_a_wal_that_was_taken_away_while_it_waits_for_its_flush_is_noticed() {
    for by_the_flush in [false, true] {
        block_on(async {
            let shard = Shard::create(SMALL.config, 1).await;
            let (storage, db) = (&shard.storage, &shard.db);
            shard.set(b"a", b"1").await;
            let wal = shard.last_wal();
            shard.freeze().await;
            db.check_names().await.unwrap();
            // Somebody replaces the WAL by another file.
            let foreign = storage.bytes(wal);
            storage.lose(wal);
            storage.create(wal).await.unwrap();
            storage.overwrite(wal, &foreign);

            let result = if by_the_flush { db.flush_next().await } else { db.check_names().await };
            let error = result.expect_err("it is noticed");
            assert_eq!(error.kind(), ErrorKind::Poisoned);
            assert!(error.to_string().contains(&wal.to_string()), "{error}");
            assert_eq!(storage.bytes(wal), foreign, "nothing is written to it");
            assert!(db.set(b"b", b"2").is_err());
            let files = storage.files();
            assert!(db.remove_next().await.is_none());
            assert_eq!(storage.files(), files);
        });
    }
}

#[test]
fn p4_a_write_that_lands_late_in_a_released_wal_does_not_stop_a_start() {
    block_on(async {
        let shard = Shard::create(SMALL.config, 1).await;
        shard.set(b"a", b"1").await;
        let flushed = shard.last_wal();
        shard.flush().await;
        // The process is killed while its next write, the first of a WAL, is in flight. The kernel finishes the write
        // later.
        let next = shard.storage.crash(Fate::Kept);
        shard.set(b"b", b"1").await;
        let written = shard.last_wal();
        assert_ne!(written, flushed, "it is the first write of its WAL");
        let file = shard.storage.open(written, Access::Read).await.unwrap();
        let (result, late) = file.read_at(AlignedBuf::zeroed(BLOCK_BYTES), FIRST_RECORD).await;
        result.unwrap();

        // The next process finds the WAL empty, and releases it. The write lands before each operation of its start.
        next.record();
        Shard::open(next.clone(), shard.config).await.unwrap();
        let mut released = 0;
        for snapshot in next.take_snapshots() {
            let left = snapshot.crash(Fate::Kept);
            let Ok(file) = left.open(written, Access::Write).await else { continue };
            file.write_at(AlignedBuf::from(&late[..]), FIRST_RECORD).await.0.unwrap();
            let loaded = load(&left, OWNER).await.unwrap().expect("the shard is there");
            let (after, _) = Shard::open(left, shard.config).await.unwrap();
            assert_eq!(after.db.get(b"a", NOW).await.unwrap().unwrap(), "1");
            // While the manifest names the WAL, no reader can have been shown that the write is not there.
            if !loaded.state.names(written) {
                assert_eq!(after.db.get(b"b", NOW).await.unwrap(), None, "the start before did not show it");
                released += 1;
            }
        }
        assert!(0 < released, "the write has landed in the released WAL");
    });
}
