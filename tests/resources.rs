//! The resources that a server holds: descriptors, memory, processor time, log lines. Nothing leaks, nothing spins, and
//! nothing grows with what clients only announce.
//!
//! `cargo test` runs each test on a small scale; `scripts/campaign.sh` sets the sizes for the reliability table.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::journal::Journals;
use common::{Client, PATIENCE, Row, SMALL, Server, folder, setting};
use ringkeep::random::Random;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The number after `name` in `/proc/ID/status`; memory is in KiB.
fn status(id: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

fn resident_kib(server: &Server) -> u64 {
    status(server.id(), "VmRSS")
}

fn descriptors(server: &Server) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count() as u64
}

/// Processor time so far, in hundredths of a second.
fn processor_ticks(server: &Server) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Waits until `done`, which must happen. Returns how long it took.
fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

/// Raises the limit of this process, which needs a descriptor for each connection, too.
fn raise_own_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    limit.maximum.unwrap_or(1 << 20)
}

fn set(client: &mut Client, key: &str) -> u16 {
    client.request("POST", &format!("/set?key={key}&value=x")).status
}

#[test]
fn r1_without_descriptors_it_neither_spins_nor_floods_the_log_and_files_still_open() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let log = data.with_extension("log");
    let server = Server::start_logged(&data, &[SMALL, &["--flush-interval", "100ms"]].concat(), &log);
    let mut client = server.client();
    assert_eq!(set(&mut client, "before"), 200);
    let limit = descriptors(&server) + 4;
    server.limit(Resource::Nofile, limit);
    let waiting: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    until("the descriptors run out", || limit <= descriptors(&server));
    let before = processor_ticks(&server);
    let seconds = setting("RINGKEEP_STARVED_SECONDS", 2);
    thread::sleep(Duration::from_secs(seconds)); // processor time is measured over these seconds
    let share = (processor_ticks(&server) - before) / seconds;
    assert!(share < 10, "{share} % of a processor while nothing can be accepted");
    assert_eq!(client.request("GET", "/get?key=before").status, 200, "open connections are served");
    assert_eq!(set(&mut client, "during"), 200, "a write needs no new descriptor");
    drop(waiting);
    until("the server accepts again", || {
        let mut client = server.client();
        client
            .send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .try_reply(false)
            .is_some_and(|r| r.status == 200)
    });
    let lines = fs::read_to_string(&log).unwrap();
    let complaints = lines.lines().filter(|line| line.contains("cannot accept")).count() as u64;
    assert!((1..=2).contains(&complaints), "each of two threads complains once:\n{lines}");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    Row { name: "descriptors run out", runs: 1, seconds: begin.elapsed(), ..Row::default() }.report();
}

#[test]
fn r2_connections_beyond_the_limit_are_refused_and_files_keep_their_descriptors() {
    let (_folder, data) = folder();
    let server = Server::start_limited(&data, &[SMALL, &["--flush-interval", "50ms"]].concat(), 400);
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut served = Vec::new();
    let mut refused = 0;
    for _ in 0..200 {
        let mut client = server.client();
        match client.send(request).try_reply(false) {
            Some(reply) if reply.status == 200 => served.push(client),
            Some(reply) => {
                assert_eq!(reply.status, 503, "{reply:?}");
                refused += 1;
            }
            None => refused += 1, // the connection was closed before the status arrived
        }
    }
    assert!((100..200).contains(&served.len()) && 0 < refused, "{} served, {refused} refused", served.len());
    assert_eq!(set(&mut served[0], "flushed"), 200);
    until("a flush finds its descriptors", || files(&data).iter().any(|name| name.ends_with(".sst")));
    assert_eq!(served[0].request("GET", "/get?key=flushed").status, 200);
}

#[test]
fn r3_an_idle_connection_holds_8_kib_at_most() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let wanted = setting("RINGKEEP_IDLE", 2_000);
    let count = wanted.min(raise_own_limit().saturating_sub(400));
    let server = Server::start(&data, &[SMALL, &["--max-connections", "12000"]].concat());
    let mut first = server.client();
    assert_eq!(set(&mut first, "warm"), 200);
    let before = resident_kib(&server);
    let mut clients: Vec<Client> = (0..count).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send("GET /get?key=warm HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    let each = (resident_kib(&server) - before) as f64 / count as f64;
    println!("{count} connections, {each:.1} KiB each");
    assert!(each <= 8.0, "{each} KiB for each of {count} idle connections");
    drop(clients);
    until("all connections are gone", || descriptors(&server) < 100);
    Row { name: "idle connections", runs: count, seconds: begin.elapsed(), ..Row::default() }.report();
}

#[test]
fn r4_memory_grows_by_what_arrives_not_by_what_is_announced() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let flags = ["--memtable-size", "8MiB", "--cache-size", "32MiB", "--threads", "2"];
    let group = Cgroup::new(256 << 20);
    let server = match &group {
        Some(Cgroup(group)) => Server::start_confined(&data, &flags, group),
        None => Server::start(&data, &flags),
    };
    let address = server.address;
    let mut journals = Journals::new(8, 4);
    let mut announced = Vec::new();
    let acknowledged = journals.write(address, |progress| {
        for number in 0..600 {
            let mut client = Client::connect(address);
            let length = if number % 2 == 0 { 16 << 20 } else { 1 << 30 };
            client.send(format!(
                "POST /set?key=big-{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            ));
            if number % 2 == 1 {
                assert_eq!(client.reply().status, 413, "refused before the body is read");
            } else {
                client.send([7; 1_000]);
                announced.push(client);
            }
        }
        let seconds = setting("RINGKEEP_CONFINED_SECONDS", 3);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(seconds) {
            // Large values are written and read at the same time as the small ones.
            let mut client = Client::connect(address);
            let body = vec![since.elapsed().subsec_nanos() as u8; 8 << 20];
            let reply = client.post("/set?key=large", &body);
            assert!([200, 503].contains(&reply.status), "{reply:?}");
            if reply.status == 200 {
                assert_eq!(client.request("GET", "/get?key=large").body, body);
            }
        }
        progress.stop.store(true, Ordering::SeqCst);
    });
    let peak = status(server.id(), "VmHWM");
    println!("{peak} KiB at most, confined by a cgroup: {}", group.is_some());
    assert!(peak < 256 << 10, "{peak} KiB");
    drop(announced);
    journals.check(&mut server.client(), "in 256 MiB");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    Row {
        name: if group.is_some() { "256 MiB of memory, mixed load" } else { "mixed load" },
        runs: 1,
        acknowledged,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}

/// A cgroup of the test's own; there is none if this process may not make one.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    /// A cgroup that limits writes to the device of `folder` to `bytes` per second.
    fn with_slow_disk(folder: &Path, bytes: u64) -> Option<Self> {
        let device = rustix::fs::stat(folder).unwrap().st_dev;
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let limits = [
            ("/sys/fs/cgroup/blkio", "blkio.throttle.write_bps_device", format!("{device} {bytes}")),
            ("/sys/fs/cgroup", "io.max", format!("{device} wbps={bytes}")),
        ];
        limits.into_iter().find_map(|(root, file, limit)| Self::with(Path::new(root), file, &limit))
    }

    fn with(root: &Path, file: &str, limit: &str) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = root.join(format!("ringkeep-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        fs::write(group.0.join(file), limit).ok()?;
        Some(group)
    }

    fn new(bytes: u64) -> Option<Self> {
        let limits = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        limits.into_iter().find_map(|(root, file)| Self::with(Path::new(root), file, &bytes.to_string()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0); // a failed test may have left a server in it
    }
}

#[test]
fn r5_connections_that_come_and_go_badly_leave_nothing() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let address = server.address;
    assert_eq!(server.client().post("/set?key=k", &[7; 20_000]).status, 200);
    let aborts = setting("RINGKEEP_ABORTS", 4_000);
    let abuse = |count: u64| {
        thread::scope(|scope| {
            for worker in 0..4 {
                scope.spawn(move || {
                    for number in 0..count / 4 {
                        abort(address, number * 4 + worker);
                    }
                });
            }
        });
    };
    abuse(2_000);
    let quiet = || {
        let mut before = 0;
        until("the connections are gone", || {
            let now = descriptors(&server);
            thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut before, now) == now && now < 100
        });
    };
    quiet();
    let (files, memory) = (descriptors(&server), resident_kib(&server));
    abuse(aborts);
    quiet();
    // By now there may be a spare WAL, and files that were read stay open. Connections must not stay open.
    until("no descriptor is left behind", || descriptors(&server) <= files + 8);
    let grown = resident_kib(&server).saturating_sub(memory);
    println!("{aborts} connections, {grown} KiB more than before");
    assert!(grown < 4 << 10, "{grown} KiB more than before");
    assert_eq!(server.client().request("GET", "/get?key=k").body, [7; 20_000]);
    Row { name: "connects and aborts", runs: aborts, seconds: begin.elapsed(), ..Row::default() }.report();
}

/// Ends a connection badly, in one of several ways.
fn abort(address: SocketAddr, number: u64) {
    let mut stream = TcpStream::connect(address).unwrap();
    let reset = |stream: &TcpStream| {
        let linger = Some(Duration::ZERO);
        let _ = socket2::SockRef::from(stream).set_linger(linger); // the connection closes even if this fails
    };
    let requests: [&[u8]; 6] = [
        b"",
        b"GET /get?key=k HT",
        b"POST /set?key=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nhalf",
        b"GET /get?key=k HTTP/1.1\r\nHost: localhost\r\n\r\nGET /get?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /set?key=y&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00 hello",
    ];
    // The server may have closed the connection already.
    let _ = stream.write_all(requests[(number % 6) as usize]);
    match number / 6 % 3 {
        0 => reset(&stream),
        1 => drop(stream.shutdown(std::net::Shutdown::Write)),
        _ => {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = stream.read(&mut [0; 100]);
            reset(&stream);
        }
    }
}

#[test]
fn r6_files_that_compaction_made_obsolete_are_removed_while_it_runs() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    // Removal does not depend on how often compaction is checked.
    let often = ["--shards", "1", "--flush-interval", "10ms", "--compaction-interval", "1h"];
    let server = Server::start(&data, &[SMALL, &often].concat());
    let ssts =
        || -> BTreeSet<String> { files(&data).into_iter().filter(|name| name.ends_with(".sst")).collect() };
    let mut client = server.client();
    let (mut seen, mut acknowledged) = (BTreeSet::new(), 0);
    until("flushes make files", || {
        assert_eq!(client.post_patiently("/set?key=k", b"x").status, 200);
        acknowledged += 1;
        seen.append(&mut ssts());
        40 <= seen.len()
    });
    // What stays is fewer files in L0 than make a compaction due, and the one file that the last compaction has
    // written.
    until("obsolete files are removed", || ssts().len() <= 4);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    Row {
        name: "obsolete files",
        runs: seen.len() as u64,
        acknowledged,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}

#[test]
fn r7_a_client_that_never_reads_is_not_read_from_either() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().post("/set?key=k", &[7; 100_000]).status, 200);
    let before = resident_kib(&server);
    let clients = 16;
    let greedy: Vec<TcpStream> = (0..clients)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let request = b"GET /get?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1_000);
            // Send until the server takes no more.
            let mut sent = 0;
            while stream.write_all(&request).is_ok() {
                sent += request.len();
                assert!(sent < 64 << 20, "the server reads for ever");
            }
            stream
        })
        .collect();
    let each = resident_kib(&server).saturating_sub(before) / clients;
    println!("{each} KiB for each");
    assert!(each <= 1_400, "{each} KiB for each client that does not read");
    assert_eq!(server.client().request("GET", "/get?key=k").body.len(), 100_000, "others are served");
    drop(greedy);
    until("the connections are gone", || descriptors(&server) < 100);
    Row { name: "clients that never read", runs: clients, seconds: begin.elapsed(), ..Row::default() }
        .report();
}

#[test]
fn r8_sigterm_under_load_ends_with_0_and_loses_nothing() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let rounds = setting("RINGKEEP_STOPS", 3);
    let mut journals = Journals::new(16, 8);
    let mut acknowledged = 0;
    for round in 0..rounds {
        let server = Server::start(&data, SMALL);
        journals.check(&mut server.client(), &format!("after stop {round}"));
        let address = server.address;
        acknowledged += journals.write(address, |progress| {
            progress.wait_for(300);
            progress.ends_now();
            server.signal("-TERM");
            assert_eq!(server.wait().code(), Some(0));
        });
    }
    let server = Server::start(&data, SMALL);
    journals.check(&mut server.client(), "after the last stop");
    Row {
        name: "SIGTERM under load",
        runs: rounds,
        acknowledged,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}

/// All files in the directories of the shards.
fn files(data: &Path) -> BTreeSet<String> {
    let read = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let shards = read(data).filter(|entry| entry.path().is_dir());
    shards
        .flat_map(|shard| {
            read(&shard.path()).map(|file| file.path().display().to_string()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn r9_a_soak_with_kills_leaks_nothing() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let seconds = setting("RINGKEEP_SOAK_SECONDS", 8);
    let lives = (seconds / 300).max(2);
    let flags = [SMALL, &["--flush-interval", "1s", "--compaction-interval", "1s"]].concat();
    let mut journals = Journals::new(8, setting("RINGKEEP_SEED", 7));
    let (mut acknowledged, mut slopes, mut most) = (0, Vec::new(), 0);
    for life in 0..lives {
        let server = Server::start(&data, &flags);
        journals.check(&mut server.client(), &format!("after kill {life}"));
        let address = server.address;
        acknowledged += journals.write(address, |progress| {
            let life_time = Duration::from_secs(seconds) / lives as u32;
            let since = Instant::now();
            let (mut early, mut late) = (0, 0);
            while since.elapsed() < life_time {
                thread::sleep(life_time / 20);
                let memory = resident_kib(&server);
                most = most.max(descriptors(&server));
                // The first fifth fills caches and memtables.
                if life_time / 5 < since.elapsed() && since.elapsed() < life_time / 2 {
                    early = early.max(memory);
                } else if life_time / 2 < since.elapsed() {
                    late = late.max(memory);
                }
            }
            slopes.push(late as i64 - early as i64);
            progress.ends_now();
            server.kill();
        });
    }
    println!(
        "KiB more in the second half of each life than in the first: {slopes:?}; {most} descriptors at most"
    );
    slopes.sort_unstable();
    // In a life of a few seconds, caches and memtables are still filling.
    if 600 <= seconds {
        assert!(slopes[slopes.len() / 2] < 4 << 10, "{slopes:?} KiB");
    }
    assert!(most < 200, "{most} descriptors");
    let server = Server::start(&data, &flags);
    journals.check(&mut server.client(), "after the last kill");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let check = Command::new(env!("CARGO_BIN_EXE_ringkeep")).arg("check").arg(&data).output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0), "{text}");
    assert!(!text.contains("nothing names it"), "files are orphaned: {text}\n{:?}", files(&data));
    Row { name: "soak with kills", runs: lives, acknowledged, seconds: begin.elapsed(), ..Row::default() }
        .report();
}

/// Clients that write as fast as the server lets them, and the answers that they got.
#[derive(Default)]
struct Pressure {
    over: AtomicBool,
    accepted: AtomicU64,
    refused: AtomicU64,
    longest_us: AtomicU64,
}

impl Pressure {
    /// Writes values that do not compress, so that the disk has to write all of them. Returns the value and its keys.
    fn write(&self, address: SocketAddr, worker: u64) -> (Vec<u8>, Vec<String>) {
        let mut keys = Vec::new();
        let mut client = Client::connect(address);
        let mut random = Random::new(worker);
        let body: Vec<u8> = (0..4_000).map(|_| random.next_u64() as u8).collect();
        while !self.over.load(Ordering::SeqCst) {
            let since = Instant::now();
            let key = format!("{:016x}", random.next_u64());
            let reply = client.post(&format!("/set?key={key}"), &body);
            self.longest_us.fetch_max(since.elapsed().as_micros() as u64, Ordering::SeqCst);
            match reply.status {
                200 => {
                    keys.push(key);
                    self.accepted.fetch_add(1, Ordering::SeqCst)
                }
                503 => {
                    assert!(reply.head.contains("retry-after: "), "{}", reply.head);
                    self.refused.fetch_add(1, Ordering::SeqCst)
                }
                status => panic!("{status} {}", reply.text()),
            };
        }
        (body, keys)
    }
}

#[test]
fn p9_writes_faster_than_the_disk_are_slowed_or_refused_and_memory_stays_bounded() {
    let begin = Instant::now();
    let (_folder, data) = folder();
    let seconds = setting("RINGKEEP_PRESSURE_SECONDS", 5);
    // A memtable fills up several times per second, and the disk is slow if this process may limit it.
    let flags =
        ["--threads", "2", "--memtable-size", "2MiB", "--cache-size", "8MiB", "--max-value-size", "1MiB"];
    let group = Cgroup::with_slow_disk(data.parent().unwrap(), 24 << 20);
    let server = match &group {
        Some(Cgroup(group)) => Server::start_confined(&data, &flags, group),
        None => Server::start(&data, &flags),
    };
    let address = server.address;
    let pressure = Pressure::default();
    let (mut most, mut last) = (0, Vec::new());
    thread::scope(|scope| {
        let pressure = &pressure;
        let workers: Vec<_> =
            (0..64).map(|worker| scope.spawn(move || pressure.write(address, worker))).collect();
        while begin.elapsed() < Duration::from_secs(seconds) {
            thread::sleep(Duration::from_millis(50));
            most = most.max(resident_kib(&server));
        }
        pressure.over.store(true, Ordering::SeqCst);
        last = workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>();
    });
    let longest = Duration::from_micros(pressure.longest_us.into_inner());
    let (accepted, refused) = (pressure.accepted.into_inner(), pressure.refused.into_inner());
    println!(
        "disk slowed: {}; {accepted} accepted, {refused} refused, {longest:?} for the slowest, {most} KiB at most",
        group.is_some()
    );
    // Memtables of all shards, caches, buffers of groups, merges and connections.
    assert!(most < 192 << 10, "{most} KiB");
    // On a busy machine, this time says little about the server. Long runs have the machine to themselves.
    if 60 <= seconds {
        assert!(longest < Duration::from_secs(1), "{longest:?}");
    }
    // The server catches up: compaction ends, and the processor rests.
    let quiet = until("the server catches up", || {
        let before = processor_ticks(&server);
        thread::sleep(Duration::from_millis(500));
        processor_ticks(&server) - before < 5
    });
    println!("the server has caught up after {quiet:?}");
    assert_eq!(server.client().post_patiently("/set?key=after", b"x").status, 200);
    thread::scope(|scope| {
        for (body, keys) in &last {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for key in keys {
                    let reply = client.request("GET", &format!("/get?key={key}"));
                    assert!(reply.body == *body, "{key} has another value");
                }
            });
        }
    });
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let name = if group.is_some() { "writes faster than the disk" } else { "writes as fast as they come" };
    drop(group);
    Row {
        name,
        runs: accepted + refused,
        acknowledged: accepted,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}

/// Sends as much as the socket takes at once.
fn send_at_once(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let _ = stream.write(bytes); // a part is enough
    stream
}

#[test]
fn r10_whatever_clients_do_the_process_stays_within_its_budget_and_gives_memory_back() {
    const BUDGET_KIB: u64 = 64 << 10;
    let begin = Instant::now();
    let (_folder, data) = folder();
    let clients = setting("RINGKEEP_GREEDY", 400).min(raise_own_limit() / 4);
    let flags = ["--memory", "64MiB", "--max-value-size", "4MiB", "--threads", "2", "--shards", "2"];
    let server = Server::start(&data, &flags);
    let address = server.address;
    let mut random = Random::new(1);
    let mut client = server.client();
    for number in 0..400 {
        let value: Vec<u8> = (0..7_500).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        assert_eq!(client.post_patiently(&format!("/set?key=v{number}"), &value).status, 200);
    }
    // Half of the clients ask for values and do not read. The others send a part of a body.
    let streams: Vec<TcpStream> = (0..clients)
        .map(|number| {
            let bytes = if number % 2 == 0 {
                let get =
                    |_| format!("GET /get?key=v{} HTTP/1.1\r\nHost: localhost\r\n\r\n", random.below(400));
                (0..100).map(get).collect::<String>().into_bytes()
            } else {
                let head =
                    "POST /set?key=half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n";
                [head.as_bytes(), &[7; 60_000]].concat()
            };
            send_at_once(address, &bytes)
        })
        .collect();
    thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for round in 0..setting("RINGKEEP_GREEDY_ROUNDS", 1) as u8 {
                    assert_eq!(set(&mut client, &format!("small{worker}")), 200, "small writes go on");
                    let body = vec![round; 4 << 20];
                    let reply = Client::connect(address).post(&format!("/set?key=large{worker}"), &body);
                    assert!([200, 503].contains(&reply.status), "{}", reply.status);
                    let found = client.request("GET", &format!("/get?key=large{worker}"));
                    assert!([200, 404, 503].contains(&found.status), "{}", found.status);
                    assert!(reply.status != 200 || found.status != 200 || found.body == body);
                }
            });
        }
    });
    let peak = status(server.id(), "VmHWM");
    drop(streams);
    println!("{clients} greedy clients, {peak} KiB at most");
    assert!(peak * 10 <= BUDGET_KIB * 11, "{peak} KiB");
    let body = vec![3; 4 << 20];
    until("large values are taken again", || {
        Client::connect(address).post("/set?key=after", &body).status == 200
    });
    assert_eq!(server.client().request("GET", "/get?key=after").body.len(), body.len());
    until("memory goes back", || resident_kib(&server) < BUDGET_KIB / 2);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    Row { name: "greedy clients", runs: clients, seconds: begin.elapsed(), ..Row::default() }.report();
}
