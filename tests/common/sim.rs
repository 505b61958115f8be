//! A shard on simulated storage, and the steps that scenarios are made of. The background work of a shard consists of
//! futures. A scenario drives them one by one, so the same steps give the same disk.

use bytes::Bytes;
use ringkeep::check::{Report, check_shard};
use ringkeep::config::DbConfig;
use ringkeep::db::{Db, Found, Recovered, Started, Ticket};
use ringkeep::error::Result;
use ringkeep::file_name::FileName;
use ringkeep::identity::Owner;
use ringkeep::key::{KeyHash, SLOT_COUNT, SeqNo, ShardId, UnixMillis};
use ringkeep::op::{Op, Outcome};
use ringkeep::source::{Source, Step};
use ringkeep::storage::sim::{Fate, SimStorage};

/// Before every expiry.
pub const NOW: UnixMillis = UnixMillis::START;

/// Which shard it is.
pub const OWNER: Owner = Owner { store_id: 77, shard: ShardId(2) };

/// Room for every scenario: nothing is frozen or grows unless a step asks for it.
pub const CONFIG: DbConfig = DbConfig {
    sync_every_group: true,
    memtable_bytes: 1 << 20,
    cache_bytes: 1 << 20,
    value_bytes_max: 1000,
    large_value_bytes: 100,
    open_files_max: 16,
    wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1000),
    wal_step_bytes: 1 << 20,
    manifest_bytes: 1 << 16,
    key_hash: KeyHash::with_seed(1),
};

/// A shard, and the disk below it. Steps panic if they fail.
pub struct Shard {
    pub storage: SimStorage,
    pub config: DbConfig,
    pub db: Db<SimStorage>,
}

impl Shard {
    /// An empty shard; `seed` decides what the disk does with bytes that were not synced.
    pub async fn create(config: DbConfig, seed: u64) -> Self {
        let storage = SimStorage::new(seed);
        let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
        Self { storage, config, db }
    }

    /// The shard that the next process finds on a disk.
    ///
    /// # Errors
    /// If the start is refused.
    pub async fn open(storage: SimStorage, config: DbConfig) -> Result<(Self, Recovered)> {
        let (db, recovered) = Db::open(storage.clone(), OWNER, config).await?;
        Ok((Self { storage, config, db }, recovered))
    }

    /// The shard that the next process finds after a crash. This shard goes on.
    pub async fn after_crash(&self, fate: Fate) -> Self {
        Self::open(self.storage.crash(fate), self.config).await.unwrap().0
    }

    /// Commits a write that was taken, and waits for its answer.
    pub async fn commit(&self, ticket: Ticket) {
        self.db.commit_next().await.unwrap();
        ticket.await.unwrap();
    }

    /// Sets a key. Returns the SeqNo of the write.
    pub async fn set(&self, key: &[u8], value: &[u8]) -> SeqNo {
        self.set_expiring(key, value, None).await
    }

    /// Sets a key to a value that may expire. Returns the SeqNo of the write.
    pub async fn set_expiring(&self, key: &[u8], value: &[u8], expires: Option<UnixMillis>) -> SeqNo {
        let ticket = match self.db.set_expiring(key, value, expires) {
            Ok(ticket) => ticket,
            Err(_) => {
                self.db.grow_wal().await.unwrap();
                self.db.set_expiring(key, value, expires).unwrap()
            }
        };
        self.commit(ticket).await;
        self.db.visible()
    }

    /// Gives the next writes another memtable and another WAL.
    pub async fn freeze(&self) {
        self.db.request_flush();
        self.db.prepare_spare().await.unwrap();
    }

    /// Writes everything that is in memory to sorted files.
    pub async fn flush(&self) {
        self.freeze().await;
        while self.db.has_frozen() {
            self.db.flush_next().await.unwrap();
        }
    }

    /// Runs every compaction that is due at `now`. Returns how many there were.
    pub async fn compact(&self, now: UnixMillis) -> usize {
        let mut count = 0;
        while self.db.compact_next(now).await.unwrap() {
            count += 1;
        }
        count
    }

    /// Removes every file that is obsolete and not in use. Returns how many there were.
    pub async fn remove_obsolete(&self) -> usize {
        let mut count = 0;
        while self.db.remove_next().await.is_some() {
            count += 1;
        }
        count
    }

    /// The WAL of the last group.
    pub fn last_wal(&self) -> FileName {
        FileName::Wal(self.db.durable().expect("a group was committed").0)
    }

    /// The files of a kind, in the order of their numbers.
    pub fn files(&self, is_wanted: impl Fn(&FileName) -> bool) -> Vec<FileName> {
        self.storage.files().into_iter().map(|(name, _)| name).filter(is_wanted).collect()
    }

    /// What `ringkeep check` finds.
    pub async fn check(&self) -> Report {
        check_shard(&self.storage, OWNER, &vec![OWNER.shard; SLOT_COUNT], |_| {}).await
    }

    /// What every kind of reader finds for a key at `now`: all of them must find the same.
    pub async fn find(&self, key: &[u8], now: UnixMillis) -> Option<Found> {
        find(&self.db, key, now).await
    }
}

/// What every kind of reader finds for a key at `now`: all of them must find the same.
pub async fn find(db: &Db<SimStorage>, key: &[u8], now: UnixMillis) -> Option<Found> {
    let found = db.lookup(key, now).unwrap().finish(db, key).await.unwrap();
    let value = db.get(key, now).await.unwrap();
    assert_eq!(value, found.as_ref().map(|found| found.value.clone()), "get and lookup of {key:?}");
    let outcome = match operate(db, Op::Get { key: db.key(key) }, now).await {
        Outcome::Value { value, seqno, expires } => Some(Found { value, seqno, expires }),
        Outcome::Missing => None,
        Outcome::Written { .. } => panic!("a get writes nothing"),
    };
    assert_eq!(outcome, found, "operation and lookup of {key:?}");
    found
}

/// Carries out an operation, and commits what it writes.
pub async fn operate(db: &Db<SimStorage>, op: Op<&[u8]>, now: UnixMillis) -> Outcome<Bytes> {
    let mut lent = None;
    let writes = op.writes();
    let lend = |outcome: Outcome<&[u8]>| {
        lent = Some(outcome.to_owned());
        true
    };
    let started = db.start(&op, now, lend).unwrap();
    match started {
        Started::Lent => lent.expect("it was lent"),
        Started::Known(outcome) => outcome,
        Started::Pending(pending) if writes => {
            let (outcome, committed) = tokio::join!(pending.finish(db), db.commit_next());
            committed.unwrap();
            outcome.unwrap()
        }
        Started::Pending(pending) => pending.finish(db).await.unwrap(),
        Started::Committing(ticket, outcome) => {
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
            outcome
        }
    }
}

/// The entries of a source whose keys are at or above `from`. Calls `between` before each step.
pub async fn read_all<S: Source>(
    source: &mut S,
    from: &[u8],
    mut between: impl AsyncFnMut(),
) -> Vec<(Vec<u8>, Found)> {
    let mut entries = Vec::new();
    source.seek(from);
    loop {
        between().await;
        match source.step().unwrap() {
            Step::Entry => entries.push(source.read(|entry| {
                let value = Bytes::copy_from_slice(entry.value);
                (entry.key.to_vec(), Found { value, seqno: entry.seqno, expires: entry.kind.expires })
            })),
            Step::Need => source.supply().await.unwrap(),
            Step::Pause => {}
            Step::End => return entries,
        }
    }
}
