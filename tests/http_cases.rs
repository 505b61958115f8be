//! The HTTP cases against the real server, over raw sockets: each in one write, and in a write for each byte.
//!
//! That they are read in the same way wherever they are cut is tested without sockets, where each part is a read of its
//! own: see the tests of `http::connection`.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::thread;

use common::cases::{Case, PROBE, SHORT_BYTES, cases};
use common::{PATIENCE, SMALL, Server, folder};

/// Connections at a time.
const CLIENTS: usize = 8;

/// Sends a case, and returns what the client receives and whether it has sent a probe.
fn send(server: &Server, case: &Case, bytes: &[u8], byte_by_byte: bool) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let probed = case.may_be_probed();
    let (mut writer, ends) = (stream.try_clone().unwrap(), case.ends());
    let bytes = bytes.to_vec();
    let sending = thread::spawn(move || {
        // A write fails when the server has refused the rest.
        let sent = if byte_by_byte {
            bytes.iter().try_for_each(|byte| writer.write_all(&[*byte]))
        } else {
            writer.write_all(&bytes)
        };
        if sent.is_ok() && probed {
            let _ = writer.write_all(PROBE.as_bytes());
        }
        if ends {
            let _ = writer.shutdown(Shutdown::Write);
        }
    });
    let mut received = Vec::new();
    if case.waits() {
        sending.join().unwrap();
        let wanted = case.replies_before_wait();
        let mut part = [0; 4096];
        while received.windows(5).filter(|bytes| bytes == b"HTTP/").count() < wanted {
            let count = stream.read(&mut part).unwrap();
            assert!(0 < count, "{}: closed", case.name());
            received.extend_from_slice(&part[..count]);
        }
    } else {
        let read = stream.read_to_end(&mut received);
        read.unwrap_or_else(|error| panic!("{}: {error}", case.name()));
        sending.join().unwrap();
    }
    (received, probed)
}

#[test]
fn every_http_case_is_answered_as_its_rule_says_and_nothing_is_smuggled() {
    let (_folder, data) = folder();
    let server = Server::start(&data, SMALL);
    let mut client = server.client();
    assert_eq!(client.post("/set?key=a", b"b").status, 200);
    assert_eq!(client.post("/set?key=mb", &vec![b'z'; 1 << 20]).status, 200);
    let cases = cases();
    assert!(400 < cases.len());
    let todo: Vec<_> = cases.iter().flat_map(|case| [(case, false), (case, true)]).enumerate().collect();
    let (next, wrong) = (Mutex::new(todo.iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let Some((number, (case, byte_by_byte))) = next.lock().unwrap().next() else { return };
                    let letters: String =
                        (0..4).map(|at| char::from(b'a' + (number / 26_usize.pow(at) % 26) as u8)).collect();
                    let bytes = case.bytes(&letters);
                    if *byte_by_byte && SHORT_BYTES < bytes.len() {
                        continue;
                    }
                    let (received, probed) = send(&server, case, &bytes, *byte_by_byte);
                    let mut verdict = case.verdict(&received, &bytes, probed);
                    if let (Ok(()), Some((key, value))) = (&verdict, case.stored(&letters)) {
                        let escaped: String =
                            key.chars().map(|byte| format!("%{:02x}", u32::from(byte))).collect();
                        let reply = server.client().request("GET", &format!("/get?key={escaped}"));
                        let found = (reply.status == 200).then_some(reply.body);
                        if found != value {
                            verdict = Err(format!("{key} is {found:?}"));
                        }
                    }
                    if let Err(why) = verdict {
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{}, byte by byte: {byte_by_byte}: {why}", case.name()));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), todo.len(), wrong.join("\n"));
    assert_eq!(client.request("GET", "/get?key=smuggled").status, 404);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}
