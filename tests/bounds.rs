//! Bounds of the engine (P8), on simulated storage: on the files and memtables that a series of crashes leaves, and on
//! the memory that readers hold. A bound must not hide damage.

use futures_executor::block_on;
use ringkeep::config::{BLOCK_BYTES, DbConfig};
use ringkeep::db::Db;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::identity::Owner;
use ringkeep::key::{KeyHash, ShardId, UnixMillis};
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
fn p8_values_that_unpack_to_many_times_their_blocks_are_counted_as_what_they_take() {
    const VALUE_BYTES: usize = 250_000;
    let config = config(VALUE_BYTES);
    let budget = config.large_reads_bytes_max();
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
    let db = block_on(Db::open(storage, OWNER, config)).unwrap().0;
    let mut held = Vec::new();
    let refused =
        (0..count).find_map(|number| match block_on(db.get(format!("{number:04}").as_bytes(), NOW)) {
            Ok(found) => {
                held.push(found.unwrap());
                assert_eq!(held.last().unwrap(), &value);
                None
            }
            Err(error) => Some(error.kind()),
        });
    assert_eq!(refused, Some(ErrorKind::Overloaded), "{} values of {VALUE_BYTES} are held", held.len());
    assert!(held.len() * VALUE_BYTES <= budget);
    // Memory that readers have released is available to other readers.
    let last = format!("{:04}", count - 1);
    held.truncate(held.len() / 2);
    assert_eq!(block_on(db.get(last.as_bytes(), NOW)).unwrap().unwrap(), value);
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
    assert!(CONFIG.large_reads_bytes_max() < VALUE_BYTES);
    let (db, _) = block_on(Db::open(storage.crash(Fate::Kept), OWNER, CONFIG)).unwrap();
    let read = || block_on(db.get(b"large", NOW)).map(|found| found.unwrap() == value);
    assert!(read().unwrap(), "from a memtable");
    block_on(db.flush_next()).unwrap();
    assert!(read().unwrap(), "from a file");
    // A block in the cache holds permits as well.
    assert_eq!(block_on(db.get(b"cached", NOW)).unwrap().unwrap().len(), CACHED_BYTES);
    assert!(read().unwrap(), "while another block is in the cache");
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
