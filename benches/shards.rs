//! The cost of a request that arrives at a thread that does not own its key. The figures are requests per second of the
//! server's processor time: with keys of the connection's own thread alone, and with any keys, in turn.
//!
//! `cargo bench --bench shards` starts the real server with two shards on two threads. A client is not told which
//! thread serves its connection, so the bench looks which thread's processor time grows when the connection is used.
//! The load runs on the same processors; therefore the server's processor time is compared, not the rate. The data is
//! in `RINGKEEP_BENCH_DIR`, or in cargo's temporary folder. Prints one JSON object for each verb of a turn.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use ringkeep::key::{ShardId, Slot};
use ringkeep::random::Random;
use ringkeep::shard::router::{Router, ThreadId};
use ringkeep::store::Store;

const THREADS: usize = 2;
const CONNECTIONS: usize = 32;
const KEYS: u64 = 20_000;
const TURNS: usize = 7;
/// Requests of a connection in one turn, one after the other.
const REQUESTS: usize = 6_000;

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(data_dir: &std::path::Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
            .args(["serve", "--listen", "127.0.0.1:0", "--threads", "2", "--shards", "2", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("standard output is piped");
        BufReader::new(output).read_line(&mut line).expect("the server prints its address");
        let address = line.trim().trim_start_matches("listening on http://").to_owned();
        Self { child, address }
    }

    /// Nanoseconds of processor time, by thread.
    fn processor_time(&self) -> BTreeMap<String, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the server runs");
        tasks
            .map(|task| {
                let task = task.expect("the server runs");
                let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                let time = text.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0);
                (task.file_name().to_string_lossy().into_owned(), time)
            })
            .collect()
    }

    /// The processor time that each thread takes for `work`, the busiest thread first.
    fn busiest(&self, work: impl FnOnce()) -> Vec<(String, u64)> {
        let before = self.processor_time();
        work();
        let after = self.processor_time();
        let grown = |(task, time): (String, u64)| {
            let grown = time.saturating_sub(before.get(&task).copied().unwrap_or(0));
            (task, grown)
        };
        let mut busy: Vec<_> = after.into_iter().map(grown).collect();
        busy.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        busy
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a connection requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Set,
}

/// The value of a key: half of its bytes compress.
fn value(key: u64) -> [u8; 100] {
    let mut random = Random::new(key);
    std::array::from_fn(|at| if at < 50 { random.next_u64() as u8 } else { b'0' })
}

fn request(verb: Verb, key: u64) -> Vec<u8> {
    match verb {
        Verb::Get => format!("GET /get?key={key:016} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes(),
        Verb::Set => {
            let head =
                format!("POST /set?key={key:016} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n");
            [head.as_bytes(), &value(key)].concat()
        }
    }
}

/// Sends one request on every connection, then checks every answer, until all keys have been used.
fn drive(streams: &mut [(TcpStream, Vec<u64>)], verb: Verb) {
    let rounds = streams.iter().map(|(_, keys)| keys.len()).max().unwrap_or(0);
    for round in 0..rounds {
        for (stream, keys) in streams.iter_mut() {
            stream.write_all(&request(verb, keys[round])).expect("the server reads");
        }
        for (stream, keys) in streams.iter_mut() {
            match verb {
                Verb::Get => expect(stream, &value(keys[round])),
                Verb::Set => expect(stream, b"OK\n"),
            }
        }
    }
}

/// Reads a reply, which must have this body.
fn expect(stream: &mut TcpStream, body: &[u8]) {
    let (mut buffer, mut filled) = ([0; 4096], 0);
    loop {
        let count = stream.read(&mut buffer[filled..]).expect("the server replies");
        filled += count;
        let reply = &buffer[..filled];
        assert!(0 < count && filled < buffer.len(), "an incomplete reply: {}", reply.escape_ascii());
        let Some(end) = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let (head, found) = (reply[..end].escape_ascii().to_string(), &reply[end + 4..]);
        let length = format!("content-length: {}", body.len());
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(&length), "an unexpected reply: {head}");
        if body.len() <= found.len() {
            assert_eq!(found, body, "a value is wrong");
            return;
        }
    }
}

fn main() {
    // Cargo passes `--test` if it only tries whether benches run.
    let turns = if std::env::args().any(|argument| argument == "--test") { 1 } else { TURNS };
    let device =
        std::env::var("RINGKEEP_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let folder = tempfile::tempdir_in(device).expect("the device has room for a folder");
    let server = Server::start(folder.path());
    let router = Router::new(Store::new(1, 2).slots, THREADS);
    let mut by_shard: Vec<Vec<u64>> = vec![Vec::new(); THREADS];
    for key in 0..KEYS {
        by_shard[usize::from(router.shard(Slot::of(format!("{key:016}").as_bytes())).0)].push(key);
    }
    let connect = || {
        let stream = TcpStream::connect(&server.address).expect("the server listens");
        stream.set_nodelay(true).expect("the stream is a TCP socket");
        stream
    };
    let mut streams: Vec<(TcpStream, Vec<u64>)> = (0..CONNECTIONS).map(|_| (connect(), Vec::new())).collect();
    let chunk = KEYS as usize / CONNECTIONS;
    for (index, (_, keys)) in streams.iter_mut().enumerate() {
        *keys = ((index * chunk) as u64..((index + 1) * chunk) as u64).collect();
    }
    drive(&mut streams, Verb::Set);

    // The shard of each connection's thread: the shard whose keys keep only one thread busy.
    let shards: Vec<ShardId> = streams
        .iter_mut()
        .map(|(stream, keys)| {
            let shares = [0, 1].map(|shard: usize| {
                *keys = by_shard[shard][..500].to_vec();
                let mut alone = [(stream.try_clone().expect("descriptors are left"), std::mem::take(keys))];
                let busy = server.busiest(|| drive(&mut alone, Verb::Get));
                busy[1].1 as f64 / busy[0].1 as f64
            });
            ShardId(u16::from(shares[1] < shares[0]))
        })
        .collect();
    let of = |shard: u16| shards.iter().filter(|found| found.0 == shard).count();
    assert_eq!((of(0), of(1)), (CONNECTIONS / 2, CONNECTIONS / 2), "connections are spread evenly");
    assert_eq!(router.thread(ShardId(1)), ThreadId(1));

    let mut random = Random::new(1);
    for turn in 0..turns {
        for verb in [Verb::Get, Verb::Set] {
            // Every other turn takes the opposite order.
            let mut rates = [0.0; 2];
            for own in [turn % 2 == 0, turn % 2 != 0] {
                for ((_, keys), shard) in streams.iter_mut().zip(&shards) {
                    let pick = |_| {
                        let shard = if own { usize::from(shard.0) } else { random.below(2) as usize };
                        by_shard[shard][random.below(by_shard[shard].len() as u64) as usize]
                    };
                    *keys = (0..REQUESTS / if verb == Verb::Set { 3 } else { 1 }).map(pick).collect();
                }
                let count: usize = streams.iter().map(|(_, keys)| keys.len()).sum();
                let busy = server.busiest(|| drive(&mut streams, verb));
                let nanoseconds: u64 = busy.iter().map(|(_, time)| time).sum();
                rates[usize::from(own)] = count as f64 * 1e9 / nanoseconds as f64;
            }
            let [any, own] = rates;
            let verb = if verb == Verb::Get { "get" } else { "set" };
            println!(r#"{{"turn":{turn},"verb":"{verb}","own":{own:.0},"any":{any:.0}}}"#);
        }
    }
}
