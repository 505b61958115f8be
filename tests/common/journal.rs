//! Clients that write until the server is gone, and remember every answer. Afterwards the content of the server is
//! compared with what the clients remember.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ringkeep::random::Random;

use super::{Client, PATIENCE, encode};

/// Keys of each client.
const KEYS: u64 = 400;

/// What a client knows of a key: the value that was acknowledged (`None` if the key was deleted or never set), and a
/// write that was sent and not answered.
type Known = (Option<u64>, Option<Option<u64>>);

/// What every client knows.
pub struct Journals {
    clients: Vec<BTreeMap<String, Known>>,
    round: u64,
    seed: u64,
}

/// What the clients have done so far, and what they have to expect from now on.
#[derive(Default)]
pub struct Progress {
    /// Writes acknowledged.
    pub acknowledged: AtomicU64,
    /// Writes refused with 503 or 507.
    pub refused: AtomicU64,
    /// Writes refused because the disk is full.
    pub disk_full: AtomicU64,
    /// Reads answered correctly.
    pub reads: AtomicU64,
    /// The power is going: from now on answers prove nothing.
    pub over: AtomicBool,
    /// The clients must stop.
    pub stop: AtomicBool,
    /// From now on the server may end, or fail. Until then every request must be answered, and no answer may be a
    /// failure.
    pub may_end: AtomicBool,
}

impl Progress {
    /// Waits until `writes` writes are acknowledged.
    pub fn wait_for(&self, writes: u64) {
        let begin = Instant::now();
        while self.acknowledged.load(Ordering::SeqCst) < writes {
            assert!(begin.elapsed() < PATIENCE, "the clients make no progress");
            thread::yield_now();
        }
    }

    /// Allows the server to end. Call this before the server is told to end.
    pub fn ends_now(&self) {
        self.may_end.store(true, Ordering::SeqCst);
    }

    /// Checks that a connection may end, or a request fail, at this time.
    fn expect_end(&self, what: &str) {
        let expected = [&self.may_end, &self.over].iter().any(|flag| flag.load(Ordering::SeqCst));
        assert!(expected, "{what}, although nothing was done to the server");
    }
}

fn value(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let length = [10, 100, 1_000, 20_000][random.below(4) as usize];
    let mut value = seed.to_le_bytes().to_vec();
    value.resize_with(length, || random.next_u64().to_le_bytes()[0]);
    value
}

impl Journals {
    pub fn new(clients: usize, seed: u64) -> Self {
        Self { clients: vec![BTreeMap::new(); clients], round: 0, seed }
    }

    /// Lets all clients write until the server is gone or `stop` is set, while `watch` runs. Returns the number of
    /// acknowledged writes.
    pub fn write(&mut self, address: SocketAddr, watch: impl FnOnce(&Progress)) -> u64 {
        self.round += 1;
        let progress = Progress::default();
        let seed = self.seed;
        thread::scope(|scope| {
            for (id, journal) in self.clients.iter_mut().enumerate() {
                let seed = seed ^ (self.round << 16) ^ id as u64;
                let (client, progress) = (Client::connect(address), &progress);
                scope.spawn(move || write(client, seed, id, journal, progress));
            }
            watch(&progress);
        });
        progress.acknowledged.into_inner()
    }

    /// Compares what the server has with what the clients know, and updates what they know. Returns the number of keys
    /// read.
    pub fn check(&mut self, client: &mut Client, context: &str) -> u64 {
        let mut checked = 0;
        for (id, journal) in self.clients.iter_mut().enumerate() {
            for (key, known) in journal {
                let (acknowledged, sent) = *known;
                let reply = client.request("GET", &format!("/get?key={key}"));
                let found = match reply.status {
                    200 => Some(u64::from_le_bytes(*reply.body.first_chunk().unwrap())),
                    404 => None,
                    status => panic!("{context}: client {id}: {status} {}", reply.text()),
                };
                if let Some(found) = found {
                    assert_eq!(reply.body, value(found), "{context}: wrong bytes under {key}");
                }
                let possible = found == acknowledged || Some(found) == sent;
                assert!(
                    possible,
                    "{context}: {key} is {found:?}, acknowledged {acknowledged:?}, sent {sent:?}"
                );
                *known = (found, None);
                checked += 1;
            }
        }
        checked
    }
}

/// Sets, deletes and reads until the server is gone or the test is over.
fn write(
    mut client: Client,
    seed: u64,
    id: usize,
    journal: &mut BTreeMap<String, Known>,
    progress: &Progress,
) {
    let mut random = Random::new(seed);
    while !progress.stop.load(Ordering::SeqCst) {
        let key = encode(format!("c{id}-{}", random.below(KEYS)).as_bytes());
        let dice = random.below(10);
        if dice < 3 {
            if !read(&mut client, &key, journal.get(&key).and_then(|known| known.0), progress) {
                return;
            }
            continue;
        }
        let (request, sent) = if dice < 5 {
            (format!("DELETE /del?key={key} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(), None)
        } else {
            let seed = random.next_u64();
            let body = value(seed);
            let head = format!(
                "POST /set?key={key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            ([head.into_bytes(), body].concat(), Some(seed))
        };
        let known = journal.entry(key.clone()).or_default();
        known.1 = Some(sent);
        let sent_all = client.stream.write_all(&request).is_ok();
        let reply = if sent_all { client.try_reply(false) } else { None };
        let Some(reply) = reply else { return progress.expect_end("a write has no answer") };
        if progress.over.load(Ordering::SeqCst) {
            return; // the answer may have come after the cut
        }
        match reply.status {
            // The answer to a delete must be exact.
            200 => assert!(sent.is_some() || known.0.is_some(), "a delete found {key}, which did not exist"),
            404 if sent.is_none() => {
                assert_eq!(known.0, None, "a delete did not find {key}, which existed")
            }
            status @ (503 | 507) => {
                known.1 = None;
                progress.refused.fetch_add(1, Ordering::SeqCst);
                progress.disk_full.fetch_add(u64::from(status == 507), Ordering::SeqCst);
                continue;
            }
            // The WAL could not be written: this write may be there or not.
            500 => return progress.expect_end(reply.text()),
            status => panic!("{status} {}", reply.text()),
        }
        *known = (sent, None);
        progress.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// Reads a key whose value is known. Returns `false` if there was no answer, or an answer that proves nothing.
fn read(client: &mut Client, key: &str, expected: Option<u64>, progress: &Progress) -> bool {
    let request = format!("GET /get?key={key} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let sent_all = client.stream.write_all(request.as_bytes()).is_ok();
    let reply = if sent_all { client.try_reply(false) } else { None };
    let Some(reply) = reply else {
        progress.expect_end("a read has no answer");
        return false;
    };
    if progress.over.load(Ordering::SeqCst) {
        return false;
    }
    match reply.status {
        200 => assert_eq!(Some(reply.body), expected.map(value), "wrong bytes under {key}"),
        404 => assert_eq!(expected, None, "{key} is missing"),
        503 => return true,
        500 => {
            progress.expect_end(reply.text());
            return true;
        }
        status => panic!("{status} {}", reply.text()),
    }
    progress.reads.fetch_add(1, Ordering::SeqCst);
    true
}
