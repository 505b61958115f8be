//! Flushed WALs that a policy keeps, on simulated storage (I1).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::common::sim::{CONFIG, NOW, OWNER, Shard};
use futures_executor::block_on;
use ringkeep::check::check_shard;
use ringkeep::config::DbConfig;
use ringkeep::db::Db;
use ringkeep::db::retention::Retention;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::key::{FileNumber, SLOT_COUNT, SeqNo};
use ringkeep::manifest::load;
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::record::replay::KnownEnd;
use ringkeep::storage::sim::{Fate, SimStorage};
use ringkeep::wal::reader::{Source, read};

const FATES: [Fate; 4] = [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random];

/// Keeps WALs from a number on, and remembers what it was asked.
#[derive(Default)]
struct KeepFrom {
    first: Cell<FileNumber>,
    asked: RefCell<Vec<(FileNumber, Option<SeqNo>)>>,
}

impl Retention for KeepFrom {
    fn keeps(&self, number: FileNumber, last: Option<SeqNo>) -> bool {
        self.asked.borrow_mut().push((number, last));
        self.first.get() <= number
    }
}

/// A shard with a policy that keeps every WAL.
struct Keeping {
    shard: Shard,
    policy: Rc<KeepFrom>,
    /// The WALs that were flushed, and the SeqNos of their first and last write.
    flushed: Vec<(FileNumber, SeqNo, SeqNo)>,
}

impl Keeping {
    fn new(shard: Shard, flushed: Vec<(FileNumber, SeqNo, SeqNo)>) -> Self {
        let policy = Rc::new(KeepFrom::default());
        shard.db.set_retention(policy.clone());
        Self { shard, policy, flushed }
    }

    async fn create(config: DbConfig) -> Self {
        Self::new(Shard::create(config, 1).await, Vec::new())
    }

    /// The shard as the next process finds it, with a new policy that keeps every WAL.
    async fn restart(self, fate: Fate) -> Self {
        Self::new(self.shard.after_crash(fate).await, self.flushed)
    }

    /// Writes two keys to a WAL.
    async fn write(&self) -> (FileNumber, SeqNo, SeqNo) {
        let first = self.shard.set(b"a", b"value").await;
        let last = self.shard.set(b"b", b"value").await;
        (self.shard.last_wal().number().unwrap(), first, last)
    }

    /// Writes two keys to a WAL, and flushes it.
    async fn write_and_flush(&mut self) {
        let written = self.write().await;
        self.shard.flush().await;
        self.flushed.push(written);
    }

    fn flushed_numbers(&self) -> Vec<FileNumber> {
        self.flushed.iter().map(|(number, ..)| *number).collect()
    }

    /// Checks that the manifest names every flushed WAL, that each holds its writes, and that nothing is damaged.
    async fn check_kept(&self, what: &str) {
        assert_eq!(kept(&self.shard.storage).await, self.flushed_numbers(), "{what}");
        for &(number, first, last) in &self.flushed {
            assert_eq!(writes(&self.shard.storage, number, first).await, Some(last), "{what}: {number:?}");
        }
        let report = self.shard.check().await;
        assert!(report.damage.is_empty() && report.unread.is_empty(), "{what}: {report:?}");
    }
}

/// The WALs that the manifest names although recovery does not need them.
async fn kept(storage: &SimStorage) -> Vec<FileNumber> {
    let loaded = load(storage, OWNER).await.unwrap().expect("the shard is there");
    loaded.state.kept_wals.into_keys().collect()
}

/// The last write of a WAL that begins with the write `first`; `None` if it holds none.
async fn writes(storage: &SimStorage, number: FileNumber, first: SeqNo) -> Option<SeqNo> {
    let file_bytes = storage.bytes(FileName::Wal(number)).len() as u64;
    let source = Source { number, file_bytes, known_end: KnownEnd::default() };
    let (mut next, mut last) = (first, None);
    read(storage, OWNER, source, &mut next, |entry| last = Some(entry.seqno)).await.unwrap();
    last
}

#[test]
fn i1_a_kept_wal_has_its_name_and_its_writes_over_any_number_of_restarts() {
    for sync_every_group in [true, false] {
        for fate in FATES {
            block_on(async {
                let what = format!("sync every group: {sync_every_group}, {fate:?}");
                let mut keeping = Keeping::create(DbConfig { sync_every_group, ..CONFIG }).await;
                for life in 1..=3 {
                    keeping.write_and_flush().await;
                    keeping.check_kept(&what).await;
                    let asked = keeping.policy.asked.take();
                    let &(number, _, last) = keeping.flushed.last().unwrap();
                    assert_eq!(asked, [(number, Some(last))], "{what}: asked once, with the last write");
                    keeping = keeping.restart(fate).await;
                    keeping.check_kept(&format!("{what}, after life {life}")).await;
                }
                assert_eq!(keeping.flushed.len(), 3);
            });
        }
    }
}

#[test]
fn i1_a_wal_that_was_replayed_is_kept_after_its_flush() {
    block_on(async {
        let mut keeping = Keeping::create(CONFIG).await;
        let written = keeping.write().await;
        keeping = keeping.restart(Fate::Lost).await;
        keeping.shard.db.flush_next().await.unwrap();
        keeping.flushed.push(written);
        keeping.check_kept("flushed after a replay").await;
        keeping = keeping.restart(Fate::Lost).await;
        keeping.check_kept("restarted").await;
    });
}

#[test]
fn i1_a_wal_is_kept_over_a_clean_stop() {
    block_on(async {
        let mut keeping = Keeping::create(CONFIG).await;
        keeping.write_and_flush().await;
        let written = keeping.write().await;
        keeping.shard.db.close(|_| {}).await.unwrap();
        keeping.flushed.push(written);
        keeping.check_kept("stopped").await;
        keeping = keeping.restart(Fate::Lost).await;
        keeping.check_kept("started").await;
        keeping.write_and_flush().await;
        keeping.check_kept("and flushed again").await;
    });
}

#[test]
fn i1_a_power_cut_at_any_operation_leaves_every_kept_wal_whole() {
    for sync_every_group in [true, false] {
        block_on(async {
            let config = DbConfig { sync_every_group, ..CONFIG };
            let mut keeping = Keeping::create(config).await;
            keeping.shard.storage.record();
            keeping.write_and_flush().await;
            keeping.write_and_flush().await;
            let mut kept_counts = [0; 3];
            for snapshot in keeping.shard.storage.take_snapshots() {
                for fate in FATES {
                    let what = format!(
                        "sync every group: {sync_every_group}, operation {}, {fate:?}",
                        snapshot.operations()
                    );
                    let opened = Shard::open(snapshot.crash(fate), config).await;
                    let (shard, _) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
                    let count = kept(&shard.storage).await.len();
                    kept_counts[count] += 1;
                    Keeping::new(shard, keeping.flushed[..count].to_vec()).check_kept(&what).await;
                }
            }
            assert!(kept_counts.iter().all(|states| 0 < *states), "none, one and both: {kept_counts:?}");
        });
    }
}

#[test]
fn i1_a_kept_wal_that_is_gone_or_cut_is_noticed_at_the_next_open() {
    block_on(async {
        let mut keeping = Keeping::create(CONFIG).await;
        keeping.write_and_flush().await;
        let name = FileName::Wal(keeping.flushed[0].0);
        for cut in [None, Some(4096)] {
            let left = keeping.shard.storage.crash(Fate::Kept);
            match cut {
                None => left.lose(name),
                Some(bytes) => left.overwrite(name, &left.bytes(name)[..bytes]),
            }
            let error = Db::open(left, OWNER, CONFIG).await.err().expect("the start is refused");
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            assert!(error.to_string().contains(&name.to_string()), "{error}");
        }
    });
}

#[test]
fn a1_damage_to_a_kept_wal_is_found_by_a_check() {
    block_on(async {
        let mut keeping = Keeping::create(CONFIG).await;
        keeping.write_and_flush().await;
        keeping.write_and_flush().await;
        for (number, ..) in keeping.flushed {
            let (storage, name) = (keeping.shard.storage.crash(Fate::Kept), FileName::Wal(number));
            // The damage is in the first group; the second group says that the first was durable.
            storage.corrupt(name, FIRST_RECORD + 60, 1);
            let report = check_shard(&storage, OWNER, &vec![OWNER.shard; SLOT_COUNT], |_| {}).await;
            assert!(
                report.damage.iter().any(|error| error.to_string().contains(&name.to_string())),
                "{name}: {report:?}"
            );
        }
    });
}

#[test]
fn i1_a_wal_that_the_policy_lets_go_is_removed_and_the_others_stay() {
    block_on(async {
        let mut keeping = Keeping::create(CONFIG).await;
        for _ in 0..3 {
            keeping.write_and_flush().await;
        }
        // A later process can release a WAL, too. It does not know the last write of the WAL.
        keeping = keeping.restart(Fate::Lost).await;
        let released = keeping.flushed.remove(0).0;
        keeping.policy.first.set(keeping.flushed[0].0);
        keeping.shard.db.release_kept().await.unwrap();
        assert!(keeping.policy.asked.take().contains(&(released, None)));
        keeping.check_kept("one is released").await;
        assert_eq!(keeping.shard.files(|name| *name == FileName::Wal(released)), []);

        keeping = keeping.restart(Fate::Lost).await;
        keeping.check_kept("restarted").await;
        keeping.policy.first.set(FileNumber(u64::MAX));
        keeping.shard.db.release_kept().await.unwrap();
        for (number, ..) in std::mem::take(&mut keeping.flushed) {
            assert_eq!(keeping.shard.files(|name| *name == FileName::Wal(number)), []);
        }
        keeping.check_kept("all are released").await;
        keeping = keeping.restart(Fate::Lost).await;
        keeping.check_kept("restarted again").await;
        assert_eq!(keeping.shard.db.get(b"a", NOW).await.unwrap().unwrap(), "value");
    });
}

#[test]
fn i1_without_a_policy_no_flushed_wal_is_kept() {
    block_on(async {
        let shard = Shard::create(CONFIG, 1).await;
        shard.set(b"a", b"value").await;
        let wal = shard.last_wal();
        shard.flush().await;
        assert_eq!(kept(&shard.storage).await, []);
        assert_eq!(shard.files(|name| *name == wal), []);
    });
}
