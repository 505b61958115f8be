//! Power cuts and failing operations at every point of a workload, on simulated storage: what was acknowledged is
//! there afterwards, and of the rest a prefix in commit order (P1, P4).
//!
//! The workload covers the first write of a new store, group commit, WAL rotation, flush, compaction, and the
//! clean stop. Every failing case is named by seed and operation.

use std::collections::BTreeMap;

use futures_executor::block_on;
use ringkeep::config::DbConfig;
use ringkeep::db::Db;
use ringkeep::error::{ErrorKind, Result};
use ringkeep::file_name::FileName;
use ringkeep::key::ShardId;
use ringkeep::manifest::load;
use ringkeep::random::Random;
use ringkeep::record::Owner;
use ringkeep::storage::sim::{Fate, Fault, SimStorage};

const OWNER: Owner = Owner { store_id: 9, shard: ShardId(0) };
const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 600_000,
    cache_bytes: 300_000,
    value_bytes_max: 20_000,
    open_files_max: 16,
};
const FATES: [Fate; 3] = [Fate::Lost, Fate::Random, Fate::Kept];

type Write = (Vec<u8>, Option<Vec<u8>>);

/// What was sent, in order, and how many of the first were acknowledged.
#[derive(Default)]
struct Journal {
    sent: Vec<Write>,
    acknowledged: usize,
}

impl Journal {
    fn state(&self, count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut state = BTreeMap::new();
        for (key, value) in &self.sent[..count] {
            match value {
                Some(value) => state.insert(key.clone(), value.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    /// Whether the engine holds a prefix of what was sent, with all that was acknowledged.
    async fn check(&self, db: &Db<SimStorage>, context: &str) {
        let mut found = BTreeMap::new();
        for (key, _) in &self.sent {
            if let Some(value) = db.get(key).await.unwrap_or_else(|error| panic!("{context}: {error}")) {
                found.insert(key.clone(), value.to_vec());
            }
        }
        let prefix = (self.acknowledged..=self.sent.len()).any(|count| self.state(count) == found);
        assert!(prefix, "{context}: {} of {} acknowledged", self.acknowledged, self.sent.len());
    }
}

/// Errors that leave the engine usable are passed over, as the background tasks do.
fn tolerate<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Poisoned => Err(error),
        _ => Ok(()),
    }
}

/// Runs until the end or the first error that ends a process.
async fn workload(storage: &SimStorage, config: DbConfig, seed: u64, journal: &mut Journal) -> Result<()> {
    let mut random = Random::new(seed);
    let db = Db::create(storage.clone(), OWNER, config).await?;
    for round in 0..6 {
        for _ in 0..8 {
            let mut tickets = Vec::new();
            for _ in 0..=random.below(3) {
                let key = format!("key-{}", random.below(12)).into_bytes();
                let length = [0, 3, 500, 6_000][random.below(4) as usize];
                let value = (random.below(4) != 0).then(|| vec![random.next_u64() as u8; length]);
                let result = match &value {
                    Some(value) => db.set(&key, value),
                    None => db.delete(&key).map(|(ticket, _)| ticket),
                };
                match result {
                    Ok(ticket) => {
                        journal.sent.push((key, value));
                        tickets.push(ticket);
                    }
                    Err(error) => tolerate::<()>(Err(error))?,
                }
            }
            while db.has_uncommitted() {
                db.commit_next().await?;
            }
            for ticket in tickets {
                ticket.await?;
            }
            journal.acknowledged = journal.sent.len();
        }
        db.request_flush();
        tolerate(db.prepare_spare().await)?;
        // In some rounds writes go on with two WALs behind them.
        if round % 3 != 1 {
            tolerate(db.flush_next().await)?;
            while db.has_frozen() && tolerate(db.flush_next().await).is_ok() && storage.operations() < 100_000
            {
            }
        }
        tolerate(db.compact_next().await)?;
    }
    tolerate(db.close(|_| {}).await)
}

async fn check_after(storage: &SimStorage, journal: &Journal, context: &str) {
    // Before the manifest of a new shard was in force, nothing can have been acknowledged.
    if load(storage, OWNER).await.unwrap_or_else(|error| panic!("{context}: {error}")).is_none() {
        assert_eq!(journal.acknowledged, 0, "{context}");
        return;
    }
    let opened = Db::open(storage.clone(), OWNER, CONFIG).await;
    let (db, _) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    journal.check(&db, context).await;
    // Liveness: it takes writes again.
    let ticket = db.set(b"alive", b"yes").unwrap();
    db.commit_next().await.unwrap();
    ticket.await.unwrap();
    assert_eq!(db.get(b"alive").await.unwrap().unwrap(), "yes");
}

fn operations(seed: u64) -> u64 {
    block_on(async {
        let storage = SimStorage::new(seed);
        let mut journal = Journal::default();
        workload(&storage, CONFIG, seed, &mut journal).await.unwrap();
        assert!(50 < journal.acknowledged && journal.acknowledged == journal.sent.len());
        check_after(&storage.crash(Fate::Lost), &journal, "after a clean stop").await;
        storage.operations()
    })
}

#[test]
fn p1_p4_a_power_cut_at_every_operation() {
    let seed = 7;
    let last = operations(seed);
    let mut states = 0;
    for operation in 1..=last {
        block_on(async {
            let storage = SimStorage::new(seed ^ operation);
            storage.set_fault(Some(Fault { operation, errno: libc::EIO, for_ever: true }));
            let mut journal = Journal::default();
            let _ = workload(&storage, CONFIG, seed, &mut journal).await;
            for fate in FATES {
                let context = format!("seed {seed}, operation {operation}, {fate:?}");
                check_after(&storage.crash(fate), &journal, &context).await;
                states += 1;
            }
        });
    }
    println!("{last} operations, {states} crash states, 0 lost, 0 wrong");
}

#[test]
fn p6_every_operation_fails_once() {
    let seed = 8;
    for operation in 1..=operations(seed) {
        for errno in [libc::EIO, libc::ENOSPC] {
            block_on(async {
                let storage = SimStorage::new(seed ^ operation);
                storage.set_fault(Some(Fault { operation, errno, for_ever: false }));
                let mut journal = Journal::default();
                let context = format!("seed {seed}, operation {operation}, errno {errno}");
                let result = workload(&storage, CONFIG, seed, &mut journal).await;
                let created = load(&storage, OWNER).await.is_ok_and(|state| state.is_some());
                assert!(result.is_ok() || !created || result.is_err_and(|e| e.kind() == ErrorKind::Poisoned));
                check_after(&storage.crash(Fate::Random), &journal, &context).await;
            });
        }
    }
}

#[test]
fn w3_without_syncs_a_crash_leaves_a_prefix_across_wals() {
    for seed in 0..60 {
        block_on(async {
            let config = DbConfig { sync_every_group: false, ..CONFIG };
            let storage = SimStorage::new(seed);
            let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
            let mut journal = Journal::default();
            for n in 0..6_u8 {
                let (key, value) = (vec![b'k', n], vec![n; 3_000]);
                db.set(&key, &value).unwrap();
                journal.sent.push((key, Some(value)));
                db.commit_next().await.unwrap();
                if n == 2 {
                    db.request_flush();
                    db.prepare_spare().await.unwrap();
                    assert!(db.has_frozen(), "the next writes go to another WAL");
                }
            }
            check_after(&storage.crash(Fate::Random), &journal, &format!("seed {seed}")).await;
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
        storage.corrupt(manifest.unwrap(), 4096 + 512 + 60, 1);
        let error = Db::open(storage.clone(), OWNER, CONFIG).await.err().expect("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Corruption);
        assert!(error.to_string().contains("holds write 2"), "{error}");
    });
}

#[test]
fn p5_a_named_file_that_is_missing_or_short_stops_the_start_with_its_name() {
    block_on(async {
        let storage = SimStorage::new(1);
        let mut journal = Journal::default();
        workload(&storage, CONFIG, 3, &mut journal).await.unwrap();
        let names: Vec<FileName> = storage.files().iter().map(|(name, _)| *name).collect();
        for name in names {
            for bytes in [0, 4096] {
                let damaged = storage.crash(Fate::Kept);
                let original = damaged.bytes(name);
                damaged.overwrite(name, &original[..original.len().min(bytes)]);
                if original.len() <= bytes {
                    continue;
                }
                let error = Db::open(damaged, OWNER, CONFIG).await.err();
                let error = error.unwrap_or_else(|| panic!("{name} cut to {bytes} bytes was not noticed"));
                assert!(error.to_string().contains(&name.to_string()), "{name}: {error}");
            }
        }
    });
}
