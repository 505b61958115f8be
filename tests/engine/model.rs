//! Random operations, flushes, compactions, clean stops and crashes of production code on simulated storage, compared
//! with a sorted map ([`crate::common::world`]). A failure prints the seed and the shortest list of steps that fails.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use crate::common::campaign::for_random;
use crate::common::sim::{CONFIG, NOW, Shard};
use crate::common::world::{World, config, steps};
use futures_executor::block_on;
use ringkeep::db::Progress;
use ringkeep::storage::sim::Fate;

#[test]
fn p1_p2_p4_p10_a_shard_agrees_with_a_sorted_map() {
    let (expired, removed) = (Cell::new(0), Cell::new(0));
    for_random(200, (config(), steps(180)), |(config, steps)| {
        block_on(async {
            let mut world = World::new(config).await;
            for step in &steps {
                world.step(step).await;
            }
            world.check_all().await;
            expired.set(expired.get() + world.reads_of_expired.get());
            removed.set(removed.get() + world.reads_of_removed.get());
        });
    });
    let (expired, removed) = (expired.get(), removed.get());
    println!("{expired} reads of expired keys, {removed} of keys that a compaction had removed");
    assert!(0 < expired && 0 < removed, "keys expire, and compactions remove them");
}

#[test]
fn f1_a_search_that_a_flush_overtakes_leaves_no_old_value_behind() {
    let flushed = block_on(async {
        let shard = Shard::create(CONFIG, 1).await;
        shard.set(b"key", b"old").await;
        shard.db.close(|_| {}).await.unwrap();
        shard
    });
    // The search needs the disk, and a flush overtakes it. In each round the search ends after one more step of the
    // flush.
    let mut steps = 0;
    loop {
        let shard = block_on(flushed.after_crash(Fate::Kept));
        let mut search = shard.db.lookup(b"key", NOW).unwrap();
        assert!(matches!(search.poll_cached(&shard.db, b"key").unwrap(), Progress::NeedsDisk));
        block_on(async {
            shard.set(b"key", b"new").await;
            shard.freeze().await;
        });
        let mut flush = pin!(shard.db.flush_next());
        let mut done = false;
        for _ in 0..steps {
            done = done || flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        }
        assert_eq!(block_on(search.finish(&shard.db, b"key")).unwrap().unwrap().value, "old");
        if !done {
            block_on(flush).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(block_on(shard.db.get(b"key", NOW)).unwrap().unwrap(), "new", "after {steps} steps");
        }
        if done {
            break;
        }
        steps += 1;
    }
    assert!(5 < steps, "a flush has more steps than {steps}");
}
