//! Operations on one key are linearizable (P3), even across kill -9. Clients race for a few keys, the process is killed
//! in between, and a checker looks for an order that explains every answer.
//!
//! `RINGKEEP_HISTORIES` is the number of histories, each of some ten thousand operations; `RINGKEEP_SEED` is the seed
//! of the first history.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::{Client, PATIENCE, Row, SMALL, Server, folder, setting};
use ringkeep::random::Random;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::Action::{Call, Response};
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

const CLIENTS: usize = 8;
const KEYS: u64 = 8;
/// Processes that serve one history, one after the other.
const LIVES: u64 = 4;
/// Operations in the life of one process.
const OPERATIONS: u64 = 2_500;

/// What was done to a key, and what was answered. Values are numbers from 1 on; 0 means that the key does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read(u64),
    Write(u64),
    /// A delete, and whether it found the key.
    Delete(bool),
    /// A delete whose answer never came.
    LostDelete,
}
use Operation::{Delete, LostDelete, Read, Write};

struct Register;

impl Specification for Register {
    type State = u64;
    type Operation = Operation;

    fn init() -> u64 {
        0
    }

    fn apply(operation: &Operation, state: &u64) -> (bool, u64) {
        match *operation {
            Read(value) => (value == *state, *state),
            Write(value) => (true, value),
            Delete(found) => (found == (*state != 0), 0),
            LostDelete => (true, 0),
        }
    }
}

/// An event of a key: its time, the client, and what happened. Each life of the server has clients of its own.
type Event = (u64, usize, Action<Operation>);
type Events = BTreeMap<u64, Vec<Event>>;

/// Does random things to random keys until the server is gone. `clock` orders the events of all clients.
fn client(mut client: Client, process: usize, seed: u64, clock: &AtomicU64, done: &AtomicU64) -> Events {
    let mut random = Random::new(seed);
    let mut events = Events::new();
    let now = || clock.fetch_add(1, Ordering::SeqCst);
    loop {
        let key = random.below(KEYS);
        let called = now();
        let (request, intent) = match random.below(10) {
            0..5 => (format!("GET /get?key=h{key}"), Read(0)),
            5..9 => {
                // No value is written twice.
                let value = called + 1;
                (format!("POST /set?key=h{key}&value={value}"), Write(value))
            }
            _ => (format!("DELETE /del?key=h{key}"), LostDelete),
        };
        let history = events.entry(key).or_default();
        history.push((called, process, Call(intent)));
        let sent = std::io::Write::write_all(
            &mut client.stream,
            format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
        );
        let reply = if sent.is_ok() { client.try_reply(false) } else { None };
        let Some(reply) = reply else {
            return events;
        };
        let outcome = match (intent, reply.status) {
            (Read(_), 200) => Read(reply.text().parse().unwrap()),
            (Read(_), 404) => Read(0),
            (Write(value), 200) => Write(value),
            (LostDelete, 200) => Delete(true),
            (LostDelete, 404) => Delete(false),
            (_, 503) => {
                history.pop(); // the operation was refused before it began
                continue;
            }
            (_, status) => panic!("{status} {}", reply.text()),
        };
        history.push((now(), process, Response(outcome)));
        done.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether some order explains a history. An operation that was never answered took effect before its server ended, or
/// never took effect: both are tried. `ends` holds the times at which the servers ended.
fn explicable(mut events: Vec<Event>, ends: &[u64]) -> bool {
    events.sort_by_key(|event| event.0);
    // A client waits for one answer at a time. The operation for which it still waits at the end is open.
    let mut open: BTreeMap<usize, (u64, Operation)> = BTreeMap::new();
    for (time, process, action) in &events {
        match action {
            Call(operation) => open.insert(*process, (*time, *operation)),
            Response(_) => open.remove(process),
        };
    }
    let seen: BTreeSet<u64> = events
        .iter()
        .filter_map(|event| match event.2 {
            Response(Read(value)) => Some(value),
            _ => None,
        })
        .collect();
    // A read without an answer says nothing, and a write whose value was read has happened.
    let uncertain: Vec<usize> = open
        .iter()
        .filter(|(_, (_, operation))| match operation {
            Write(value) => !seen.contains(value),
            Delete(_) | LostDelete => true,
            Read(_) => false,
        })
        .map(|(process, _)| *process)
        .collect();
    assert!(uncertain.len() <= 16, "there are too many orders to try");
    (0..1_u32 << uncertain.len()).any(|choice| {
        let happened = |process: usize| match uncertain.iter().position(|other| *other == process) {
            Some(index) => choice >> index & 1 == 1,
            None => !matches!(open[&process].1, Read(_)),
        };
        let mut completed = events.clone();
        completed.retain(|(time, process, _)| {
            open.get(process).is_none_or(|(called, _)| called != time || happened(*process))
        });
        for (&process, &(called, operation)) in &open {
            if happened(process) {
                let end = ends.iter().find(|end| called < **end).expect("every life has an end");
                completed.push((*end, process, Response(operation)));
            }
        }
        completed.sort_by_key(|event| event.0);
        linearizable(completed.into_iter().map(|(_, process, action)| (process, action)).collect())
    })
}

fn linearizable(actions: Vec<(usize, Action<Operation>)>) -> bool {
    actions.is_empty() || WGLChecker::<Register>::is_linearizable(History::from_actions(actions))
}

#[test]
fn p3_every_history_has_an_order() {
    let begin = Instant::now();
    let (histories, first) = (setting("RINGKEEP_HISTORIES", 3), setting("RINGKEEP_SEED", 7));
    let (mut operations, mut wrong) = (0, 0);
    for seed in first..first + histories {
        let (_folder, data) = folder();
        let clock = AtomicU64::new(0);
        let (mut all, mut ends) = (Events::new(), Vec::new());
        for life in 0..=LIVES {
            let server = Server::start(&data, &[SMALL, &["--flush-interval", "50ms"]].concat());
            // Every life begins with reads of what the life before has left. The last life only reads.
            let reader = LIVES as usize * CLIENTS + life as usize;
            for key in 0..KEYS {
                let reply = {
                    let called = clock.fetch_add(1, Ordering::SeqCst);
                    all.entry(key).or_default().push((called, reader, Call(Read(0))));
                    server.client().request("GET", &format!("/get?key=h{key}"))
                };
                let value = if reply.status == 404 { 0 } else { reply.text().parse().unwrap() };
                let now = clock.fetch_add(1, Ordering::SeqCst);
                all.entry(key).or_default().push((now, reader, Response(Read(value))));
            }
            if life == LIVES {
                break;
            }
            let done = AtomicU64::new(0);
            let parts: Vec<Events> = thread::scope(|scope| {
                let handles: Vec<_> = (0..CLIENTS)
                    .map(|id| {
                        let process = life as usize * CLIENTS + id;
                        let (connection, clock, done) = (server.client(), &clock, &done);
                        let seed = (seed << 32) ^ process as u64;
                        scope.spawn(move || client(connection, process, seed, clock, done))
                    })
                    .collect();
                let begin = Instant::now();
                while done.load(Ordering::SeqCst) < OPERATIONS {
                    assert!(begin.elapsed() < PATIENCE, "seed {seed}: the clients make no progress");
                    thread::yield_now();
                }
                server.kill();
                handles.into_iter().map(|handle| handle.join().unwrap()).collect()
            });
            ends.push(clock.fetch_add(1, Ordering::SeqCst));
            operations += done.into_inner();
            for (key, events) in parts.into_iter().flatten() {
                all.entry(key).or_default().extend(events);
            }
        }
        for (key, events) in all {
            if !explicable(events.clone(), &ends) {
                println!("seed {seed}: no order explains the events of key {key}: {events:?}");
                wrong += 1;
            }
        }
    }
    let name = "histories with kills, linearizable per key";
    Row {
        name,
        runs: histories,
        acknowledged: operations,
        wrong,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}

#[test]
fn the_checker_refuses_what_must_not_happen() {
    let call = |time, process, operation| (time, process, Call(operation));
    let answer = |time, process, operation| (time, process, Response(operation));
    let wrong = [
        // A read of the old value after the write was acknowledged.
        vec![call(0, 0, Write(1)), answer(1, 0, Write(1)), call(2, 1, Read(0)), answer(3, 1, Read(0))],
        // A value that was read, and that is gone after the crash.
        vec![
            call(0, 0, Write(1)),
            call(1, 1, Read(0)),
            answer(2, 1, Read(1)),
            call(11, 2, Read(0)),
            answer(12, 2, Read(0)),
        ],
        // An unanswered write that is not there after the crash, and appears later.
        vec![
            call(0, 0, Write(1)),
            call(11, 2, Read(0)),
            answer(12, 2, Read(0)),
            call(13, 2, Read(0)),
            answer(14, 2, Read(1)),
        ],
        // A delete that found a key that did not exist.
        vec![call(0, 0, LostDelete), answer(1, 0, Delete(true))],
    ];
    for history in wrong {
        assert!(!explicable(history.clone(), &[10, 20]), "{history:?}");
    }
    // An unanswered write may appear after the crash, or not. A delete may be the only operation that notices the
    // write.
    let right = [
        vec![call(0, 0, Write(1)), call(11, 1, Read(0)), answer(12, 1, Read(0))],
        vec![call(0, 0, Write(1)), call(11, 1, Read(0)), answer(12, 1, Read(1))],
        vec![call(0, 0, Write(1)), call(11, 1, LostDelete), answer(12, 1, Delete(true))],
    ];
    for history in right {
        assert!(explicable(history.clone(), &[10, 20]), "{history:?}");
    }
}
