//! The process is killed under load, again and again. After each restart every acknowledged write is there. Any other
//! write that was sent may be there or not, and nothing else is there. `RINGKEEP_KILLS` is the number of kills,
//! `RINGKEEP_SEED` the seed.

mod common;

use std::time::{Duration, Instant};

use common::journal::Journals;
use common::{Row, SMALL, Server, folder, setting};

/// Small memtables, so that flushes and compactions are under way when the kill comes.
const FLAGS: &[&str] = &[
    "--memtable-size",
    "1MiB",
    "--max-value-size",
    "256KiB",
    "--cache-size",
    "1MiB",
    "--threads",
    "2",
    "--flush-interval",
    "200ms",
    "--compaction-interval",
    "100ms",
];
/// The kill comes after at least this many acknowledged writes.
const WRITES: u64 = 500;

#[test]
fn p1_every_acknowledged_write_survives_kill_9() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let (kills, seed) = (setting("RINGKEEP_KILLS", 8), setting("RINGKEEP_SEED", 7));
    let mut journals = Journals::new(8, seed);
    let (mut acknowledged, mut checked) = (0, 0);
    for kill in 0..kills {
        let server = Server::start(&data, FLAGS);
        checked += journals.check(&mut server.client(), &format!("seed {seed}, after kill {kill}"));
        let writes = WRITES + 37 * (kill % 40);
        let address = server.address;
        acknowledged += journals.write(address, |progress| {
            progress.wait_for(writes);
            progress.ends_now();
            server.kill();
        });
    }
    let server = Server::start(&data, FLAGS);
    checked += journals.check(&mut server.client(), &format!("seed {seed}, after the last kill"));
    println!("{checked} keys were read after the kills");
    Row { name: "kill -9 under load", runs: kills, acknowledged, seconds: begin.elapsed(), ..Row::default() }
        .report();
}

#[test]
fn without_syncs_kill_9_takes_nothing_either() {
    for sync in ["100ms", "never"] {
        let (_folder, data) = folder();
        let mut journals = Journals::new(4, 3);
        let flags = [FLAGS, &["--sync", sync]].concat();
        for kill in 0..2 {
            let server = Server::start(&data, &flags);
            journals.check(&mut server.client(), &format!("--sync {sync}, after kill {kill}"));
            let address = server.address;
            journals.write(address, |progress| {
                progress.wait_for(WRITES);
                progress.ends_now();
                server.kill();
            });
        }
        let server = Server::start(&data, &flags);
        journals.check(&mut server.client(), &format!("--sync {sync}, after the last kill"));
    }
}

#[test]
fn p6_a_wal_that_cannot_be_written_ends_the_process_with_74_and_loses_nothing() {
    let (_folder, data) = folder();
    let mut journals = Journals::new(4, 1);
    let server = Server::start(&data, SMALL);
    let address = server.address;
    let mut ended = None;
    journals.write(address, |progress| {
        progress.wait_for(200);
        progress.ends_now();
        // From now on every write of the process to any file fails with EFBIG.
        server.limit(rustix::process::Resource::Fsize, 0);
        let since = Instant::now();
        ended = Some((server.wait(), since.elapsed()));
    });
    let (status, after) = ended.unwrap();
    assert_eq!(status.code(), Some(74), "after {after:?}");
    assert!(after < Duration::from_secs(30), "the process took too long to end: {after:?}");
    let server = Server::start(&data, SMALL);
    journals.check(&mut server.client(), "after the restart");
}
