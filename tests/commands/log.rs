//! What the log looks like, and which requests it names.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use crate::common::{PATIENCE, SMALL, Server, folder};
use rustix::process::Signal;
use serde_json::Value;

/// Starts a server that logs to `log`, and stops it after `work`. Returns the log.
fn logged(data: &Path, flags: &[&str], work: impl FnOnce(&Server)) -> String {
    let log = data.with_extension("log");
    let server = Server::start_logged(data, &[SMALL, flags].concat(), &log);
    work(&server);
    server.signal("-TERM");
    assert!(server.wait().success());
    fs::read_to_string(&log).unwrap()
}

/// The lines of the access log.
fn requests(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["message"] == "request").collect()
}

#[test]
fn a_request_is_named_by_its_key_and_never_by_its_value_or_token() {
    let (folder, data) = folder();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "a admin secret-0123456789\n").unwrap();
    fs::set_permissions(&tokens, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let flags = [
        "--log",
        "info",
        "--log-format",
        "json",
        "--access-log",
        "all",
        "--token-file",
        tokens.to_str().unwrap(),
    ];
    let log = logged(&data, &flags, |server| {
        let mut client = server.client();
        let with_token = "Host: localhost\r\nAuthorization: Bearer secret-0123456789\r\n";
        let mut ask = |line: &str, fields: &str, body: &str| {
            client.send(format!("{line} HTTP/1.1\r\n{with_token}{fields}\r\n{body}")).reply().status
        };
        assert_eq!(ask("POST /set?key=a%0A%1B%5B31mb&value=hidden-value", "", ""), 200);
        assert_eq!(ask("GET /get?key=a%0A%1B%5B31mb", "Range: bytes=0-2\r\n", ""), 206);
        let chunked = "Transfer-Encoding: chunked\r\n";
        assert_eq!(ask("PUT /set?key=c", chunked, "c\r\nhidden-value\r\n0\r\n\r\n"), 200);
        assert_eq!(ask("PUT /set?key=l", "Content-Length: 12\r\n", "hidden-value"), 200);
        assert_eq!(ask(&format!("GET /get?key={}", "k".repeat(100)), "", ""), 404);
        assert_eq!(ask("GET /hidden?hidden-value", "", ""), 404);
        assert_eq!(ask("OPTIONS http://localhost/get?hidden-value", "", ""), 200);
        assert_eq!(client.request("GET", "/get?key=x").status, 401);
        assert_eq!(server.client().send("hidden-value\r\n\r\n").reply().status, 400);
    });
    assert!(!log.contains("hidden-value") && !log.contains("secret-"), "{log}");
    assert!(!log.replace('\n', "").contains(char::is_control), "{log:?}");
    let found = requests(&log);
    let summary: Vec<_> = found
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            (text("method"), text("path"), text("endpoint"), text("key"), line["status"].as_u64().unwrap())
        })
        .collect();
    let long = format!("{}…", "k".repeat(64));
    let expected = [
        ("POST", "/set", "set", "a\n\u{1b}[31mb", 200),
        ("GET", "/get", "get", "a\n\u{1b}[31mb", 206),
        ("PUT", "/set", "set", "c", 200),
        ("PUT", "/set", "set", "l", 200),
        ("GET", "/get", "get", &long, 404),
        ("GET", "/hidden", "unknown", "-", 404),
    ]
    .map(|(method, path, endpoint, key, status)| {
        (method.to_owned(), path.to_owned(), endpoint.to_owned(), key.to_owned(), status)
    });
    assert_eq!(&summary[..6], &expected);
    assert_eq!(found.len(), 9, "{log}");
    assert_eq!((found[0]["token"].as_str(), found[7]["token"].as_str()), (Some("a"), None));
    assert_eq!((found[7]["status"].as_u64(), found[7]["endpoint"].as_str()), (Some(401), Some("get")));
    assert_eq!((found[8]["status"].as_u64(), found[8]["method"].as_str()), (Some(400), Some("")));
    for line in &found {
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert!(line["microseconds"].is_u64(), "{line}");
    }
    let bytes =
        |index: usize| (found[index]["bytes_in"].as_u64(), found[index]["bytes_out"].as_u64().unwrap());
    assert_eq!(bytes(1).1, 3, "a part of the value");
    assert_eq!(bytes(4).1, "key not found\n".len() as u64);
    let head =
        "PUT /set?key=l HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-0123456789\r\n\r\n".len();
    assert_eq!(bytes(3), (Some((head + "Content-Length: 12\r\n".len() + 12) as u64), 3));
    assert_eq!(bytes(2).0, Some((head + "Transfer-Encoding: chunked\r\n".len() + 12) as u64));
}

#[test]
fn one_request_of_so_many_is_logged_and_sighup_changes_how_many() {
    let (_folder, data) = folder();
    let config = data.with_extension("toml");
    fs::write(&config, "access-log = \"1/3\"\n").unwrap();
    let log = data.with_extension("log");
    let flags =
        ["--threads", "1", "--memtable-size", "1MiB", "--max-value-size", "1MiB", "--cache-size", "4MiB"];
    let more = ["--log", "info", "--log-format", "json", "--config", config.to_str().unwrap()];
    let server = Server::start_logged(&data, &[&flags[..], &more].concat(), &log);
    let mut client = server.client();
    // Pipelined or not, and through every way that a reply takes.
    let get = "GET /get?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut send = |count: usize| {
        client.send(get.repeat(count));
        (0..count).for_each(|_| assert_eq!(client.reply().status, 404));
    };
    let await_line = |word: &str| {
        let begin = Instant::now();
        while !fs::read_to_string(&log).unwrap().contains(word) {
            assert!(begin.elapsed() < PATIENCE, "{word}");
        }
    };
    send(7);
    (0..5).for_each(|_| send(1));
    fs::write(&config, "access-log = \"off\"\n").unwrap();
    server.raw_signal(Signal::HUP);
    await_line("access-log: 1/3 → off");
    send(9); // the thread follows in its next turn
    send(9);
    server.signal("-TERM");
    assert!(server.wait().success());
    let found = requests(&fs::read_to_string(&log).unwrap());
    // Four of twelve; of the first nine after the change perhaps some, of the last none.
    assert!((4..=7).contains(&found.len()), "{found:?}");
    assert!(found.iter().all(|line| line["key"] == "k" && line["status"] == 404), "{found:?}");
}

#[test]
fn no_request_is_logged_by_default() {
    let (_folder, data) = folder();
    let log = logged(&data, &["--log", "trace", "--log-format", "json"], |server| {
        assert_eq!(server.client().request("GET", "/get?key=k").status, 404);
    });
    assert_eq!(requests(&log), Vec::<Value>::new());
    for line in log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn journald_gets_priorities_and_no_time_if_it_reads_the_log() {
    let (folder, data) = folder();
    let log = folder.path().join("log");
    let file = fs::File::create(&log).unwrap().metadata().unwrap();
    let script = format!("exec \"$0\" \"$@\" 2>>{}", log.display());
    let lines = |stream: &str| {
        let stream = format!("JOURNAL_STREAM={stream}");
        let wrapper = ["env", "RINGKEEP_LOG=info", &stream, "sh", "-c", &script];
        let flags = [SMALL, &["--sync", "never"]].concat();
        fs::write(&log, "").unwrap();
        let server = Server::start_by(&wrapper, &data, &flags);
        server.signal("-TERM");
        assert!(server.wait().success());
        fs::read_to_string(&log).unwrap()
    };
    let journal = lines(&format!("{}:{}", file.dev(), file.ino()));
    assert!(journal.lines().all(|line| line.starts_with('<')), "{journal}");
    assert!(
        journal.contains("\n<4> WARN --sync never: ") && journal.contains("<6> INFO ringkeep starts"),
        "{journal}"
    );
    let other = lines(&format!("{}:{}", file.dev(), file.ino() + 1));
    assert!(other.lines().all(|line| line.starts_with("20") && !line.contains('<')), "{other}");
}
