//! `ringkeep inspect` on stores that the real server has written, sound and damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use crate::common::command::text;
use crate::common::{PATIENCE, SMALL, Server, contents, encode, folder};
use ringkeep::record::file::FIRST_RECORD;
use serde_json::Value;

fn run(command: &str, data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).arg(command).arg(data).args(arguments).output().unwrap()
}

/// What is shown with `--json`, and the exit status. Whatever is shown, nothing is changed.
fn inspect(data: &Path, arguments: &[&str]) -> (i32, Value) {
    let before = contents(data);
    let output = run("inspect", data, &[arguments, &["--json"]].concat());
    assert!(contents(data) == before, "a file has changed");
    let shown = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), shown.unwrap_or_else(|error| panic!("{error}: {}", text(&output))))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list"))
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string"))
}

/// The sorted files of all levels of a shard.
fn sorted_files(shard: &Value) -> Vec<&Value> {
    list(&shard["levels"]).iter().flat_map(|level| list(&level["files"])).collect()
}

const KEYS: usize = 1_500;

fn key(number: usize) -> String {
    format!("k{number:05}")
}

fn set(server: &Server, keys: std::ops::Range<usize>) {
    let mut client = server.client();
    for number in keys {
        // Values that hardly compress, so that a file has many blocks.
        let value: String =
            (0..30).map(|part| format!("{:x}", (number + 1) * 2_654_435_761 * (part + 1))).collect();
        assert_eq!(client.post(&format!("/set?key={}", key(number)), value.as_bytes()).status, 200);
    }
}

/// A store of one shard: the first life is stopped, and leaves one sorted file; the second is killed, and leaves a log with
/// `more` groups.
fn store(data: &Path, more: usize) {
    let flags = [SMALL, &["--shards", "1"]].concat();
    let server = Server::start(data, &flags);
    set(&server, 0..KEYS);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let server = Server::start(data, &flags);
    set(&server, 0..more);
    // A mark comes soon after the last write.
    let begin = Instant::now();
    while !is_witnessed(data) {
        assert!(begin.elapsed() < PATIENCE, "no mark covers the writes");
        std::thread::yield_now();
    }
    server.kill();
}

/// Whether the newest mark of the log with groups covers all of them.
fn is_witnessed(data: &Path) -> bool {
    let wal = fs::read(wal(data)).unwrap();
    let word = |at: usize| u64::from_le_bytes(wal[at..at + 8].try_into().unwrap());
    let durable =
        [0, 4096].map(|slot| (word(slot + 56), word(slot + 64))).into_iter().max().unwrap().1 as usize;
    !wal[durable..].starts_with(b"RGK1")
}

/// The only file of this kind that is not empty.
fn only(data: &Path, is_it: impl Fn(&str, &[u8]) -> bool) -> PathBuf {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let found = contents(data).into_iter().filter(|(path, bytes)| is_it(&name(path), bytes));
    let found: Vec<_> = found.map(|(path, _)| path).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn wal(data: &Path) -> PathBuf {
    only(data, |name, bytes| name.ends_with(".wal") && bytes[FIRST_RECORD as usize..].starts_with(b"RGK1"))
}

fn sst(data: &Path) -> PathBuf {
    only(data, |name, _| name.ends_with(".sst"))
}

fn manifest(data: &Path) -> PathBuf {
    only(data, |name, _| name.starts_with("MANIFEST-"))
}

/// Where the records of a file begin.
fn records(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let sectors = (FIRST_RECORD..bytes.len() as u64).step_by(512);
    sectors.filter(|at| bytes[*at as usize..].starts_with(b"RGK1")).collect()
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn what_was_written_is_shown_by_shard_level_and_log() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shards", "2"]].concat());
    set(&server, 0..KEYS);
    assert_eq!(run("inspect", &data, &[]).status.code(), Some(75), "a server has the store open");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let server = Server::start(&data, SMALL);
    set(&server, 0..100);
    server.kill();

    let (status, shown) = inspect(&data, &["--groups"]);
    assert_eq!((status, &shown["store"]["shards"], &shown["store"]["ready"]), (0, &2.into(), &true.into()));
    assert!(list(&shown["damage"]).is_empty());
    let (mut entries, mut writes) = (0, 0);
    for shard in list(&shown["shards"]) {
        let files = sorted_files(shard);
        assert_eq!(files.len(), 1, "{shard}");
        let properties = &files[0]["properties"];
        let on_disk = data.join(string(&shard["directory"])).join(string(&files[0]["file"]));
        assert_eq!(number(&properties["bytes"]), fs::metadata(on_disk).unwrap().len());
        let (first, last) = (number(&properties["first"]), number(&properties["last"]));
        assert_eq!((first, last), (1, number(&shard["flushed"])));
        assert_eq!(number(&properties["entries"]), last);
        entries += last;
        // Each write of a lone client is a group; they continue the SeqNos of the sorted file.
        let mut next = last + 1;
        for wal in list(&shard["wals"]).iter().filter(|wal| wal["role"] == "needed") {
            assert_eq!(wal["end"]["torn_bytes"], 0, "{wal}");
            for group in list(&wal["groups"]) {
                assert_eq!((number(&group["first"]), number(&group["last"])), (next, next));
                next += 1;
            }
            writes += number(&wal["writes"]);
        }
        assert_eq!(list(&shard["left_over"]).len() + list(&shard["missing"]).len(), 0, "{shard}");
    }
    assert_eq!((entries, writes), (KEYS as u64, 100));

    let (_, second) = inspect(&data, &["--shard", "1"]);
    assert_eq!(list(&second["shards"]).len(), 1);
    assert_eq!(second["shards"][0]["directory"], "shard-001");
    let page = text(&run("inspect", &data, &[]));
    for words in ["shard-000: ", "shard-001: ", "CURRENT names MANIFEST-", "  L0: 1 file, ", "keys k0000"] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }
    assert_eq!(run("inspect", &data, &["--shard", "2"]).status.code(), Some(78));
    assert_eq!(run("inspect", &data, &["--file", "000999.sst"]).status.code(), Some(78));
    let missing = run("inspect", &data.join("nothing"), &[]);
    assert_eq!(missing.status.code(), Some(78), "{}", text(&missing));
    let empty = data.with_extension("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(run("inspect", &empty, &[]).status.code(), Some(78));
}

#[test]
fn the_history_of_a_key_has_every_version_the_newest_first() {
    let (_folder, data) = folder();
    let key = b"a \0%+\xff key";
    let target = |verb: &str| format!("/{verb}?key={}", encode(key));
    let life = |end: &str, work: &dyn Fn(&mut crate::common::Client)| {
        let server = Server::start(&data, SMALL);
        work(&mut server.client());
        match end {
            "kill" => server.kill(),
            end => {
                server.signal(end);
                server.wait();
            }
        }
    };
    let post = |client: &mut crate::common::Client, bytes| {
        assert_eq!(client.post(&target("set"), &vec![b'v'; bytes]).status, 200);
    };
    life("-TERM", &|client| post(client, 10));
    life("-TERM", &|client| post(client, 2_000));
    life("kill", &|client| {
        post(client, 0);
        assert_eq!(client.request("DELETE", &target("del")).status, 200);
        post(client, 7);
    });
    for how in [["--key", "a %00%25+%Ff key"], ["--key-hex", "612000252bff206b6579"]] {
        let (status, shown) = inspect(&data, &how);
        assert_eq!((status, &shown["key"]), (0, &"a%20%00%25%2B%FF%20key".into()));
        let histories: Vec<_> =
            list(&shown["shards"]).iter().filter(|shard| !shard["history"].is_null()).collect();
        assert_eq!(histories.len(), 1, "a key has one shard");
        let versions: Vec<_> = list(&histories[0]["history"]["versions"])
            .iter()
            .map(|version| {
                let place = (string(&version["place"]), version["level"].as_u64());
                (number(&version["seqno"]), string(&version["what"]), number(&version["value_bytes"]), place)
            })
            .collect();
        let (wal, l0) = (("wal", None), ("level", Some(0)));
        let expected = [
            (5, "set", 7, wal),
            (4, "delete", 0, wal),
            (3, "set", 0, wal),
            (2, "set", 2_000, l0),
            (1, "set", 10, l0),
        ];
        assert_eq!(versions, expected);
    }
    let page = text(&run("inspect", &data, &["--key", "a %00%25+%Ff key"]));
    assert!(page.contains("5 versions") && page.contains("SeqNo 4: delete, in 0000"), "{page}");
    let (_, nothing) = inspect(&data, &["--key", "other"]);
    let found = list(&nothing["shards"]).iter().find(|shard| !shard["history"].is_null()).unwrap();
    assert!(list(&found["history"]["versions"]).is_empty());
    for wrong in ["%", "%0", "%zz", ""] {
        assert_eq!(run("inspect", &data, &["--key", wrong]).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_damaged_manifest_costs_its_own_line_and_current_its_own() {
    let (_folder, data) = folder();
    store(&data, 20);
    // When nobody writes, an edit says how far the log is durable.
    let server = Server::start(&data, SMALL);
    let begin = Instant::now();
    for count in 2..4 {
        set(&server, 0..1);
        while records(&manifest(&data)).len() < count {
            assert!(begin.elapsed() < PATIENCE, "there is no edit");
            std::thread::yield_now();
        }
    }
    server.kill();
    let (_, whole) = inspect(&data, &[]);
    let whole = &whole["shards"][0];
    let manifest = manifest(&data);
    let (sound, edits) = (fs::read(&manifest).unwrap(), records(&manifest));
    assert_eq!(number(&whole["manifest"]["edits"]), edits.len() as u64);
    // Whatever can be read of the manifest: each file says what it is.
    let writes = |shard: &Value| list(&shard["wals"]).iter().map(|wal| number(&wal["writes"])).sum::<u64>();
    let files = |shard: &Value| {
        let files = sorted_files(shard).into_iter().chain(list(&shard["other_sorted_files"]));
        let mut files: Vec<_> =
            files.map(|file| (file["file"].clone(), file["properties"].clone())).collect();
        files.sort_by_key(|(name, _)| name.to_string());
        files
    };
    assert!(!files(whole).is_empty() && 2 <= writes(whole), "{whole}");

    // A later edit witnesses that this one was durable.
    flip(&manifest, edits[1] + 60);
    let (status, shown) = inspect(&data, &[]);
    assert_eq!(status, 65);
    let shard = &shown["shards"][0];
    let error = string(&shard["manifest"]["error"]);
    assert!(error.contains(&name(&manifest)) && error.contains("offset"), "{error}");
    assert!(list(&shown["damage"]).contains(&shard["manifest"]["error"]));
    assert_eq!(number(&shard["manifest"]["edits"]), 1);
    assert_eq!((files(shard), writes(shard)), (files(whole), writes(whole)));
    // Without the snapshot nothing is named, and the files say themselves what they are.
    flip(&manifest, edits[0] + 60);
    let (status, shown) = inspect(&data, &[]);
    let shard = &shown["shards"][0];
    assert_eq!((status, number(&shard["manifest"]["edits"]), sorted_files(shard).len()), (65, 0, 0));
    assert_eq!((files(shard), writes(shard)), (files(whole), writes(whole)));
    assert!(text(&run("inspect", &data, &[])).contains("not named by what could be read of the manifest"));
    fs::write(&manifest, &sound).unwrap();

    let current = only(&data, |name, _| name == "CURRENT");
    let named = fs::read(&current).unwrap();
    for damage in ["flip", "remove"] {
        match damage {
            "flip" => flip(&current, 57),
            _ => fs::remove_file(&current).unwrap(),
        }
        let (status, shown) = inspect(&data, &[]);
        let shard = &shown["shards"][0];
        assert_eq!((status, &shard["manifest"]["assumed"]), (65, &true.into()), "{damage}");
        assert!(string(&shard["current"]["error"]).contains("CURRENT"), "{shard}");
        assert_eq!(shard["levels"], whole["levels"]);
        fs::write(&current, &named).unwrap();
    }
    fs::remove_file(&manifest).unwrap();
    let (status, shown) = inspect(&data, &[]);
    let shard = &shown["shards"][0];
    assert_eq!((status, &shard["manifest"]), (65, &Value::Null));
    assert!(string(&shard["current"]["error"]).contains(&name(&manifest)), "{shard}");
    assert_eq!(files(shard), files(whole));
}

#[test]
fn without_its_identity_a_store_is_shown_by_that_of_its_files() {
    let (_folder, data) = folder();
    store(&data, 20);
    let (_, whole) = inspect(&data, &[]);
    let path = data.join("STORE");
    for damage in ["flip", "remove"] {
        match damage {
            "flip" => flip(&path, 60),
            _ => fs::remove_file(&path).unwrap(),
        }
        let (status, shown) = inspect(&data, &[]);
        assert_eq!((status, &shown["store"]["id"]), (65, &whole["store"]["id"]), "{damage}");
        assert!(string(&shown["store"]["error"]).contains("STORE"));
        assert_eq!(shown["shards"], whole["shards"]);
        let (status, found) = inspect(&data, &["--key", &key(5)]);
        assert_eq!((status, list(&found["shards"][0]["history"]["versions"]).len()), (65, 2));
    }
}

#[test]
fn the_end_of_a_log_is_judged_and_damage_before_it_leaves_the_groups_before_it() {
    let (_folder, data) = folder();
    store(&data, 20);
    let path = wal(&data);
    let report = |shown: &Value| {
        let wals = list(&shown["shards"][0]["wals"]);
        wals.iter().find(|wal| wal["file"] == name(&path).as_str()).unwrap().clone()
    };
    let (_, shown) = inspect(&data, &["--groups"]);
    let whole = report(&shown);
    let end = number(&whole["end"]["offset"]);
    let sound = fs::read(&path).unwrap();

    // A group that was being written when the power was cut: its checksum does not match.
    let mut torn = sound.clone();
    torn.copy_within(FIRST_RECORD as usize..FIRST_RECORD as usize + 512, end as usize);
    torn[end as usize + 32..end as usize + 40].copy_from_slice(&end.to_le_bytes());
    fs::write(&path, &torn).unwrap();
    let (status, shown) = inspect(&data, &[]);
    let found = report(&shown);
    assert_eq!((status, number(&found["end"]["offset"]), number(&found["end"]["torn_bytes"])), (0, end, 512));
    assert_eq!(found["writes"], 20);
    assert!(text(&run("inspect", &data, &[])).contains("the torn end of a crash"));

    let groups = list(&whole["groups"]);
    let fifth = number(&groups[4]["offset"]);
    fs::write(&path, &sound).unwrap();
    flip(&path, fifth + 100);
    let (status, shown) = inspect(&data, &["--groups"]);
    let found = report(&shown);
    assert_eq!((status, &found["writes"], &found["end"]), (65, &4.into(), &Value::Null));
    assert_eq!(list(&found["groups"])[..], groups[..4]);
    let error = string(&found["errors"][0]);
    assert!(error.contains(&format!("{} is damaged at offset {fifth}", name(&path))), "{error}");
    assert_eq!(found["mark"], whole["mark"], "the marks are shown");
    let page = text(&run("inspect", &data, &["--file", &name(&path), "--groups"]));
    let lines =
        ["    damage: ".to_owned(), format!("group at offset {}: SeqNo", number(&groups[3]["offset"]))];
    assert!(lines.iter().all(|line| page.contains(line)) && !page.contains("sst"), "{page}");
    // A history says that it may not be complete.
    let (status, shown) = inspect(&data, &["--key", &key(2)]);
    let history = &shown["shards"][0]["history"];
    assert_eq!((status, list(&history["versions"]).len(), list(&history["errors"]).len()), (65, 2, 1));
}

#[test]
fn a_damaged_block_is_found_in_its_file_and_in_the_history_of_its_keys() {
    let (_folder, data) = folder();
    store(&data, 1);
    let path = sst(&data);
    let file = format!("shard-000/{}", name(&path));
    let (status, shown) = inspect(&data, &["--file", &file, "--blocks"]);
    let whole = &shown["shards"][0]["sorted_file"];
    let total = |found: &Value, kind: &str| {
        list(&found["totals"]).iter().find(|total| total["kind"] == kind).unwrap().clone()
    };
    let data_blocks = number(&total(whole, "data")["blocks"]);
    assert_eq!((status, number(&total(whole, "data")["entries"])), (0, KEYS as u64));
    assert!(10 < data_blocks && 0 < number(&total(whole, "filter")["blocks"]), "{whole}");
    let on_disk: u64 = list(&whole["totals"]).iter().map(|total| number(&total["bytes_on_disk"])).sum();
    assert_eq!(on_disk + 4096, fs::metadata(&path).unwrap().len(), "blocks and footer are the whole file");
    let blocks = list(&whole["blocks"]);
    let third = number(&blocks[2]["offset"]);
    let lost = string(&blocks[2]["first_key"]).to_owned();
    let kept = string(&blocks[4]["first_key"]).to_owned();
    let (_, before) = inspect(&data, &["--key", &lost]);
    assert_eq!(before["shards"][0]["history"]["versions"][0]["offset"], third);

    let sound = fs::read(&path).unwrap();
    flip(&path, third + 100);
    let (status, shown) = inspect(&data, &["--file", &name(&path), "--blocks"]);
    let found = &shown["shards"][0]["sorted_file"];
    assert_eq!((status, number(&total(found, "data")["blocks"])), (65, data_blocks - 1));
    let error = string(&list(&found["blocks"])[2]["error"]);
    assert!(error.contains(&format!("{file} is damaged at offset {third}")), "{error}");
    assert_eq!(list(&found["blocks"])[3..], blocks[3..]);
    for (key, status, versions) in [(&lost, 65, 0), (&kept, 0, 1)] {
        let (found, shown) = inspect(&data, &["--key", key]);
        let history = &shown["shards"][0]["history"];
        assert_eq!((found, list(&history["versions"]).len()), (status, versions), "{history}");
    }

    // Without its footer, a file is what the manifest says, and its blocks are found all the same.
    fs::write(&path, &sound).unwrap();
    flip(&path, sound.len() as u64 - 4096 + 60);
    let (status, shown) = inspect(&data, &[]);
    let listed = sorted_files(&shown["shards"][0])[0].clone();
    assert_eq!((status, &listed["properties"]), (65, &whole["properties"]));
    assert!(string(&listed["error"]).contains(&file));
    let (status, shown) = inspect(&data, &["--file", &file, "--blocks"]);
    assert_eq!((status, &shown["shards"][0]["sorted_file"]["blocks"]), (65, &whole["blocks"]));

    fs::remove_file(&path).unwrap();
    let (status, shown) = inspect(&data, &[]);
    let shard = &shown["shards"][0];
    assert_eq!((status, &shard["missing"][0]["file"]), (65, &name(&path).as_str().into()));
    assert_eq!(sorted_files(shard)[0]["properties"], whole["properties"]);
    assert!(text(&run("inspect", &data, &[])).contains("is missing, but the manifest names it"));
    assert_eq!(inspect(&data, &["--key", &kept]).0, 65);
}

#[test]
fn files_that_nothing_names_say_what_they_are() {
    let (_folder, data) = folder();
    store(&data, 1);
    let path = sst(&data);
    fs::copy(&path, path.with_file_name("000999.sst")).unwrap();
    fs::write(path.with_file_name("MANIFEST-000001"), [0; 4096]).unwrap();
    let (status, shown) = inspect(&data, &[]);
    let shard = &shown["shards"][0];
    let other = &list(&shard["other_sorted_files"])[0];
    assert_eq!((&other["file"], &other["place"]), (&"000999.sst".into(), &"unnamed".into()));
    // A file that is not named costs nothing: a crash leaves files that are not complete.
    assert!(status == 0 && string(&other["error"]).contains("another file"), "{other}");
    assert!(text(&run("inspect", &data, &[])).contains("    note: "));
    assert_eq!(inspect(&data, &["--key", &key(0)]).0, 0);
    assert_eq!(list(&shard["left_over"])[0]["file"], "MANIFEST-000001");
    assert_eq!(sorted_files(shard).len(), 1);
}

#[test]
fn a_read_only_file_system_and_other_readers_are_no_obstacle() {
    let (folder, data) = folder();
    store(&data, 20);
    let mounted = folder.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    let script = "mount --bind \"$0\" \"$1\" && mount -o remount,ro,bind \"$1\" && ! touch \"$1/x\" 2>/dev/null || exit 99\n\
                  exec 9<\"$1\" && flock -s 9 && \"$2\" inspect \"$1\" && \"$2\" check \"$1\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .args([&data, &mounted])
        .arg(env!("CARGO_BIN_EXE_ringkeep"))
        .output();
    match output {
        Ok(output) if ![Some(1), Some(99)].contains(&output.status.code()) => {
            assert!(output.status.success() && text(&output).contains(": sound; "), "{}", text(&output));
        }
        other => println!("skipped: a read-only mount needs root ({other:?})"),
    }
}
