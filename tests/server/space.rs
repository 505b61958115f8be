//! Space comes back, and settings may change: what a shard takes on disk after its data is gone, and how it goes on with
//! other settings than it was written with.

use crate::common::sim::{CONFIG, NOW, Shard};
use futures_executor::block_on;
use ringkeep::config::DbConfig;
use ringkeep::error::ErrorKind;
use ringkeep::random::Random;
use ringkeep::storage::sim::Fate;

const VALUE_BYTES: usize = 8_000;

fn config(memtable_bytes: usize, value_bytes_max: usize) -> DbConfig {
    DbConfig {
        memtable_bytes,
        value_bytes_max,
        large_value_bytes: 64 << 10,
        wal_bytes: DbConfig::wal_bytes_for(memtable_bytes, value_bytes_max),
        wal_step_bytes: 1 << 14,
        manifest_bytes: 1 << 14,
        ..CONFIG
    }
}

fn bytes_on_disk(shard: &Shard) -> u64 {
    shard.storage.allocated()
}

fn value(random: &mut Random) -> Vec<u8> {
    (0..VALUE_BYTES).map(|_| random.next_u64() as u8).collect()
}

/// The background work of a shard, until nothing is left to do.
async fn work(shard: &Shard) {
    while shard.db.has_frozen() {
        shard.db.flush_next().await.unwrap();
    }
    shard.compact(NOW).await;
    shard.remove_obsolete().await;
}

/// What the server does when nobody has written for a while.
async fn rest(shard: &Shard) {
    shard.db.rest();
    shard.db.prepare_spare().await.unwrap();
    work(shard).await;
    shard.db.shorten_wals().await.unwrap();
}

/// Writes a key, doing the background work that it has to wait for.
async fn write(shard: &Shard, key: &[u8], value: Option<&[u8]>) {
    let mut refusal = None;
    for _ in 0..20 {
        let ticket = match value {
            Some(value) => shard.db.set(key, value),
            None => shard.db.delete(key, NOW).map(|(ticket, _)| ticket),
        };
        match ticket {
            Ok(ticket) => return shard.commit(ticket).await,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
                refusal = Some(error);
            }
        }
        shard.db.grow_wal().await.unwrap();
        shard.db.prepare_spare().await.unwrap();
        shard.db.flush_next().await.unwrap();
        shard.db.compact_next(NOW).await.unwrap();
    }
    panic!("the write is refused for ever: {refusal:?}");
}

#[test]
fn a_shard_whose_data_is_deleted_or_overwritten_gives_the_space_back() {
    block_on(async {
        let shard = Shard::create(config(1 << 20, 10_000), 1).await;
        rest(&shard).await;
        let empty = bytes_on_disk(&shard);
        let mut random = Random::new(1);
        for number in 0..400_u16 {
            write(&shard, &number.to_be_bytes(), Some(&value(&mut random))).await;
        }
        rest(&shard).await;
        let full = bytes_on_disk(&shard);
        assert!(empty + 400 * VALUE_BYTES as u64 <= full);
        for number in 0..400_u16 {
            write(&shard, &number.to_be_bytes(), Some(&value(&mut random))).await;
        }
        rest(&shard).await;
        let overwritten = bytes_on_disk(&shard);
        assert!(overwritten < full + full / 4, "{full} bytes were overwritten, and {overwritten} are left");
        for number in 0..400_u16 {
            write(&shard, &number.to_be_bytes(), None).await;
        }
        // Without a rest, the tombstones alone give back what they hide.
        shard.flush().await;
        work(&shard).await;
        let deleted = bytes_on_disk(&shard);
        assert!(deleted < full / 3, "{full} bytes, then {deleted} after everything was deleted");
        rest(&shard).await;
        let rested = bytes_on_disk(&shard);
        assert!(rested <= empty + (1 << 14), "{empty} bytes at first, {rested} at last");
    });
}

#[test]
fn a_shard_that_rests_loses_nothing_in_a_crash_and_takes_writes_again() {
    block_on(async {
        for fate in [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random] {
            let mut shard = Shard::create(config(1 << 20, 10_000), 1).await;
            for round in 0..6_u8 {
                for number in 0..30 {
                    write(&shard, &[number], Some(&[round; 800])).await;
                }
                rest(&shard).await;
                if round % 2 == 1 {
                    shard = shard.after_crash(fate).await;
                }
                write(&shard, b"after", Some(&[round])).await;
                for number in 0..30 {
                    let found = shard.find(&[number], NOW).await.unwrap();
                    assert_eq!(found.value, [round; 800].as_slice(), "{fate:?}, round {round}");
                }
            }
        }
    });
}

/// Every pair of settings, up and down. Each life ends in a clean stop or a crash.
#[test]
fn any_setting_may_change_between_two_starts_and_writes_go_on() {
    const LARGE: usize = 30_000;
    let settings = [
        config(4 << 20, 10_000),
        config(1 << 20, 8_000),
        DbConfig { cache_bytes: 64 << 10, open_files_max: 4, ..config(1 << 20, 64_000) },
        DbConfig {
            sync_every_group: false,
            manifest_bytes: 1 << 18,
            wal_step_bytes: 1 << 16,
            ..config(2 << 20, 20_000)
        },
    ];
    block_on(async {
        for (index, (first, second)) in
            settings.iter().flat_map(|first| settings.iter().map(move |second| (first, second))).enumerate()
        {
            let mut random = Random::new(index as u64);
            let mut shard = Shard::create(*first, 1).await;
            let mut expected = std::collections::BTreeMap::new();
            for life in 0..4 {
                for _ in 0..300 {
                    let key = vec![random.below(200) as u8];
                    let large = LARGE < shard.config.value_bytes_max && random.below(20) == 0;
                    let value = if large { vec![key[0]; LARGE] } else { value(&mut random) };
                    write(&shard, &key, Some(&value)).await;
                    expected.insert(key, value);
                    if random.below(10) == 0 {
                        shard.db.compact_next(NOW).await.unwrap();
                    }
                }
                shard.db.sync().await.unwrap();
                let clean = random.below(2) == 0;
                if clean {
                    shard.db.close(|_| {}).await.unwrap();
                }
                let (storage, next) =
                    (shard.storage.crash(Fate::Lost), if life % 2 == 0 { second } else { first });
                shard = Shard::open(storage, *next).await.unwrap().0;
                for (key, value) in &expected {
                    let found = shard.db.get(key, NOW).await.unwrap();
                    assert!(
                        found.is_some_and(|found| found == value),
                        "pair {index}, life {life}, clean {clean}"
                    );
                }
            }
        }
    });
}

/// Sets keys until the disk is full. Returns how many there are.
async fn fill(shard: &Shard, random: &mut Random) -> u16 {
    for number in 0_u16.. {
        for attempt in 0.. {
            match shard.db.set(&number.to_be_bytes(), &value(random)) {
                Ok(ticket) => {
                    shard.commit(ticket).await;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::DiskFull => return number,
                Err(error) => assert!(error.kind() == ErrorKind::Overloaded && attempt < 100, "{error}"),
            }
            // As the background tasks do; what fails is tried again.
            let _ = shard.db.grow_wal().await;
            let _ = shard.db.prepare_spare().await;
            let _ = shard.db.flush_next().await;
            let _ = shard.db.compact_next(NOW).await;
            shard.remove_obsolete().await;
        }
    }
    unreachable!("the disk is never full")
}

/// A disk that the store has filled. The reserve is what the server gives back then.
#[test]
fn on_a_disk_that_the_store_has_filled_deletes_make_room_and_writes_resume() {
    const RESERVE: u64 = 4 << 20;
    block_on(async {
        for (seed, fate) in
            [None, Some(Fate::Lost), Some(Fate::Killed), Some(Fate::Random)].into_iter().enumerate()
        {
            let mut random = Random::new(seed as u64);
            let mut shard = Shard::create(config(1 << 20, 10_000), seed as u64).await;
            shard.storage.set_capacity(Some(16 << 20));
            let count = fill(&shard, &mut random).await;
            assert!(500 < count, "{count}");
            // The reserve is given back, and a crash or nothing happens.
            shard.storage.set_capacity(Some((16 << 20) + RESERVE));
            if let Some(fate) = fate {
                shard = shard.after_crash(fate).await;
            }
            shard.db.set_disk_full(true);
            assert_eq!(
                shard.db.set(b"new", b"value").err().map(|error| error.kind()),
                Some(ErrorKind::DiskFull)
            );
            for number in 0..count {
                let found = shard.db.get(&number.to_be_bytes(), NOW).await.unwrap();
                assert_eq!(found.map(|found| found.len()), Some(VALUE_BYTES), "reads go on");
            }
            for number in 0..count {
                write(&shard, &number.to_be_bytes(), None).await;
            }
            shard.flush().await;
            work(&shard).await;
            let left = shard.storage.allocated();
            assert!(left < 4 << 20, "{left} bytes are left of 16 MiB");
            shard.storage.set_capacity(Some(16 << 20));
            shard.db.set_disk_full(false);
            let again = fill(&shard, &mut random).await;
            assert!(count / 2 < again, "{count} values fitted at first, then {again}");
        }
    });
}

/// Deletes of some keys give back what they hide, although a whole compaction would need more space than there is.
#[test]
fn on_a_full_disk_compactions_make_room_part_by_part() {
    block_on(async {
        let mut random = Random::new(9);
        let shard = Shard::create(config(1 << 20, 10_000), 9).await;
        shard.storage.set_capacity(Some(48 << 20));
        let count = fill(&shard, &mut random).await;
        let before = shard.storage.allocated();
        shard.storage.set_capacity(Some(before + (4 << 20)));
        shard.db.set_disk_full(true);
        for number in (0..count).step_by(4) {
            write(&shard, &number.to_be_bytes(), None).await;
        }
        shard.flush().await;
        // None of these steps may fail for want of space.
        let mut steps = 0;
        while shard.db.compact_next(NOW).await.unwrap() {
            shard.remove_obsolete().await;
            steps += 1;
        }
        let after = shard.storage.allocated();
        assert!(after < before / 8 * 7, "{before} bytes, {after} after a quarter of the keys was deleted");
        assert!(10 < steps, "{steps}");
        for number in 0..count {
            let found = shard.find(&number.to_be_bytes(), NOW).await;
            assert_eq!(found.is_some(), number % 4 != 0);
        }
        assert!(shard.check().await.damage.is_empty());
    });
}

/// With less space than a start takes otherwise.
#[test]
fn a_start_on_a_full_disk_takes_deletes() {
    block_on(async {
        let mut random = Random::new(5);
        let config = DbConfig { wal_step_bytes: 1 << 18, manifest_bytes: 1 << 18, ..config(1 << 20, 10_000) };
        let shard = Shard::create(config, 1).await;
        shard.storage.set_capacity(Some(12 << 20));
        let count = fill(&shard, &mut random).await;
        shard.storage.set_capacity(Some(shard.storage.allocated() + (300 << 10)));
        let shard = shard.after_crash(Fate::Killed).await;
        shard.db.set_disk_full(true);
        for number in 0..count {
            assert!(shard.db.get(&number.to_be_bytes(), NOW).await.unwrap().is_some());
        }
        let (ticket, _) = shard.db.delete(&0_u16.to_be_bytes(), NOW).unwrap();
        shard.commit(ticket).await;
    });
}
