//! kill -9 under load, again and again: every acknowledged write is there after the restart, and of the others
//! each is there or not, never anything else.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{Client, Server, folder};
use ringkeep::random::Random;

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
const ROUNDS: u64 = 6;
const CLIENTS: u64 = 8;
const KEYS: u64 = 400;
/// Acknowledged writes after which the kill comes.
const WRITES: u64 = 1_500;

/// What a client knows of its keys: the value that was acknowledged (`None` if deleted or never set), and what
/// was sent and not answered.
type Journal = BTreeMap<String, (Option<u64>, Option<Option<u64>>)>;

fn value(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let length = [10, 100, 1_000, 20_000][random.below(4) as usize];
    let mut value = seed.to_le_bytes().to_vec();
    value.resize_with(length, || random.next_u64().to_le_bytes()[0]);
    value
}

/// Sets and deletes until the server is gone.
fn write(mut client: Client, seed: u64, id: u64, journal: &mut Journal, acknowledged: &AtomicU64) {
    let mut random = Random::new(seed);
    loop {
        let key = format!("c{id}-{}", random.below(KEYS));
        let (request, sent) = if random.below(5) == 0 {
            (format!("DELETE /del?key={key} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(), None)
        } else {
            let seed = random.next_u64();
            let body = value(seed);
            let head =
                format!("POST /set?key={key} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
            ([head.into_bytes(), body].concat(), Some(seed))
        };
        let entry = journal.entry(key.clone()).or_default();
        entry.1 = Some(sent);
        if client.stream.write_all(&request).is_err() {
            return;
        }
        let Some(reply) = client.try_reply(false) else { return };
        match reply.status {
            200 => {}
            // The answer to a delete is exact: the key was not there.
            404 if sent.is_none() => assert_eq!(entry.0, None, "{key}"),
            503 => {
                entry.1 = None;
                continue;
            }
            status => panic!("{status} {}", reply.text()),
        }
        assert!(sent.is_some() || reply.status == 404 || entry.0.is_some(), "{key} was not there");
        *entry = (sent, None);
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let (_folder, data) = folder();
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_517_u64);
    println!("SEED={seed}");
    let mut journals: Vec<Journal> = (0..CLIENTS).map(|_| Journal::new()).collect();
    let (mut total, mut checked) = (0, 0);
    for round in 0..ROUNDS {
        let server = Server::start(&data, FLAGS);
        // First what the kill before has left.
        let mut client = server.client();
        for journal in &mut journals {
            for (key, (acknowledged, sent)) in journal.iter_mut() {
                let reply = client.request("GET", &format!("/get?key={key}"));
                let found = match reply.status {
                    200 => Some(u64::from_le_bytes(*reply.body.first_chunk().unwrap())),
                    404 => None,
                    status => panic!("{status} {}", reply.text()),
                };
                if let Some(found) = found {
                    assert_eq!(reply.body, value(found), "round {round}: wrong bytes under {key}");
                }
                let possible = found == *acknowledged || Some(found) == *sent;
                assert!(
                    possible,
                    "round {round}: {key} is {found:?}, acknowledged {acknowledged:?}, sent {sent:?}"
                );
                (*acknowledged, *sent) = (found, None);
                checked += 1;
            }
        }
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = std::mem::take(&mut journals)
            .into_iter()
            .enumerate()
            .map(|(id, mut journal)| {
                let (client, acknowledged) = (server.client(), acknowledged.clone());
                thread::spawn(move || {
                    let id = id as u64;
                    write(client, seed ^ (round * CLIENTS + id), id, &mut journal, &acknowledged);
                    journal
                })
            })
            .collect();
        while acknowledged.load(Ordering::Relaxed) < WRITES {
            thread::yield_now();
        }
        server.kill();
        journals = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        total += acknowledged.load(Ordering::Relaxed);
    }
    println!("{ROUNDS} kills, {total} acknowledged writes, {checked} keys checked, 0 lost, 0 wrong");
}
