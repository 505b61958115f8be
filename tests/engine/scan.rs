//! Scans over simulated storage: a scan finds what was visible when its view was taken, whatever happens to the shard
//! before and between its steps.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::campaign::for_random;
use crate::common::sim::{CONFIG, NOW, Shard, read_all};
use crate::common::world::{Map, World, config, key, steps_of_one_life};
use futures_executor::block_on;
use proptest::prelude::*;
use ringkeep::db::{Db, View};
use ringkeep::file_name::FileName;
use ringkeep::key::UnixMillis;
use ringkeep::random::Random;
use ringkeep::storage::sim::SimStorage;

/// Where scans begin: in front of everything, at a key, just after a key, or anywhere.
fn starts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let start = prop_oneof![
        Just(Vec::new()),
        any::<u8>().prop_map(key),
        any::<u8>().prop_map(|number| [key(number), vec![0]].concat()),
        prop::collection::vec(any::<u8>(), 1..3),
    ];
    prop::collection::vec(start, 1..4)
}

#[test]
fn p2_p10_a_scan_agrees_with_a_sorted_map_at_the_moment_of_its_view() {
    let (overtaken, obsolete) = (Cell::new(0), Cell::new(0));
    let inputs = (config(), steps_of_one_life(120), steps_of_one_life(80), starts());
    for_random(150, inputs, |(config, before, meanwhile, starts)| {
        block_on(async {
            let mut world = World::new(config).await;
            for step in &before {
                world.step(step).await;
            }
            let (db, storage, now) = (world.shard.db.clone(), world.shard.storage.clone(), world.now);
            let (view, expected) = (db.view(), world.present());

            let over = Cell::new(false);
            let steps = async {
                for step in &meanwhile {
                    world.step(step).await;
                }
                over.set(true);
            };
            let scans = scan_until(&over, &db, &view, now, &expected, &starts);
            tokio::join!(steps, scans);

            overtaken.set(overtaken.get() + u32::from(!Rc::ptr_eq(&db.version(), &view.version)));
            for file in view.version.files() {
                let name = FileName::Sst(file.number);
                assert!(storage.files().iter().any(|(found, _)| *found == name), "{name} is in use"); // U1
                let in_force = db.version().files().any(|now| now.number == file.number);
                obsolete.set(obsolete.get() + u32::from(!in_force));
            }
        });
    });
    let (overtaken, obsolete) = (overtaken.get(), obsolete.get());
    println!(
        "{overtaken} views were overtaken by flushes and compactions, and held {obsolete} obsolete files"
    );
    assert!(0 < overtaken && 0 < obsolete, "the shard changes below its views");
}

/// Scans from each start, again and again, while other tasks go on between the steps. Scans a last time when these
/// tasks have ended. One scan serves all rounds, and a new one is made in every round.
async fn scan_until(
    over: &Cell<bool>,
    db: &Db<SimStorage>,
    view: &View,
    now: UnixMillis,
    expected: &Map,
    starts: &[Vec<u8>],
) {
    let mut random = Random::new(7);
    let mut first = db.scan(view, now);
    let mut last = false;
    while !last {
        last = over.get();
        for start in starts {
            let mut others_go_on = async || {
                if random.below(3) == 0 {
                    db.pause().await;
                }
            };
            let range = expected.range(start.clone()..);
            let expected: Vec<_> = range.map(|(key, held)| (key.clone(), held.clone())).collect();
            for scan in [&mut first, &mut db.scan(view, now)] {
                assert!(read_all(scan, start, &mut others_go_on).await == expected, "from {start:?}");
            }
        }
        db.pause().await;
    }
}

#[test]
fn p2_a_view_leaves_out_writes_in_flight_for_good() {
    block_on(async {
        let shard = Shard::create(CONFIG, 1).await;
        shard.set(b"a", b"1").await;
        shard.set(b"b", b"1").await;
        let tickets = [shard.db.set(b"a", b"2").unwrap(), shard.db.set(b"c", b"2").unwrap()];
        let (deleted, _) = shard.db.delete(b"b", NOW).unwrap();
        let view = shard.db.view();
        let values = async |view| {
            let entries = read_all(&mut shard.db.scan(view, NOW), b"", async || {}).await;
            entries.into_iter().map(|(key, found)| [&key[..], &found.value[..]].concat()).collect::<Vec<_>>()
        };
        assert_eq!(values(&view).await, [b"a1", b"b1"], "in flight");
        shard.db.commit_next().await.unwrap();
        for ticket in tickets {
            ticket.await.unwrap();
        }
        deleted.await.unwrap();
        assert_eq!(values(&view).await, [b"a1", b"b1"], "committed since");
        shard.flush().await;
        assert_eq!(values(&view).await, [b"a1", b"b1"], "flushed since");
        assert_eq!(values(&shard.db.view()).await, [b"a2", b"c2"], "a later view");
    });
}

#[test]
fn u1_the_files_of_a_view_are_removed_once_the_view_is_dropped() {
    block_on(async {
        let shard = Shard::create(CONFIG, 1).await;
        for round in 0..4 {
            for key in [b"a", b"m", b"z"] {
                shard.set(key, &[b'0' + round]).await;
            }
            shard.flush().await;
        }
        let ssts = || shard.files(|name| matches!(name, FileName::Sst(_)));
        let before = ssts();
        let view = shard.db.view();
        let mut scan = shard.db.scan(&view, NOW);
        let all = read_all(&mut scan, b"", async || {}).await;
        assert_eq!(all.len(), 3);

        assert_eq!(shard.compact(NOW).await, 1);
        assert_eq!(shard.remove_obsolete().await, 0, "the view needs them");
        assert_eq!(read_all(&mut scan, b"", async || {}).await, all);
        drop(view);
        assert_eq!(shard.remove_obsolete().await, 0, "the scan needs them");
        assert_eq!(read_all(&mut scan, b"", async || {}).await, all);
        drop(scan);
        assert_eq!(shard.remove_obsolete().await, before.len());
        assert!(ssts().iter().all(|name| !before.contains(name)));
        assert_eq!(read_all(&mut shard.db.scan(&shard.db.view(), NOW), b"", async || {}).await, all);
    });
}
