//! The load tool against servers that lie, and against the real server. The tool must notice every lie, and find no
//! fault with the real server.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::Server;
use serde_json::Value;

/// How a server deviates from a correct server. The first number says at which occasions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// Every n-th set is acknowledged and forgotten.
    ForgetSet(u64),
    /// Every n-th delete is acknowledged and not done.
    ForgetDelete(u64),
    /// Every n-th value has a bit changed.
    FlipBit(u64),
    /// Every n-th value is cut short, by this many bytes.
    Shorten(u64, usize),
    /// Every n-th value is that of another key.
    OtherKey(u64),
    /// Every n-th value is that of the version before.
    Older(u64),
    /// Every n-th key that does not exist gets a value.
    Invent(u64),
    /// Every n-th request is refused, and not done.
    Refuse(u64),
    /// The n-th request fails with this status.
    Fail(u64, u16),
    /// The n-th request is answered twice.
    Repeat(u64),
    /// The n-th request gets no answer: the connection is closed.
    Close(u64),
    /// The n-th request is refused, and the connection is closed.
    TurnAway(u64),
    /// The n-th request waits, and all requests after it.
    Stall(u64),
}

const STALL: Duration = Duration::from_millis(500);

/// A minimal key-value server in this process, for one run of the load tool.
struct Liar {
    lie: Lie,
    /// All versions of each key; the last version is `None` after a delete.
    keys: Mutex<HashMap<String, Vec<Option<Vec<u8>>>>>,
    /// Occasions to lie so far.
    occasions: AtomicU64,
}

impl Liar {
    fn start(lie: Lie) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let liar = Arc::new(Self { lie, keys: Mutex::new(HashMap::new()), occasions: AtomicU64::new(0) });
        // All threads end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let liar = liar.clone();
                std::thread::spawn(move || liar.serve(&mut stream.unwrap()));
            }
        });
        address
    }

    /// Serves until the client closes the connection, or the lie closes it.
    fn serve(&self, stream: &mut TcpStream) -> Option<()> {
        stream.set_nodelay(true).unwrap();
        let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            while let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8(input[..end].to_vec()).unwrap();
                let length = head
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
                if input.len() < end + 4 + length {
                    break;
                }
                let body = input[end + 4..end + 4 + length].to_vec();
                input.drain(..end + 4 + length);
                let (status, body) = self.answer(&head, body)?;
                let turned_away = matches!(self.lie, Lie::TurnAway(_)) && status == 503;
                let close = if turned_away { "Connection: close\r\n" } else { "" };
                let reply = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{close}\r\n", body.len());
                let times = if matches!(self.lie, Lie::Repeat(at) if self.now(at, true)) { 2 } else { 1 };
                stream.write_all(&[reply.as_bytes(), &body].concat().repeat(times)).ok()?;
                if turned_away {
                    return None;
                }
            }
            let count = stream.read(&mut buffer).ok()?;
            if count == 0 {
                return None;
            }
            input.extend_from_slice(&buffer[..count]);
        }
    }

    /// Counts an occasion, and says whether to lie at it: at the `every`-th only if `once`, otherwise at every
    /// `every`-th.
    fn now(&self, every: u64, once: bool) -> bool {
        let occasion = self.occasions.fetch_add(1, Ordering::SeqCst) + 1;
        if once { occasion == every } else { occasion.is_multiple_of(every) }
    }

    fn answer(&self, head: &str, body: Vec<u8>) -> Option<(u16, Vec<u8>)> {
        let key = head.split("key=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        match self.lie {
            Lie::Refuse(every) if self.now(every, false) => return Some((503, b"later\n".to_vec())),
            Lie::Fail(at, status) if self.now(at, true) => return Some((status, b"words\n".to_vec())),
            Lie::Close(at) if self.now(at, true) => return None,
            Lie::TurnAway(at) if self.now(at, true) => return Some((503, b"too many\n".to_vec())),
            _ => {}
        }
        let mut keys = self.keys.lock().unwrap();
        if let Lie::Stall(at) = self.lie
            && self.now(at, true)
        {
            std::thread::sleep(STALL);
        }
        let versions = keys.entry(key).or_default();
        let current = versions.last().cloned().flatten();
        if head.starts_with("POST") {
            if !matches!(self.lie, Lie::ForgetSet(every) if self.now(every, false)) {
                versions.push(Some(body));
            }
            return Some((200, b"OK\n".to_vec()));
        }
        if head.starts_with("DELETE") {
            if !matches!(self.lie, Lie::ForgetDelete(every) if self.now(every, false)) {
                versions.push(None);
            }
            let status = if current.is_some() { 200 } else { 404 };
            return Some((status, b"OK\n".to_vec()));
        }
        let Some(mut value) = current else {
            return Some(match self.lie {
                Lie::Invent(every) if self.now(every, false) => (200, vec![7; 100]),
                _ => (404, b"key not found\n".to_vec()),
            });
        };
        match self.lie {
            Lie::FlipBit(every) if self.now(every, false) => *value.last_mut().unwrap() ^= 4,
            Lie::Shorten(every, bytes) if self.now(every, false) => value.truncate(value.len() - bytes),
            Lie::Older(every) if 2 <= versions.len() && self.now(every, false) => {
                value = versions[versions.len() - 2].clone().unwrap_or(value);
            }
            Lie::OtherKey(every) if self.now(every, false) => {
                value = keys.values().find_map(|versions| {
                    versions.last().cloned().flatten().filter(|other| *other != value)
                })?;
            }
            _ => {}
        }
        Some((200, value))
    }
}

fn bench(server: SocketAddr, flags: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
        .arg("bench")
        .args(["--server", &server.to_string(), "--json", json.to_str().unwrap()])
        .args(flags)
        .output()
        .unwrap();
    let report =
        std::fs::read_to_string(&json).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (output, report)
}

/// A run with few keys, so that each key is written and read many times.
fn lied_to(lie: Lie, workloads: &str) -> (Output, Value) {
    let server = Liar::start(lie);
    bench(server, &["--connections", "4", "--key-count", "50", "--operations", "2000", workloads])
}

fn sum(report: &Value, what: &str) -> u64 {
    report["workloads"].as_array().unwrap().iter().map(|workload| workload[what].as_u64().unwrap()).sum()
}

#[test]
fn an_honest_server_has_no_faults_and_every_operation_is_counted() {
    let all = "fill-seq,fill-unique,fill-random,overwrite,read,read-missing,delete,ycsb-a,ycsb-b,ycsb-c,ycsb-d,ycsb-f";
    let (output, report) = lied_to(Lie::None, all);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((sum(&report, "lost"), sum(&report, "wrong")), (0, 0));
    for workload in report["workloads"].as_array().unwrap() {
        let (name, count) =
            (workload["workload"].as_str().unwrap(), workload["operations"].as_u64().unwrap());
        match name {
            // An update that follows its read is counted in addition.
            "ycsb-f" => assert!(2900 < count, "{count}"),
            // A twentieth of the operations are inserts, and there is room for 50.
            "ycsb-d" => assert!((400..2000).contains(&count), "{count}"),
            _ => assert_eq!(count, 2000, "{name}"),
        }
        assert!(name != "read-missing" || workload["missing"] == 2000);
    }
}

#[test]
fn every_lie_is_noticed_and_called_by_its_name() {
    for (lie, workloads, lost, wrong) in [
        (Lie::ForgetSet(5), "fill-seq,ycsb-a", true, false),
        (Lie::ForgetSet(5), "fill-seq,overwrite,read", true, false),
        // The next delete finds a key that was said to be deleted.
        (Lie::ForgetDelete(2), "fill-seq,delete", false, true),
        (Lie::FlipBit(1000), "fill-seq,read", false, true),
        (Lie::Shorten(1000, 1), "fill-seq,read", false, true),
        (Lie::Shorten(1000, 100), "fill-seq,read", false, true),
        (Lie::OtherKey(1000), "fill-seq,read", false, true),
        (Lie::Older(100), "fill-seq,overwrite,read", true, false),
        (Lie::Invent(1000), "fill-seq,read-missing", false, true),
    ] {
        let (output, report) = lied_to(lie, workloads);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{lie:?}: {error}");
        let found = (sum(&report, "lost"), sum(&report, "wrong"));
        assert_eq!((0 < found.0, 0 < found.1), (lost, wrong), "{lie:?}: {found:?} lost and wrong");
        assert!(error.contains("acknowledged write"), "{error}");
        let table = String::from_utf8_lossy(&output.stdout);
        let name = if lost { "LOST" } else { "WRONG" };
        assert!(table.contains(name) && table.contains("the first fault:"), "{table}");
    }
}

#[test]
fn what_an_earlier_run_has_filled_is_compared_too() {
    let flags = ["--connections", "4", "--key-count", "50", "--operations", "500"];
    for lie in
        [Lie::None, Lie::FlipBit(1000), Lie::Shorten(1000, 1), Lie::Shorten(1000, 97), Lie::OtherKey(1000)]
    {
        let server = Liar::start(lie);
        let (output, _) = bench(server, &[&flags[..], &["fill-seq"]].concat());
        assert!(output.status.success(), "{output:?}");
        // The second run overwrites half of the keys; the other keys are as the first run left them.
        let flags = [&flags[..], &["--filled", "--seed", "5", "ycsb-a,read,read"]].concat();
        let (output, report) = bench(server, &flags);
        let found = (sum(&report, "lost"), sum(&report, "wrong"));
        assert_eq!(
            (output.status.success(), found.0, 0 < found.1),
            (lie == Lie::None, 0, lie != Lie::None),
            "{lie:?}: {found:?}"
        );
    }
}

#[test]
fn what_others_have_written_is_no_fault_until_it_is_written_over() {
    for value_size in ["200", "3"] {
        let server = Liar::start(Lie::None);
        let (output, _) = bench(server, &["--key-count", "50", "--value-size", value_size, "fill-seq"]);
        assert!(output.status.success(), "{output:?}");
        // Some of the keys are written again, with values of another size.
        let flags =
            ["--connections", "4", "--key-count", "50", "--operations", "30", "fill-random,read,read"];
        let (output, report) = bench(server, &flags);
        assert!(output.status.success(), "{output:?}");
        assert_eq!((sum(&report, "operations"), sum(&report, "missing")), (90, 0));
    }
}

#[test]
fn short_values_are_compared_with_what_they_may_be() {
    let server = Liar::start(Lie::FlipBit(100));
    let flags = ["--connections", "4", "--key-count", "50", "--operations", "2000", "--value-size", "3"];
    let (output, report) = bench(server, &[&flags[..], &["fill-seq,overwrite,read"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((sum(&report, "lost"), sum(&report, "wrong")), (0, 20));
}

#[test]
fn refusals_are_counted_apart_and_a_fill_repeats_what_was_refused() {
    let server = Liar::start(Lie::Refuse(10));
    let flags = ["--connections", "4", "--key-count", "50", "--operations", "2000"];
    let (output, report) = bench(server, &[&flags[..], &["--filled", "overwrite"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!((sum(&report, "operations"), sum(&report, "refused")), (1800, 200));
    // Later workloads rely on every key of a fill.
    for pipeline in ["1", "16"] {
        let flags = ["--connections", "4", "--pipeline", pipeline, "--key-count", "1800", "fill-unique,read"];
        let (output, report) =
            bench(Liar::start(Lie::Refuse(10)), &[&flags[..], &["--operations", "1800"]].concat());
        assert!(output.status.success(), "{output:?}");
        let fill = &report["workloads"][0];
        let refused = fill["refused"].as_u64().unwrap();
        assert_eq!((fill["operations"].as_u64(), refused), (Some(1800), 199));
        assert_eq!((sum(&report, "missing"), sum(&report, "lost")), (0, 0));
    }
}

#[test]
fn an_answer_that_is_none_ends_the_run() {
    // A full disk (507) ends the run as well: going on would free no space.
    for (lie, words) in [
        (Lie::Fail(500, 500), "500: words"),
        (Lie::Fail(500, 507), "507: words"),
        (Lie::Close(500), "closed a connection"),
        (Lie::TurnAway(500), "503: too many, and closes the connection"),
    ] {
        let (output, report) = lied_to(lie, "fill-seq,read,overwrite");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(words), "{lie:?}: {error}");
        assert_eq!(report["workloads"].as_array().unwrap().len(), 1, "the first workload did not end");
    }
}

#[test]
fn an_answer_that_is_none_ends_the_run_even_if_it_is_the_last() {
    let flags = ["--connections", "1", "--key-count", "20", "fill-seq"];
    for (lie, words) in [(Lie::Fail(20, 500), "500: words"), (Lie::Repeat(20), "answered 200")] {
        let (output, _) = bench(Liar::start(lie), &flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(words), "{lie:?}: {error}");
    }
}

#[test]
fn an_open_loop_counts_from_when_requests_were_due() {
    // 1,000 requests per second are due while the server holds all of them up for half a second. Requests that are due
    // in the first 400 ms of that time wait for 100 ms at least, whether they could be sent or not.
    let server = Liar::start(Lie::Stall(200));
    let flags =
        ["--connections", "2", "--key-count", "50", "--rate", "1000", "--operations", "1000", "fill-seq"];
    let (output, report) = bench(server, &flags);
    assert!(output.status.success(), "{output:?}");
    let latency = &report["workloads"][0]["latency_us"];
    let late: u64 = latency["histogram"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|bucket| 100_000.0 <= bucket[0].as_f64().unwrap())
        .map(|bucket| bucket[1].as_u64().unwrap())
        .sum();
    assert_eq!(latency["count"], 1000);
    assert!(400 <= late, "{late}");
}

#[test]
fn an_open_loop_sends_all_that_was_due_before_its_end_and_counts_what_it_could_not() {
    // Nothing is held up: every request that is due in half a second is sent.
    let flags = ["--connections", "3", "--key-count", "50", "--rate", "200", "--duration", "500ms"];
    let room = ["--pipeline", "16", "--filled", "overwrite"]; // a late answer does not hold up other requests
    let (output, report) = bench(Liar::start(Lie::None), &[&flags[..], &room].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!((sum(&report, "operations"), sum(&report, "unsent")), (100, 0));
    // Everything is held up for longer than the run: requests that are due and not under way count as late.
    let flags = ["--connections", "3", "--key-count", "50", "--rate", "200", "--duration", "400ms"];
    let (output, report) =
        bench(Liar::start(Lie::Stall(1)), &[&flags[..], &["--filled", "overwrite"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!((sum(&report, "operations"), sum(&report, "unsent")), (3, 77));
    assert_eq!(report["workloads"][0]["latency_us"]["count"], 80);
    assert_eq!(report["workloads"][0]["verbs"]["set"]["count"], 3);
}

#[test]
fn an_open_loop_that_asks_for_too_much_still_ends() {
    let flags = ["--connections", "2", "--key-count", "50", "--rate", "10000000", "--duration", "300ms"];
    let (output, report) = bench(Liar::start(Lie::None), &[&flags[..], &["--filled", "read"]].concat());
    // No run has filled the keys: all of them are missing.
    assert_eq!(output.status.code(), Some(1));
    assert!(0 < sum(&report, "lost") && 0 < sum(&report, "unsent"));
}

#[test]
fn the_real_server_is_filled_once_and_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), crate::common::SMALL);
    let data_dir = folder.path().to_str().unwrap();
    let flags = [
        &["--key-count", "2000", "--key-size", "8..100", "--value-size", "log:0..20000"],
        &["--connections", "8", "--threads", "2", "--pipeline", "4", "--data-dir"][..],
        &[data_dir],
    ]
    .concat();
    for more in
        [&["fill-unique,overwrite,ycsb-f,delete,fill-seq"][..], &["--filled", "read,overwrite,ycsb-d"]]
    {
        let (output, report) = bench(server.address, &[&flags[..], &["--operations", "4000"], more].concat());
        assert!(output.status.success(), "{output:?}");
        assert_eq!((sum(&report, "lost"), sum(&report, "wrong")), (0, 0));
        assert!(report["storage"]["commit_4k_us"]["p50"].as_f64().unwrap() > 0.0);
        assert_eq!(report["settings"]["key_size"], "8..100");
    }
    // Few keys with values too short to hold their version: many values are equal, and answers overtake each other.
    let hot = ["--key-count", "8", "--key-size", "101", "--value-size", "0..3", "--operations", "20000"];
    let more = ["--connections", "8", "--threads", "2", "--pipeline", "4", "fill-seq,ycsb-f,ycsb-a,delete"];
    let (output, report) = bench(server.address, &[&hot[..], &more].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!((sum(&report, "lost"), sum(&report, "wrong")), (0, 0));
    let others = ["--key-count", "2000", "--key-size", "8..100", "--value-size", "9", "--operations", "100"];
    let (output, report) = bench(server.address, &[&others[..], &["--filled", "read"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(0 < sum(&report, "wrong"), "the values are of other sizes");
}

#[test]
fn nonsense_on_the_command_line_is_refused_with_a_sentence() {
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for (flags, status, words) in [
        (&["read"][..], 78, "--filled"),
        (&["fill-seq", "--rate", "0.1"], 78, "--rate"),
        (&["fill-seq", "--key-count", "1099511627776"], 78, "too much memory"),
        (&["fill-seq", "--duration", "40days"], 2, "expected 1ms to 1day"),
        (&["fill-seq", "--duration", "0s"], 2, "expected 1ms to 1day"),
        (&["fill-seq", "--operations", "0"], 2, "--operations"),
        (&["fill-seq,read", "--operations", "9", "--warm-up", "1s"], 2, "cannot be used with"),
        (&["fill-seq", "--value-size", "0..18446744073709551615"], 2, "1 GiB"),
        (&["fill-seq", "--key-size", "3"], 78, "at least 7"),
        (&["fill-all"], 2, "fill-seq"),
        (&["fill-seq", "--rate", "0"], 2, "requests per second"),
        (&["fill-seq", "--value-size", "9..1"], 2, "ends before it begins"),
        (&["fill-seq", "--compressible", "2"], 2, "from 0 to 1"),
        (&["fill-seq"], 1, "cannot connect to 127.0.0.1:1"),
    ] {
        let (output, _) = bench(nowhere, flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(status) && error.contains(words), "{flags:?}: {error}");
    }
}
