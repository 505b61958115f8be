//! A damaged block, as an operator meets it: what is served, what `/readyz` and the log say, and what `ringkeep repair` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use crate::common::command::text;
use crate::common::{Client, PATIENCE, SMALL, Server, contents, folder};

fn run(command: &[&str], data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(command).arg(data).output().unwrap()
}

const KEYS: usize = 4_000;

fn value(number: usize) -> String {
    format!("{number:05}-").repeat(20)
}

/// Fills a store, stops its server, and damages a data block of its largest sorted file. Returns the name of the file.
fn damaged_store(data: &Path, flags: &[&str]) -> String {
    let server = Server::start(data, flags);
    let mut client = server.client();
    for number in 0..KEYS {
        let reply = client.post(&format!("/set?key=k{number:05}"), value(number).as_bytes());
        assert_eq!(reply.status, 200);
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let ssts =
        contents(data).into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "sst"));
    let (path, mut bytes) = ssts.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    bytes[3 * 4096 + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Reads all keys. Returns those without an answer.
fn read(client: &mut Client) -> Vec<usize> {
    let mut lost = Vec::new();
    for number in 0..KEYS {
        let reply = client.request("GET", &format!("/get?key=k{number:05}"));
        match reply.status {
            200 => assert_eq!(reply.text(), value(number)),
            500 => lost.push(number),
            status => panic!("k{number:05}: {status}"),
        }
    }
    lost
}

#[test]
fn n4_a_damaged_block_is_served_around_named_and_repaired() {
    let (_folder, data) = folder();
    let log = data.with_extension("log");
    let flags = [SMALL, &["--shards", "1"]].concat();
    let name = &damaged_store(&data, &flags);
    let server = Server::start_logged(&data, &flags, &log);
    let mut client = server.client();
    let lost = read(&mut client);
    assert!((1..200).contains(&lost.len()), "{} keys", lost.len());
    let begin = Instant::now();
    while !client.request("GET", "/readyz").text().starts_with("degraded: ") {
        assert!(begin.elapsed() < PATIENCE, "the damage is not reported");
    }
    let ready = client.request("GET", "/readyz");
    assert!(ready.status == 200 && ready.text().contains(name), "{}", ready.text());
    assert_eq!(read(&mut client), lost, "now from the quarantine");
    let key = format!("k{:05}", lost[0]);
    assert_eq!(client.request("DELETE", &format!("/del?key={key}")).status, 500);
    assert_eq!(client.request("GET", &format!("/get?key={key}")).status, 500);
    assert_eq!(client.request("POST", &format!("/set?key={key}&value=new")).status, 200);
    assert_eq!(client.request("GET", &format!("/get?key={key}")).text(), "new");
    assert_eq!(client.request("DELETE", &format!("/del?key={key}")).status, 200);
    assert_eq!(client.request("GET", &format!("/get?key={key}")).status, 404);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let lines = fs::read_to_string(&log).unwrap();
    let reports = lines.lines().filter(|line| line.contains("a damaged file has lost entries"));
    assert!(lines.contains(name) && reports.count() == 1, "{lines}");

    // A later start knows it as well.
    let server = Server::start_logged(&data, &flags, &log);
    assert!(server.client().request("GET", "/readyz").text().starts_with("degraded: "));
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.lines().any(|line| line.contains("ERROR") && line.contains(name)), "{lines}");

    let output = run(&["check"], &data);
    assert!(output.status.code() == Some(65) && text(&output).contains(name), "{}", text(&output));
    let before = contents(&data);
    let output = run(&["repair", "--dry-run"], &data);
    assert!(output.status.code() == Some(65), "something would be given up");
    assert!(text(&output).contains("1 damaged file, and nothing was changed"), "{}", text(&output));
    let range = format!("entries are lost among the keys after \"k{:05}\"", lost[0] - 1);
    assert!(text(&output).contains(&range), "{}", text(&output));
    assert!(contents(&data) == before, "a dry run changes nothing");
    let output = run(&["repair"], &data);
    assert!(output.status.success() && text(&output).contains(name), "{}", text(&output));
    let output = run(&["check"], &data);
    assert!(output.status.success(), "{}", text(&output));
    let before = contents(&data);
    let output = run(&["repair"], &data);
    assert!(text(&output).contains("no sorted file is damaged"), "{}", text(&output));
    assert!(contents(&data) == before, "there was nothing to repair");

    let server = Server::start(&data, &flags);
    let mut client = server.client();
    assert_eq!(client.request("GET", "/readyz").text().trim_end(), "OK");
    for number in 0..KEYS {
        let reply = client.request("GET", &format!("/get?key=k{number:05}"));
        if lost.contains(&number) {
            assert_eq!(reply.status, 404, "it was given up");
        } else {
            assert_eq!(reply.text(), value(number));
        }
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// Cuts, lengthens or removes the largest sorted file, or damages a log. Returns the path of what was changed.
fn spoil(data: &Path, what: &str) -> PathBuf {
    let end = if what == "log" { "wal" } else { "sst" };
    let files =
        contents(data).into_iter().filter(|(path, _)| path.extension().is_some_and(|found| found == end));
    let (path, mut bytes) = files.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    match what {
        "long" => bytes.extend([0; 4096]),
        "cut" => bytes.truncate(bytes.len() / 8192 * 4096),
        "log" => bytes[8192 + 20] ^= 1,
        _ => return fs::remove_file(&path).map(|()| path).unwrap(),
    }
    fs::write(&path, &bytes).unwrap();
    path
}

#[test]
fn a_sorted_file_that_is_cut_long_or_gone_stops_a_start_and_can_be_given_up() {
    for what in ["cut", "long", "gone"] {
        let (_folder, data) = folder();
        let log = data.with_extension("log");
        let flags = [SMALL, &["--shards", "1"]].concat();
        drop(damaged_store(&data, &flags));
        let path = spoil(&data, what);
        let name = path.file_name().unwrap().to_str().unwrap();
        let refused = start(&data, &flags, &log);
        assert!(refused.contains(name) && refused.contains("ringkeep repair"), "{what}: {refused}");
        for arguments in [&["check"][..], &["repair", "--dry-run"]] {
            let output = run(arguments, &data);
            assert!(output.status.code() == Some(65) && text(&output).contains(name), "{}", text(&output));
        }
        let given_up = run(&["repair"], &data);
        assert!(given_up.status.success() && text(&given_up).contains(name), "{what}: {}", text(&given_up));
        let output = run(&["check"], &data);
        assert!(output.status.success(), "{what}: {}", text(&output));
        let server = Server::start(&data, &flags);
        let mut client = server.client();
        let found = (0..KEYS)
            .filter(|number| {
                let reply = client.request("GET", &format!("/get?key=k{number:05}"));
                assert!(reply.status == 404 || reply.text() == value(*number), "{what}: {reply:?}");
                reply.status == 200
            })
            .count();
        assert!(
            found < KEYS && (what == "gone" || KEYS / 4 < found),
            "{what}: {found} keys are left, {}",
            text(&given_up)
        );
        let lost = match text(&given_up).split_once(" entries are lost among") {
            Some((before, _)) => before.rsplit(' ').next().unwrap().parse().unwrap(),
            None => 0,
        };
        assert_eq!(found + lost, KEYS, "{what}: {}", text(&given_up));
    }
}

#[test]
fn a_damaged_log_is_refused_by_a_dry_run_as_by_a_repair() {
    let (_folder, data) = folder();
    let flags = [SMALL, &["--shards", "1"]].concat();
    let server = Server::start(&data, &flags);
    for number in 0..20 {
        assert_eq!(server.client().request("POST", &format!("/set?key={number}&value=v")).status, 200);
    }
    server.kill();
    let path = spoil(&data, "log");
    let name = path.file_name().unwrap().to_str().unwrap();
    let before = contents(&data);
    for arguments in [&["repair", "--dry-run"][..], &["repair"]] {
        let output = run(arguments, &data);
        assert!(output.status.code() == Some(65) && text(&output).contains(name), "{}", text(&output));
    }
    assert!(contents(&data) == before, "nothing was changed");
}

#[test]
fn a_damaged_log_of_one_shard_keeps_the_entries_of_others_from_being_given_up() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shards", "2"]].concat());
    let mut client = server.client();
    for round in ["sorted", "logged"] {
        for number in 0..200 {
            assert_eq!(client.request("POST", &format!("/set?key={round}{number}&value=v")).status, 200);
        }
        if round == "sorted" {
            assert_eq!(client.request("POST", "/compact").status, 200);
        }
    }
    server.kill();
    // Each shard in turn has the damaged log.
    let sound = contents(&data);
    for shards in [["shard-000", "shard-001"], ["shard-001", "shard-000"]] {
        let mut names = Vec::new();
        for (shard, end, at) in [(shards[0], "wal", 8192 + 20), (shards[1], "sst", 20)] {
            let found = sound.iter().filter(|(path, bytes)| {
                path.to_str().unwrap().contains(shard)
                    && path.extension().is_some_and(|found| found == end)
                    && bytes[at..].iter().take(40).any(|byte| *byte != 0) // not a log that is only prepared
            });
            let (path, bytes) = found.max_by_key(|(path, _)| (*path).clone()).unwrap();
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        let damaged = contents(&data);
        let output = run(&["repair", "--dry-run"], &data);
        assert!(output.status.code() == Some(65), "{}", text(&output));
        assert!(names.iter().all(|name| text(&output).contains(name)), "both are told: {}", text(&output));
        let output = run(&["repair"], &data);
        assert!(output.status.code() == Some(65), "{}", text(&output));
        assert!(text(&output).contains("nothing was changed"), "{}", text(&output));
        assert!(contents(&data) == damaged, "nothing was changed");
        for (path, bytes) in &sound {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Starts a server that has to refuse, and returns what it says.
fn start(data: &Path, flags: &[&str], log: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .args(flags)
        .stderr(fs::File::create(log).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(65));
    fs::read_to_string(log).unwrap()
}
