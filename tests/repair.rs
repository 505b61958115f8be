//! A damaged block, as an operator meets it: what is served, what `/readyz` and the log say, and what `ringkeep repair` does.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use common::{Client, PATIENCE, SMALL, Server, contents, folder};

fn run(command: &[&str], data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(command).arg(data).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
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

    let output = run(&["check"], &data);
    assert!(output.status.code() == Some(65) && text(&output).contains(name), "{}", text(&output));
    let before = contents(&data);
    let output = run(&["repair", "--dry-run"], &data);
    assert!(output.status.success() && text(&output).contains("nothing was changed"), "{}", text(&output));
    assert!(text(&output).contains("entries are lost among the keys"), "{}", text(&output));
    assert!(contents(&data) == before, "a dry run changes nothing");
    let output = run(&["repair"], &data);
    assert!(output.status.success() && text(&output).contains(name), "{}", text(&output));
    let output = run(&["check"], &data);
    assert!(output.status.success(), "{}", text(&output));
    let output = run(&["repair"], &data);
    assert!(text(&output).contains("no sorted file is damaged"), "{}", text(&output));

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
