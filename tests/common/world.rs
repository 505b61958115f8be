//! A shard on simulated storage and a sorted map, which must agree: random steps, and what readers have to find after
//! each step.
//!
//! The clock is a part of the world. It moves by random steps, and now and then it is set back. An entry that has
//! expired hides older ones from readers, whether or not a compaction has removed it. A compaction may remove an entry
//! that expired a minute ago or longer. If the clock is then set back to a time before the expiry of such an entry, the
//! entry may be there or not. An older entry must not be there.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use ringkeep::config::DbConfig;
use ringkeep::db::{Found, Started, Ticket};
use ringkeep::error::{ErrorKind, Result};
use ringkeep::key::{KeyHash, SeqNo, UnixMillis};
use ringkeep::op::{Op, Outcome};
use ringkeep::storage::sim::Fate;

use super::sim::{Shard, read_all};

/// Keys of a world.
pub const KEYS: u8 = 40;

/// A compaction may remove an entry that expired this long ago.
const EXPIRY_MARGIN_MILLIS: u64 = 60_000;

/// What the keys hold. Entries that have expired are among them, until they are replaced or deleted.
pub type Map = BTreeMap<Vec<u8>, Found>;

/// The key with this number. Keys have five lengths, and long prefixes in common.
pub fn key(number: u8) -> Vec<u8> {
    vec![b'k'; 1 + usize::from(number % 5) * 60].into_iter().chain([number]).collect()
}

fn value(number: u16) -> Vec<u8> {
    number.to_le_bytes().repeat(usize::from(number) / 2)
}

/// Something that happens to a shard.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sets a key, perhaps to a value that expires after this many milliseconds.
    Set(u8, u16, Option<u64>),
    Delete(u8),
    Get(u8),
    /// Scans from a key on.
    Scan(u8),
    Commit,
    Flush,
    Compact,
    /// Lets the clock go on by this many milliseconds.
    Wait(u64),
    /// Sets the clock back by this many milliseconds.
    SetBack(u64),
    /// A clean stop and a start.
    Stop,
    /// A crash and a start.
    Crash(Fate),
}

/// Milliseconds from well below the margin of a compaction to well above.
fn millis() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..100, 0..EXPIRY_MARGIN_MILLIS, 0..4 * EXPIRY_MARGIN_MILLIS]
}

/// Steps of one life, in which the clock goes forward.
fn step_of_one_life() -> impl Strategy<Value = Step> {
    let key = || any::<u8>().prop_map(|key| key % KEYS);
    prop_oneof![
        12 => (key(), any::<u16>(), prop::option::of(millis()))
            .prop_map(|(key, value, lifetime)| Step::Set(key, value, lifetime)),
        4 => key().prop_map(Step::Delete),
        6 => key().prop_map(Step::Get),
        1 => key().prop_map(Step::Scan),
        6 => Just(Step::Commit),
        2 => Just(Step::Flush),
        3 => Just(Step::Compact),
        3 => millis().prop_map(Step::Wait),
    ]
}

/// Up to `most` steps of one life, in which the clock goes forward.
pub fn steps_of_one_life(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step_of_one_life(), 1..most)
}

/// Up to `most` steps of any kind.
pub fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![Just(Fate::Lost), Just(Fate::Kept), Just(Fate::Random)];
    let step = prop_oneof![
        37 => step_of_one_life(),
        1 => millis().prop_map(Step::SetBack),
        1 => Just(Step::Stop),
        1 => fate.prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..most)
}

/// Settings with tiny limits of every kind. Answers must not depend on the limits.
pub fn config() -> impl Strategy<Value = DbConfig> {
    (1_usize..1_500_000, 1_usize..200_000, any::<bool>(), 16_usize..20, 4_u64..10, 1_u64..60).prop_map(
        |(memtable_bytes, cache_bytes, sync_every_group, open_files_max, manifest_blocks, step)| DbConfig {
            sync_every_group,
            memtable_bytes,
            cache_bytes,
            value_bytes_max: 80_000,
            large_value_bytes: 200,
            open_files_max,
            wal_bytes: DbConfig::wal_bytes_for(memtable_bytes, 80_000),
            wal_step_bytes: step * 4096,
            manifest_bytes: manifest_blocks * 4096,
            key_hash: KeyHash::with_seed(1),
        },
    )
}

/// A write that is not committed yet: a key, and what the key holds after the write.
type Write = (Vec<u8>, Option<Found>);

/// The shard, what readers must find, and the writes that are not committed yet, in order.
pub struct World {
    pub shard: Shard,
    pub now: UnixMillis,
    /// The latest time at which a compaction ran.
    compacted_at: UnixMillis,
    /// What is committed.
    visible: Map,
    pending: Vec<Write>,
    tickets: Vec<Ticket>,
    /// What a crash may leave: what was synced, and every later state in commit order.
    possible: Vec<Map>,
    /// Reads of keys whose entry has expired.
    pub reads_of_expired: Cell<u32>,
    /// Reads of keys whose entry was removed before the clock was set back to a time at which the entry has not
    /// expired.
    pub reads_of_removed: Cell<u32>,
}

impl World {
    pub async fn new(config: DbConfig) -> Self {
        Self {
            shard: Shard::create(config, 5).await,
            now: UnixMillis(1_000_000),
            compacted_at: UnixMillis::START,
            visible: Map::new(),
            pending: Vec::new(),
            tickets: Vec::new(),
            possible: vec![Map::new()],
            reads_of_expired: Cell::new(0),
            reads_of_removed: Cell::new(0),
        }
    }

    pub async fn step(&mut self, step: &Step) {
        match *step {
            Step::Set(number, length, lifetime) => {
                let expires = lifetime.map(|lifetime| UnixMillis(self.now.0 + lifetime));
                self.write(key(number), Some((value(length), expires))).await;
            }
            Step::Delete(number) => self.write(key(number), None).await,
            Step::Get(number) => self.check(&key(number)).await,
            Step::Scan(number) => self.check_scan(&key(number)).await,
            Step::Commit => self.commit().await,
            Step::Flush => {
                self.commit().await;
                self.shard.flush().await;
            }
            Step::Compact => {
                self.compacted_at = self.compacted_at.max(self.now);
                self.shard.compact(self.now).await;
                self.shard.remove_obsolete().await;
            }
            Step::Wait(millis) => self.now.0 += millis,
            Step::SetBack(millis) => self.now.0 -= millis.min(self.now.0),
            Step::Stop => {
                self.commit().await;
                self.shard.db.close(|_| {}).await.unwrap();
                self.possible = vec![self.visible.clone()];
                self.reopen(Fate::Lost).await;
            }
            Step::Crash(fate) => {
                let mut state = self.visible.clone();
                for write in &self.pending {
                    apply(&mut state, write);
                    self.possible.push(state.clone());
                }
                self.reopen(fate).await;
            }
        }
    }

    /// What readers find now, if the clock was never set back.
    pub fn present(&self) -> Map {
        let is_present = |(_, held): &(_, &Found)| held.expires.is_none_or(|expires| self.now < expires);
        let present = self.visible.iter().filter(is_present);
        present.map(|(key, held)| (key.clone(), held.clone())).collect()
    }

    /// What the keys hold once everything pending is committed.
    fn latest(&self) -> Map {
        let mut map = self.visible.clone();
        self.pending.iter().for_each(|write| apply(&mut map, write));
        map
    }

    /// Whether readers at `now` may find `found` for a key that holds `held` (P10).
    fn may_find(&self, found: Option<&Found>, held: Option<&Found>, now: UnixMillis) -> bool {
        let Some(held) = held else { return found.is_none() };
        match held.expires {
            Some(expires) if expires <= now => found.is_none(),
            // A compaction may have removed the entry before the clock was set back.
            Some(expires) if expires.0 + EXPIRY_MARGIN_MILLIS <= self.compacted_at.0 => {
                found.is_none_or(|found| found == held)
            }
            _ => found == Some(held),
        }
    }

    pub async fn commit(&mut self) {
        let db = &self.shard.db;
        db.commit_next().await.unwrap();
        // Each call commits one group.
        while !self.pending.is_empty() {
            let before = db.committed().1;
            db.commit_next().await.unwrap();
            if db.committed().1 == before {
                break;
            }
        }
        for ticket in self.tickets.drain(..) {
            ticket.await.unwrap();
        }
        for write in self.pending.drain(..) {
            apply(&mut self.visible, &write);
            self.possible.push(self.visible.clone());
        }
        if self.shard.config.sync_every_group {
            self.possible = vec![self.visible.clone()];
        }
    }

    /// Makes room the way the background tasks do, until the write is taken.
    async fn write(&mut self, key: Vec<u8>, value: Option<(Vec<u8>, Option<UnixMillis>)>) {
        for _ in 0..200 {
            match self.try_write(&key, value.as_ref()).await {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    self.commit().await;
                    let db = &self.shard.db;
                    db.grow_wal().await.unwrap();
                    db.prepare_spare().await.unwrap();
                    db.flush_next().await.unwrap();
                    self.compacted_at = self.compacted_at.max(self.now);
                    db.compact_next(self.now).await.unwrap();
                    db.remove_next().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the engine never makes room");
    }

    async fn try_write(&mut self, key: &[u8], value: Option<&(Vec<u8>, Option<UnixMillis>)>) -> Result<()> {
        let db = &self.shard.db;
        let (ticket, held) = match value {
            Some((value, expires)) => {
                let op = Op::Set { key: db.key(key), value: value.as_slice(), expires: *expires };
                let started = db.start(&op, self.now, |_| panic!("a set lends nothing"))?;
                let Started::Committing(ticket, Outcome::Written { seqno }) = started else {
                    panic!("a set waits for its commit")
                };
                assert_eq!(seqno, self.next_seqno());
                let value = Bytes::copy_from_slice(value);
                (ticket, Some(Found { value, seqno, expires: *expires }))
            }
            None => {
                let (ticket, lookup) = db.delete(key, self.now)?;
                // A lookup for a delete may leave out the value.
                let without_value = |found| Found { value: Bytes::new(), ..found };
                let deleted = lookup.finish(db, key).await.unwrap().map(without_value);
                let held = self.latest().remove(key).map(without_value);
                let may_find = self.may_find(deleted.as_ref(), held.as_ref(), self.now);
                assert!(may_find, "deleted {deleted:?} of {held:?}");
                (ticket, None)
            }
        };
        self.tickets.push(ticket);
        self.pending.push((key.to_vec(), held));
        Ok(())
    }

    /// The SeqNo of the next write.
    fn next_seqno(&self) -> SeqNo {
        SeqNo(self.shard.db.visible().0 + self.pending.len() as u64 + 1)
    }

    async fn check(&self, key: &[u8]) {
        let (found, held) = (self.shard.find(key, self.now).await, self.visible.get(key));
        assert!(self.may_find(found.as_ref(), held, self.now), "found {found:?} of {held:?}");
        if let (None, Some(Found { expires: Some(expires), .. })) = (found, held) {
            let reads = if *expires <= self.now { &self.reads_of_expired } else { &self.reads_of_removed };
            reads.set(reads.get() + 1);
        }
    }

    async fn check_scan(&self, from: &[u8]) {
        let db = &self.shard.db;
        let found = read_all(&mut db.scan(&db.view(), self.now), from, async || {}).await;
        assert!(found.is_sorted_by(|a, b| a.0 < b.0), "in key order, each key once");
        let found: Map = found.into_iter().collect();
        assert!(found.keys().all(|key| from <= &key[..]), "from the first key on");
        for number in 0..KEYS {
            let key = key(number);
            if from <= &key[..] {
                let (found, held) = (found.get(&key), self.visible.get(&key));
                assert!(self.may_find(found, held, self.now), "scanned {found:?} of {held:?}");
            }
        }
    }

    /// Commits what is pending, and compares everything that readers find: now, and after the clock was set back.
    pub async fn check_all(&mut self) {
        self.commit().await;
        for now in [self.now, UnixMillis::START] {
            self.now = now;
            for number in 0..KEYS {
                self.check(&key(number)).await;
            }
            self.check_scan(b"").await;
        }
    }

    /// The next process finds everything that was synced, and a prefix in commit order of the other writes (P1, P4).
    async fn reopen(&mut self, fate: Fate) {
        self.shard = self.shard.after_crash(fate).await;
        // The reads are at a time before every expiry: an entry that they do not find is gone for good.
        let mut left = Map::new();
        for number in 0..KEYS {
            let key = key(number);
            if let Some(found) = self.shard.find(&key, UnixMillis::START).await {
                left.insert(key, found);
            }
        }
        let agrees = |state: &Map| {
            (0..KEYS).map(key).all(|key| self.may_find(left.get(&key), state.get(&key), UnixMillis::START))
        };
        assert!(self.possible.iter().any(agrees), "none of {} possible states", self.possible.len());
        self.visible = left.clone();
        self.possible = vec![left];
        self.pending.clear();
        self.tickets.clear();
    }
}

fn apply(map: &mut Map, (key, held): &Write) {
    match held {
        Some(held) => map.insert(key.clone(), held.clone()),
        None => map.remove(key),
    };
}
