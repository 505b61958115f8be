//! Who may do what, and where: places to listen at, tokens, roles, the stop, and TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use crate::common::certificates::{Certificates, secret_file};
use crate::common::{PATIENCE, SMALL, Server, folder};
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const READER: &str = "reader-secret-0123";
const WRITER: &str = "writer-secret-0123";
const ADMIN: &str = "admin-secret-0123";

fn token_file(folder: &Path, text: &str) -> String {
    let path = folder.join("tokens");
    secret_file(&path, text);
    path.to_str().unwrap().to_owned()
}

/// Sends one request on a stream of its own, and returns the whole reply.
fn ask(mut stream: impl Read + Write, request: &str, token: Option<&str>) -> String {
    let field = token.map_or(String::new(), |secret| format!("Authorization: Bearer {secret}\r\n"));
    let text = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{field}\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn status(server: &Server, request: &str, token: Option<&str>) -> u16 {
    ask(connect(server.address), request, token)[9..12].parse().unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Starts the binary, which has to refuse, and returns its exit status and what it says.
fn refusal(data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringkeep"))
        .arg("--data-dir")
        .arg(data)
        .args(SMALL)
        .args(flags)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn h7_a_token_decides_what_its_holder_may_do_and_changes_on_sighup() {
    let (folder, data) = folder();
    let text = format!("r read {READER}\nw write {WRITER}\na admin {ADMIN}\n");
    let tokens = token_file(folder.path(), &text);
    let log = data.with_extension("log");
    let flags = [SMALL, &["--token-file", &tokens, "--log", "info"]].concat();
    let server = Server::start_logged(&data, &flags, &log);
    for (request, expected) in [
        ("GET /livez", [200, 200, 200, 200, 200]),
        ("GET /readyz", [200, 200, 200, 200, 200]),
        ("OPTIONS /get?key=k", [200, 200, 200, 200, 200]),
        ("POST /set?key=k&value=v", [401, 401, 403, 200, 200]),
        ("GET /get?key=k", [401, 401, 200, 200, 200]),
        ("HEAD /get?key=k", [401, 401, 200, 200, 200]),
        ("DELETE /del?key=other", [401, 401, 403, 404, 404]),
        ("GET /nowhere", [401, 401, 404, 404, 404]),
        ("POST /get?key=k", [401, 401, 405, 405, 405]),
    ] {
        let of = |token| status(&server, request, token);
        let found = [None, Some("wrong-secret-0123"), Some(READER), Some(WRITER), Some(ADMIN)].map(of);
        assert_eq!(found, expected, "{request}");
    }
    for token in [None, Some(READER), Some(WRITER)] {
        assert!([401, 403].contains(&status(&server, "GET /shutdown", token)));
    }
    let refused = ask(connect(server.address), "GET /get?key=k", None);
    assert!(refused.contains("\r\nwww-authenticate: Bearer realm=\"ringkeep\"\r\n"), "{refused}");

    // A file with a mistake changes nothing; a sound one counts for connections that are open, too.
    let mut open = server.client();
    let mut get = |secret: &str| {
        let field = format!("Authorization: Bearer {secret}");
        open.send(format!("GET /get?key=k HTTP/1.1\r\nHost: localhost\r\n{field}\r\n\r\n")).reply().status
    };
    assert_eq!(get(READER), 200);
    fs::write(&tokens, "r read short\n").unwrap();
    server.raw_signal(Signal::HUP);
    let begin = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("line 1: the secret must have") {
        assert!(begin.elapsed() < PATIENCE, "the mistake is not reported");
    }
    assert_eq!(get(READER), 200);
    fs::write(&tokens, format!("new read {READER}-new\n")).unwrap();
    server.raw_signal(Signal::HUP);
    let begin = Instant::now();
    while get(&format!("{READER}-new")) != 200 {
        assert!(begin.elapsed() < PATIENCE, "the file is not read again");
    }
    assert_eq!(get(READER), 401);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.contains("token new: new, read") && lines.contains("token r: no longer valid"), "{lines}");
    assert!(!lines.contains(READER), "{lines}");
}

#[test]
fn what_is_open_to_everyone_or_readable_by_others_is_refused_at_start() {
    let (folder, data) = folder();
    let tokens = token_file(folder.path(), &format!("a admin {ADMIN}\n"));
    let open = folder.path().join("open");
    fs::write(&open, format!("a admin {ADMIN}\n")).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let open = open.to_str().unwrap();
    for (flags, hint) in [
        (&["--listen", "0.0.0.0:0"][..], "--token-file"),
        (&["--listen", "127.0.0.1:0", "--listen", ":0"], "--insecure"),
        (&["--listen", "127.0.0.1:0", "--token-file", open], "644"),
        (&["--listen", "127.0.0.1:0", "--token-file", "/nowhere/tokens"], "/nowhere/tokens"),
        (&["--listen", "127.0.0.1:0", "--shutdown", "token"], "--token-file"),
        (&["--listen", "https://127.0.0.1:0"], "--tls-cert"),
        (&["--listen", "127.0.0.1:0", "--tls-cert", open], "--tls-key"),
    ] {
        let (code, said) = refusal(&data, flags);
        assert!(code == Some(78) && said.contains(hint) && !said.contains(ADMIN), "{flags:?}: {said}");
        assert!(!data.exists(), "{flags:?}: nothing is created");
    }
    for flags in [&["--listen", "0.0.0.0:0", "--insecure"][..], &["--listen", ":0", "--token-file", &tokens]]
    {
        let (_server, places) = Server::start_at(&data, &[SMALL, flags].concat(), 1);
        assert!(
            places[0].starts_with("http://0.0.0.0:") || places[0].starts_with("http://[::]:"),
            "{places:?}"
        );
    }
}

#[test]
fn an_address_has_no_more_connections_than_it_may_and_a_slow_head_gets_408() {
    let (_folder, data) = folder();
    let limits = ["--max-connections-per-address", "3", "--head-timeout", "1s", "--body-timeout", "1s"];
    let server = Server::start(&data, &[SMALL, &limits].concat());
    let mut open: Vec<_> = (0..3).map(|_| server.client()).collect();
    for client in &mut open {
        assert_eq!(client.request("GET", "/livez").status, 200);
    }
    let refused = server.client().reply();
    assert!(refused.status == 503 && refused.text().contains("this address"), "{refused:?}");
    let elsewhere = TcpStream::connect(server.address).unwrap(); // the same address: refused as well
    drop(elsewhere);
    // A byte now and then does not make a head last longer.
    let mut slow = open.pop().unwrap();
    slow.send("GET /livez HTTP/1.1\r\nHost: local");
    slow.stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let begin = Instant::now();
    let mut byte = [0];
    while !matches!(slow.stream.peek(&mut byte), Ok(1)) {
        assert!(begin.elapsed() < PATIENCE, "the head is waited for");
        let _ = slow.stream.write_all(b"h");
    }
    slow.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(slow.reply().status, 408);
    drop(slow);
    // The place is free again once the server has seen the end.
    while server.client().request("GET", "/livez").status != 200 {
        assert!(begin.elapsed() < PATIENCE, "the place stays taken");
    }
}

#[test]
fn a_handshake_that_does_not_end_and_a_reply_that_nobody_reads_have_their_time() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let limits = ["--handshake-timeout", "1s", "--reply-timeout", "1s"];
    let (_server, address) = tls_server(&data, &certificates, &limits);
    let config = certificates.client(false);
    let mut silent = connect(address);
    silent.write_all(b"\x16\x03\x01").unwrap();
    let mut received = Vec::new();
    assert_eq!(silent.read_to_end(&mut received).unwrap(), 0);

    let body = "v".repeat(1 << 20);
    let mut greedy = encrypted(&config, address);
    let set = format!(
        "POST /set?key=k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    greedy.write_all(set.as_bytes()).unwrap();
    greedy.write_all("GET /get?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(60).as_bytes()).unwrap();
    let begin = Instant::now();
    let ended = |reason: &str| format!("\nringkeep_connections_ended_total{{reason=\"{reason}\"}} 1\n");
    loop {
        let metrics = ask(encrypted(&config, address), "GET /metrics", None);
        assert!(metrics.contains(&ended("handshake")), "{metrics}");
        if metrics.contains(&ended("reply")) {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "the reply is waited for");
    }
    drop(greedy);
}

#[test]
fn who_may_stop_the_server_is_a_setting() {
    let (folder, data) = folder();
    let server = Server::start(&data, &[SMALL, &["--shutdown", "off"]].concat());
    assert_eq!(status(&server, "GET /shutdown", None), 403);
    assert_eq!(status(&server, "GET /livez", None), 200);
    drop(server);
    let tokens = token_file(folder.path(), &format!("a admin {ADMIN}\n"));
    let server = Server::start(&data, &[SMALL, &["--token-file", &tokens]].concat());
    assert_eq!(status(&server, "GET /shutdown", Some(ADMIN)), 200);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_server_listens_at_several_places_and_a_unix_socket_has_its_mode_and_goes_away() {
    let (folder, data) = folder();
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).unwrap()); // a server that was killed has left it
    let place = format!("unix:{}", path.display());
    let listen =
        ["--listen", "127.0.0.1:0", "--listen", &place, "--listen", "127.0.0.2:0", "--socket-mode", "660"];
    let flags = [SMALL, &listen].concat();
    let (server, places) = Server::start_at(&data, &flags, 3);
    assert_eq!(places[1], place);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let reply = ask(UnixStream::connect(&path).unwrap(), "POST /set?key=k&value=over+the+socket", None);
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    for place in [&places[0], &places[2]] {
        let address = place.strip_prefix("http://").unwrap().parse().unwrap();
        assert!(ask(connect(address), "GET /get?key=k", None).ends_with("over the socket"), "{place}");
    }
    // Many connections, so that every thread gets some of them.
    let streams: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for stream in streams {
        assert!(ask(stream, "GET /get?key=k", None).ends_with("over the socket"));
    }
    let (code, said) = refusal(&folder.path().join("other"), &["--listen", &place]);
    assert!(code == Some(69) && said.contains(&place), "{said}");
    let reply = ask(UnixStream::connect(&path).unwrap(), "GET /shutdown", None);
    assert!(reply.contains("stopped"), "{reply}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!path.exists());
    fs::write(&path, "mine").unwrap();
    let (code, said) = refusal(&folder.path().join("other"), &["--listen", &place]);
    assert!(code == Some(78) && said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn sockets_that_systemd_hands_over_are_listened_to_and_left_as_they_are() {
    let (_folder, data) = folder();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..2 {
        // The socket comes as standard input, and becomes descriptor 3.
        let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --data-dir \"$@\"";
        let mut child = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_ringkeep")])
            .arg(&data)
            .args(SMALL)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The kernel queues the connection until the server accepts it.
        let reply = ask(connect(address), "POST /set?key=k&value=v", None);
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        assert!(ask(connect(address), "GET /shutdown", None).contains("stopped"));
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let flags = rustix::fs::fcntl_getfl(&listener).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK), "its other owners see its flags");
    }
}

fn encrypted(config: &Arc<ClientConfig>, address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), connect(address))
}

/// Starts a server with TLS.
fn tls_server(data: &Path, certificates: &Certificates, more: &[&str]) -> (Server, SocketAddr) {
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let (server, places) = Server::start_at(data, &[SMALL, &tls, more].concat(), 1);
    let address = places[0].strip_prefix("https://").unwrap().parse().unwrap();
    (server, address)
}

#[test]
fn tls_carries_small_and_large_values_both_ways_and_a_renewed_certificate_needs_no_restart() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let (server, address) = tls_server(&data, &certificates, &[]);
    let config = certificates.client(false);
    let mut stream = encrypted(&config, address);
    let large: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let head =
        format!("POST /set?key=l HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", large.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&large).unwrap();
    let gets = "GET /get?key=l HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3);
    stream.write_all(gets.as_bytes()).unwrap();
    let mut received = vec![0; 3 * large.len()];
    stream.read_exact(&mut received).unwrap();
    let found = memchr::memmem::find_iter(&received, &large[..1_000]).count();
    assert!(received.starts_with(b"HTTP/1.1 200") && 2 <= found, "{found} values");
    assert_eq!(stream.conn.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));

    // The certificate changes for new connections; the open one goes on.
    let before = encrypted(&config, address);
    let peer = |mut stream: StreamOwned<ClientConnection, TcpStream>| {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap(); // fails if the connection is cut without a word
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        stream.conn.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(peer(before), certificates.certificate("server.pem"));
    let mut open = encrypted(&config, address);
    open.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    fs::copy(certificates.path("renewed.pem"), certificates.path("server.pem")).unwrap();
    fs::copy(certificates.path("renewed.key"), certificates.path("server.key")).unwrap();
    server.raw_signal(Signal::HUP);
    let begin = Instant::now();
    while peer(encrypted(&config, address)) != certificates.certificate("renewed.pem") {
        assert!(begin.elapsed() < PATIENCE, "the certificate is not read again");
    }
    open.write_all(b"Host: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    open.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_client_without_a_certificate_is_kept_out_where_one_is_needed() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let authority = certificates.path("ca.pem");
    let (_server, address) = tls_server(&data, &certificates, &["--tls-client-ca", &authority]);
    let known = encrypted(&certificates.client(true), address);
    assert!(ask(known, "GET /livez", None).starts_with("HTTP/1.1 200"));
    let mut unknown = encrypted(&certificates.client(false), address);
    let _ = unknown.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(unknown.read(&mut [0; 100]).is_err());
}

#[test]
fn what_is_not_tls_ends_its_own_connection_and_no_other() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let (_server, address) = tls_server(&data, &certificates, &[]);
    let config = certificates.client(false);
    let oversized = [&[22, 3, 1, 0xff, 0xff][..], &[0; 1_000]].concat();
    for bytes in
        [&b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0; 4096], &oversized, b"\x16\x03\x01"]
    {
        let mut stream = connect(address);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received); // an alert, or nothing
        assert!(received.len() < 100 && !received.starts_with(b"HTTP"), "{received:?}");
        assert!(ask(encrypted(&config, address), "GET /livez", None).starts_with("HTTP/1.1 200"));
    }
    // Three of them have said something that is not TLS; the last one has only left.
    let metrics = ask(encrypted(&config, address), "GET /metrics", None);
    assert!(metrics.contains("\nringkeep_connections_ended_total{reason=\"tls\"} 3\n"), "{metrics}");
    // Records that arrive byte by byte are records all the same.
    let mut stream = encrypted(&config, address);
    stream.sock.set_nodelay(true).unwrap();
    let mut slow = Vec::new();
    stream.conn.writer().write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    while stream.conn.is_handshaking() || stream.conn.wants_write() {
        slow.clear();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut slow).unwrap();
        }
        for byte in &slow {
            stream.sock.write_all(&[*byte]).unwrap();
        }
        if stream.conn.is_handshaking() {
            stream.conn.read_tls(&mut stream.sock).unwrap();
            stream.conn.process_new_packets().unwrap();
        }
    }
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 200");
}
