//! The contract with the user, over a socket, against the real binary.

use std::net::TcpListener;
use std::process::Command;
use std::thread;

use crate::common::{Client, SMALL, Server, encode, folder, spawn};

fn server() -> (tempfile::TempDir, Server) {
    let (folder, data) = folder();
    let server = Server::start(&data, SMALL);
    (folder, server)
}

#[test]
fn the_curl_lines_of_the_specification_work_word_for_word() {
    let (_folder, data) = folder();
    // The lines name port 8080. If another program uses that port, the same lines are tried on a free port.
    let free = TcpListener::bind("127.0.0.1:8080").is_ok();
    let listen = if free { "127.0.0.1:8080" } else { "127.0.0.1:0" };
    let server = Server::start(&data, &[SMALL, &["--listen", listen]].concat());
    let port = server.address.port().to_string();
    let run = |line: &str| {
        let line = line.replace("8080", &port);
        let output = Command::new("sh").args(["-c", &format!("{line} -sS -m 30")]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(r#"curl -X POST "http://localhost:8080/set?key=key1&value=value1""#), "OK\n");
    assert_eq!(run(r#"curl -X POST "http://localhost:8080/set?key=hi&value=val%20smile""#), "OK\n");
    assert_eq!(run(r#"curl -X GET "http://localhost:8080/get?key=key1""#), "value1");
    assert_eq!(run(r#"curl -X GET "http://localhost:8080/get?key=hi""#), "val smile");
    assert_eq!(run(r#"curl -X DELETE "http://localhost:8080/del?key=key1""#), "OK\n");
    assert_eq!(run(r#"curl -X GET "http://localhost:8080/get?key=key1""#), "key not found\n");
    let lines = run("curl -X GET http://localhost:8080/shutdown");
    for step in ["requests drained", "memtable of shard 0", "WAL of shard 1 cleaned up", "stopped"] {
        assert!(lines.contains(step), "{lines}");
    }
    assert!(server.wait().success());
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("GET", "/get?key=hi").text(), "val smile");
}

#[test]
fn every_endpoint_answers_as_the_table_says() {
    let (_folder, server) = server();
    let mut client = server.client();
    let mut check = |method: &str, target: &str, status: u16, body: &str| {
        let reply = client.request(method, target);
        assert_eq!((reply.status, reply.text()), (status, body), "{method} {target}");
        reply
    };
    check("POST", "/set?key=k&value=v", 200, "OK\n");
    check("PUT", "/set?key=k&value=", 200, "OK\n");
    assert!(check("GET", "/get?key=k", 200, "").head.contains("content-type: application/octet-stream"));
    assert!(check("HEAD", "/get?key=k", 200, "").head.contains("content-length: 0"));
    check("DELETE", "/del?key=k", 200, "OK\n");
    check("POST", "/del?key=k", 404, "key not found\n");
    check("GET", "/get?key=k", 404, "key not found\n");
    check("HEAD", "/get?key=k", 404, "");
    check("GET", "/livez", 200, "OK\n");
    check("GET", "/readyz", 200, "OK\n");
    for (method, target, status) in [
        ("GET", "/", 404),
        ("GET", "/get/", 404),
        ("GET", "/get", 400),
        ("GET", "/get?key=", 400),
        ("GET", "/get?key=%zz", 400),
        ("GET", "/get?key=a&key=b", 400),
        ("GET", "/get?key=a&x=b", 400),
        ("POST", "/set?key=a", 400),
        ("GET", "/set?key=a&value=b", 405),
        ("HEAD", "/del?key=a", 405),
        ("PATCH", "/get?key=a", 405),
    ] {
        let reply = client.request(method, target);
        assert_eq!(reply.status, status, "{method} {target}");
        assert!(method == "HEAD" || reply.text().ends_with('\n'));
        assert_eq!(status == 405, reply.head.contains("allow: "));
    }
    let two = client.post("/set?key=a&value=b", b"c");
    assert_eq!(two.status, 400);
    for target in ["*", "/", "/get?key=k"] {
        let reply = client.request("OPTIONS", target);
        assert!(reply.status == 200 && reply.head.contains("allow: GET, HEAD"), "{target}: {reply:?}");
    }
    for (target, code) in [("/get?key=absent", "key-not-found"), ("/gte?key=absent", "unknown-path")] {
        let head = client.request("GET", target).head;
        assert!(head.contains(&format!("ringkeep-error: {code}\r\n")), "{head}");
    }
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let (_folder, server) = server();
    let mut client = server.client();
    assert_eq!(client.request("POST", "/set?key=k&value=v").status, 200);
    let mut send = |line: &str, field: &str| {
        client.send(format!("{line} HTTP/1.1\r\nHost: {}\r\n{field}\r\n\r\n", server.address)).reply().status
    };
    for field in [
        "Sec-Fetch-Site: cross-site",
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Purpose: prefetch",
    ] {
        for line in ["POST /set?key=k&value=w", "POST /del?key=k", "GET /shutdown", "POST /shutdown"] {
            assert_eq!(send(line, field), 403, "{line}, {field}");
        }
        assert_eq!(send("GET /get?key=k", field), 403, "{field}");
        assert_eq!(send("GET /livez", field), 200, "{field}");
    }
    let own = format!("Origin: http://{}", server.address);
    assert_eq!(send("POST /set?key=k&value=w", &own), 200);
}

#[test]
fn a_refusal_reaches_a_client_that_sends_everything_first() {
    let (_folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--max-connections", "3"]].concat());
    let body = vec![b'v'; 8 << 20];
    let request =
        format!("PUT /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    for _ in 0..5 {
        let mut client = server.client();
        let reply = client.send(&request).send(&body).reply();
        assert_eq!(reply.status, 413, "{reply:?}");
    }
    // Connections in the middle of a request do not give way.
    let mut busy = Vec::new();
    while busy.len() < 3 {
        let mut client = server.client();
        // Until the clients before are gone, this one may be refused.
        if client.request("GET", "/livez").status == 200 {
            client.send("PUT /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nv");
            busy.push(client);
        }
    }
    let refused =
        (0..50).filter(|_| server.client().send(&request).send(&body).reply().status == 503).count();
    assert_eq!(refused, 50);
    for client in &mut busy {
        assert_eq!(client.send("v").reply().status, 200);
    }
}

#[test]
fn any_bytes_are_a_key_or_a_value() {
    let (_folder, server) = server();
    let mut client = server.client();
    let all: Vec<u8> = (0..=u8::MAX).collect();
    assert_eq!(client.post(&format!("/set?key={}", encode(&all)), &all).status, 200);
    assert_eq!(client.request("GET", &format!("/get?key={}", encode(&all))).body, all);
    assert_eq!(client.request("POST", &format!("/set?key=q&value={}", encode(&all))).status, 200);
    assert_eq!(client.request("GET", "/get?key=q").body, all);
    assert_eq!(client.request("POST", "/set?key=a+b&value=c%2Bd+e").status, 200);
    assert_eq!(client.request("GET", "/get?key=a%20b").text(), "c+d e");
    assert_eq!(client.request("GET", "/get?key=a%2Bb").status, 404);
}

#[test]
fn lengths_at_their_limits_are_taken_and_beyond_them_refused() {
    let (_folder, server) = server();
    let key = "k".repeat(16_384);
    let mut client = server.client();
    assert_eq!(client.post(&format!("/set?key={key}"), b"v").status, 200);
    assert_eq!(client.request("GET", &format!("/get?key={key}")).text(), "v");
    assert_eq!(client.request("GET", &format!("/get?key={key}k")).status, 414);
    let value = vec![b'x'; 1 << 20];
    assert_eq!(client.post("/set?key=long", &value).status, 200);
    assert_eq!(client.request("GET", "/get?key=long").body, value);
    // Refused by the length alone: no byte of the body is sent.
    let head = format!(
        "POST /set?key=long HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        (1 << 20) + 1
    );
    assert_eq!(client.send(head).reply().status, 413);
    assert!(client.is_closed());
    let mut client = server.client();
    let target = "x".repeat(131_073);
    assert_eq!(client.send(format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).reply().status, 414);
    let mut client = server.client();
    let header = "x".repeat(16_385);
    assert_eq!(
        client.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\nA: {header}\r\n\r\n")).reply().status,
        431
    );
    let mut client = server.client();
    let headers = "A: b\r\n".repeat(65);
    assert_eq!(client.send(format!("GET / HTTP/1.1\r\n{headers}\r\n")).reply().status, 431);
}

#[test]
fn bodies_arrive_by_length_by_chunks_and_after_a_go_ahead() {
    let (_folder, server) = server();
    let mut client = server.client();
    let chunked = "POST /set?key=c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
        4\r\nWiki\r\n6;x=y\r\npedia!\r\n0\r\n\r\n";
    // In one piece, and byte by byte.
    assert_eq!(client.send(chunked).reply().status, 200);
    for byte in chunked.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.reply().status, 200);
    assert_eq!(client.request("GET", "/get?key=c").text(), "Wikipedia!");

    client.send(
        "PUT /set?key=e HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.reply().status, 100);
    assert_eq!(client.send("value").reply().status, 200);
    assert_eq!(client.request("GET", "/get?key=e").text(), "value");

    // The server sends a final answer instead of the go-ahead. If the client sends the body anyway, the server does not
    // take the body for a request.
    client.send(
        "PUT /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.reply().status, 404);
    assert!(client.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order_and_see_each_other() {
    let (_folder, server) = server();
    let mut client = server.client();
    let mut requests = String::new();
    for n in 0..100 {
        requests += &format!(
            "POST /set?key=p{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n{n:03}",
            n % 7
        );
        requests += &format!("GET /get?key=p{} HTTP/1.1\r\nHost: localhost\r\n\r\n", n % 7);
        requests += &format!("DELETE /del?key=p{} HTTP/1.1\r\nHost: localhost\r\n\r\n", (n + 3) % 7);
        requests += "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n";
    }
    client.send(requests);
    let mut model = std::collections::BTreeSet::new();
    for n in 0..100 {
        assert_eq!(client.reply().status, 200);
        model.insert(n % 7);
        assert_eq!(client.reply().text(), format!("{n:03}"), "a read sees the write before it");
        let existed = model.remove(&((n + 3) % 7));
        assert_eq!(client.reply().status, if existed { 200 } else { 404 });
        assert_eq!(client.reply().status, 404);
    }
}

#[test]
fn http_1_0_closes_unless_asked_not_to() {
    let (_folder, server) = server();
    let mut client = server.client();
    let reply = client.send("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").reply();
    assert!(reply.head.contains("connection: keep-alive"));
    assert_eq!(client.send("GET /livez HTTP/1.0\r\n\r\n").reply().status, 200);
    assert!(client.is_closed());
    let mut client = server.client();
    client.send("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(client.reply().head.contains("connection: close"));
    assert!(client.is_closed());
}

#[test]
fn garbage_is_answered_400_and_the_others_do_not_notice() {
    let (_folder, server) = server();
    let mut others: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for (n, other) in others.iter_mut().enumerate() {
        assert_eq!(other.request("POST", &format!("/set?key=o{n}&value={n}")).status, 200);
    }
    for garbage in [
        "\u{16}\u{3}\u{1}\u{2}\r\n\r\n",
        "GET /get?key=k HTTP/1.1\nHost: x\n\n",
        "GET /get?key=k HTTP/1.1\r\n\r\n",
        "POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ] {
        let mut client = server.client();
        let smuggled = "POST /set?key=smuggled&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(client.send(garbage).send(smuggled).reply().status, 400, "{garbage:?}");
        assert!(client.is_closed());
    }
    for (n, other) in others.iter_mut().enumerate() {
        assert_eq!(other.request("GET", &format!("/get?key=o{n}")).text(), n.to_string());
    }
    assert_eq!(others[0].request("GET", "/get?key=smuggled").status, 404);
}

#[test]
fn a_store_of_two_shards_opens_on_one_and_on_three_threads() {
    let (_folder, data) = folder();
    let flags = |threads| ["--memtable-size", "1MiB", "--max-value-size", "1MiB", "--threads", threads];
    let mut expected = 0;
    for threads in ["2", "1", "3", "2"] {
        let server = Server::start(&data, &flags(threads));
        let mut client = server.client();
        for n in 0..expected {
            assert_eq!(client.request("GET", &format!("/get?key=n{n}")).text(), n.to_string());
        }
        for n in expected..expected + 50 {
            assert_eq!(client.request("POST", &format!("/set?key=n{n}&value={n}")).status, 200);
        }
        expected += 50;
        server.signal("-TERM");
        assert!(server.wait().success());
    }
}

#[test]
fn a_stop_answers_what_is_in_flight_and_loses_nothing() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let address = server.address;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut acknowledged = 0;
                loop {
                    let target = format!("/set?key=w{writer}-{acknowledged}&value={acknowledged}");
                    let request = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    if std::io::Write::write_all(&mut client.stream, request.as_bytes()).is_err() {
                        return acknowledged;
                    }
                    match client.try_reply(false) {
                        Some(reply) if reply.status == 200 => acknowledged += 1,
                        Some(reply) => assert_eq!(reply.status, 503, "{}", reply.text()),
                        None => return acknowledged,
                    }
                }
            })
        })
        .collect();
    let idle = server.client();
    let mut watcher = server.client();
    while watcher.request("GET", "/get?key=w0-100").status != 200 {}
    server.signal("-TERM");
    assert!(server.wait().success());
    drop(idle);
    let acknowledged: Vec<u32> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let server = Server::start(&data, SMALL);
    let mut client = server.client();
    for (writer, count) in acknowledged.into_iter().enumerate() {
        assert!(100 < count || writer != 0);
        for n in 0..count {
            assert_eq!(client.request("GET", &format!("/get?key=w{writer}-{n}")).text(), n.to_string());
        }
    }
}

#[test]
fn what_keeps_a_server_from_starting_has_its_own_status() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let status = |data: &std::path::Path, flags: &[&str]| {
        let (mut child, line) = spawn(data, flags);
        assert_eq!(line, "", "the server must not listen");
        child.wait().unwrap().code()
    };
    assert_eq!(status(&data, SMALL), Some(75), "the data directory is locked");
    let (_other, free) = folder();
    let taken = server.address.to_string();
    assert_eq!(status(&free, &[SMALL, &["--listen", &taken]].concat()), Some(69));
    assert_eq!(status(&free, &["--sync", "sometimes"]), Some(2));
    assert_eq!(status(&free, &["--memtable-size", "1KiB"]), Some(2));
    assert_eq!(status(std::path::Path::new("/proc/nowhere/data"), SMALL), Some(73));
    // None of this has harmed the first server.
    assert_eq!(server.client().request("GET", "/livez").status, 200);
    server.kill();
    std::fs::write(data.join("STORE"), b"not a store").unwrap();
    assert_eq!(status(&data, SMALL), Some(65));
    std::fs::remove_file(data.join("STORE")).unwrap();
    assert_eq!(status(&data, SMALL), Some(65), "shards without a STORE are not replaced by a new store");
}

#[test]
fn nothing_behind_a_request_to_stop_keeps_the_server_up() {
    for behind in [
        "G",
        "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /set?key=k&value=v HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let (_folder, data) = folder();
        // The drain timeout is long, so that it cannot hide a wait for the bytes after the request.
        let server = Server::start(&data, &[SMALL, &["--drain-timeout", "1h"]].concat());
        let mut client = server.client();
        client.send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").send(behind);
        assert!(server.wait().success(), "{behind:?}");
    }
}

#[test]
fn a_log_reader_that_has_gone_does_not_end_the_server() {
    let (_folder, data) = folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeep"));
    command.arg("--data-dir").arg(&data).args(SMALL).args(["--listen", "127.0.0.1:0"]);
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    let address =
        line.trim().strip_prefix("listening on http://").expect("the server starts").parse().unwrap();
    let mut client = Client::connect(address);
    assert_eq!(client.request("POST", "/set?key=k&value=v").status, 200);
    client.send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn many_large_values_at_once_are_answered_or_refused_never_mixed() {
    let (_folder, server) = server();
    let mut client = server.client();
    let value = |n: usize| vec![n as u8; (1 << 20) - n];
    for n in 0..8 {
        assert_eq!(client.post_patiently(&format!("/set?key=v{n}"), &value(n)).status, 200);
    }
    let requests: String =
        (0..200).map(|n| format!("GET /get?key=v{} HTTP/1.1\r\nHost: localhost\r\n\r\n", n % 8)).collect();
    client.send(requests);
    let mut answered = 0;
    for n in 0..200 {
        let reply = client.reply();
        match reply.status {
            200 => {
                assert!(reply.body == value(n % 8), "reply {n}");
                answered += 1;
            }
            status => assert_eq!(status, 503),
        }
    }
    assert!(0 < answered);
    assert_eq!(client.request("GET", "/get?key=v0").status, 200, "the memory of the replies is free again");
}

#[test]
fn deletes_of_large_values_that_nobody_has_read_are_all_answered() {
    let (_folder, data) = crate::common::folder();
    let server = Server::start(&data, SMALL);
    for number in 0..12 {
        let target = format!("/set?key=large-{number}");
        assert_eq!(server.client().post_patiently(&target, &[7; 300_000]).status, 200);
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let server = Server::start(&data, SMALL);
    let mut client = server.client();
    for number in 0..12 {
        assert_eq!(client.request("DELETE", &format!("/del?key=large-{number}")).status, 200);
        assert_eq!(client.request("DELETE", &format!("/del?key=large-{number}")).status, 404);
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}
