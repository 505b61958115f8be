//! Tests of a connection: what a client gets, whatever it sends and in whatever order its requests end.

mod cases;
mod session;
mod timing;

use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use self::session::*;
use super::super::IDLE_BUFFER_BYTES;
use super::super::output::{
    COPY_BYTES_MAX, EXPECTED_BYTES_FIRST, EXPECTED_BYTES_MIN, HELD_LARGE_BYTES_MAX, HELD_SMALL_BYTES_MAX,
    OUTPUT_BYTES, SMALL_BYTES,
};
use super::*;
use crate::error::{Error, ErrorKind};
use crate::random::Random;

#[test]
fn a_turn_parses_everything_that_has_arrived_before_it_begins_an_operation() {
    let mut session = Session::new();
    // The first part of a request does not begin an operation.
    let last = get("e");
    let (front, rest) = last.split_at(10);
    session.send([get("a"), set("b", "1"), delete("c"), set("d", "2"), front.into()].concat());
    let expected = ["prefetch 2 others", "prefetch 2 sets", "get a", "set b=1", "delete c", "set d=2"]
        .map(str::to_owned);
    assert_eq!(session.store.calls(), expected);
    assert_eq!(session.store.under_way().len(), 4, "no operation waits for another");
    assert_eq!(session.end_all(), ["404 key not found", "200 OK", "404 key not found", "200 OK"]);
    session.send(rest);
    assert_eq!(session.store.calls(), ["get e"], "a lone key is not prefetched");
}

#[test]
fn h2_memory_follows_the_bytes_that_arrived_and_not_the_length_of_a_body() {
    const LENGTH: usize = 16 << 20;
    for head in [
        head_of_set("k", LENGTH, ""),
        format!("POST /set?key=k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{LENGTH:x}\r\n"),
    ] {
        let mut session = Session::with_limits(LENGTH, 4 * LENGTH);
        session.send(&head);
        let mut arrived = head.len();
        while arrived < 1 << 20 {
            let bytes = session.client.0.buffer_bytes.get();
            assert!(bytes <= 2 * (arrived + IDLE_BUFFER_BYTES), "{bytes} bytes for {arrived}");
            session.send([b'v'; 3_000]);
            arrived += 3_000;
        }
        assert!(!session.has_unread() && session.store.calls().is_empty(), "the body is not complete");
    }
}

#[test]
fn h3_replies_leave_in_the_order_of_their_requests() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut session = Session::new();
        let (mut bytes, mut expected) = (String::new(), Vec::new());
        for number in 0..1 + random.below(2 * PIPELINE_MAX as u64) {
            let key = format!("k{number}");
            let value = format!("v{number}");
            let (request, reply) = match random.below(7) {
                0 | 1 => {
                    session.store.remember(&key, &value);
                    (get(&key), format!("200 {value}"))
                }
                2 | 3 => {
                    session.store.put_on_disk(&key, &value);
                    (get(&key), format!("200 {value}"))
                }
                4 => (set(&key, &value), "200 OK".into()),
                5 => (delete(&key), "404 key not found".into()),
                _ => ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".into(), "200 OK".into()),
            };
            bytes.push_str(&request);
            expected.push(reply);
        }
        let found = session.exchange(&mut random, &bytes, 3_000, |found| {
            assert!(expected.starts_with(found), "seed {seed}: {found:?}");
        });
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[test]
fn h3_at_most_pipeline_max_requests_are_under_way() {
    let mut session = Session::new();
    let count = 3 * PIPELINE_MAX;
    session.send((0..count).map(|number| delete(&format!("k{number}"))).collect::<String>());
    let first: Vec<_> = (0..PIPELINE_MAX).map(|number| format!("delete k{number}")).collect();
    assert_eq!(session.store.under_way(), first);
    let mut found = 0;
    while let Some(newest) = session.store.under_way().len().checked_sub(1) {
        session.store.end(newest);
        found += replies(&session.go_on()).len();
        assert!(session.store.under_way().len() <= PIPELINE_MAX, "after {found} replies");
    }
    assert_eq!(found, count);
}

#[test]
fn h3_requests_without_a_key_count_as_under_way() {
    let mut session = Session::new();
    // The first reply is not known, so all others wait for it.
    let count = 3 * PIPELINE_MAX;
    let controls = "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n".repeat(count);
    session.send(format!("{}{controls}", delete("k")));
    let begun = session.store.calls().iter().filter(|call| call.contains("Livez")).count();
    assert!(begun < PIPELINE_MAX, "{begun} of {count}");
    session.store.end(0);
    assert_eq!(replies(&session.go_on()).len(), count + 1);
}

#[test]
fn an_operation_that_had_to_wait_begins_at_the_time_after_the_wait() {
    let mut session = Session::new();
    session.store.is_full.set(true);
    // The set is a barrier, and the get waits for it. The store compares the time that it is given with its clock.
    session.send([set("a", "1"), get("b")].concat());
    session.store.clock.set(60_000);
    let replies = [session.end("set a=1"), session.end("get b")].concat();
    assert_eq!(replies.len(), 2, "{replies:?}");
}

#[test]
fn h4_a_read_sees_the_writes_before_it() {
    let requests = [set("k", "new"), get("k"), delete("k"), get("k")].concat();
    // The bytes may be cut anywhere, within a head or within a body.
    for cut in 1..requests.len() {
        let mut session = Session::new();
        session.store.remember("k", "old");
        let (piece, rest) = requests.split_at(cut);
        let mut found = [session.send(piece), session.send(rest)].concat();
        for operation in ["set k=new", "delete k", "get k"] {
            assert_eq!(session.store.under_way(), [operation], "cut at {cut}");
            found.extend(session.end(operation));
        }
        assert_eq!(found, ["200 OK", "200 new", "200 OK", "404 key not found"], "cut at {cut}");
    }
}

#[test]
fn h4_only_a_read_of_a_key_that_is_written_waits() {
    let mut session = Session::new();
    session.store.remember("k", "old");
    session.store.remember("other", "1");
    // Reads before the write, writes of the same key, and reads of other keys go on.
    let requests = [get("k"), set("k", "a"), set("k", "b"), get("other"), get("k"), set("other", "2")];
    session.send(requests.concat());
    assert_eq!(session.store.calls()[2..], ["get k", "set k=a", "set k=b", "get other"]);
    session.store.end(0);
    session.go_on();
    assert!(session.store.calls().is_empty(), "both writes of the key have to end");
    session.store.end(0);
    session.go_on();
    assert_eq!(session.store.calls(), ["get k", "set other=2"]);
    let found = session.end("set other=2");
    assert_eq!(found, ["200 old", "200 OK", "200 OK", "200 1", "200 b", "200 OK"]);
    // A write that has its reply delays nothing.
    assert_eq!(session.send([get("k"), get("other")].concat()), ["200 b", "200 2"]);
}

#[test]
fn h5_values_that_wait_for_their_turn_hold_about_a_mebibyte() {
    const VALUE_BYTES: usize = 100_000;
    let mut session = Session::new();
    session.store.remember("m", vec![b'm'; VALUE_BYTES]);
    session.send([get("d"), get("m").repeat(PIPELINE_MAX - 1)].concat());
    session.send(get("m"));
    let lent = session.store.calls().iter().filter(|call| *call == "get m").count();
    let held = lent * VALUE_BYTES;
    assert!((1 << 19..(1 << 20) + VALUE_BYTES).contains(&held), "{held} bytes are held");
    assert!(session.has_unread(), "nothing more is read");
    assert_eq!(session.end("get d").len(), PIPELINE_MAX + 1);
    assert!(!session.has_unread());
}

#[test]
fn h5_a_value_on_its_way_is_expected_to_be_as_long_as_the_values_before_it() {
    let mut session = Session::new();
    let requests = get("k").repeat(PIPELINE_MAX);
    let mut under_way = |value_bytes: usize| {
        session.store.put_on_disk("k", vec![b'v'; value_bytes]);
        session.send(&requests);
        let under_way = session.store.under_way().len();
        assert_eq!(session.end_all().len(), PIPELINE_MAX);
        under_way
    };
    let first = under_way(300_000);
    assert_eq!(first * EXPECTED_BYTES_FIRST, HELD_LARGE_BYTES_MAX);
    let long = under_way(10) * 300_000;
    let fits = HELD_LARGE_BYTES_MAX..HELD_LARGE_BYTES_MAX + 300_000;
    assert!(fits.contains(&long), "{long} bytes on their way");
    let short = under_way(10) * EXPECTED_BYTES_MIN;
    assert_eq!(short, HELD_SMALL_BYTES_MAX, "short values hardly hold each other up");
}

#[test]
fn h5_without_memory_for_more_a_connection_goes_on_with_what_it_has() {
    let mut session = Session::new();
    let _all = session.peers.memory.buffers.try_take(usize::MAX).unwrap();
    for (value_bytes, most) in [(300_000, 1), (300_000, 1), (10, 1), (10, 2), (10, 2)] {
        session.store.put_on_disk("k", vec![b'v'; value_bytes]);
        session.send(get("k").repeat(8));
        let under_way = session.store.under_way().len();
        assert!(under_way <= most, "{under_way} values of {value_bytes}");
        assert_eq!(session.end_all().len(), 8);
    }
    session.store.remember("m", vec![b'm'; SMALL_BYTES]);
    session.client.0.is_stuck.set(true);
    session.store.calls();
    session.send(get("m").repeat(16));
    let lent = session.store.calls().iter().filter(|call| *call == "get m").count();
    assert!(lent * SMALL_BYTES <= OWN_BYTES + SMALL_BYTES, "{lent} values wait for the client");
    session.client.0.is_stuck.set(false);
    assert_eq!(replies(&session.go_on()).len(), 16);
}

#[test]
fn h5_a_client_that_does_not_read_is_not_read_from() {
    const VALUE_BYTES: usize = 30_000;
    let mut session = Session::new();
    session.store.remember("m", vec![b'm'; VALUE_BYTES]);
    session.client.0.is_stuck.set(true);
    for _ in 0..4 {
        assert_eq!(session.send(get("m").repeat(16)).len(), 0);
    }
    let lent = session.store.calls().iter().filter(|call| *call == "get m").count();
    assert!(lent * VALUE_BYTES < OUTPUT_BYTES + VALUE_BYTES, "{lent} values wait for the client");
    assert_eq!(session.client.0.sent.borrow().len(), 3);
    session.client.0.is_stuck.set(false);
    assert_eq!(replies(&session.go_on()).len(), 64);
}

#[test]
fn nothing_goes_ahead_of_a_write_that_waits_for_room() {
    let mut session = Session::new();
    session.store.remember("m", "1");
    session.store.is_full.set(true);
    session.send([get("m"), set("a", "1"), get("m"), set("b", "2"), get("m")].concat());
    assert_eq!(session.store.calls()[2..], ["get m", "set a=1"]);
    session.store.is_full.set(false);
    session.store.end(0);
    session.go_on();
    assert_eq!(session.store.calls(), ["get m", "set b=2", "get m"], "the second write found room");
    assert_eq!(session.end("set b=2"), ["200 1", "200 OK", "200 1", "200 OK", "200 1"]);
}

#[test]
fn a_value_that_was_lent_waits_for_the_replies_before_it() {
    let mut session = Session::new();
    session.store.remember("m", "lent");
    session.store.put_on_disk("d", "read");
    assert_eq!(session.send([get("m"), get("m")].concat()), ["200 lent"; 2]);
    assert!(session.send([get("d"), get("m"), get("x"), get("m")].concat()).is_empty());
    // The memory of the store may change: the value is as it was when the get began.
    session.store.remember("m", "changed");
    assert!(session.end("get x").is_empty());
    assert_eq!(session.end("get d"), ["200 read", "200 lent", "404 key not found", "200 lent"]);
}

#[test]
fn values_of_any_length_are_written_whole() {
    let lengths = [0, 1, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, OUTPUT_BYTES, PART_BYTES, 2 * PART_BYTES + 1];
    let values = lengths.map(|length| "v".repeat(length));
    // Values in memory and values on disk take turns, in both orders.
    for kinds in [["m", "d"], ["d", "m"]] {
        let mut session = Session::new();
        let mut requests = String::new();
        for (number, value) in values.iter().enumerate() {
            session.store.remember(&format!("m{number}"), value);
            session.store.put_on_disk(&format!("d{number}"), value);
            requests += &kinds.map(|kind| get(&format!("{kind}{number}"))).concat();
        }
        let found = [session.send(&requests), session.end_all()].concat();
        let expected = values.iter().flat_map(|value| [value, value]);
        assert!(found.into_iter().eq(expected.map(|value| format!("200 {value}").trim_end().to_owned())));
    }
}

#[test]
fn an_error_is_the_reply_to_its_request_alone() {
    let mut session = Session::new();
    session.send([set("a", "1"), set("b", "2"), set("c", "3")].concat());
    let failed = session.store.under_way.borrow_mut().remove(1);
    failed.result.set(Some(Err(Error::new(ErrorKind::DiskFull, "no space"))));
    let found = session.end_all();
    assert_eq!((found.len(), &found[0], &found[2]), (3, &"200 OK".into(), &"200 OK".into()));
    assert!(found[1].starts_with("507 the disk is full"), "{found:?}");
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let head = get("k").replace("GET", "HEAD");
    for in_memory in [true, false] {
        let mut session = Session::new();
        let value = vec![b'v'; 2 * COPY_BYTES_MAX];
        session.store.put_on_disk("k", &value);
        if in_memory {
            session.store.remember("k", &value);
        }
        session.client.0.sent.borrow_mut().push_back([head.as_str(), &get("x")].concat().into());
        let mut received = session.go_on();
        while !session.store.under_way().is_empty() {
            session.store.end(0);
            received.extend(session.go_on());
        }
        let received = String::from_utf8(received).unwrap();
        let (head, next) = received.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.ends_with(&format!("\r\ncontent-length: {}", value.len())), "{head}");
        assert_eq!(replies(next.as_bytes()), ["404 key not found"]);
    }
}

#[test]
fn a_connection_stays_open_as_the_version_and_the_header_say() {
    const OLD: &str = "GET /livez HTTP/1.0\r\n";
    const NEW: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n";
    for (line, fields, reply, closes) in [
        (NEW, "", "200 OK", false),
        (NEW, "Connection: keep-alive\r\n", "200 OK", false),
        (NEW, "Connection: close\r\n", "200 OK, close", true),
        (OLD, "", "200 OK, close", true),
        (OLD, "Connection: close, keep-alive\r\n", "200 OK, close", true),
        (OLD, "Connection: Keep-Alive\r\n", "200 OK, keep-alive", false),
    ] {
        let mut session = Session::new();
        // A request after the last one is not served, however early it comes.
        let found = session.send([line, fields, "\r\n", &set("k", "v")].concat());
        if closes {
            assert_eq!(found, [reply]);
            assert!(session.send(set("k", "v")).is_empty() && session.store.calls() == ["Livez"]);
            session.assert_closes();
        } else {
            assert_eq!(session.end_all(), [reply, "200 OK"]);
            assert!(!session.client.0.is_closed.get());
        }
    }
}

#[test]
fn a_request_that_closes_gets_its_reply_after_those_before_it() {
    let mut session = Session::new();
    let last = get("m").replace("Host", "Connection: close\r\nHost");
    session.store.remember("m", "lent");
    assert!(session.send([set("a", "1"), last, set("b", "2")].concat()).is_empty());
    assert_eq!(session.end("set a=1"), ["200 OK", "200 lent, close"]);
    session.assert_closes();
}

#[test]
fn after_a_refusal_the_connection_stays_open_if_no_body_follows() {
    for (request, reply) in [
        (get("k").replace("/get", "/nowhere"), "404 there is no such path"),
        (get("k").replace("GET", "POST"), "405 the path does not take this method"),
        (get(""), "400 the key is empty"),
        (set("k&value=v", "w"), "400 there are two values"),
    ] {
        let mut session = Session::new();
        session.store.put_on_disk("d", "read");
        session.store.remember("m", "lent");
        assert!(session.send([get("d"), request, get("m")].concat()).is_empty());
        let found = session.end("get d");
        assert_eq!((&*found[0], &*found[2]), ("200 read", "200 lent"), "{found:?}");
        assert!(found[1].starts_with(reply) && !found[1].ends_with(", close"), "{found:?}");
    }
}

#[test]
fn after_a_refusal_no_body_is_taken_for_a_request() {
    let hidden = set("hidden", "v");
    let chunked = "POST /nowhere?key=k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (request, status) in [
        (set("k", &hidden).replace("/set", "/nowhere"), 404),
        (set("k", &hidden).replace("POST", "GET"), 405),
        (set("", &hidden), 400),
        (format!("{chunked}{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()), 404),
        // Where the body ends is not certain.
        (set("k", &hidden).replace("Host", "Content-Length: 1\r\nHost"), 400),
        (set("k", &hidden).replace("Host: x\r\n", ""), 400),
        (set("k", &hidden).replace("Host", "Expect: miracles\r\nHost"), 417),
    ] {
        let mut session = Session::new();
        session.store.put_on_disk("d", "read");
        session.send([get("d"), request.clone()].concat());
        let found = session.end("get d");
        assert_eq!(found.len(), 2, "{request:?}: {found:?}");
        assert!(found[1].starts_with(&format!("{status} ")) && found[1].ends_with(", close"), "{found:?}");
        assert_eq!(session.store.calls().last().unwrap(), "get d");
        session.assert_closes();
    }
}

#[test]
fn a_body_may_arrive_in_pieces() {
    let by_length = set("k", "value").replace("Host", "A: b\r\nHost");
    let in_chunks = "POST /set?key=k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
        2;a=b\r\nva\r\n3\r\nlue\r\n0\r\nTrailer: x\r\n\r\n";
    for request in [&by_length, in_chunks] {
        let whole = [&get("m"), request, &get("k"), &get("m")].concat();
        for piece_bytes in 1..whole.len() {
            let mut session = Session::new();
            session.store.remember("m", "lent");
            let mut found = Vec::new();
            for piece in whole.as_bytes().chunks(piece_bytes) {
                found.extend(session.send(piece));
            }
            assert_eq!(session.store.under_way(), ["set k=value"], "pieces of {piece_bytes} bytes");
            found.extend(session.end("set k=value"));
            assert_eq!(found, ["200 lent", "200 OK", "200 value", "200 lent"], "{piece_bytes}");
        }
    }
}

#[test]
fn a_client_that_waits_for_a_go_ahead_gets_it_after_the_replies_before_it() {
    let expects = "Expect: 100-continue\r\n";
    let head = head_of_set("k", 5, expects);
    let in_chunks = head.replace("Content-Length: 5", "Transfer-Encoding: chunked");
    for (head, body) in [(&head, "value"), (&in_chunks, "5\r\nvalue\r\n0\r\n\r\n")] {
        let mut session = Session::new();
        assert!(session.send([&get("d"), head.as_str()].concat()).is_empty(), "a reply before it is missing");
        assert_eq!(session.end("get d"), ["404 key not found", "100"]);
        let (front, rest) = body.split_at(3);
        assert!(session.send(front).is_empty(), "the client is told once");
        session.send(rest);
        assert_eq!(session.end("set k=value"), ["200 OK"]);
        // A body that has already arrived needs no go-ahead.
        session.send([head, body].concat());
        assert_eq!(session.end("set k=value"), ["200 OK"]);
    }
    // A client that is refused must not send its body.
    let mut session = Session::new();
    let found = session.send(head_of_set("k", VALUE_BYTES_MAX + 1, expects));
    assert!(found.len() == 1 && found[0].starts_with("413 "), "{found:?}");
    session.assert_closes();
}

#[test]
fn a_body_that_is_too_long_is_refused_as_soon_as_that_is_known() {
    const LIMIT: usize = 100;
    let chunked = "POST /set?key=k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = "v".repeat(LIMIT);
    for (front, last) in [
        (String::new(), head_of_set("k", LIMIT + 1, "")),
        (String::new(), head_of_set("k", usize::MAX, "")),
        (chunked.into(), "65\r\n".into()),
        (format!("{chunked}64\r\n{chunk}\r\n"), "1\r\n".into()),
    ] {
        let mut session = Session::with_limits(LIMIT, REQUEST_BYTES_MAX);
        session.send([get("d"), front].concat());
        let mut found = session.end("get d");
        found.extend(session.send(last));
        let refusal = "413 the request body is longer than a value may be, close";
        assert_eq!(found, ["404 key not found", refusal]);
        assert_eq!(session.store.calls(), ["get d"]);
        session.assert_closes();
    }
    let mut session = Session::with_limits(LIMIT, REQUEST_BYTES_MAX);
    session.send([set("k", &chunk), format!("{chunked}64\r\n{chunk}\r\n0\r\n\r\n")].concat());
    assert_eq!(session.end_all(), ["200 OK", "200 OK"], "a body of exactly the limit is taken");
}

#[test]
fn z2_z3_bodies_share_memory_one_of_them_can_always_finish_and_the_others_wait_for_a_while() {
    let length = 2 * SHORT_INPUT_BYTES;
    let begin = Instant::now();
    let (head, body) = (head_of_set("k", length, ""), vec![b'v'; length]);
    // There is memory for two bodies and most of a third one, and the part that is set aside for another one.
    let mut first = Session::with_limits(2 * length, 6 * length);
    let mut others: Vec<_> = (0..4).map(|_| Session::beside(first.peers.clone())).collect();
    let begins = |session: &mut Session| {
        session.send([head.as_bytes(), &body[..length - 1]].concat());
        session.go_on();
        session.go_on();
        !session.has_unread()
    };
    assert!(begins(&mut first) && begins(&mut others[0]) && begins(&mut others[1]));
    assert!(!begins(&mut others[2]) && !begins(&mut others[3]), "they are not read from");
    // Small requests wait for nobody.
    let mut small = Session::beside(first.peers.clone());
    small.send(set("k", "v"));
    assert_eq!(small.end_all(), ["200 OK"]);
    // The body whose turn it is comes to its end, and so does the one that has waited for longest.
    let finish = |session: &mut Session| {
        session.send("v");
        while session.has_unread() {
            session.go_on();
        }
        session.end_all()
    };
    assert_eq!(finish(&mut others[1]), ["200 OK"]);
    assert!(others[3].has_unread(), "nobody goes ahead");
    assert_eq!(finish(&mut others[2]), ["200 OK"]);
    others[3].go_on();
    assert!(!others[3].has_unread());
    // Others are refused after ten seconds, and a client that keeps them waiting gets 408.
    let mut late: Vec<_> = (0..6).map(|_| Session::beside(first.peers.clone())).collect();
    late.retain_mut(|session| !begins(session));
    assert!(2 < late.len(), "there is memory for a few only");
    let memory = first.peers.memory.clone();
    let mut found = Vec::new();
    for second in 1..=12 {
        memory.tick();
        tick(&first, begin, second);
        found.extend(late.iter_mut().flat_map(|session| replies(&session.go_on())));
    }
    let refusal = "503 too many large requests are under way; try again later, close";
    assert!(found.len() == late.len() && found.iter().all(|reply| reply == refusal), "{found:?}");
    assert!(replies(&first.go_on())[0].starts_with("408 "), "it held memory and sent nothing");
}

/// Some time later. The clock of a thread moves once a second.
fn tick(session: &Session, from: Instant, seconds: u64) {
    session.peers.tick(from + Duration::from_secs(seconds), "Thu, 01 Jan 1970 00:00:00 GMT");
}

#[test]
fn after_the_last_reply_what_still_comes_is_dropped_for_a_while() {
    let begin = Instant::now();
    let mut session = Session::new();
    let found = session.send("nonsense\r\n\r\n");
    assert!(found.len() == 1 && found[0].starts_with("400 ") && found[0].ends_with(", close"), "{found:?}");
    for second in 1..20 {
        // However much it is.
        for _ in 0..10 {
            assert!(session.send(set("k", &"v".repeat(500_000))).is_empty());
        }
        tick(&session, begin, second);
        if session.client.0.is_closed_for_reading.get() {
            assert!(5 < second, "{second}");
            break;
        }
    }
    session.client.0.sent.borrow_mut().clear();
    session.go_on();
    assert!(session.serving.is_none() && session.store.calls().is_empty());
}

#[test]
fn a_connection_beyond_the_limit_is_told_so_while_its_client_still_sends() {
    let session = Session::new();
    let client = Client::default();
    let mut refusing: Pin<Box<dyn Future<Output = ()>>> =
        Box::pin(async { refuse(client.clone(), &session.peers, "too many connections now").await });
    client.0.sent.borrow_mut().push_back(vec![b'v'; 100_000]);
    let poll = |refusing: &mut Pin<Box<dyn Future<Output = ()> + '_>>| {
        refusing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    assert!(!poll(&mut refusing), "the client is waited for");
    let found = replies(&client.0.received.take());
    assert_eq!(found, ["503 too many connections now, close"]);
    assert!(client.0.sent.borrow().is_empty() && client.0.is_closed.get());
    client.0.has_ended.set(true);
    assert!(poll(&mut refusing));
}

#[test]
fn a_silent_client_gets_408_and_a_slow_one_is_served() {
    let begin = Instant::now();
    let mut silent = Session::new();
    let mut slow = Session::beside(silent.peers.clone());
    let mut idle = Session::beside(silent.peers.clone());
    idle.go_on();
    silent.send(head_of_set("k", 100, ""));
    let length: usize = 120_000;
    slow.send(head_of_set("k", length, ""));
    let mut sent = 0;
    for second in 1.. {
        let piece = 2_000.min(length - sent);
        let found = slow.send(vec![b'v'; piece]);
        assert!(found.is_empty(), "{found:?}");
        sent += piece;
        tick(&silent, begin, second);
        if sent == length {
            break;
        }
    }
    assert_eq!(slow.end_all(), ["200 OK"]);
    let found = replies(&silent.go_on());
    assert_eq!(found, ["408 the rest of the request did not come in time, close"]);
    assert!(silent.client.0.is_closed.get() && silent.serving.is_some(), "the client gets time to read it");
    for second in 70..72 {
        tick(&silent, begin, second);
        silent.go_on();
    }
    assert!(silent.serving.is_none());
    // A connection without a request closes without a word.
    tick(&idle, begin, 80);
    assert!(idle.go_on().is_empty() && idle.serving.is_none());
}

#[test]
fn the_connection_that_was_idle_for_longest_gives_way() {
    let begin = Instant::now();
    let mut busy = Session::new();
    let mut sessions: Vec<_> = (0..3).map(|_| Session::beside(busy.peers.clone())).collect();
    busy.send(get("k"));
    sessions.iter_mut().for_each(|session| drop(session.go_on()));
    assert!(!busy.peers.give_way(), "nobody was idle for long enough");
    for (second, session) in (1..).zip(&mut sessions) {
        tick(session, begin, second);
        session.send(get("k"));
        session.end_all();
    }
    tick(&busy, begin, 10);
    for gone in 1..=3 {
        assert!(busy.peers.give_way());
        for (index, session) in sessions.iter_mut().enumerate() {
            session.go_on();
            assert_eq!(session.serving.is_none(), index < gone);
        }
    }
    assert!(!busy.peers.give_way(), "a connection with a request does not give way");
    assert_eq!(busy.end_all(), ["404 key not found"]);
}

#[test]
fn while_the_server_drains_every_reply_is_the_last_of_its_connection() {
    let (mut busy, mut idle) = (Session::new(), Session::new());
    busy.send(set("k", "v"));
    idle.send([get("m"), get("m")].concat());
    idle.end_all();
    for session in [&busy, &idle] {
        session.peers.drain();
    }
    // Requests that have begun get their replies.
    assert_eq!(busy.end("set k=v"), ["200 OK"]);
    busy.assert_closes();
    idle.go_on();
    assert!(idle.serving.is_none());
    let mut reading = Session::new();
    let request = set("k", "v");
    let (front, rest) = request.split_at(10);
    reading.send(front);
    reading.peers.drain();
    reading.send([rest, &get("m")].concat());
    assert_eq!(reading.end("set k=v"), ["200 OK, close"]);
    reading.assert_closes();
}

#[test]
fn after_the_request_to_stop_nothing_is_served() {
    let mut session = Session::new();
    let stop = "GET /shutdown HTTP/1.1\r\nHost: x\r\n\r\n";
    session.send([&set("a", "1"), stop, &set("b", "2")].concat());
    assert_eq!(session.peers.watchers(), 0, "a reply before it is missing");
    assert_eq!(session.store.under_way(), ["set a=1"]);
    session.store.end(0);
    let begun = String::from_utf8(session.go_on()).unwrap();
    assert!(begun.contains("200 OK\r\n") && begun.ends_with("connection: close\r\n\r\n"), "{begun}");
    assert_eq!(session.peers.watchers(), 1);
    let stop = session.store.stop.take().unwrap();
    stop.send("drained\n".into()).unwrap();
    assert_eq!(session.go_on(), b"8\r\ndrained\n\r\n");
    drop(stop);
    assert_eq!(session.go_on(), b"0\r\n\r\n");
    assert_eq!((session.store.under_way().len(), session.peers.watchers()), (0, 0));
    session.assert_closes();
}
