//! What is measured of requests, and what their clients are told of it.

use super::super::super::output::{COPY_BYTES_MAX, SMALL_BYTES};
use super::super::super::{LONG_BODY_BYTES, PIPELINE_MAX};
use super::super::SHORT_INPUT_BYTES;
use super::session::*;
use crate::key::UnixMillis;
use crate::random::Random;

/// A request of a random kind for `key`, and its reply.
fn request(random: &mut Random, session: &Session, key: &str, timing: &str) -> (String, String) {
    let named = format!("{key}{timing}");
    let both = "400 there are two values: the query parameter `value`, and a body";
    match random.below(9) {
        0 => (get(&named), "404 key not found".into()),
        1 => {
            session.store.remember(key, "value");
            (get(&named), "200 value".into())
        }
        2 => {
            let value = "long".repeat(COPY_BYTES_MAX / 4 - random.below(2) as usize);
            session.store.remember(key, &value);
            (get(&named), format!("200 {value}"))
        }
        3 => (set(&named, "v"), "200 OK".into()),
        4 => (set(&named, &"v".repeat(LONG_BODY_BYTES + 1)), "200 OK".into()),
        5 => {
            let head =
                format!("PUT /set?key={named} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            (head + "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "200 OK".into())
        }
        6 => (delete(&named), "404 key not found".into()),
        7 => (set(&format!("{named}&value=w"), "v"), both.into()),
        _ => {
            let query = timing.trim_start_matches('&');
            (format!("GET /livez?{query} HTTP/1.1\r\nHost: x\r\n\r\n"), "200 OK".into())
        }
    }
}

#[test]
fn a_reply_says_where_the_time_of_its_own_request_went() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut session = Session::new();
        if seed % 2 == 0 {
            session.peers.log_requests("1/3".parse().unwrap());
        }
        let (mut bytes, mut expected) = (String::new(), Vec::new());
        for number in 1..=200 {
            let timing = if random.below(3) == 0 { "&timing=1" } else { "" };
            let (request, reply) = request(&mut random, &session, &format!("k{number}"), timing);
            let told = match timing {
                "" => String::new(),
                _ if request.contains("value=w") || request.contains("livez") => ", timed".into(),
                _ => format!(", timed {number}"),
            };
            bytes.push_str(&request);
            expected.push(reply + &told);
        }
        let found = session.exchange(&mut random, &bytes, 20_000, |_| {});
        assert_eq!(found, expected, "seed {seed}");
    }
    let mut session = Session::new();
    let wrong = "400 `timing` takes the value 1, and no other";
    assert_eq!(session.send(get("k&timing=2") + &get("k&timing=")), [wrong, wrong]);
    assert_eq!(session.send(get("k&timing=1&timing=1")), ["400 a query parameter is given twice"]);
}

#[test]
fn some_requests_are_measured_although_they_do_not_ask_for_it() {
    let mut session = Session::new();
    session.store.remember("k", "value");
    for _ in 0..16 {
        session.send(get("k").repeat(PIPELINE_MAX));
    }
    let slowest = session.peers.sample(UnixMillis(1)).slowest;
    assert!((2..=8).contains(&slowest.len()), "of 1,024, eight are measured on average: {slowest:?}");
    assert!(slowest.iter().all(|request| request.endpoint == "get" && request.bytes_out == 5));
}

#[test]
fn a_value_is_lent_to_a_request_that_is_measured_as_to_any_other() {
    for bytes in [1, SMALL_BYTES, SMALL_BYTES + 1, COPY_BYTES_MAX] {
        let mut session = Session::new();
        session.store.remember("k", vec![b'v'; bytes]);
        for target in ["k", "k&timing=1"] {
            session.store.calls();
            assert_eq!(session.send(get(target)).len(), 1, "{bytes} bytes");
            assert_eq!(
                session.store.calls(),
                ["get k"],
                "{bytes} bytes: the store had to find memory for a copy"
            );
        }
    }
}

#[test]
fn the_time_of_a_client_is_left_out_and_a_wait_for_memory_is_not() {
    // The operation on `k5` seems to begin five seconds after the body is there.
    let length = 2 * SHORT_INPUT_BYTES;
    let (head, body) = (head_of_set("k5&timing=1", length, ""), vec![b'v'; length]);
    let mut first = Session::with_limits(2 * length, 6 * length);
    let mut others: Vec<_> = (0..4).map(|_| Session::beside(first.peers.clone())).collect();
    let begins = |session: &mut Session| {
        session.send([head.as_bytes(), &body[..length - 1]].concat());
        session.go_on();
        session.go_on();
        !session.has_unread()
    };
    let finish = |session: &mut Session| {
        session.send("v");
        while session.has_unread() {
            session.go_on();
        }
        session.end_all()
    };
    assert!(begins(&mut first) && begins(&mut others[0]) && begins(&mut others[1]));
    assert!(!begins(&mut others[2]), "there is memory for three of them");
    for session in &others {
        session.store.clock.set(3_000);
    }
    assert_eq!(finish(&mut others[1]), ["200 OK, timed 5"], "its client took three seconds for its body");
    assert_eq!(finish(&mut others[2]), ["200 OK, timed 8"], "it has waited for three seconds");
    // A chunk that is wrong comes late.
    let mut session = Session::new();
    session.send("PUT /set?key=k&timing=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    session.store.clock.set(60_000);
    session.client.0.sent.borrow_mut().push_back(b"nonsense\r\n".to_vec());
    let reply = String::from_utf8(session.go_on()).unwrap();
    assert!(
        reply.starts_with("HTTP/1.1 400 ") && reply.contains("server-timing: total;dur=0.000\r\n"),
        "{reply}"
    );
}
