//! Data on its way: dump, load and another number of shards, with the real binary.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::command::{path, run, succeeds, text};
use crate::common::{SMALL, Server, contents, encode, folder};

/// Keys and values of every kind.
fn entries() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut entries: BTreeMap<_, _> = (0..2_000_u32)
        .map(|number| {
            (
                format!("{{tag{}}}:{number}", number % 5).into_bytes(),
                number.to_string().repeat(9).into_bytes(),
            )
        })
        .collect();
    for byte in 0..=255_u8 {
        entries.insert(vec![byte], vec![byte; usize::from(byte)]);
        entries.insert(vec![byte, 0xff, byte], Vec::new());
    }
    entries.insert(b"long".to_vec(), (0..300_000_u32).map(|number| (number % 251) as u8).collect());
    entries
}

/// Starts a server with these entries.
fn filled(data: &Path, shards: &str) -> Server {
    let server = Server::start(data, &[SMALL, &["--shards", shards]].concat());
    let mut client = server.client();
    for (key, value) in entries() {
        assert_eq!(client.post(&format!("/set?key={}", encode(&key)), &value).status, 200);
    }
    for key in ["gone", "{tag1}:1"] {
        assert_eq!(
            client.request("POST", &format!("/set?key={}&value=x", encode(key.as_bytes()))).status,
            200
        );
        assert_eq!(client.request("DELETE", &format!("/del?key={}", encode(key.as_bytes()))).status, 200);
    }
    let past = client.request("POST", "/set?key=expired&value=x&expires=1000000000");
    let future = client.request("POST", "/set?key=expires&value=x&expires=4000000000");
    assert_eq!((past.status, future.status), (200, 200));
    server
}

fn expected() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut expected = entries();
    expected.remove(&b"{tag1}:1"[..]);
    expected.insert(b"expires".to_vec(), b"x".to_vec());
    expected
}

fn holds(server: &Server) {
    let mut client = server.client();
    for (key, value) in expected() {
        let reply = client.request("GET", &format!("/get?key={}", encode(&key)));
        assert!(reply.status == 200 && reply.body == value, "{key:?}: {}", reply.status);
    }
    for key in ["gone", "expired", "%7Btag1%7D:1"] {
        assert_eq!(client.request("GET", &format!("/get?key={key}")).status, 404, "{key}");
    }
}

fn load(server: &Server, words: &[&str]) -> Output {
    let url = format!("http://{}", server.address);
    run(&[&["load", "--url", &url], words].concat())
}

#[test]
fn a_dump_of_a_store_at_rest_loads_into_another_and_both_hold_the_same() {
    let (folder, data) = folder();
    let file = folder.path().join("dump.jsonl");
    filled(&data, "3").kill(); // its last writes are in logs
    assert!(text(&run(&["dump", path(&data.join("nothing"))])).contains("nothing"));
    let before = contents(&data);
    let dumped = succeeds(run(&["dump", path(&data)]));
    assert!(contents(&data) == before, "nothing is changed");
    let lines: Vec<&str> = dumped.lines().collect();
    assert_eq!(lines.len(), expected().len());
    assert!(dumped.contains("\"expires\":4000000000.000}") && dumped.contains("{\"key64\":\"/w==\""));
    // A file that was cut goes on after its last complete line.
    succeeds(run(&["dump", path(&data), "-o", path(&file)]));
    assert_eq!(fs::read_to_string(&file).unwrap(), dumped);
    let (part, state) = (folder.path().join("dump.jsonl.part"), folder.path().join("dump.jsonl.part.state"));
    assert!(!part.exists() && !state.exists());
    let words = ["dump", path(&data), "-o", path(&file), "--rate", "1"];
    let interrupt = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(words).spawn().unwrap();
        while !part.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it is slow enough to be interrupted");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    };
    interrupt();
    fs::write(&part, &dumped[..dumped.len() / 2]).unwrap();
    let resume = || run(&["dump", path(&data), "-o", path(&file), "--resume"]);
    succeeds(resume());
    assert_eq!(fs::read_to_string(&file).unwrap(), dumped);
    assert!(!part.exists() && !state.exists());
    // Lines of another state of the store are not continued.
    interrupt();
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("POST", "/set?key=later&value=v").status, 200);
    assert_eq!(server.client().request("DELETE", "/del?key=later").status, 200);
    server.kill();
    let refused = resume();
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused));
    assert!(text(&refused).contains("is not of this store as it is now"), "{}", text(&refused));

    let other = Server::start(&folder.path().join("other"), SMALL);
    let said = succeeds(load(&other, &[path(&file)]));
    assert_eq!(said, format!("{} loaded, 0 expired, 0 not taken\n", lines.len()));
    holds(&other);
    let running = run(&["dump", path(&folder.path().join("other"))]);
    assert_eq!(running.status.code(), Some(75), "{}", text(&running));
    // A line that has expired is left out; a wrong one ends the load, and is named.
    fs::write(
        &file,
        "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"bb\",\"value\":\"2\",\"expires\":1}\n{\"key\":\"c\"}\n",
    )
    .unwrap();
    let refused = load(&other, &[path(&file)]);
    assert!(
        refused.status.code() == Some(1) && text(&refused).contains("dump.jsonl:4: "),
        "{}",
        text(&refused)
    );
    let mut client = other.client();
    assert_eq!(
        (client.request("GET", "/get?key=a").text(), client.request("GET", "/get?key=bb").status),
        ("1", 404)
    );
    // So does a line that the server refuses.
    fs::write(&file, "{\"key\":\"\",\"value\":\"1\"}\n").unwrap();
    let refused = load(&other, &[path(&file)]);
    assert!(
        text(&refused).contains("dump.jsonl:1: ") && text(&refused).contains(" 400 the key is empty"),
        "{}",
        text(&refused)
    );
}

#[test]
fn a_load_goes_on_where_it_was_interrupted() {
    let (folder, data) = folder();
    let file = folder.path().join("lines");
    let lines: String =
        (0..3_000).map(|number| format!("{{\"key\":\"k{number}\",\"value\":\"v\"}}\n")).collect();
    fs::write(&file, &lines).unwrap();
    let server = Server::start(&data, SMALL);
    let url = format!("http://{}", server.address);
    let words = ["load", "--url", &url, "--resume", "--connections", "2", "--rate", "1000", path(&file)];
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(words).stdout(Stdio::null()).spawn().unwrap();
    let progress = folder.path().join("lines.progress");
    while !progress.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it is slow enough to be interrupted");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&fs::read(&progress).unwrap()).unwrap();
    let done = found["lines"].as_u64().unwrap();
    // The progress is good for this store and this file only.
    let other = Server::start(&folder.path().join("other"), SMALL);
    let refused = load(&other, &["--resume", path(&file)]);
    assert!(text(&refused).contains("another store"), "{}", text(&refused));
    let changed = lines.replacen("k0", "k_", 1).replace("k9", "k_");
    fs::write(&file, changed.split_at(changed.len() / 100).0).unwrap();
    assert!(text(&load(&server, &["--resume", path(&file)])).contains("another file"));
    fs::write(&file, &lines).unwrap();
    // Nor is it good for what a backup has restored.
    let (backup, restored) = (folder.path().join("backup"), folder.path().join("restored"));
    succeeds(run(&["backup", "--url", &url, path(&backup)]));
    succeeds(run(&["restore", path(&backup), path(&restored)]));
    let restored = Server::start(&restored, SMALL);
    let refused = load(&restored, &["--resume", path(&file)]);
    assert!(text(&refused).contains("before it was restored"), "{}", text(&refused));
    assert!(0 < done && done < 3_000, "{done}");
    let said = succeeds(load(&server, &["--resume", path(&file)]));
    let expected = format!("{} loaded, 0 expired, 0 not taken, from line {} on\n", 3_000 - done, done + 1);
    assert_eq!(said, expected);
    assert!(!progress.exists());
    // A pipe is read as a file is.
    let mut pipe = Command::new(env!("CARGO_BIN_EXE_ringkeep"));
    let pipe = pipe.args(["load", "--url", &url, "/dev/stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipe.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert_eq!(succeeds(child.wait_with_output().unwrap()), "3000 loaded, 0 expired, 0 not taken\n");
    let mut client = server.client();
    for number in 0..3_000 {
        assert_eq!(client.request("GET", &format!("/get?key=k{number}")).status, 200, "{number}");
    }
}

#[test]
fn another_number_of_shards_changes_no_value() {
    let (folder, data) = folder();
    filled(&data, "2").kill();
    let same = run(&["reshard", path(&data), "--shards", "2"]);
    assert_eq!(same.status.code(), Some(78), "{}", text(&same));
    let beside = folder.path().join("beside");
    succeeds(run(&["reshard", path(&data), "--shards", "1", "--to", path(&beside)]));
    for (data, shards) in [(&beside, 5), (&data, 7)] {
        let said = succeeds(run(&["reshard", path(data), "--shards", &shards.to_string()]));
        assert!(said.contains(&format!("{shards} shards, {} keys", expected().len())), "{said}");
        assert!(succeeds(run(&["check", path(data)])).contains(": sound;"));
        let server = Server::start(data, SMALL);
        holds(&server);
        let stats: serde_json::Value =
            serde_json::from_str(server.client().request("GET", "/stats").text()).unwrap();
        assert_eq!(stats["shards"].as_array().unwrap().len(), shards);
        // New writes are newer than all old ones, also after they have gone to sorted files.
        let mut client = server.client();
        for number in 0..100 {
            let target = format!("/set?key=%7Btag{}%7D:{number}&value=new", number % 5);
            assert_eq!(client.request("POST", &target).status, 200);
        }
        assert_eq!(client.request("POST", "/compact").status, 200);
        for number in 0..100 {
            assert_eq!(
                client.request("GET", &format!("/get?key=%7Btag{}%7D:{number}", number % 5)).text(),
                "new"
            );
        }
        let running = run(&["reshard", path(data), "--shards", "3"]);
        assert_eq!(running.status.code(), Some(75), "{}", text(&running));
    }
    assert!(!folder.path().join("data.reshard").exists());
    // What is not of the store would be removed with it.
    fs::write(data.join("notes"), "mine").unwrap();
    let refused = run(&["reshard", path(&data), "--shards", "1"]);
    assert!(
        refused.status.code() == Some(78) && text(&refused).contains("holds notes"),
        "{}",
        text(&refused)
    );
    fs::remove_file(data.join("notes")).unwrap();
    // What a killed run leaves beside the store is in nobody's way.
    fs::create_dir_all(folder.path().join("data.reshard/shard-000")).unwrap();
    fs::write(folder.path().join("data.reshard/BACKUP"), "restore").unwrap();
    succeeds(run(&["reshard", path(&data), "--shards", "1"]));
    assert!(succeeds(run(&["check", path(&data)])).contains(": sound;"));
}

/// A server that speaks as much of the protocol of Redis as a load needs.
fn redis() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut output = stream;
        let mut line = || {
            let mut line = String::new();
            input.read_line(&mut line).unwrap();
            let length: usize = line.trim()[1..].parse().unwrap_or(0);
            if !line.starts_with('$') {
                return length.to_string();
            }
            let mut word = vec![0; length + 2];
            input.read_exact(&mut word).unwrap();
            String::from_utf8(word[..length].to_vec()).unwrap()
        };
        loop {
            let count: usize = match line().parse() {
                Ok(count) if 0 < count => count,
                _ => return,
            };
            let words: Vec<String> = (0..count).map(|_| line()).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let reply = match words[..] {
                ["AUTH", "secret"] | ["SELECT", "3"] => "+OK\r\n".into(),
                ["SCAN", "0", ..] => "*2\r\n$1\r\n7\r\n*2\r\n$1\r\na\r\n$4\r\nlist\r\n".into(),
                ["SCAN", "7", ..] => "*2\r\n$1\r\n0\r\n*2\r\n$1\r\nb\r\n$4\r\ngone\r\n".into(),
                ["TYPE", "list"] => "+list\r\n".into(),
                ["TYPE", "gone"] => "+none\r\n".into(),
                ["TYPE", _] => "+string\r\n".into(),
                ["PTTL", "b"] => ":3600000\r\n".to_owned(),
                ["PTTL", _] => ":-1\r\n".into(),
                ["GET", "list"] => {
                    "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".into()
                }
                ["GET", "gone"] => "$-1\r\n".into(),
                ["GET", key] => format!("$9\r\nvalue\r\n{key}\n\r\n"),
                _ => format!("-ERR {words:?}\r\n"),
            };
            output.write_all(reply.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn strings_of_redis_are_taken_and_other_keys_are_listed() {
    let (folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let words = ["--from-redis", &redis(), "--redis-db", "3", "--redis-password-file", path(&password)];
    let loaded = load(&server, &words);
    let said = text(&loaded);
    assert_eq!(loaded.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not taken: \"list\" is a list") && said.contains("2 loaded, 0 expired, 1 not taken"),
        "{said}"
    );
    let mut client = server.client();
    assert_eq!(client.request("GET", "/get?key=a").text(), "value\r\na\n");
    assert_eq!(client.request("GET", "/get?key=b").text(), "value\r\nb\n");
    assert_eq!(client.request("GET", "/get?key=gone").status, 404);
    server.signal("-TERM");
    server.wait();
    let dumped = succeeds(run(&["dump", path(&data)]));
    assert!(
        dumped.lines().any(|line| line.starts_with("{\"key\":\"b\"") && line.contains("\"expires\":")),
        "{dumped}"
    );
}
