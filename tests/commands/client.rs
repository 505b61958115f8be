//! The commands' client, and `ringkeep health`, against the real server.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::certificates::{Certificates, secret_file};
use crate::common::{PATIENCE, SMALL, Server, encode, folder};
use ringkeep::client::{Client, Patience, Request};
use ringkeep::error::ErrorKind;
use ringkeep::tls::client::Settings;

const READER: &str = "reader-secret-0123";

fn health(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeep")).args(["health", "--url"]).args(arguments).output().unwrap()
}

fn shown(output: &Output) -> String {
    format!(
        "{:?} {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn client(url: &str, tls: Option<Settings>) -> Client {
    Client::new(url.parse().unwrap(), tls, Patience::PerStep(PATIENCE)).unwrap()
}

fn post<'a>(target: &'a str, body: &'a [u8]) -> Request<'a> {
    Request { method: "POST", target, range: None, body }
}

/// A value in which every part differs from its neighbours.
fn value(bytes: u32) -> Vec<u8> {
    (0..bytes / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Writes and reads a value, and a part of it.
fn exchange(client: &Client) {
    let large = value(1 << 20);
    let target = format!("/set?key={}", encode(b"a key"));
    let reply = client.send(post(&target, &large)).unwrap().expect(&[200]).unwrap();
    assert_eq!(reply.text(100).unwrap(), "OK\n");
    let get = format!("/get?key={}", encode(b"a key"));
    let mut reply = client.send(Request::get(&get)).unwrap();
    assert_eq!((reply.status, reply.body().bytes_left()), (200, Some(1 << 20)));
    assert!(reply.bytes(1 << 20).unwrap() == large);
    let reply = client.send(Request { range: Some((1000, Some(1999))), ..Request::get(&get) }).unwrap();
    assert_eq!((reply.status, reply.field("content-range")), (206, Some("bytes 1000-1999/1048576")));
    assert_eq!(reply.bytes(1000).unwrap(), large[1000..2000]);
    let reply = client.send(Request { range: Some((1_048_570, None)), ..Request::get(&get) }).unwrap();
    assert_eq!(reply.bytes(1000).unwrap(), large[1_048_570..]);
    let reply = client.send(Request { method: "HEAD", ..Request::get(&get) }).unwrap();
    assert_eq!((reply.status, reply.field("content-length")), (200, Some("1048576")));
    assert_eq!(reply.bytes(0).unwrap(), b"");
    let missing = client.send(Request::get("/get?key=missing")).unwrap();
    assert_eq!((missing.status, missing.field("ringkeep-error")), (404, Some("key-not-found")));
    let error = missing.expect(&[200]).err().unwrap();
    assert!(error.to_string().contains("answers 404 key not found"), "{error}");
    let error = client.send(Request::get(&get)).unwrap().bytes(1000).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn values_and_their_parts_come_over_every_kind_of_place() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let listen = ["--listen", "http://127.0.0.1:0", "--listen", "https://127.0.0.1:0", "--listen", &socket];
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let (server, places) = Server::start_at(&data, &[SMALL, &listen, &tls].concat(), 3);
    let trusted = |name: &str| Settings::read(Path::new(&certificates.path(name)), None).unwrap();
    exchange(&client(&places[0], None));
    exchange(&client(&places[1], Some(trusted("ca.pem"))));
    exchange(&client(&places[2], None));

    // The reply to a stop comes in chunks, and ends with the process.
    let stop = client(&places[2], None).send(post("/shutdown", b"")).unwrap();
    assert_eq!(stop.field("transfer-encoding"), Some("chunked"));
    let steps = stop.text(10_000).unwrap();
    assert!(steps.starts_with("stopping: ") && steps.ends_with("stopped\n"), "{steps}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn only_a_server_that_is_trusted_gets_a_request() {
    let (folder, data) = folder();
    let certificates = Certificates::new(folder.path());
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let authority = certificates.path("ca.pem");
    let listen = ["--listen", "https://127.0.0.1:0", "--listen", "https://127.0.0.2:0"];
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &authority];
    let (_server, places) = Server::start_at(&data, &[SMALL, &listen, &tls].concat(), 2);
    let (own, own_key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let identity = ["--tls-cert", &own, "--tls-key", &own_key];
    let other = certificates.path("renewed.pem");
    // The certificate has the names localhost and 127.0.0.1.
    for (place, trusted, identity, status, words) in [
        (&places[0], &authority, &identity[..], 0, "OK"),
        (&places[0], &certificate, &identity, 0, "OK"),
        (&places[1], &certificate, &identity, 0, "OK"),
        (&places[1], &authority, &identity, 1, "127.0.0.2"),
        (&places[0], &other, &identity, 1, "certificate"),
        (&places[0], &authority, &[], 1, "ertificate"),
        (&places[0], &own_key, &identity, 78, &own_key),
    ] {
        let output = health(&[&[place.as_str(), "--tls-ca", trusted], identity].concat());
        assert!(output.status.code() == Some(status) && shown(&output).contains(words), "{}", shown(&output));
    }
    let blind = health(&[&places[0]]);
    assert!(blind.status.code() == Some(78) && shown(&blind).contains("trust"), "{}", shown(&blind));
    let plain = health(&[&places[0].replace("https", "http")]);
    let meant = format!("use {}", places[0]);
    assert!(plain.status.code() == Some(1) && shown(&plain).contains(&meant), "{}", shown(&plain));
    // A port that does not speak TLS.
    let (_plain_folder, data) = crate::common::folder();
    let server = Server::start(&data, SMALL);
    let url = format!("https://{}", server.address);
    let encrypted = health(&[&[url.as_str(), "--tls-ca", &authority], &identity[..]].concat());
    let meant = format!("if it speaks plain HTTP, use http://{}", server.address);
    assert!(
        encrypted.status.code() == Some(1) && shown(&encrypted).contains(&meant),
        "{}",
        shown(&encrypted)
    );
}

#[test]
fn a_token_comes_from_its_file_and_a_refusal_is_in_the_words_of_the_server() {
    let (folder, data) = folder();
    let tokens = folder.path().join("tokens");
    secret_file(&tokens, &format!("dashboard read {READER}\n"));
    let server = Server::start(&data, &[SMALL, &["--token-file", tokens.to_str().unwrap()]].concat());
    let url = format!("http://{}", server.address);
    let error = client(&url, None).send(Request::get("/metrics")).unwrap().expect(&[200]).err().unwrap();
    assert!(error.kind() == ErrorKind::Permission && error.to_string().contains("401"), "{error}");
    let own = folder.path().join("token");
    secret_file(&own, READER);
    for file in [&own, &tokens] {
        let client = client(&url, None).with_token_file(file).unwrap();
        let metrics = client.send(Request::get("/metrics")).unwrap().text(1 << 20).unwrap();
        assert!(metrics.contains("ringkeep_build_info"), "{metrics}");
        let error = client.send(post("/set?key=k&value=v", b"")).unwrap().expect(&[200]).err().unwrap();
        assert!(error.to_string().contains("403"), "{error}");
    }
    assert!(health(&[&url]).status.success(), "it needs no token");
}

#[test]
fn health_is_0_when_the_server_is_ready_and_1_when_it_is_not_there() {
    let (folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let url = format!("http://{}", server.address);
    let ready = health(&[&url]);
    assert_eq!(shown(&ready), "Some(0) OK\n");
    server.kill();
    // The kernel may hold the sockets of a killed server for a moment.
    let gone = health(&[&url]);
    assert!(gone.status.code() == Some(1) && shown(&gone).contains(&url), "{}", shown(&gone));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = health(&[&format!("http://{free}")]);
    assert!(
        nobody.status.code() == Some(1) && shown(&nobody).contains("does the server run"),
        "{}",
        shown(&nobody)
    );
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let nowhere = health(&[&socket]);
    assert!(nowhere.status.code() == Some(1) && shown(&nowhere).contains(&socket), "{}", shown(&nowhere));
    for wrong in ["127.0.0.1:8080", "http://", "ftp://localhost"] {
        assert_eq!(health(&[wrong]).status.code(), Some(2), "{wrong}");
    }
}

/// Answers the first connection with `answer`, then says no more until the client has gone.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut stream: TcpStream = listener.accept().unwrap().0;
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    });
    url
}

#[test]
fn a_server_that_is_not_ready_or_does_not_finish_its_answer_is_not_healthy() {
    let full = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\ndisk full");
    let output = health(&[&full]);
    let said = shown(&output);
    assert!(
        output.status.code() == Some(1) && said.contains("disk full\n") && said.contains("503"),
        "{said}"
    );
    let degraded = answering("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\ndegraded: 1 file\n");
    assert_eq!(shown(&health(&[&degraded])), "Some(0) degraded: 1 file\n");
    let ssh = health(&[&answering("SSH-2.0-OpenSSH_9.2\r\n\r\n")]);
    assert!(ssh.status.code() == Some(1) && shown(&ssh).contains("HTTP"), "{}", shown(&ssh));

    // Whatever a stalled server has sent, the exchange ends; the time is short here so that the test is.
    for stalled in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nrea"] {
        for patience in
            [Patience::InAll, Patience::PerStep].map(|patience| patience(Duration::from_millis(50)))
        {
            let client = Client::new(answering(stalled).parse().unwrap(), None, patience).unwrap();
            let begin = Instant::now();
            let error = client.send(Request::get("/readyz")).and_then(|reply| reply.text(100)).unwrap_err();
            assert!(error.to_string().contains("no answer within 50ms"), "{error}");
            assert!(begin.elapsed() < PATIENCE);
        }
    }
    // A Unix socket whose queue is full.
    let (folder, _) = folder();
    let path = folder.path().join("socket");
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let url = format!("unix:{}", path.display());
    let client = Client::new(url.parse().unwrap(), None, Patience::InAll(Duration::from_millis(50))).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let error = client.send(Request::get("/readyz")).err().unwrap();
    assert!(error.to_string().contains("no answer within 50ms"), "{error}");
    fs::remove_file(&path).unwrap();
}
