//! Power cuts and failing operations at every point of a workload, on simulated storage: what was acknowledged is
//! there afterwards, and of the rest a prefix in commit order (P1, P2, P4, P6).
//!
//! A workload covers the first write of a new store, group commit, marks, growth and rotation of the WAL, flush,
//! compaction, the switch of the manifest, the clean stop, and recovery after each of them: a store lives several lives,
//! and each ends at a random operation. Before each of its operations the disk is looked at as every fate of unsynced
//! bytes would leave it. Now and then the disk is damaged as well: then everything that was witnessed is there, or the
//! store is refused (W4). `RINGKEEP_STATES` says how many states to visit in all, `RINGKEEP_SEED` where the seeds begin.

mod common;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use common::{Row, setting};
use futures_executor::block_on;
use ringkeep::config::DbConfig;
use ringkeep::db::{Db, LogEnd};
use ringkeep::error::{ErrorKind, Result};
use ringkeep::file_name::FileName;
use ringkeep::key::{FileNumber, KeyHash, ShardId, UnixMillis};
use ringkeep::manifest::load;
use ringkeep::random::Random;
use ringkeep::record::Owner;
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::storage::sim::{Failure, Fate, Fault, SimStorage};
use ringkeep::storage::{Access, AlignedBuf, BLOCK_BYTES, File, Storage};

/// Before every expiry.
const NOW: UnixMillis = UnixMillis::START;

const OWNER: Owner = Owner { store_id: 9, shard: ShardId(0) };
const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 300_000,
    value_bytes_max: 20_000,
    open_files_max: 16,
    // The WAL is full before the memtable.
    wal_bytes: DbConfig::wal_bytes_for(16_000, 20_000),
    // A large value reaches beyond the limit, and beyond what is allocated.
    wal_step_bytes: 8_192,
    manifest_bytes: 16_384,
    key_hash: KeyHash::with_seed(1),
};
/// A store, and how long its values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scene {
    config: DbConfig,
    lengths: [usize; 4],
    /// Lives of one store.
    lives: u64,
}

const SMALL: Scene = Scene { config: CONFIG, lengths: [0, 3, 500, 6_000], lives: 5 };
/// Groups are committed before their sync, and synced now and then.
const INTERVAL: Scene = Scene { config: DbConfig { sync_every_group: false, ..CONFIG }, ..SMALL };
/// Sorted files take several writes.
const LARGE: Scene = Scene {
    config: DbConfig {
        memtable_bytes: 2 << 20,
        value_bytes_max: 200_000,
        wal_bytes: DbConfig::wal_bytes_for(2 << 20, 200_000),
        wal_step_bytes: 1 << 18,
        ..CONFIG
    },
    lengths: [0, 500, 60_000, 190_000],
    lives: 2,
};

impl Scene {
    fn value(&self, number: u32) -> Vec<u8> {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(4 + self.lengths[number as usize % 4], number.to_le_bytes()[0]);
        value
    }

    /// Panics if these bytes are no value.
    fn number(&self, bytes: &[u8]) -> u32 {
        let number = u32::from_le_bytes(*bytes.first_chunk().expect("a value begins with its number"));
        assert_eq!(bytes, self.value(number), "wrong bytes");
        number
    }
}

/// How each state of the disk is left by a crash.
const FATES: [Fate; 5] = [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random, Fate::Random];
const KEYS: usize = 12;

/// What each key holds: the number that its value was made of.
type State = [Option<u32>; KEYS];

fn key(key: usize) -> Vec<u8> {
    vec![b'k'; 1 + key % 3 * 40].into_iter().chain([b'a' + key.to_le_bytes()[0]]).collect()
}

/// What was sent, in order, and how many of the first were acknowledged.
#[derive(Clone)]
struct Journal {
    scene: Scene,
    sent: Vec<(usize, Option<u32>)>,
    /// How many of the first were committed, and acknowledged if every group is synced.
    committed: usize,
    /// How many of the first are durable.
    acknowledged: usize,
}

impl Journal {
    fn new(scene: Scene) -> Self {
        Self { scene, sent: Vec::new(), committed: 0, acknowledged: 0 }
    }

    fn state(&self, count: usize) -> State {
        let mut state = State::default();
        for (key, value) in &self.sent[..count] {
            state[*key] = *value;
        }
        state
    }

    /// The first `count` writes are committed: groups become so in order.
    fn commit(&mut self, count: usize) {
        self.committed = self.committed.max(count);
        if self.scene.config.sync_every_group {
            self.acknowledge(count);
        }
    }

    /// The first `count` writes are known to be durable.
    fn acknowledge(&mut self, count: usize) {
        self.acknowledged = self.acknowledged.max(count);
    }

    /// How many of the first writes make up what was found, if it is at least `least`.
    fn prefix(&self, found: &State, least: usize) -> Option<usize> {
        let mut state = self.state(least);
        (least..=self.sent.len()).find(|count| {
            if least < *count {
                let (key, value) = self.sent[count - 1];
                state[key] = value;
            }
            state == *found
        })
    }
}

/// What readers of the engine see.
async fn found(db: &Db<SimStorage>, scene: Scene) -> Result<State> {
    let mut state = State::default();
    for (index, slot) in state.iter_mut().enumerate() {
        *slot = db.get(&key(index), NOW).await?.map(|bytes| scene.number(&bytes));
    }
    Ok(state)
}

/// Errors that leave the engine usable are passed over, as the background tasks do.
fn tolerate<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Poisoned => Err(error),
        _ => Ok(()),
    }
}

/// Sends some batches of writes, and waits for the answers of each.
async fn write(db: &Db<SimStorage>, journal: &RefCell<Journal>, mut random: Random) -> Result<()> {
    let scene = journal.borrow().scene;
    for _ in 0..=random.below(4) {
        // Others are ahead or behind, so that a group forms while the one before is synced.
        for _ in 0..random.below(4) {
            db.pause().await;
        }
        // So the next group may begin a WAL while the one before is on its way to another.
        if random.below(6) == 0 {
            db.request_flush();
        }
        let mut tickets = Vec::new();
        for _ in 0..=random.below(3) {
            let index = random.below(KEYS as u64) as usize;
            let number = (random.below(4) != 0).then(|| random.next_u64() as u32);
            let result = match number {
                Some(number) => db.set(&key(index), &scene.value(number)),
                None => db.delete(&key(index), NOW).map(|(ticket, _)| ticket),
            };
            match result {
                Ok(ticket) => {
                    let mut journal = journal.borrow_mut();
                    journal.sent.push((index, number));
                    tickets.push((ticket, journal.sent.len()));
                }
                Err(error) => {
                    tolerate::<()>(Err(error))?;
                    // It may be that the WAL is too short.
                    tolerate(db.grow_wal().await)?;
                }
            }
        }
        for (ticket, count) in tickets {
            ticket.await?;
            journal.borrow_mut().commit(count);
        }
    }
    Ok(())
}

/// Reads now and then. What it sees must stay, as if it had been acknowledged (P2); in the other sync modes it is a write
/// that was sent, and no more.
async fn read(db: &Db<SimStorage>, journal: &RefCell<Journal>, mut random: Random) -> Result<()> {
    for _ in 0..random.below(12) {
        let index = random.below(KEYS as u64) as usize;
        // A read may fail where operations do; it must not be wrong.
        if let Ok(Some(bytes)) = db.get(&key(index), NOW).await {
            let mut journal = journal.borrow_mut();
            let number = journal.scene.number(&bytes);
            let seen = journal.sent.iter().rposition(|write| *write == (index, Some(number)));
            let count = seen.expect("it was sent") + 1;
            journal.commit(count);
        }
        db.pause().await;
    }
    Ok(())
}

/// One life of a store: until the clean stop, or the first error that ends a process.
async fn live(storage: &SimStorage, seed: u64, journal: &RefCell<Journal>) -> Result<()> {
    let scene = journal.borrow().scene;
    let db = match load(storage, OWNER).await? {
        None => Db::create(storage.clone(), OWNER, scene.config).await?,
        Some(_) => Db::open(storage.clone(), OWNER, scene.config).await?.0,
    };
    if let Ok(state) = found(&db, scene).await {
        // What is shown now has to stay (P2); the rest of what was sent never happened.
        let mut journal = journal.borrow_mut();
        let count = journal.prefix(&state, journal.acknowledged);
        let count = count.unwrap_or_else(|| panic!("found {state:?} after the open"));
        journal.sent.truncate(count);
        (journal.committed, journal.acknowledged) = (count, count);
    }
    // The committer takes group after group while the next ones form; it ends with the last write.
    let over = Cell::new(false);
    let commits = async {
        while !over.get() || db.has_uncommitted() {
            if db.has_uncommitted() {
                db.commit_next().await?;
            } else {
                db.pause().await;
            }
        }
        Ok(())
    };
    let rounds = async {
        let result = rounds(&db, journal, Random::new(seed)).await;
        over.set(true);
        result
    };
    let (commits, rounds) = tokio::join!(commits, rounds);
    commits.and(rounds)?;
    tolerate(db.close(|_| {}).await)
}

async fn rounds(db: &Db<SimStorage>, journal: &RefCell<Journal>, mut random: Random) -> Result<()> {
    for _ in 0..8 {
        db.request_flush();
        // Whatever background work there is goes on beside the writes; in some rounds there is none, and writes go on
        // with several WALs behind them.
        let (spare, flush, compact) = (random.below(4) != 0, random.below(3) != 0, random.below(2) == 0);
        let (mark, note, remove) = (random.below(3) == 0, random.below(4) == 0, random.below(2) == 0);
        if random.below(3) == 0 {
            db.request_mark();
        }
        let background = async {
            tolerate(db.grow_wal().await)?;
            if spare {
                tolerate(db.prepare_spare().await)?;
            }
            if flush {
                tolerate(db.flush_next().await)?;
            }
            if mark {
                tolerate(db.mark().await)?;
            }
            if note {
                tolerate(db.note_end().await)?;
            }
            tolerate(db.check_names().await)
        };
        let syncs = async {
            let committed = journal.borrow().committed;
            tolerate(db.sync().await)?;
            journal.borrow_mut().acknowledge(committed);
            Ok(())
        };
        let compaction = async {
            if compact {
                tolerate(db.compact_next(NOW).await)?;
            }
            if remove {
                while db.remove_next().await.is_some() {}
            }
            Ok(())
        };
        let mut seed = || Random::new(random.next_u64());
        let (a, b, c, d, e, f) = tokio::join!(
            write(db, journal, seed()),
            write(db, journal, seed()),
            read(db, journal, seed()),
            background,
            compaction,
            syncs
        );
        a.and(b).and(c).and(d).and(e).and(f)?;
    }
    Ok(())
}

/// Runs `future` and shows every state of the disk on the way to `visit`, with the number of writes that were
/// acknowledged for certain when it was so; until `visit` breaks.
fn watch<F: Future, B>(
    storage: &SimStorage,
    journal: &RefCell<Journal>,
    future: F,
    mut visit: impl FnMut(&SimStorage, usize) -> ControlFlow<B>,
) -> ControlFlow<B, F::Output> {
    let mut future = pin!(future);
    storage.record();
    for turns in 0.. {
        let acknowledged = journal.borrow().acknowledged;
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for snapshot in storage.take_snapshots() {
            visit(&snapshot, acknowledged)?;
        }
        if let Poll::Ready(output) = polled {
            return ControlFlow::Continue(output);
        }
        assert!(turns < 1_000_000, "the workload hangs");
    }
    unreachable!("the loop has no end")
}

/// Opens what a crash left while the power goes again, before each operation of the recovery. Returns the states.
fn check_recovery(storage: &SimStorage, journal: &Journal, acknowledged: usize, context: &str) -> u64 {
    storage.record();
    check(storage, journal, acknowledged, context);
    let snapshots = storage.take_snapshots();
    for snapshot in &snapshots {
        let context = format!("{context}, and again at operation {}", snapshot.operations());
        check(&snapshot.crash(Fate::Random), journal, acknowledged, &context);
    }
    snapshots.len() as u64
}

/// Opens what a crash left and reads it all. Returns how many of the writes it holds.
fn check(storage: &SimStorage, journal: &Journal, acknowledged: usize, context: &str) -> usize {
    block_on(async {
        // Before the manifest of a new shard was in force, nothing can have been acknowledged.
        if load(storage, OWNER).await.unwrap_or_else(|error| panic!("{context}: {error}")).is_none() {
            assert_eq!(acknowledged, 0, "{context}");
            return 0;
        }
        let scene = journal.scene;
        let opened = Db::open(storage.clone(), OWNER, scene.config).await;
        let (db, _) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
        let state = found(&db, scene).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        let Some(count) = journal.prefix(&state, acknowledged) else {
            panic!("{context}: {acknowledged} of {} acknowledged, found {state:?}", journal.sent.len());
        };
        // What was shown is not taken back by the next crash (P2).
        let again = storage.crash(Fate::Lost);
        let again = Db::open(again, OWNER, scene.config).await;
        let (again, _) = again.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(found(&again, scene).await.unwrap(), state, "{context}: shown, and then taken back");
        // It takes writes again, if need be after a flush.
        let ticket = match db.set(b"alive", b"yes") {
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                db.flush_next().await.unwrap();
                db.set(b"alive", b"yes")
            }
            result => result,
        };
        let ticket = ticket.unwrap_or_else(|error| panic!("{context}: {error}"));
        db.commit_next().await.unwrap();
        ticket.await.unwrap();
        assert_eq!(db.get(b"alive", NOW).await.unwrap().unwrap(), "yes");
        count
    })
}

/// Opens what a crash has left and a fault has damaged: it is refused, or it holds everything that was witnessed (W4).
/// Returns whether it was refused.
fn check_damaged(storage: &SimStorage, journal: &Journal, random: &mut Random, context: &str) -> bool {
    let witnessed = block_on(witnessed(storage, journal));
    let (name, bytes) = storage.files()[random.below(storage.files().len() as u64) as usize];
    let blocks = bytes / BLOCK_BYTES as u64;
    let block = random.below(blocks.max(1));
    let what = match random.below(4) {
        0 => {
            storage.make_unreadable(name, block);
            format!("block {block} of {name} unreadable")
        }
        1 => {
            // A torn write that takes its neighbours along.
            let mut damaged = storage.bytes(name);
            for byte in damaged.iter_mut().skip(block as usize * BLOCK_BYTES).take(BLOCK_BYTES) {
                *byte = random.next_u64() as u8;
            }
            storage.overwrite(name, &damaged);
            format!("block {block} of {name} overwritten")
        }
        2 => {
            let mut damaged = storage.bytes(name);
            damaged[(block as usize * BLOCK_BYTES).min(bytes as usize)..].fill(0);
            storage.overwrite(name, &damaged);
            format!("{name} zeroed from block {block} on")
        }
        _ => {
            storage.overwrite(name, &vec![0; bytes as usize]);
            format!("{name} replaced by zeros")
        }
    };
    let context = format!("{context}, {what}");
    let opened = block_on(async {
        match load(storage, OWNER).await? {
            None => Ok(None),
            Some(_) => {
                let (db, _) = Db::open(storage.clone(), OWNER, journal.scene.config).await?;
                found(&db, journal.scene).await.map(Some)
            }
        }
    });
    match opened {
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io), "{context}: {error:?}");
            true
        }
        Ok(state) => {
            let count = state.map_or(Some(0), |state| journal.prefix(&state, 0));
            let count = count.unwrap_or_else(|| panic!("{context}: no prefix of the writes"));
            let last = state.map_or(Some(0), |state| journal.prefix(&state, witnessed));
            assert!(last.is_some(), "{context}: {count} writes are left, and {witnessed} were witnessed");
            false
        }
    }
}

/// How many writes are witnessed: those that are left if the log ends where the newest mark ends.
async fn witnessed(storage: &SimStorage, journal: &Journal) -> usize {
    let scene = journal.scene;
    let whole = storage.crash(Fate::Kept);
    if load(&whole, OWNER).await.is_ok_and(|loaded| loaded.is_none()) {
        return 0;
    }
    let (db, recovered) = Db::open(whole, OWNER, scene.config).await.expect("it is not damaged yet");
    let state = match recovered.log_end {
        None => found(&db, scene).await,
        Some(LogEnd { wal, witnessed, .. }) => {
            let cut = storage.crash(Fate::Kept);
            let mut bytes = cut.bytes(FileName::Wal(wal));
            bytes[witnessed as usize..].fill(0);
            cut.overwrite(FileName::Wal(wal), &bytes);
            let (db, _) = Db::open(cut, OWNER, scene.config).await.expect("it ends where a mark says");
            found(&db, scene).await
        }
    };
    journal.prefix(&state.expect("it is not damaged"), 0).expect("a prefix of the writes")
}

/// Several lives of one store. Returns what was tried.
fn power_cuts(scene: Scene, seed: u64) -> Tried {
    let mut storage = SimStorage::new(seed);
    let mut random = Random::new(seed);
    let journal = RefCell::new(Journal::new(scene));
    let (mut states, mut acknowledged, mut detected) = (0, 0, 0);
    for life in 0..scene.lives {
        // Some lives end with a clean stop.
        let cut = storage.operations() + random.below(600);
        let before = journal.borrow().acknowledged;
        let life_seed = random.next_u64();
        let mut dice = Random::new(life_seed);
        let run = live(&storage, life_seed, &journal);
        let ended = watch(&storage, &journal, run, |snapshot, acknowledged| {
            let journal = journal.borrow();
            for fate in FATES {
                let context =
                    format!("seed {seed}, life {life}, operation {}, {fate:?}", snapshot.operations());
                let left = snapshot.crash(fate);
                states += 1;
                if dice.below(40) == 0 && !left.files().is_empty() {
                    // Before the check: what it writes lands beside the damage.
                    let damaged = left.crash(Fate::Kept);
                    detected += u64::from(check_damaged(&damaged, &journal, &mut dice, &context));
                    states += 1;
                }
                if dice.below(40) == 0 {
                    states += check_recovery(&left, &journal, acknowledged, &context);
                } else {
                    check(&left, &journal, acknowledged, &context);
                }
            }
            if snapshot.operations() == cut {
                return ControlFlow::Break((snapshot.clone(), acknowledged));
            }
            ControlFlow::Continue(())
        });
        let (left, sure) = match ended {
            ControlFlow::Break(left) => left,
            ControlFlow::Continue(result) => {
                result.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
                (storage.clone(), journal.borrow().acknowledged)
            }
        };
        let mut journal = journal.borrow_mut();
        (journal.acknowledged, acknowledged) = (sure, acknowledged + sure.saturating_sub(before) as u64);
        storage = left.crash(if random.below(2) == 0 { Fate::Random } else { Fate::Killed });
    }
    Tried { runs: states, acknowledged, detected }
}

/// What was tried: runs, acknowledged writes, and damages that were refused.
#[derive(Debug, Clone, Copy, Default)]
struct Tried {
    runs: u64,
    acknowledged: u64,
    detected: u64,
}

impl Tried {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.detected += other.detected;
    }
}

/// Names the seed of whatever goes wrong.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat it with RINGKEEP_SEED={}", self.0);
        }
    }
}

/// Spreads seeds over the processors until `states` have been visited.
fn campaign(name: &'static str, states: u64, run: fn(u64) -> Tried) {
    let first = setting("RINGKEEP_SEED", 7);
    let begin = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let totals = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let (mut tried, mut seed) = (Tried::default(), first + worker);
                    while tried.runs < states.div_ceil(workers) {
                        let _named = Named(seed);
                        tried.add(run(seed));
                        seed += workers;
                    }
                    tried
                })
            })
            .collect();
        let mut totals = Tried::default();
        handles.into_iter().for_each(|handle| totals.add(handle.join().unwrap()));
        totals
    });
    let Tried { runs, acknowledged, detected } = totals;
    Row { name, runs, acknowledged, detected, seconds: begin.elapsed(), ..Row::default() }.report();
}

#[test]
fn p1_p2_p4_a_power_cut_at_every_operation() {
    let states = setting("RINGKEEP_STATES", 100_000);
    campaign("power cut at every operation", states, |seed| power_cuts(SMALL, seed));
}

#[test]
fn p4_a_power_cut_at_every_operation_with_a_sync_now_and_then() {
    let states = setting("RINGKEEP_STATES", 100_000) / 4;
    campaign("power cut at every operation, synced now and then", states, |seed| power_cuts(INTERVAL, seed));
}

#[test]
fn p4_a_power_cut_at_every_operation_with_files_of_several_writes() {
    let states = setting("RINGKEEP_STATES", 100_000) / 10;
    campaign("power cut at every operation, files of several writes", states, |seed| power_cuts(LARGE, seed));
}

/// A life with a failing operation, for every operation and failure: the first life of a store, or its second.
/// Returns runs and acknowledged writes.
fn failures(seed: u64) -> Tried {
    let (mut runs, mut acknowledged) = (0, 0);
    let first = SimStorage::new(seed);
    let journal_before = RefCell::new(Journal::new(SMALL));
    if seed.is_multiple_of(2) {
        block_on(live(&first, seed, &journal_before)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    for failure in [Failure::Errno(libc::EIO), Failure::Errno(libc::ENOSPC), Failure::Short] {
        for for_ever in [false, true] {
            for operation in first.operations() + 1.. {
                let storage = first.crash(Fate::Killed);
                storage.set_fault(Some(Fault { operation, failure, for_ever }));
                let journal = RefCell::new(journal_before.borrow().clone());
                let context =
                    format!("seed {seed}, operation {operation}, {failure:?}, for ever: {for_ever}");
                let begun = journal.borrow().sent.len();
                let result = block_on(live(&storage, seed + 1, &journal));
                if storage.operations() < operation {
                    break;
                }
                let journal = journal.borrow();
                if let Err(error) = result {
                    // A store that was in force ends by the failure of its WAL or manifest only.
                    let served = begun < journal.sent.len();
                    assert!(!served || error.kind() == ErrorKind::Poisoned, "{context}: {error:?}");
                }
                for fate in [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random] {
                    let context = format!("{context}, {fate:?}");
                    check(&storage.crash(fate), &journal, journal.acknowledged, &context);
                    runs += 1;
                }
                acknowledged += journal.acknowledged as u64;
            }
        }
    }
    Tried { runs, acknowledged, detected: 0 }
}

#[test]
fn p6_every_operation_fails_once_and_for_ever() {
    campaign("failure of every operation", setting("RINGKEEP_STATES", 100_000) / 10, failures);
}

#[test]
fn w3_without_syncs_a_crash_leaves_a_prefix_across_wals() {
    for seed in 0..60 {
        block_on(async {
            let config = DbConfig { sync_every_group: false, ..CONFIG };
            let storage = SimStorage::new(seed);
            let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
            let mut journal = Journal::new(INTERVAL);
            for (index, number) in [7, 3, 11, 2, 15, 1].into_iter().enumerate() {
                db.grow_wal().await.unwrap();
                let value = SMALL.value(number);
                if db.set(&key(index), &value).is_err() {
                    db.grow_wal().await.unwrap();
                    db.set(&key(index), &value).unwrap();
                }
                journal.sent.push((index, Some(number)));
                db.commit_next().await.unwrap();
                if index == 2 {
                    db.request_flush();
                    db.prepare_spare().await.unwrap();
                    assert!(db.has_frozen(), "the next writes go to another WAL");
                }
            }
            let after = storage.crash(Fate::Random);
            let (db, _) = Db::open(after, OWNER, config).await.unwrap();
            let state = found(&db, SMALL).await.unwrap();
            assert!(journal.prefix(&state, 0).is_some(), "seed {seed}: {state:?}");
        });
    }
}

#[test]
fn w1_a_wal_whose_edit_is_lost_is_missed_not_removed() {
    block_on(async {
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
        db.set(b"a", b"1").unwrap();
        db.commit_next().await.unwrap();
        db.request_flush();
        db.prepare_spare().await.unwrap();
        db.set(b"b", b"2").unwrap();
        db.commit_next().await.unwrap();
        // The last edit of the manifest, which names the second WAL, rots: it cannot be told from a torn one.
        let manifest =
            storage.files().iter().map(|(name, _)| *name).find(|name| matches!(name, FileName::Manifest(_)));
        storage.corrupt(manifest.unwrap(), FIRST_RECORD + 512 + 60, 1);
        let error = Db::open(storage.clone(), OWNER, CONFIG).await.err().expect("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Corruption);
        assert!(error.to_string().contains("holds write 2"), "{error}");
    });
}

#[test]
fn w1_a_wal_that_nothing_names_and_whose_writes_are_damaged_is_not_removed() {
    block_on(async {
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
        let set = async |key: &[u8]| {
            db.set(key, b"1").unwrap();
            db.commit_next().await.unwrap();
        };
        set(b"a").await;
        db.request_flush();
        db.prepare_spare().await.unwrap();
        set(b"b").await;
        db.mark().await.unwrap();
        let manifest =
            storage.files().iter().map(|file| file.0).find(|name| matches!(name, FileName::Manifest(_)));
        storage.corrupt(manifest.unwrap(), FIRST_RECORD + 512 + 60, 1);
        let wal = FileName::Wal(db.durable().unwrap().0);
        storage.corrupt(wal, FIRST_RECORD + 60, 1);
        let error = Db::open(storage.clone(), OWNER, CONFIG).await.err().expect("the start is refused");
        assert!(
            error.kind() == ErrorKind::Corruption && error.to_string().contains(&wal.to_string()),
            "{error}"
        );
        assert!(storage.files().iter().any(|(name, _)| *name == wal), "it is there still");
    });
}

#[test]
fn p6_a_wal_that_was_taken_away_while_it_waits_for_its_flush_is_noticed() {
    block_on(async {
        for flush in [false, true] {
            let storage = SimStorage::new(1);
            let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
            db.set(b"a", b"1").unwrap();
            db.commit_next().await.unwrap();
            let wal = FileName::Wal(db.durable().unwrap().0);
            db.request_flush();
            db.prepare_spare().await.unwrap();
            assert!(db.has_frozen());
            db.check_names().await.unwrap();
            // Somebody puts another file in its place.
            let foreign = storage.bytes(wal);
            storage.lose(wal);
            storage.create(wal).await.unwrap();
            storage.overwrite(wal, &foreign);
            let result = if flush { db.flush_next().await } else { db.check_names().await };
            let error = result.expect_err("it is noticed");
            assert!(
                error.kind() == ErrorKind::Poisoned && error.to_string().contains(&wal.to_string()),
                "{error}"
            );
            assert_eq!(storage.bytes(wal), foreign, "nothing is written to it");
            assert!(db.set(b"b", b"2").is_err());
            let files = storage.files();
            assert!(db.remove_next().await.is_none() && storage.files() == files);
        }
    });
}

#[test]
fn p4_a_write_that_lands_late_in_a_released_wal_does_not_stop_a_start() {
    block_on(async {
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
        let set = async |key: &[u8]| {
            let ticket = db.set(key, b"1").unwrap();
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
        };
        set(b"a").await;
        db.request_flush();
        db.prepare_spare().await.unwrap();
        db.flush_next().await.unwrap();
        // The process is killed with its next write, the first of a WAL, on the way; the kernel finishes it later.
        let next_life = storage.crash(Fate::Kept);
        let name = FileName::Wal(db.durable().map_or(FileNumber(0), |(number, _)| number));
        set(b"b").await;
        let written = FileName::Wal(db.durable().expect("a group was committed").0);
        assert_ne!(name, written, "it is the first write of its WAL");
        let file = storage.open(written, Access::Read).await.unwrap();
        let (result, late) = file.read_at(AlignedBuf::zeroed(BLOCK_BYTES), FIRST_RECORD).await;
        result.unwrap();

        // The next life finds the WAL empty, and gives it up. The write lands at each of its operations.
        next_life.record();
        Db::open(next_life.clone(), OWNER, CONFIG).await.unwrap();
        let mut released = 0;
        for snapshot in next_life.take_snapshots() {
            let left = snapshot.crash(Fate::Kept);
            let Ok(file) = left.open(written, Access::Write).await else { continue };
            file.write_at(AlignedBuf::from(&late[..]), FIRST_RECORD).await.0.unwrap();
            let loaded = load(&left, OWNER).await.unwrap().expect("the shard is there");
            let (db, _) = Db::open(left, OWNER, CONFIG).await.unwrap();
            assert_eq!(db.get(b"a", NOW).await.unwrap().unwrap(), "1");
            // Before, nobody had looked: then it may have been written, and was not acknowledged.
            if !loaded.state.names(written) {
                assert_eq!(db.get(b"b", NOW).await.unwrap(), None, "the start before did not show it");
                released += 1;
            }
        }
        assert!(0 < released, "the write has landed in the released WAL");
    });
}
