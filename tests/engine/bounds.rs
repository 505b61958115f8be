//! Bounds of the engine (P8), on simulated storage: on the files and memtables that a series of crashes leaves, and on
//! the memory that readers hold. A bound must not hide damage.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_executor::block_on;
use ringkeep::config::{BLOCK_BYTES, DbConfig};
use ringkeep::db::Db;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::identity::Owner;
use ringkeep::key::{KeyHash, ShardId, UnixMillis};
use ringkeep::memory::{Memory, Pool};
use ringkeep::random::Random;
use ringkeep::storage::sim::{Fate, SimStorage};

/// A time before every expiry.
const NOW: UnixMillis = UnixMillis::START;

const OWNER: Owner = Owner { store_id: 5, shard: ShardId(0) };

const fn config(value_bytes_max: usize) -> DbConfig {
    DbConfig {
        sync_every_group: true,
        memtable_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        value_bytes_max,
        large_value_bytes: 64 << 10,
        open_files_max: 16,
        wal_bytes: DbConfig::wal_bytes_for(1 << 20, value_bytes_max),
        wal_step_bytes: 1 << 20,
        manifest_bytes: 1 << 16,
        key_hash: KeyHash::with_seed(1),
    }
}

const CONFIG: DbConfig = config(4_000);

fn wals(storage: &SimStorage) -> usize {
    storage.files().iter().filter(|(name, _)| matches!(name, FileName::Wal(_))).count()
}

/// Sets a key and waits for the answer.
async fn set(db: &Db<SimStorage>, key: &[u8], value: &[u8]) {
    let ticket = match db.set(key, value) {
        Err(error) if error.kind() == ErrorKind::Overloaded => {
            db.grow_wal().await.unwrap();
            db.set(key, value)
        }
        result => result,
    };
    let ticket = ticket.unwrap();
    db.commit_next().await.unwrap();
    ticket.await.unwrap();
}

#[test]
fn p8_starts_that_are_killed_before_they_do_anything_leave_no_files_behind() {
    let mut storage = SimStorage::new(1);
    let db = block_on(Db::create(storage.clone(), OWNER, CONFIG)).unwrap();
    block_on(set(&db, b"key", b"value"));
    for start in 0..10 {
        storage = storage.crash(Fate::Killed);
        let (db, recovered) = block_on(Db::open(storage.clone(), OWNER, CONFIG)).unwrap();
        assert_eq!(block_on(db.get(b"key", NOW)).unwrap().unwrap(), "value");
        assert_eq!(recovered.writes, 1, "start {start}");
        assert_eq!(wals(&storage), 2, "start {start}: one WAL with the write, one for the next write");
    }
}

#[test]
fn p8_lives_that_are_killed_before_a_flush_hold_a_bounded_number_of_memtables() {
    let mut storage = SimStorage::new(2);
    block_on(Db::create(storage.clone(), OWNER, CONFIG)).unwrap();
    let mut accepted = 0;
    for life in 0..10 {
        storage = storage.crash(Fate::Killed);
        let (db, recovered) = block_on(Db::open(storage.clone(), OWNER, CONFIG)).unwrap();
        assert_eq!(recovered.writes, accepted, "life {life}");
        match db.set(format!("{life}").as_bytes(), b"") {
            Ok(ticket) => {
                block_on(db.commit_next()).unwrap();
                block_on(ticket).unwrap();
                accepted += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded, "life {life}"),
        }
    }
    assert_eq!(accepted, 4, "as many memtables as the README says");
    // A flush makes room.
    let (db, _) = block_on(Db::open(storage.crash(Fate::Killed), OWNER, CONFIG)).unwrap();
    block_on(db.flush_next()).unwrap();
    block_on(set(&db, b"later", b""));
}

#[test]
fn z1_values_that_unpack_to_many_times_their_blocks_are_counted_as_what_they_take() {
    const VALUE_BYTES: usize = 250_000;
    let config = config(VALUE_BYTES);
    let budget = 16 << 20;
    let memory = || Memory { requests: Pool::new(budget), ..Memory::ample() };
    let count = budget / VALUE_BYTES + 50;
    let storage = SimStorage::new(3);
    let value = vec![7; VALUE_BYTES];
    block_on(async {
        let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
        for number in 0..count {
            set(&db, format!("{number:04}").as_bytes(), &value).await;
            db.prepare_spare().await.unwrap();
            db.flush_next().await.unwrap();
            while db.compact_next(NOW).await.unwrap() {}
        }
        db.close(|_| {}).await.unwrap();
    });
    let on_disk: u64 = storage
        .files()
        .iter()
        .filter(|(name, _)| matches!(name, FileName::Sst(_)))
        .map(|(_, bytes)| bytes)
        .sum();
    assert!(on_disk < budget as u64 / 4, "{on_disk} bytes on disk: the values do not compress");
    let memory = memory();
    let db = block_on(Db::open_with(storage, OWNER, config, memory.clone())).unwrap().0;
    let mut held = Vec::new();
    // A read for which there is no memory waits for eleven ticks at most.
    let get = |key: &str| {
        let mut get = Box::pin(db.get(key.as_bytes(), NOW));
        let polled = (0..1_000).find_map(|_| poll_once(&mut get));
        polled.unwrap_or_else(|| {
            (0..11).for_each(|_| memory.tick());
            poll_once(&mut get).expect("the wait is over")
        })
    };
    let refused = (0..count).find_map(|number| match get(&format!("{number:04}")) {
        Ok(found) => {
            held.push(found.unwrap());
            assert_eq!(held.last().unwrap(), &value);
            None
        }
        Err(error) => Some(error.kind()),
    });
    assert_eq!(refused, Some(ErrorKind::Overloaded), "{} values of {VALUE_BYTES} are held", held.len());
    assert!(held.len() * VALUE_BYTES <= budget && budget < 2 * held.len() * VALUE_BYTES);
    assert!(memory.requests.taken() <= budget);
    // Memory that readers have released is available to other readers.
    let last = format!("{:04}", count - 1);
    held.truncate(held.len() / 2);
    assert_eq!(get(&last).unwrap().unwrap(), value);
    held.clear();
    assert_eq!(memory.requests.taken(), 0);
}

fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[test]
fn p8_a_value_larger_than_all_that_readers_may_hold_is_read_alone() {
    const VALUE_BYTES: usize = 70 << 20;
    const CACHED_BYTES: usize = 100_000;
    let storage = SimStorage::new(4);
    let value = vec![7; VALUE_BYTES];
    block_on(async {
        let db = Db::create(storage.clone(), OWNER, config(VALUE_BYTES)).await.unwrap();
        let mut random = Random::new(4);
        let cached: Vec<u8> = (0..CACHED_BYTES).map(|_| random.next_u64() as u8).collect();
        set(&db, b"cached", &cached).await;
        set(&db, b"large", &value).await;
    });
    let memory = Memory { requests: Pool::new(1 << 20), ..Memory::ample() };
    let (db, _) = block_on(Db::open_with(storage.crash(Fate::Kept), OWNER, CONFIG, memory)).unwrap();
    let read = || block_on(db.get(b"large", NOW)).map(|found| found.unwrap() == value);
    assert!(read().unwrap(), "from a memtable");
    block_on(db.flush_next()).unwrap();
    assert!(read().unwrap(), "from a file");
    // A block in the cache holds no permit.
    for _ in 0..2 {
        assert_eq!(block_on(db.get(b"cached", NOW)).unwrap().unwrap().len(), CACHED_BYTES);
        assert!(read().unwrap(), "while another block is in the cache");
    }
}

#[test]
fn p5_a_block_whose_length_is_damaged_is_called_damaged_however_much_it_asks_for() {
    const VALUE_BYTES: usize = 8 << 20;
    let config = config(VALUE_BYTES);
    let storage = SimStorage::new(5);
    block_on(async {
        let db = Db::create(storage.clone(), OWNER, config).await.unwrap();
        set(&db, b"large", &vec![7; VALUE_BYTES]).await;
        db.close(|_| {}).await.unwrap();
    });
    let sst = storage.files().into_iter().map(|(name, _)| name).find(|name| matches!(name, FileName::Sst(_)));
    let sst = sst.expect("the close has flushed the memtable");
    let bytes = storage.bytes(sst);
    // The frame of the value: its header says that it takes most of the file's pages.
    let pages = |at: usize| u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    let frame = (0..bytes.len()).step_by(BLOCK_BYTES).find(|at| VALUE_BYTES / BLOCK_BYTES <= pages(*at));
    let unpacked_bytes = frame.expect("the value has a block") as u64 + 12;
    for bit in 0..32 {
        let storage = storage.crash(Fate::Kept);
        storage.corrupt(sst, unpacked_bytes + bit / 8, 1 << (bit % 8));
        let (db, _) = block_on(Db::open(storage, OWNER, config)).unwrap();
        let error = block_on(db.get(b"large", NOW)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "bit {bit}: {error}");
    }
}

#[test]
fn p8_a_store_opens_with_less_memory_than_it_was_written_with() {
    const WRITES: usize = 3_000;
    let big =
        DbConfig { memtable_bytes: 8 << 20, wal_bytes: DbConfig::wal_bytes_for(8 << 20, 4_000), ..CONFIG };
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let storage = SimStorage::new(seed);
        let mut expected = BTreeMap::new();
        let value = |number: usize| format!("{number:04}").repeat(250).into_bytes();
        let db = block_on(Db::create(storage.clone(), OWNER, big)).unwrap();
        for number in 0..WRITES {
            let key = format!("{:03}", random.below(1_000));
            block_on(set(&db, key.as_bytes(), &value(number)));
            expected.insert(key, value(number));
            if random.below(1_000) == 0 {
                // Two memtables may wait for their flush.
                block_on(db.prepare_spare()).unwrap();
                db.request_flush();
            }
        }
        let mut storage = storage.crash(Fate::Killed);
        // A start that is killed at any point changes nothing that the next start needs.
        for round in 0..6 {
            let memory = Memory::of_memtables(1 << 20);
            let stops_at = random.below(300);
            let opened = storage.clone();
            let mut open = Box::pin(Db::open_with(opened, OWNER, CONFIG, memory.clone()));
            let mut most = 0;
            let mut polls = 0;
            let db = loop {
                if let Some(opened) = poll_once(&mut open) {
                    break Some(opened.unwrap().0);
                }
                most = most.max(memory.memtables.used());
                polls += 1;
                if round < 5 && stops_at < polls {
                    break None;
                }
            };
            assert!(most <= (1 << 20) + (256 << 10), "seed {seed}: {most} bytes in memtables");
            if let Some(db) = db {
                for (key, value) in &expected {
                    let found = block_on(db.get(key.as_bytes(), NOW)).unwrap();
                    assert!(found.unwrap() == *value, "seed {seed}, round {round}, key {key}");
                }
                let files = db.version().files().count();
                assert!(round < 5 || 2 <= files, "seed {seed}: {files} files were flushed on the way");
            }
            drop(open);
            storage = storage.crash([Fate::Killed, Fate::Lost, Fate::Kept][round % 3]);
        }
    }
}

#[test]
fn p1_a_write_of_a_killed_process_that_lands_late_harms_no_later_write() {
    let mut in_flight = 0;
    for seed in 0..40 {
        for polls in 0..12 {
            let storage = SimStorage::new(seed);
            let db = block_on(Db::create(storage.clone(), OWNER, CONFIG)).unwrap();
            // The first group of the WAL is being written when the process is killed.
            let _ticket = db.set(b"old", &[7; 3_000]).unwrap();
            {
                let mut commit = Box::pin(db.commit_next());
                in_flight += usize::from((0..polls).all(|_| poll_once(&mut commit).is_none()));
            }
            let storage = storage.crash(Fate::Killed);
            let (db, _) = block_on(Db::open(storage.clone(), OWNER, CONFIG)).unwrap();
            for number in 0..4 {
                block_on(set(&db, &[number], &[number; 200]));
            }
            let storage = storage.crash(Fate::Kept);
            let opened = block_on(Db::open(storage, OWNER, CONFIG));
            let (db, _) = opened.unwrap_or_else(|error| panic!("seed {seed}, {polls} polls: {error}"));
            for number in 0..4 {
                let found = block_on(db.get(&[number], NOW)).unwrap();
                assert!(found.is_some_and(|found| found[..] == [number; 200]), "seed {seed}, {polls} polls");
            }
        }
    }
    assert!(100 < in_flight, "{in_flight} starts after a kill in the middle of a commit");
}
