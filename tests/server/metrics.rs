//! The page of metrics, as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{Client, Server, folder};

/// The page, by sample. Checks what `promtool check metrics` checks: that every sample belongs to a metric with a help text
/// and a type, that counters end in `_total`, and that no sample comes twice.
fn scrape(server: &Server) -> BTreeMap<String, f64> {
    let reply = server.client().request("GET", "/metrics");
    assert_eq!(reply.status, 200);
    assert!(
        reply.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{}",
        reply.head
    );
    let text = reply.text();
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    let (mut helped, mut types, mut samples) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}")
            }
            ["#", "TYPE", name, kind] => {
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(helped.contains(name), "{line}");
            }
            _ => {
                let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
                let name = sample.split('{').next().unwrap();
                let parts = ["_bucket", "_sum", "_count"];
                let base = parts.iter().find_map(|part| name.strip_suffix(part));
                let of_histogram =
                    base.is_some_and(|base| types.get(base).is_some_and(|kind| kind == "histogram"));
                assert!(types.contains_key(name) || of_histogram, "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(samples.insert(sample.to_owned(), value).is_none(), "{line}");
            }
        }
    }
    samples
}

/// The parts of a `Server-Timing` field, in milliseconds.
fn timing(head: &str) -> Vec<(String, f64)> {
    let line =
        head.lines().find_map(|line| line.strip_prefix("server-timing: ")).expect("the reply has the field");
    let parts = line.split(", ").map(|part| {
        let (name, took) = part.split_once(";dur=").expect("a part has a duration");
        (name.to_owned(), took.parse().unwrap())
    });
    parts.collect()
}

#[test]
fn a_request_that_asks_where_its_time_went_is_told_and_the_slowest_are_named() {
    let (_folder, data) = folder();
    // With two threads, about half of the requests are carried out by the other one.
    let server = Server::start(&data, &["--threads", "2", "--shards", "2"]);
    let mut client = server.client();
    let ask = |client: &mut Client, method: &str, target: &str, status: u16, parts: &[&str]| {
        let reply = client.request(method, target);
        assert_eq!(reply.status, status, "{target}");
        let timing = timing(&reply.head);
        let names: Vec<_> = timing.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, parts, "{target}");
        let (total, parts) = timing.split_last().unwrap();
        let sum: f64 = parts.iter().map(|(_, took)| took).sum();
        assert!(sum <= total.1 + 0.002, "{target}: {timing:?}"); // each part is rounded
    };
    let write = ["queue", "group", "sync", "total"];
    let read = ["queue", "lookup", "total"];
    for key in 0..8 {
        ask(&mut client, "POST", &format!("/set?key={key}&value=v&timing=1"), 200, &write);
        ask(&mut client, "GET", &format!("/get?timing=1&key={key}"), 200, &read);
        ask(&mut client, "DELETE", &format!("/del?key={key}&timing=1"), 200, &write);
        ask(&mut client, "DELETE", &format!("/del?key={key}&timing=1"), 404, &write);
    }
    for target in ["/livez?timing=1", "/readyz?timing=1", "/metrics?timing=1", "/stats?timing=1"] {
        ask(&mut client, "GET", target, 200, &["total"]);
    }
    assert!(!client.request("GET", "/get?key=1").head.contains("server-timing"));
    let body = "v".repeat(200_000); // arrives in many pieces
    client.send(format!(
        "PUT /set?key=long&timing=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n{body}"
    ));
    assert_eq!(timing(&client.reply().head).len(), 4);
    let long = client.request("GET", "/get?key=long&timing=1");
    assert_eq!((timing(&long.head).len(), long.body.len()), (3, 200_000));

    let stats: serde_json::Value = serde_json::from_str(client.request("GET", "/stats").text()).unwrap();
    let slowest = stats["slowest_requests"].as_array().unwrap();
    assert!(8 <= slowest.len(), "a thread keeps so many: {slowest:?}");
    for request in slowest {
        let parts =
            ["queue", "lookup", "group", "sync"].map(|part| request[format!("{part}_seconds")].as_f64());
        let sum: f64 = parts.iter().flatten().sum();
        assert!(sum <= request["total_seconds"].as_f64().unwrap() + 1e-9, "{request}");
        assert!(request["shard"].is_u64() && request["endpoint"].is_string(), "{request}");
    }
    assert!(!stats.to_string().contains("long"), "keys are not named");
}

#[test]
fn the_page_says_what_clients_have_done_whichever_thread_has_served_them() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &["--threads", "2", "--shards", "3"]);
    let before = scrape(&server);
    assert_eq!(before["ringkeep_committed_writes_total"], 0.0);
    let mut client = server.client();
    for number in 0..20 {
        assert_eq!(client.request("POST", &format!("/set?key={number}&value=v")).status, 200);
        assert_eq!(client.request("GET", &format!("/get?key={number}")).status, 200);
    }
    for (method, target, status) in [
        ("GET", "/get?key=absent", 404),
        ("DELETE", "/del?key=3", 200),
        ("GET", "/set?key=k", 405),
        ("GET", "/nowhere", 404),
        ("HEAD", "/livez", 200),
        ("OPTIONS", "/get", 200),
    ] {
        if method == "HEAD" {
            client.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!(client.try_reply(true).unwrap().status, status);
        } else {
            assert_eq!(client.request(method, target).status, status, "{target}");
        }
    }
    client.send("GET /get?key=0 HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-0\r\n\r\n");
    assert_eq!(client.reply().status, 206);
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    let after = scrape(&server);
    let requests = |endpoint: &str, status: u16| {
        after[&format!("ringkeep_http_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}}")]
    };
    for (endpoint, status, count) in [
        ("set", 200, 20.0),
        ("get", 200, 20.0),
        ("get", 206, 1.0),
        ("get", 404, 1.0),
        ("del", 200, 1.0),
        ("set", 405, 1.0),
        ("unknown", 404, 1.0),
        ("unknown", 400, 1.0),
        ("livez", 200, 1.0),
        ("options", 200, 1.0),
        ("metrics", 200, 1.0),
    ] {
        assert_eq!(requests(endpoint, status), count, "{endpoint} {status}");
    }
    let timed = |endpoint: &str| {
        after[&format!("ringkeep_http_request_duration_seconds_count{{endpoint=\"{endpoint}\"}}")]
    };
    assert!((1.0..20.0).contains(&(timed("get") + timed("set"))), "one turn in eight");
    assert_eq!(after["ringkeep_committed_writes_total"], 21.0);
    assert_eq!(after["ringkeep_commit_duration_seconds_count"], after["ringkeep_commit_groups_total"]);
    assert_eq!(
        after["ringkeep_commit_duration_seconds_bucket{le=\"+Inf\"}"],
        after["ringkeep_commit_groups_total"]
    );
    assert_eq!((after["ringkeep_shards"], after["ringkeep_threads"]), (3.0, 2.0));
    assert!(before["ringkeep_connections_accepted_total"] < after["ringkeep_connections_accepted_total"]);
    for (sample, value) in &before {
        let grows = sample.contains("_total") || sample.contains("_bucket") || sample.contains("_count");
        assert!(!grows || *value <= after[sample], "{sample}");
    }
}

#[test]
fn every_metric_that_a_dashboard_or_an_alert_names_is_on_the_page() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[]);
    let mut client = server.client();
    assert_eq!(client.request("POST", "/set?key=k&value=v").status, 200);
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    let reply = server.client().request("GET", "/metrics");
    let typed: BTreeSet<_> =
        reply.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let is_word = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    let mut found = 0;
    for text in [include_str!("../../deploy/alerts.yml"), include_str!("../../deploy/grafana.json")] {
        for word in text.split(|byte| !is_word(byte)) {
            if word.starts_with("ringkeep_") || word.starts_with("process_") {
                let parts = ["_bucket", "_sum", "_count"];
                let base = parts.iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word);
                assert!(typed.contains(word) || typed.contains(base), "{word}");
                found += 1;
            }
        }
    }
    assert!(30 < found, "{found}");
    let docs = include_str!("../../docs/operations.md");
    for line in include_str!("../../deploy/alerts.yml").lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(docs.contains(&format!("- **{alert}**: ")), "{alert} has its paragraph");
        }
    }
}

#[test]
fn what_is_flushed_is_seen_in_the_levels_and_read_through_the_cache() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &["--memtable-size", "1MiB", "--shards", "1", "--threads", "1"]);
    let mut client = server.client();
    for number in 0..40 {
        assert_eq!(client.post(&format!("/set?key={number:03}"), &vec![b'v'; 100_000]).status, 200);
    }
    // Flushes go on by themselves; the next ones end after the writes.
    let flushed = loop {
        let now = scrape(&server);
        if 2.0 <= now["ringkeep_flushes_total"] {
            break now;
        }
        assert_eq!(client.post("/set?key=more", &vec![b'v'; 100_000]).status, 200);
    };
    assert!(0.0 < flushed["ringkeep_flushed_bytes_total"] && 0.0 < flushed["ringkeep_memtables"]);
    assert_eq!(client.request("GET", "/get?key=000").status, 200);
    assert_eq!(client.request("GET", "/get?key=000").status, 200);
    let after = scrape(&server);
    assert!(flushed["ringkeep_block_cache_misses_total"] < after["ringkeep_block_cache_misses_total"]);
    assert!(flushed["ringkeep_block_cache_hits_total"] < after["ringkeep_block_cache_hits_total"]);
    let files: f64 = (0..7).map(|level| after[&format!("ringkeep_sst_files{{level=\"{level}\"}}")]).sum();
    assert!(1.0 <= files);
}
