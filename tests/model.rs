//! Random operations, flushes, compactions, clean stops and crashes on production code over simulated storage,
//! against a sorted map. proptest prints the seed and the shortest failing list of operations.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use futures_executor::block_on;
use proptest::prelude::*;
use ringkeep::config::DbConfig;
use ringkeep::db::{Db, Progress, Ticket};
use ringkeep::error::ErrorKind;
use ringkeep::key::{KeyHash, ShardId, UnixMillis};
use ringkeep::record::Owner;
use ringkeep::storage::sim::{Fate, SimStorage};

/// Before every expiry.
const NOW: UnixMillis = UnixMillis::START;

const OWNER: Owner = Owner { store_id: 77, shard: ShardId(2) };

#[derive(Debug, Clone)]
enum Step {
    Set(u8, u16),
    Delete(u8),
    Get(u8),
    Commit,
    Flush,
    Compact,
    Stop,
    Crash(Fate),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![Just(Fate::Lost), Just(Fate::Kept), Just(Fate::Random)];
    let step = prop_oneof![
        12 => (any::<u8>(), any::<u16>()).prop_map(|(key, value)| Step::Set(key % 40, value)),
        4 => any::<u8>().prop_map(|key| Step::Delete(key % 40)),
        6 => any::<u8>().prop_map(|key| Step::Get(key % 40)),
        6 => Just(Step::Commit),
        2 => Just(Step::Flush),
        2 => Just(Step::Compact),
        1 => Just(Step::Stop),
        1 => fate.prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..150)
}

fn config() -> impl Strategy<Value = DbConfig> {
    // Tiny limits of every kind; answers may not depend on them.
    (1_usize..1_500_000, 1_usize..200_000, any::<bool>(), 16_usize..20, 4_u64..10, 1_u64..60).prop_map(
        |(memtable_bytes, cache_bytes, sync_every_group, open_files_max, manifest_blocks, step)| DbConfig {
            sync_every_group,
            memtable_bytes,
            cache_bytes,
            value_bytes_max: 80_000,
            open_files_max,
            wal_bytes: DbConfig::wal_bytes_for(memtable_bytes, 80_000),
            wal_step_bytes: step * 4096,
            manifest_bytes: manifest_blocks * 4096,
            key_hash: KeyHash::with_seed(1),
        },
    )
}

fn key(number: u8) -> Vec<u8> {
    // Short and long keys, some a prefix of others.
    vec![b'k'; 1 + usize::from(number % 5) * 60].into_iter().chain([number]).collect()
}

fn value(number: u16) -> Vec<u8> {
    number.to_le_bytes().repeat(usize::from(number) / 2)
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The engine, what readers must see, and the writes that are not committed yet, in order.
struct World {
    storage: SimStorage,
    config: DbConfig,
    db: Db<SimStorage>,
    visible: Map,
    pending: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    tickets: Vec<Ticket>,
    /// States that a crash may leave: the one that was synced, and every later one in commit order.
    possible: Vec<Map>,
}

impl World {
    async fn new(config: DbConfig) -> Self {
        let storage = SimStorage::new(5);
        let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
        let (visible, possible) = (Map::new(), vec![Map::new()]);
        Self { storage, config, db, visible, pending: Vec::new(), tickets: Vec::new(), possible }
    }

    fn apply(map: &mut Map, (key, value): &(Vec<u8>, Option<Vec<u8>>)) {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }

    /// What is there once everything pending is committed.
    fn latest(&self) -> Map {
        let mut map = self.visible.clone();
        self.pending.iter().for_each(|write| Self::apply(&mut map, write));
        map
    }

    async fn commit(&mut self) {
        self.db.commit_next().await.unwrap();
        // With one committer the queue is taken group by group; commit until all is through.
        while !self.pending.is_empty() {
            let before = self.db.committed().1;
            self.db.commit_next().await.unwrap();
            if self.db.committed().1 == before {
                break;
            }
        }
        for ticket in self.tickets.drain(..) {
            ticket.await.unwrap();
        }
        for write in self.pending.drain(..) {
            Self::apply(&mut self.visible, &write);
            self.possible.push(self.visible.clone());
        }
        if self.config.sync_every_group {
            self.possible = vec![self.visible.clone()];
        }
    }

    /// Makes room the way the background tasks do, then tries again.
    async fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        for _ in 0..200 {
            let result = match &value {
                Some(value) => self.db.set(&key, value),
                None => match self.db.delete(&key, NOW) {
                    Ok((ticket, lookup)) => {
                        let existed = lookup.finish(&self.db, &key).await.unwrap();
                        assert_eq!(existed.is_some(), self.latest().contains_key(&key));
                        Ok(ticket)
                    }
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(ticket) => {
                    self.tickets.push(ticket);
                    self.pending.push((key, value));
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    self.commit().await;
                    self.db.grow_wal().await.unwrap();
                    self.db.prepare_spare().await.unwrap();
                    self.db.flush_next().await.unwrap();
                    self.db.compact_next(NOW).await.unwrap();
                    self.db.remove_next().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the engine never makes room");
    }

    async fn check(&self, key: &[u8]) {
        let found = self.db.get(key, NOW).await.unwrap();
        assert_eq!(found.as_deref(), self.visible.get(key).map(Vec::as_slice));
    }

    async fn check_all(&self) {
        for number in 0..40 {
            self.check(&key(number)).await;
        }
    }

    async fn reopen(&mut self) {
        let (db, _) = Db::open(self.storage.clone(), OWNER, self.config).await.unwrap();
        self.db = db;
        let mut found = Map::new();
        for number in 0..40 {
            if let Some(value) = self.db.get(&key(number), NOW).await.unwrap() {
                found.insert(key(number), value.to_vec());
            }
        }
        // P1, P4: a prefix in commit order, from what was synced on.
        assert!(self.possible.contains(&found), "{} possible states", self.possible.len());
        self.visible = found.clone();
        self.possible = vec![found];
        self.pending.clear();
        self.tickets.clear();
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Set(number, length) => self.write(key(number), Some(value(length))).await,
            Step::Delete(number) => self.write(key(number), None).await,
            Step::Get(number) => self.check(&key(number)).await,
            Step::Commit => self.commit().await,
            Step::Flush => {
                self.commit().await;
                self.db.request_flush();
                self.db.prepare_spare().await.unwrap();
                while self.db.has_frozen() {
                    self.db.flush_next().await.unwrap();
                }
            }
            Step::Compact => {
                while self.db.compact_next(NOW).await.unwrap() {}
                while self.db.remove_next().await.is_some() {}
            }
            Step::Stop => {
                self.commit().await;
                self.db.close(|_| {}).await.unwrap();
                self.possible = vec![self.visible.clone()];
                self.storage = self.storage.crash(Fate::Lost);
                self.reopen().await;
            }
            Step::Crash(fate) => {
                let mut state = self.visible.clone();
                for write in &self.pending {
                    Self::apply(&mut state, write);
                    self.possible.push(state.clone());
                }
                self.storage = self.storage.crash(fate);
                self.reopen().await;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_sorted_map(config in config(), steps in steps()) {
        block_on(async {
            let mut world = World::new(config).await;
            for step in &steps {
                world.step(step).await;
            }
            world.commit().await;
            world.check_all().await;
        });
    }
}

const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 1 << 20,
    value_bytes_max: 1000,
    open_files_max: 16,
    wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1000),
    wal_step_bytes: 1 << 20,
    manifest_bytes: 1 << 16,
    key_hash: KeyHash::with_seed(1),
};

#[test]
fn f1_a_search_that_a_flush_overtakes_leaves_no_old_value_behind() {
    let set = async |db: &Db<SimStorage>, value: &[u8]| {
        let ticket = db.set(b"key", value).unwrap();
        db.commit_next().await.unwrap();
        ticket.await.unwrap();
    };
    let flushed = block_on(async {
        let storage = SimStorage::new(1);
        let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
        set(&db, b"old").await;
        db.close(|_| {}).await.unwrap();
        storage
    });
    // The search needs the disk, and ends after each number of steps of the flush that overtakes it.
    let mut steps = 0;
    loop {
        let storage = flushed.crash(Fate::Kept);
        let db = block_on(Db::open(storage, OWNER, CONFIG)).unwrap().0;
        let mut search = db.lookup(b"key", NOW).unwrap();
        assert!(matches!(search.poll_cached(&db, b"key").unwrap(), Progress::NeedsDisk));
        block_on(async {
            set(&db, b"new").await;
            db.request_flush();
            db.prepare_spare().await.unwrap();
        });
        let mut flush = pin!(db.flush_next());
        let mut done = false;
        for _ in 0..steps {
            done = done || flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        }
        assert_eq!(block_on(search.finish(&db, b"key")).unwrap().unwrap().value, "old");
        if !done {
            block_on(flush).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(block_on(db.get(b"key", NOW)).unwrap().unwrap(), "new", "after {steps} steps");
        }
        if done {
            break;
        }
        steps += 1;
    }
    assert!(5 < steps, "a flush has more steps than {steps}");
}
