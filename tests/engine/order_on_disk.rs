//! The order in which a shard makes things durable (P7), on simulated storage: files first, then their names, then the edit
//! that names them, then the removal of what the edit replaces.
//!
//! Before each operation of a workload, the test looks at the disks that a power cut or the end of the process would
//! leave. On each of them, every file that the manifest names must be there, complete and under its name. Two of these
//! disks are constructed: of everything that was not synced, one has lost only the manifest, and the other has kept
//! only the manifest. The workload flushes, compacts over several levels, rotates, recycles and removes WALs, fills
//! manifests, stops, and starts again. `RINGKEEP_STATES` says how many disks to look at, `RINGKEEP_SEED` where the
//! seeds begin.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::common::setting;
use futures_executor::block_on;
use ringkeep::check::check_shard;
use ringkeep::config::DbConfig;
use ringkeep::db::Db;
use ringkeep::error::{ErrorKind, Result};
use ringkeep::file_name::FileName;
use ringkeep::identity::Owner;
use ringkeep::key::{FileNumber, KeyHash, SLOT_COUNT, ShardId, UnixMillis};
use ringkeep::manifest::{Loaded, load};
use ringkeep::presence::missing;
use ringkeep::random::Random;
use ringkeep::storage::sim::{Fate, SimStorage};
use ringkeep::storage::{Storage, list_files};

/// Before every expiry.
const NOW: UnixMillis = UnixMillis::START;
const OWNER: Owner = Owner { store_id: 9, shard: ShardId(0) };

/// Memtables take many writes, and are flushed when the workload asks for it. Compaction goes from L0 to L1.
const LARGE: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 300_000,
    value_bytes_max: 6_000,
    large_value_bytes: 500,
    open_files_max: 16,
    // The WAL is full before the memtable, and grows.
    wal_bytes: DbConfig::wal_bytes_for(20_000, 6_000),
    wal_step_bytes: 8_192,
    // A few edits fill the manifest.
    manifest_bytes: 12_288,
    key_hash: KeyHash::with_seed(1),
};
/// A memtable takes one write, and a level takes a few values, so files move and merge over several levels.
const SMALL: DbConfig = DbConfig { memtable_bytes: 2_000, ..LARGE };

/// What the workload has reached.
#[derive(Default)]
struct Seen {
    /// Disks that were looked at.
    disks: u64,
    manifests: BTreeSet<FileNumber>,
    wals: BTreeSet<FileNumber>,
    /// Sorted files, with their levels.
    ssts: BTreeSet<(usize, FileNumber)>,
    /// Whether a manifest has been in force.
    in_force: bool,
}

impl Seen {
    fn manifest(&mut self, loaded: &Loaded) {
        self.manifests.insert(loaded.number);
        self.wals.extend(loaded.state.wals.keys());
        for (level, files) in loaded.state.version.levels() {
            self.ssts.extend(files.iter().map(|file| (level, file.number)));
        }
        self.in_force = true;
    }

    /// Looks at every disk that a crash at this moment may leave, as far as the order of operations matters.
    fn look(&mut self, now: &SimStorage, context: &str) {
        let lost = now.crash(Fate::Lost);
        let kept = now.crash(Fate::Kept);
        if let Some(loaded) =
            block_on(load(&lost, OWNER)).unwrap_or_else(|error| panic!("{context}: {error}"))
        {
            self.manifest(&loaded);
            // A name that is gone from the directory may be gone from the disk.
            let there: BTreeSet<_> = now.files().into_iter().map(|(name, _)| name).collect();
            for name in named(&loaded) {
                assert!(
                    there.contains(&name),
                    "{context}: {name} is removed, and the durable manifest names it"
                );
            }
        }
        let killed = now.crash(Fate::Killed);
        for (fate, disk) in [
            ("only the manifest lost", &with_manifest_of(&kept, &lost)),
            ("only the manifest kept", &with_manifest_of(&lost, &kept)),
            ("all lost", &lost),
            ("all kept", &kept),
            ("killed", &killed),
            ("killed, and the power went", &killed.crash(Fate::Random)),
            ("some kept", &now.crash(Fate::Random)),
        ] {
            self.disks += 1;
            assert_complete(disk, self.in_force, &format!("{context}, {fate}"));
        }
    }
}

/// Every file that recovery needs.
fn named(loaded: &Loaded) -> impl Iterator<Item = FileName> {
    let wals = loaded.state.all_wals().map(|(number, _)| FileName::Wal(number));
    let ssts = loaded.state.version.files().map(|file| FileName::Sst(file.number));
    wals.chain(ssts).chain([FileName::Current, FileName::Manifest(loaded.number)])
}

/// `disk` with `CURRENT` and the manifest of `other`.
fn with_manifest_of(disk: &SimStorage, other: &SimStorage) -> SimStorage {
    let disk = disk.crash(Fate::Kept);
    let loaded = block_on(load(other, OWNER)).unwrap();
    let Some(loaded) = loaded else { return disk };
    let replaced = [FileName::Manifest(loaded.number), FileName::Current];
    for name in replaced {
        let bytes = other.bytes(name);
        if name == FileName::Current && !disk.files().iter().any(|(there, _)| *there == name) {
            block_on(disk.create(name)).unwrap();
        }
        // The manifest must already have its name on this disk.
        disk.overwrite(name, &bytes);
    }
    disk
}

/// Checks that every file that the manifest names is there, and that every byte of these files is what was written.
fn assert_complete(disk: &SimStorage, in_force: bool, context: &str) {
    block_on(async {
        let loaded = load(disk, OWNER).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        let Some(loaded) = loaded else {
            assert!(!in_force, "{context}: no manifest is in force any more");
            return;
        };
        let missing = missing(disk, &loaded.state, &list_files(disk).unwrap());
        assert!(missing.is_empty(), "{context}: {missing:?}");
        let report = check_shard(disk, OWNER, &[OWNER.shard; SLOT_COUNT], |_| {}).await;
        let sound = report.damage.is_empty() && report.unread.is_empty() && report.later.is_empty();
        assert!(sound, "{context}: {report:?}");
    });
}

/// Ignores errors that leave the engine usable, as the background tasks do.
fn tolerate<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Poisoned => Err(error),
        _ => Ok(()),
    }
}

/// One life of a shard, with a clean stop at its end.
async fn live(storage: &SimStorage, config: DbConfig, mut random: Random) -> Result<()> {
    let db = match load(storage, OWNER).await? {
        None => Db::create(storage.clone(), OWNER, config).await?,
        Some(_) => Db::open(storage.clone(), OWNER, config).await?.0,
    };
    let loaded = load(storage, OWNER).await?.expect("the shard is open");
    let needed: BTreeSet<_> = named(&loaded).collect();
    for (name, _) in storage.files() {
        assert!(needed.contains(&name), "{name} is left over, and an open removes what nothing names (X3)");
    }
    for _ in 0..16 {
        let mut dice = || Random::new(random.next_u64());
        let (writes, background, compaction) =
            tokio::join!(write(&db, dice()), flush(&db, dice()), compact(&db, dice()));
        writes.and(background).and(compaction)?;
    }
    tolerate(db.close(|_| {}).await)
}

async fn write(db: &Db<SimStorage>, mut random: Random) -> Result<()> {
    for _ in 0..random.below(4) {
        for _ in 0..=random.below(3) {
            let key = [b'a' + random.below(20) as u8];
            let length = [1, 300, 2_000, 5_000][random.below(4) as usize];
            let value: Vec<_> = (0..length).map(|_| random.next_u64() as u8).collect();
            tolerate(match random.below(5) {
                0 => db.delete(&key, NOW).map(drop),
                _ => db.set(&key, &value).map(drop),
            })?;
        }
        tolerate(db.grow_wal().await)?;
        if db.has_uncommitted() {
            db.commit_next().await?;
        }
        if random.below(2) == 0 {
            db.request_flush();
        }
    }
    Ok(())
}

async fn flush(db: &Db<SimStorage>, mut random: Random) -> Result<()> {
    for _ in 0..3 {
        match random.below(6) {
            0 => tolerate(db.mark().await)?,
            1 => tolerate(db.note_end().await)?,
            2 | 3 => tolerate(db.prepare_spare().await)?,
            _ => {}
        }
        // A flush waits until all writes of its memtable are committed, and this function would wait with it.
        if !db.has_uncommitted() {
            tolerate(db.flush_next().await)?;
        }
    }
    Ok(())
}

async fn compact(db: &Db<SimStorage>, mut random: Random) -> Result<()> {
    for _ in 0..random.below(3) {
        tolerate(db.compact_next(NOW).await)?;
        if random.below(2) == 0 {
            while db.remove_next().await.is_some() {}
        }
    }
    Ok(())
}

/// Runs `future`, and shows `visit` the disk before each operation. Stops when `visit` breaks.
fn watch<F: Future, B>(
    storage: &SimStorage,
    future: F,
    mut visit: impl FnMut(&SimStorage) -> ControlFlow<B>,
) -> ControlFlow<B, F::Output> {
    let mut future = pin!(future);
    storage.record();
    for _ in 0..1_000_000 {
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for snapshot in storage.take_snapshots() {
            visit(&snapshot)?;
        }
        if let Poll::Ready(output) = polled {
            return ControlFlow::Continue(output);
        }
    }
    panic!("the workload hangs")
}

#[test]
fn p7_what_the_manifest_names_is_there_whenever_the_power_goes() {
    let (states, first) = (setting("RINGKEEP_STATES", 15_000), setting("RINGKEEP_SEED", 7));
    let mut total = Seen::default();
    for seed in first.. {
        let config = if seed % 2 == 0 { LARGE } else { SMALL };
        let mut seen = Seen::default();
        let mut storage = SimStorage::new(seed);
        let mut random = Random::new(seed);
        // The first life runs to its end. The second life ends at some operation, and the third life recovers.
        for life in 0..3 {
            let cut = storage.operations() + random.below(600) + 1;
            let run = live(&storage, config, Random::new(random.next_u64()));
            let ended = watch(&storage, run, |snapshot| {
                let operation = snapshot.operations();
                seen.look(snapshot, &format!("seed {seed}, life {life}, before operation {}", operation + 1));
                if life == 1 && operation == cut {
                    return ControlFlow::Break(snapshot.clone());
                }
                ControlFlow::Continue(())
            });
            let left = match ended {
                ControlFlow::Break(left) => left,
                ControlFlow::Continue(result) => {
                    result.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
                    storage.clone()
                }
            };
            storage = left.crash(if random.below(2) == 0 { Fate::Random } else { Fate::Killed });
        }
        total.disks += seen.disks;
        total.manifests.append(&mut seen.manifests);
        total.wals.append(&mut seen.wals);
        total.ssts.append(&mut seen.ssts);
        if states <= total.disks && first < seed {
            break;
        }
    }
    let files = |level| total.ssts.iter().filter(|(at, _)| *at == level).count();
    assert!(
        4 < total.manifests.len() && 10 < total.wals.len(),
        "manifests are replaced, and WALs are rotated"
    );
    assert!(20 < files(0) && 5 < files(1) && 3 < files(2), "files are flushed, merged and moved down");
}
