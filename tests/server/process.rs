//! The manners of the process: signals, limits of the system, what it leaves behind when it cannot start, and its log.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, SMALL, Server, folder};
use rustix::process::Signal;

const BINARY: &str = env!("CARGO_BIN_EXE_ringkeep");

/// Runs the binary in a shell, after `before`, until it ends. Returns its exit status and what it wrote to standard error.
fn run(before: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let script = format!("{before} exec \"$0\" \"$@\"");
    let output = Command::new("sh").args(["-c", &script, BINARY]).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn signals_that_mean_nothing_to_a_server_do_not_end_it() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let mut client = server.client();
    assert_eq!(client.request("POST", "/set?key=k&value=v").status, 200);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        server.raw_signal(signal);
        assert_eq!(client.request("GET", "/get?key=k").text(), "v", "{signal:?}");
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn two_stop_signals_at_once_are_one_and_a_later_one_ends_the_stop() {
    let (_folder, data) = folder();
    let log = data.with_extension("log");
    // A client that is in the middle of a request keeps the stop from ending.
    let start = || {
        let server = Server::start_logged(&data, &[SMALL, &["--drain-timeout", "1h"]].concat(), &log);
        let mut client = server.client();
        client.send("POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nva");
        assert_eq!(server.client().request("GET", "/livez").status, 200);
        (server, client)
    };
    let (server, mut client) = start();
    server.signal("-TERM");
    server.signal("-INT");
    assert_eq!(client.send("lu").reply().status, 200, "the request in flight is answered");
    assert_eq!(server.wait().code(), Some(0));

    let (server, _client) = start();
    server.signal("-TERM");
    thread::sleep(Duration::from_millis(1_100)); // after a second the next signal counts
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(1));
    assert!(fs::read_to_string(&log).unwrap().contains("a signal during the stop"));
}

#[test]
fn a_server_starts_at_once_after_its_predecessor_was_killed() {
    let (_folder, data) = folder();
    let mut server = Server::start(&data, SMALL);
    let address = server.address.to_string();
    let flags = [SMALL, &["--listen", &address]].concat();
    for life in 0..8 {
        assert_eq!(server.client().request("POST", &format!("/set?key={life}&value=v")).status, 200);
        rustix::process::kill_process(server.pid(), Signal::KILL).unwrap();
        // Nobody waits for the killed process before the next one starts.
        let next = Server::start(&data, &flags);
        drop(std::mem::replace(&mut server, next));
        assert_eq!(server.client().request("GET", &format!("/get?key={life}")).status, 200, "life {life}");
    }
}

#[test]
fn a_server_that_cannot_have_the_address_leaves_no_directory_behind() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let other = data.with_extension("other");
    let address = server.address.to_string();
    let (status, error) = run("", &["--listen", &address, "--data-dir", other.to_str().unwrap()]);
    assert_eq!(status, Some(69), "{error}");
    assert!(!other.exists());
}

#[test]
fn limits_that_are_too_low_are_named_at_the_start() {
    let (_folder, data) = folder();
    let data = data.to_str().unwrap();
    for (limit, words) in
        [("ulimit -f 100;", ["file sizes", "ulimit -f"]), ("ulimit -n 40;", ["open files", "ulimit -n"])]
    {
        let (status, error) = run(limit, &["--data-dir", data, "--listen", "127.0.0.1:0"]);
        assert_eq!(status, Some(78), "{limit}: {error}");
        assert!(words.iter().all(|word| error.contains(word)) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn a_failing_start_prints_its_reason_whatever_the_level_of_the_log() {
    for level in ["off", "error", "trace"] {
        let before = format!("export RINGKEEP_LOG={level};");
        let (status, error) = run(&before, &["--data-dir", "/proc/nowhere/data", "--listen", "127.0.0.1:0"]);
        assert_eq!(status, Some(73), "{level}");
        assert!(error.contains("cannot create the directory /proc/nowhere/data"), "{level}: {error}");
    }
    let (status, error) = run("export RINGKEEP_LOG=verbose;", &["--data-dir", "/proc/nowhere/data"]);
    assert_eq!(status, Some(78));
    assert!(
        error.contains("RINGKEEP_LOG") && error.contains("'verbose'") && error.contains("debug"),
        "{error}"
    );
    let (status, error) = run("", &["--log", "verbose"]);
    assert_eq!(status, Some(2), "{error}");
}

#[test]
fn nobody_else_may_read_the_store_whatever_the_umask() {
    for umask in ["000", "022", "277"] {
        let (_folder, data) = folder();
        let script = format!("umask {umask} && exec \"$0\" \"$@\"");
        let server = Server::start_by(&["sh", "-c", &script], &data, SMALL);
        assert_eq!(server.client().request("POST", "/set?key=k&value=v").status, 200);
        let shard = data.join("shard-000");
        for (path, mode) in [(data.clone(), 0o700), (shard.clone(), 0o700), (data.join("STORE"), 0o600)] {
            let found = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "umask {umask}: {} is {found:o}", path.display());
        }
        for file in fs::read_dir(&shard).unwrap() {
            let file = file.unwrap();
            let found = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(found, 0o600, "umask {umask}: {} is {found:o}", file.path().display());
        }
    }
}

/// Waits until the log has a line with these words.
fn wait_for_line(log: &Path, words: &str) {
    let begin = Instant::now();
    while !fs::read_to_string(log).unwrap().lines().any(|line| line.contains(words)) {
        assert!(begin.elapsed() < PATIENCE, "`{words}` is not in {}", fs::read_to_string(log).unwrap());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_soon_after_a_shutdown_is_a_part_of_it_and_a_later_one_ends_it() {
    let (_folder, data) = folder();
    let log = data.with_extension("log");
    // A client that is in the middle of a request keeps the stop from ending.
    let flags = [SMALL, &["--drain-timeout", "1h", "--log", "info"]].concat();
    // Both clients stay connected.
    let stops = || {
        let server = Server::start_logged(&data, &flags, &log);
        let (mut client, mut asker) = (server.client(), TcpStream::connect(server.address).unwrap());
        client.send("POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nva");
        assert_eq!(server.client().request("GET", "/livez").status, 200);
        asker.write_all(b"GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        wait_for_line(&log, "/shutdown: the server stops");
        (server, client, asker)
    };
    let ends_whole = |mut asker: TcpStream| {
        let mut reply = Vec::new();
        let _ = asker.read_to_end(&mut reply); // the process may end with a reset
        assert!(reply.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", reply.escape_ascii());
        reply.ends_with(b"\r\n0\r\n\r\n")
    };
    let (server, mut client, asker) = stops();
    server.signal("-TERM");
    wait_for_line(&log, "SIGTERM: the server stops already");
    assert_eq!(client.send("lu").reply().status, 200, "the request in flight is answered");
    assert_eq!(server.wait().code(), Some(0));
    assert!(ends_whole(asker));

    let (server, _client, asker) = stops();
    thread::sleep(Duration::from_millis(1_100)); // after a second the signal counts
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(1));
    wait_for_line(&log, "SIGTERM: the server stops at once");
    assert!(!ends_whole(asker), "the client learns that the stop was not complete");
}

#[test]
fn a_new_store_among_other_files_is_warned_of() {
    let (_folder, data) = folder();
    let log = data.with_extension("log");
    let warns = || {
        let server = Server::start_logged(&data, SMALL, &log);
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0));
        let lines = fs::read_to_string(&log).unwrap();
        lines.lines().any(|line| line.contains("holds no store, but is not empty") && line.contains("notes"))
    };
    fs::create_dir_all(data.join("lost+found")).unwrap();
    assert!(!warns(), "a new volume");
    fs::write(data.join("notes"), "mine").unwrap();
    assert!(!warns(), "the store is there");
    fs::remove_file(data.join("STORE")).unwrap();
    for shard in ["shard-000", "shard-001"] {
        fs::remove_dir_all(data.join(shard)).unwrap();
    }
    assert!(warns());
    assert_eq!(fs::read_to_string(data.join("notes")).unwrap(), "mine");
}

#[test]
fn a_server_that_stops_serves_on_for_a_while_and_says_that_it_is_not_ready() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shutdown-delay", "1h"]].concat());
    assert_eq!(server.client().request("GET", "/readyz").status, 200);
    server.signal("-TERM");
    let begin = Instant::now();
    let reply = loop {
        // A connection of its own each time, as a load balancer makes it.
        let reply = server.client().request("GET", "/readyz");
        if reply.status != 200 {
            break reply;
        }
        assert!(begin.elapsed() < PATIENCE);
    };
    assert_eq!((reply.status, reply.text()), (503, "the server is stopping\n"));
    assert_eq!(server.client().request("POST", "/set?key=k&value=v").status, 200);
    assert_eq!(server.client().request("GET", "/livez").status, 200);
    server.kill();
    assert_eq!(Server::start(&data, SMALL).client().request("GET", "/get?key=k").text(), "v");
}
