//! `ringkeep check` on real files, as an operator runs it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{SMALL, Server, folder};

fn check(data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).arg("check").arg(data).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Every file below a folder, with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
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
    assert_eq!(busy.status.code(), Some(75), "a server has it: {}", text(&busy));
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
    assert!(text(&stopped).contains(" 0 notes, 0 damages, 0 unread"), "{}", text(&stopped));
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
    assert!(2 <= ssts.len(), "one for each shard");
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
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
    assert!(text(&missing).contains("LOCK"), "{}", text(&missing));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("LOCK"), "").unwrap();
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
