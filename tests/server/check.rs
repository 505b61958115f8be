//! `ringkeep check` on real files, as an operator runs it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::common::command::text;
use crate::common::{PATIENCE, SMALL, Server, contents, folder};
use ringkeep::codec::crc32;
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::record::{HEADER_BYTES, record_bytes};
use ringkeep::storage::BLOCK_BYTES;

fn check(data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).arg("check").arg(data).output().unwrap()
}

/// The only WAL that holds a group: its path and its bytes.
fn wal_with_a_group(data: &Path) -> (PathBuf, Vec<u8>) {
    let wals = contents(data).into_iter().filter(|(path, bytes)| {
        path.extension().is_some_and(|end| end == "wal") && group_end(bytes).is_some()
    });
    let mut wals: Vec<_> = wals.collect();
    assert_eq!(wals.len(), 1, "the key is in one shard");
    wals.remove(0)
}

/// Where the first group of a WAL ends, if the WAL holds one.
fn group_end(wal: &[u8]) -> Option<u64> {
    let group = &wal[FIRST_RECORD as usize..];
    let payload = u32::from_le_bytes(group[8..12].try_into().unwrap()) as usize;
    group.starts_with(b"RGK1").then(|| FIRST_RECORD + record_bytes(payload) as u64)
}

/// How far the WAL is durable, according to its newest mark.
fn witnessed(wal: &[u8]) -> u64 {
    let number = |at: usize| u64::from_le_bytes(wal[at..at + 8].try_into().unwrap());
    let marks = [0, BLOCK_BYTES].map(|slot| slot + HEADER_BYTES).map(|at| (number(at), number(at + 8)));
    marks.into_iter().max().unwrap().1
}

/// Starts a server that must refuse to start.
fn start(data: &Path) -> Output {
    let mut server = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A server that starts prints a line, and never ends by itself.
    let mut first_line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
    if !first_line.is_empty() {
        server.kill().unwrap();
        server.wait().unwrap();
        panic!("the start was not refused: {first_line}");
    }
    server.wait_with_output().unwrap()
}

#[test]
fn w4_a_write_is_witnessed_soon_after_the_last_one_and_its_loss_is_refused() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("POST", "/set?key=a&value=1").status, 200);
    let (path, bytes) = wal_with_a_group(&data);
    let end = group_end(&bytes).unwrap();
    let begin = Instant::now();
    while witnessed(&fs::read(&path).unwrap()) < end {
        assert!(begin.elapsed() < PATIENCE, "no mark covers the write");
        std::thread::yield_now();
    }
    server.kill();
    let sound = check(&data);
    assert_eq!(sound.status.code(), Some(0), "{}", text(&sound));
    let line = format!("ends at offset {end}, and is witnessed up to offset {end}");
    assert!(text(&sound).contains(&line), "{line} is not in\n{}", text(&sound));
    assert!(text(&sound).contains(" files, 1 entry, 0 notes, "), "{}", text(&sound));

    let mut zeroed = fs::read(&path).unwrap();
    zeroed[FIRST_RECORD as usize..].fill(0);
    fs::write(&path, zeroed).unwrap();
    let name = path.strip_prefix(&data).unwrap().display();
    for output in [check(&data), start(&data)] {
        assert_eq!(output.status.code(), Some(65), "{}", text(&output));
        let message = format!("{name} is damaged at offset {FIRST_RECORD}: ");
        assert!(text(&output).contains(&message), "{message} is not in\n{}", text(&output));
    }
}

#[test]
fn what_a_later_version_wrote_is_refused_by_name() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("POST", "/set?key=a&value=1").status, 200);
    server.kill();
    let (path, whole) = wal_with_a_group(&data);
    let mut later = whole.clone();
    let group = &mut later[FIRST_RECORD as usize..group_end(&whole).unwrap() as usize];
    group[51] += 1;
    let crc = crc32(&group[8..]);
    group[4..8].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &later).unwrap();
    for output in [check(&data), start(&data)] {
        assert_eq!(output.status.code(), Some(78), "{}", text(&output));
        let words =
            ["record format 2 is of a later version", "knows record format 1 at most", ".wal at offset 8192"];
        assert!(words.iter().all(|words| text(&output).contains(words)), "{}", text(&output));
    }
    assert_eq!(fs::read(&path).unwrap(), later, "nothing is cut");

    // The whole store, as earlier versions and as a later version would write it.
    fs::write(&path, &whole).unwrap();
    let store = fs::read(data.join("STORE")).unwrap();
    for version in [1, 3, 5] {
        let mut other = store.clone();
        other[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&u32::to_le_bytes(version));
        let crc = crc32(&other[8..]);
        other[4..8].copy_from_slice(&crc.to_le_bytes());
        fs::write(data.join("STORE"), &other).unwrap();
        for output in [check(&data), start(&data)] {
            assert_eq!(output.status.code(), Some(78), "{}", text(&output));
            assert!(text(&output).contains(&format!("format {version}")), "{}", text(&output));
            assert!(text(&output).contains("format 4"), "{}", text(&output));
        }
    }
    fs::write(data.join("STORE"), store).unwrap();
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("GET", "/get?key=a").status, 200);
}

#[test]
fn a_sound_store_is_found_sound_after_a_kill_and_after_a_stop_and_nothing_is_touched() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--flush-interval", "50ms"]].concat());
    let mut client = server.client();
    for number in 0..2_000 {
        let value = vec![number as u8; 700];
        assert_eq!(client.post(&format!("/set?key=k{}", number % 900), &value).status, 200);
    }
    assert_eq!(client.request("DELETE", "/del?key=k7").status, 200);
    let busy = check(&data);
    assert_eq!(busy.status.code(), Some(75), "a server has the store open: {}", text(&busy));
    server.kill();

    let before = contents(&data);
    let sound = check(&data);
    assert_eq!(sound.status.code(), Some(0), "{}", text(&sound));
    assert!(text(&sound).contains("sound; "), "{}", text(&sound));
    assert!(before == contents(&data), "a check changes nothing");

    let server = Server::start(&data, SMALL);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let stopped = check(&data);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped));
    assert!(text(&stopped).contains(" 0 notes, 0 damaged, 0 unread"), "{}", text(&stopped));
}

#[test]
fn damage_is_listed_with_file_and_offset_and_the_status_is_65() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let mut client = server.client();
    for number in 0..400 {
        assert_eq!(client.post(&format!("/set?key=k{number}"), &[number as u8; 900]).status, 200);
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let ssts: Vec<PathBuf> =
        contents(&data).into_keys().filter(|path| path.extension().is_some_and(|end| end == "sst")).collect();
    assert!(2 <= ssts.len(), "one SST for each shard");
    for sst in &ssts {
        let mut bytes = fs::read(sst).unwrap();
        bytes[4096 * 2 + 77] ^= 4;
        bytes[4096 * 5 + 1_000] ^= 1;
        fs::write(sst, bytes).unwrap();
    }
    let damaged = check(&data);
    assert_eq!(damaged.status.code(), Some(65), "{}", text(&damaged));
    for sst in &ssts {
        let name = sst.strip_prefix(&data).unwrap().display();
        for offset in [8192, 20_480] {
            let line = format!("damage: {name} is damaged at offset {offset}: ");
            assert!(text(&damaged).contains(&line), "{line} is not in\n{}", text(&damaged));
        }
    }
}

#[test]
fn what_is_no_store_is_not_checked() {
    let (_folder, data) = folder();
    let missing = check(&data);
    assert_eq!(missing.status.code(), Some(78), "{}", text(&missing));
    assert!(text(&missing).contains("cannot open the directory"), "{}", text(&missing));
    fs::write(&data, "a file").unwrap();
    let file = check(&data);
    assert_eq!(file.status.code(), Some(78), "{}", text(&file));
    fs::remove_file(&data).unwrap();
    fs::create_dir(&data).unwrap();
    let empty = check(&data);
    assert_eq!(empty.status.code(), Some(78), "{}", text(&empty));
    assert!(text(&empty).contains("holds no store"), "{}", text(&empty));
}

#[test]
fn a_lost_shard_or_store_file_is_named_by_the_check_and_by_the_start() {
    for lost in ["shard-001", "STORE"] {
        let (_folder, data) = folder();
        let server = Server::start(&data, SMALL);
        assert_eq!(server.client().request("POST", "/set?key=a&value=1").status, 200);
        server.kill();
        let path = data.join(lost);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        let damaged = check(&data);
        assert_eq!(damaged.status.code(), Some(65), "{}", text(&damaged));
        assert!(text(&damaged).contains(lost), "{}", text(&damaged));
        let start = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .output()
            .unwrap();
        assert_eq!(start.status.code(), Some(65), "{}", text(&start));
        assert!(text(&start).contains(lost), "{}", text(&start));
    }
}
