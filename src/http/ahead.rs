//! Which keys the requests that have arrived ask for, before any of them is looked at. Pure.
//!
//! A guess: the bytes behind `/get?key=`, wherever that stands. What is written with escapes or behind another
//! parameter is guessed wrong or missed, and a body may look like a request. Nothing but time depends on it (see
//! [`super::Handler::prefetch`]), so it need not be right, only cheap: the keys of one look do not overlap, so together
//! they are no longer than what is looked at. A request that arrives byte by byte is looked at again each time.

use memchr::memmem::Finder;

/// Bytes that are looked at. A read takes 4 KiB, unless a request has begun before.
const BYTES_MAX: usize = 4 << 10;

/// Finds keys in input.
#[derive(Debug)]
pub struct KeysAhead(Finder<'static>);

impl Default for KeysAhead {
    fn default() -> Self {
        Self(Finder::new(b"/get?key="))
    }
}

impl KeysAhead {
    /// The keys that `input` seems to ask for, in order.
    pub fn of<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = &input[..input.len().min(BYTES_MAX)];
        std::iter::from_fn(move || {
            let key = &rest[self.0.find(rest)? + self.0.needle().len()..];
            let end = memchr::memchr2(b' ', b'&', key)?;
            rest = &key[end..];
            Some(&key[..end])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Command;
    use crate::http::head::{HeadEnd, parse};
    use crate::http::route::Route;

    fn found(input: &[u8]) -> Vec<Vec<u8>> {
        KeysAhead::default().of(input).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn pipelined_gets_show_the_keys_that_they_turn_out_to_ask_for() {
        let gets: Vec<Vec<u8>> = ["key1", "k/2", "?key=3"]
            .iter()
            .map(|key| format!("GET /get?key={key} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes())
            .collect();
        let keys: Vec<Vec<u8>> = gets
            .iter()
            .map(|request| {
                let end = HeadEnd::default().find(request).unwrap().unwrap();
                let head = parse(&request[..end]).unwrap();
                match Route::of(&head, &request[head.target.clone()]).unwrap().command(b"").unwrap() {
                    Command::Get { key } => key.into_owned(),
                    other => panic!("{other:?} is no get"),
                }
            })
            .collect();
        assert_eq!(found(&gets.concat()), keys);
    }

    #[test]
    fn only_what_looks_like_a_whole_get_shows_a_key() {
        let input = b"GET /get?key=a&other=v HTTP/1.1\r\nHost: h\r\n\r\n\
            POST /set?key=b&value=v HTTP/1.1\r\nHost: h\r\n\r\n\
            POST /set?key=c HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody\
            GET /livez HTTP/1.1\r\nHost: h\r\n\r\n\
            HEAD http://host/get?key=d%20 HTTP/1.1\r\nHost: h\r\n\r\n\
            GET /get?key=incompl";
        assert_eq!(found(input), [&b"a"[..], b"d%20"]);
        assert!(found(b"").is_empty() && found(b"/get?key=").is_empty());
    }

    #[test]
    fn keys_do_not_overlap_and_only_the_beginning_is_looked_at() {
        let overlapping = [&b"/get?key=".repeat(64)[..], b"x HTTP/1.1"].concat();
        assert_eq!(found(&overlapping), [&overlapping[9..overlapping.len() - 9]]);
        let many = b"/get?key=k ".repeat(BYTES_MAX);
        assert_eq!(found(&many).len(), BYTES_MAX / 11);
    }
}
