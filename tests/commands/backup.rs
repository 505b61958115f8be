//! Backup, restore, compaction and statistics, with the real binary.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use ringkeep::host::is_ignored;
use rustix::process::{Pid, Signal};

use crate::common::command::{path, run, succeeds, text};
use crate::common::{Client, PATIENCE, SMALL, Server, contents, encode, folder};

fn command(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeep"));
    command.args(words).arg("--url").arg(format!("http://{}", server.address));
    command
}

fn set(client: &mut Client, key: &str, value: &str) {
    assert_eq!(client.post(&format!("/set?key={}", encode(key.as_bytes())), value.as_bytes()).status, 200);
}

/// Keys and values of a small store, with bytes of every kind, overwritten and deleted.
fn fill(client: &mut Client, round: u32) -> BTreeMap<String, Option<String>> {
    let mut expected = BTreeMap::new();
    for number in 0..600_u32 {
        let key = format!("key {number}\n{{{}}}", number % 7);
        let value = format!("{round}-{number}-").repeat(1 + number as usize % 60);
        if number % 11 == round % 11 {
            client.request("DELETE", &format!("/del?key={}", encode(key.as_bytes())));
            expected.insert(key, None);
        } else {
            set(client, &key, &value);
            expected.insert(key, Some(value));
        }
    }
    expected
}

fn expect(client: &mut Client, expected: &BTreeMap<String, Option<String>>) {
    for (key, value) in expected {
        let reply = client.request("GET", &format!("/get?key={}", encode(key.as_bytes())));
        match value {
            Some(value) => assert_eq!((reply.status, reply.text()), (200, value.as_str()), "{key:?}"),
            None => assert_eq!(reply.status, 404, "{key:?}"),
        }
    }
}

/// Starts a server on a directory, and expects these keys.
fn serves(data: &Path, expected: &BTreeMap<String, Option<String>>) {
    let server = Server::start(data, SMALL);
    expect(&mut server.client(), expected);
}

fn ssts(folder: &Path) -> Vec<PathBuf> {
    let files = contents(folder).into_keys();
    files.filter(|file| file.extension().is_some_and(|extension| extension == "sst")).collect()
}

#[test]
fn a_backup_is_what_was_acknowledged_before_it_and_the_next_copies_only_what_is_new() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let server = Server::start(&data, &[SMALL, &["--shards", "3"]].concat());
    let mut client = server.client();
    let first = fill(&mut client, 1);
    let said = succeeds(command(&server, &["backup", path(&to("linked"))]).output().unwrap());
    assert!(said.contains("3 shards") && said.contains(" 0 copied (0 B)"), "{said}");
    assert!(ssts(&to("linked")).iter().all(|file| fs::metadata(file).unwrap().nlink() == 2), "hard links");
    let said = succeeds(command(&server, &["backup", "--copy", path(&to("copied"))]).output().unwrap());
    assert!(said.contains(" 0 linked, 0 were there"), "{said}");
    assert!(ssts(&to("copied")).iter().all(|file| fs::metadata(file).unwrap().nlink() == 1), "own bytes");
    // The store goes on, and replaces all its files.
    let second = fill(&mut client, 2);
    succeeds(command(&server, &["compact"]).output().unwrap());
    for name in ["linked", "copied"] {
        let backup = to(name);
        assert!(text(&run(&["check", path(&backup)])).contains(": sound;"));
        let restored = to(&format!("{name} restored"));
        succeeds(run(&["restore", path(&backup), path(&restored)]));
        assert!(succeeds(run(&["check", path(&restored)])).contains(": sound;"));
        serves(&restored, &first);
    }
    // Nothing is written in between, so the second of these backups has nothing to do.
    for name in ["copied", "copied"] {
        succeeds(command(&server, &["backup", "--copy", path(&to(name))]).output().unwrap());
    }
    let said = succeeds(command(&server, &["backup", "--copy", path(&to("copied"))]).output().unwrap());
    assert!(said.contains(" 0 copied (0 B), 0 linked") && !said.contains(" 0 were there"), "{said}");
    succeeds(run(&["restore", path(&to("copied")), path(&to("second"))]));
    serves(&to("second"), &second);
    expect(&mut client, &second);
}

#[test]
fn an_archive_makes_the_same_way_and_a_cut_or_foreign_one_is_refused() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let server = Server::start(&data, &[SMALL, &["--shards", "2"]].concat());
    let expected = fill(&mut server.client(), 1);
    let archive = command(&server, &["backup", "-"]).output().unwrap();
    assert_eq!(archive.status.code(), Some(0), "{}", String::from_utf8_lossy(&archive.stderr));
    let restore = |bytes: &[u8], name: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
            .args(["restore", "-", path(&to(name))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(bytes); // it may have refused the beginning
        child.wait_with_output().unwrap()
    };
    let bytes = &archive.stdout;
    succeeds(restore(bytes, "restored"));
    serves(&to("restored"), &expected);
    for (cut, what) in [
        (0, "nothing"),
        (700, "a part of a header"),
        (bytes.len() / 2, "half"),
        (bytes.len() - 6_000, "no STORE"),
    ] {
        let refused = restore(&bytes[..cut], "cut");
        assert_eq!(refused.status.code(), Some(65), "{what}: {}", text(&refused));
    }
    let refused = run(&["serve", "--data-dir", path(&to("cut")), "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused));
    assert!(text(&refused).contains("ringkeep restore"));
    let mut flipped = bytes.clone();
    let sst = bytes.windows(4).position(|window| window == b".sst").unwrap();
    flipped[sst / 512 * 512 + 512 + 100] ^= 1;
    assert_eq!(restore(&flipped, "flipped").status.code(), Some(65));
    // The same directory takes the right archive.
    succeeds(restore(bytes, "cut"));
    serves(&to("cut"), &expected);
}

#[test]
fn a_backup_that_was_interrupted_is_refused_by_servers_and_goes_on() {
    let (folder, data) = folder();
    let to = folder.path().join("backup");
    let server = Server::start(&data, &[SMALL, &["--shards", "2"]].concat());
    let mut client = server.client();
    let expected = fill(&mut client, 3);
    for number in 0..8 {
        // Values that do not compress, so that files are long.
        let mut state = number + 1_u64;
        let value: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(900_000)
        .collect();
        assert_eq!(client.post(&format!("/set?key=long{number}"), &value).status, 200);
    }
    let slow = ["backup", "--copy", "--rate", "2MB", path(&to)];
    let mut child = command(&server, &slow).stdout(Stdio::null()).spawn().unwrap();
    let copied = || {
        let files = [0, 1].map(|shard| fs::read_dir(to.join(format!("shard-{shard:03}"))));
        let files = files.into_iter().flatten().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum::<u64>()
    };
    let begin = Instant::now();
    while copied() < 1 << 20 {
        assert!(begin.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for words in [
        &["serve", "--listen", "127.0.0.1:0", "--data-dir", path(&to)][..],
        &["restore", path(&to), path(&data.with_extension("new"))],
    ] {
        let refused = run(words);
        assert!([65, 78].contains(&refused.status.code().unwrap()), "{}", text(&refused));
    }
    let said = succeeds(command(&server, &["backup", "--copy", path(&to)]).output().unwrap());
    assert!(!said.contains("(0 B)"), "{said}");
    let restored = folder.path().join("restored");
    succeeds(run(&["restore", path(&to), path(&restored)]));
    serves(&restored, &expected);
}

#[test]
fn what_is_in_the_way_or_not_allowed_is_refused_with_a_status() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let tokens = to("tokens");
    let mut file =
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&tokens).unwrap();
    writeln!(file, "reader read 0123456789abcdef\nboss admin fedcba9876543210").unwrap();
    let secret = |name: &str, line: &str| {
        let file = to(name);
        fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&file)
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
        file
    };
    let (reader, boss) =
        (secret("reader", "0123456789abcdef\n"), secret("boss", "boss admin fedcba9876543210\n"));
    let server = Server::start(&data, &[SMALL, &["--token-file", path(&tokens)]].concat());
    let ask = |words: &[&str]| command(&server, words).output().unwrap();
    let status = |output: Output| (output.status.code().unwrap(), text(&output));
    for (words, expected) in [
        (&["backup", path(&to("a"))][..], 77),
        (&["backup", "--token-file", path(&reader), path(&to("a"))], 77),
        (&["compact", "--token-file", path(&reader)], 77),
        (&["stats"], 77),
        (&["stats", "--token-file", path(&reader)], 0),
        (&["compact", "--token-file", path(&boss)], 0),
        (&["backup", "--token-file", path(&boss), path(&to("a"))], 0),
        (&["backup", "--token-file", path(&boss), path(folder.path())], 73),
        (&["backup", "--token-file", path(&boss), path(&data)], 75),
        (&["backup", "--token-file", path(&boss), path(&tokens)], 73),
        (&["backup", "--token-file", path(&boss), path(&data.join("inside"))], 78),
    ] {
        let (found, said) = status(ask(words));
        assert_eq!(found, expected, "{words:?}: {said}");
    }
    let (_other_folder, other) = crate::common::folder();
    let other = Server::start(&other, SMALL);
    let (found, said) = status(command(&other, &["backup", path(&to("a"))]).output().unwrap());
    assert!(found == 78 && said.contains("another store"), "{said}");
    for (words, expected) in [
        (&["repair", path(&to("a"))][..], 78),
        (&["reshard", path(&to("a")), "--shards", "9"], 78),
        (&["restore", path(&to("a")), path(folder.path())], 73),
        (&["restore", path(&to("a")), path(&to("a"))], 75),
        (&["restore", path(&to("nothing")), path(&to("b"))], 78),
        (&["restore", path(&data), path(&to("b"))], 75),
    ] {
        let (found, said) = status(run(words));
        assert_eq!(found, expected, "{words:?}: {said}");
    }
    let (found, said) = status(run(&["stats", "--url", "http://127.0.0.1:1"]));
    assert!(found == 1 && said.contains("does the server run"), "{said}");
}

#[test]
fn files_on_loan_stay_until_the_connection_of_their_list_ends() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shards", "1"]].concat());
    let mut client = server.client();
    fill(&mut client, 1);
    let mut list = server.client();
    list.send("GET /backup HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let mut lines = BufReader::new(list.stream.try_clone().unwrap())
        .lines()
        .map(Result::unwrap)
        .skip_while(|line| !line.starts_with('{'));
    let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap()).unwrap() };
    let (store, shard, end) = (next(), next(), next());
    assert_eq!((store["shards"].as_u64(), end["lent"].as_bool()), (Some(1), Some(true)));
    let file = shard["files"][0]["file"].as_u64().unwrap();
    let part = |backup: u64, bytes: u64| {
        format!("/backup/part?backup={backup}&shard=0&file={file}&offset=0&bytes={bytes}")
    };
    let backup = store["backup"].as_u64().unwrap();
    let name = data.join(format!("shard-000/{file:06}.sst"));
    let backups = |client: &mut Client| {
        let page = client.request("GET", "/metrics");
        page.text().lines().find_map(|line| line.strip_prefix("ringkeep_backups ")).unwrap().to_owned()
    };
    assert_eq!(backups(&mut client), "1.0");
    // Its entries go to another file.
    fill(&mut client, 2);
    assert_eq!(client.request("POST", "/compact").status, 200);
    let reply = client.request("GET", &part(backup, 4096));
    assert_eq!((reply.status, &reply.body[..]), (200, &fs::read(&name).unwrap()[..4096]));
    for wrong in [
        part(backup + 1, 4096),
        part(backup, 1 << 20),
        format!("/backup/part?backup={backup}&shard=7&file=1&offset=0&bytes=4096"),
    ] {
        assert_eq!(client.request("GET", &wrong).status, 400, "{wrong}");
    }
    drop(lines);
    drop(list);
    let begin = Instant::now();
    while name.exists() {
        assert!(begin.elapsed() < PATIENCE, "the file is not given back");
    }
    assert_eq!(client.request("GET", &part(backup, 4096)).status, 400);
    assert_eq!(backups(&mut client), "0.0");
}

#[test]
fn a_compaction_gives_the_space_of_deletes_back_and_statistics_show_it() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shards", "2"]].concat());
    let mut client = server.client();
    for number in 0..3_000 {
        set(&mut client, &format!("k{number}"), &format!("{number}-").repeat(30));
    }
    assert_eq!(client.request("POST", "/compact").status, 200);
    for number in 0..3_000 {
        assert_eq!(client.request("DELETE", &format!("/del?key=k{number}")).status, 200);
    }
    set(&mut client, "left", "over");
    let before: serde_json::Value = serde_json::from_str(client.request("GET", "/stats").text()).unwrap();
    assert_eq!(before["keys_estimate"].as_u64(), Some(1), "{before}");
    let entries = |stats: &serde_json::Value| -> u64 {
        stats["shards"].as_array().unwrap().iter().map(|shard| shard["entries"].as_u64().unwrap()).sum()
    };
    assert_eq!(entries(&before), 6_001, "{before}");
    assert!(100_000 < before["bytes"]["sorted_files"].as_u64().unwrap());
    assert!(succeeds(command(&server, &["compact"]).output().unwrap()).starts_with("compacted: "));
    let after: serde_json::Value =
        serde_json::from_str(&succeeds(command(&server, &["stats", "--json"]).output().unwrap())).unwrap();
    assert_eq!((entries(&after), after["keys_estimate"].as_u64()), (1, Some(1)), "{after}");
    assert!(after["bytes"]["sorted_files"].as_u64().unwrap() < 100_000);
    assert_eq!(after["requests"]["del"]["200"].as_u64(), Some(3_000));
    let shown = succeeds(command(&server, &["stats"]).output().unwrap());
    assert!(shown.contains("keys estimate") && shown.contains("sync mode"), "{shown}");
    assert_eq!(client.request("GET", "/get?key=left").text(), "over");
    assert_eq!(client.request("GET", "/get?key=k7").status, 404);
}

#[test]
fn a_stop_waits_for_no_backup() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--drain-timeout", "1h"]].concat());
    fill(&mut server.client(), 1);
    let mut list = server.client();
    list.send("GET /backup HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let mut lines = BufReader::new(list.stream.try_clone().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"lent\":true")));
    server.signal("-TERM");
    assert_eq!(lines.find(|line| !line.is_empty()), None, "the list ends");
    assert_eq!(server.wait().code(), Some(0));
    serves(&data, &BTreeMap::new());
}

#[test]
fn damage_that_a_backup_finds_is_known_to_the_server() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let server = Server::start(&data, &[SMALL, &["--shards", "1"]].concat());
    fill(&mut server.client(), 1);
    succeeds(command(&server, &["compact"]).output().unwrap());
    let file = ssts(&data).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, &bytes).unwrap(); // in place
    let refused = command(&server, &["backup", path(&to("backup"))]).output().unwrap();
    assert!(refused.status.code() == Some(65) && text(&refused).contains("--damaged"), "{}", text(&refused));
    let begin = Instant::now();
    while !server.client().request("GET", "/readyz").text().starts_with("degraded: ") {
        assert!(begin.elapsed() < PATIENCE, "the server does not know of the damage");
    }
    // Now the store serves around it, and so does its backup.
    let complete = command(&server, &["backup", path(&to("backup"))]).output().unwrap();
    assert!(
        complete.status.code() == Some(65) && text(&complete).contains("the copy is complete"),
        "{}",
        text(&complete)
    );
}

#[test]
fn a_damaged_file_ends_a_restore_unless_it_is_to_be_taken_as_it_is_and_repaired() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let server = Server::start(&data, &[SMALL, &["--shards", "1"]].concat());
    let expected = fill(&mut server.client(), 1);
    succeeds(command(&server, &["backup", "--copy", path(&to("backup"))]).output().unwrap());
    let file = ssts(&to("backup")).into_iter().next().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = run(&["restore", path(&to("backup")), path(&to("restored"))]);
    assert!(refused.status.code() == Some(65) && text(&refused).contains("--damaged"), "{}", text(&refused));
    let taken = run(&["restore", "--damaged", path(&to("backup")), path(&to("restored"))]);
    assert!(taken.status.code() == Some(65) && text(&taken).contains("complete"), "{}", text(&taken));
    succeeds(run(&["repair", path(&to("restored"))]));
    assert!(succeeds(run(&["check", path(&to("restored"))])).contains(": sound;"));
    let restored = Server::start(&to("restored"), SMALL);
    let mut client = restored.client();
    let mut found = 0;
    for (key, value) in &expected {
        let reply = client.request("GET", &format!("/get?key={}", encode(key.as_bytes())));
        if reply.status == 200 {
            assert_eq!(Some(reply.text()), value.as_deref(), "{key:?}");
            found += 1;
        }
    }
    assert!(0 < found && found < expected.len(), "{found}");
}

#[test]
fn a_signal_ends_a_backup_to_standard_output_and_leaves_nothing_behind() {
    let (folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shards", "1"]].concat());
    fill(&mut server.client(), 1);
    let spools = folder.path().join("tmp");
    fs::create_dir(&spools).unwrap();
    let has_a_file = || {
        let spool = fs::read_dir(&spools).unwrap().next();
        let shard = spool.and_then(|spool| fs::read_dir(spool.unwrap().path().join("shard-000")).ok());
        shard.is_some_and(|mut files| files.next().is_some())
    };
    // What starts the tests may have them ignore a signal, as nohup does; a child then ignores it as well.
    let signals = [Signal::INT, Signal::TERM, Signal::HUP];
    for signal in signals.into_iter().filter(|signal| !is_ignored(signal.as_raw())) {
        let mut slow = command(&server, &["backup", "-", "--rate", "1KB"]);
        let mut child = slow.env("TMPDIR", &spools).stdout(Stdio::piped()).spawn().unwrap();
        let begin = Instant::now();
        while !has_a_file() {
            assert!(begin.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        }
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        assert_eq!(fs::read_dir(&spools).unwrap().count(), 0, "after {signal:?}");
    }
    // A signal that is ignored does not end it.
    let script = "trap '' HUP && exec \"$0\" backup - --url \"$1\"";
    let url = format!("http://{}", server.address);
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_ringkeep"), &url])
        .env("TMPDIR", &spools)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut archive = child.stdout.take().unwrap();
    archive.read_exact(&mut [0; 512]).unwrap(); // it has begun
    rustix::process::kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    std::io::copy(&mut archive, &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(&spools).unwrap().count(), 0);
}
