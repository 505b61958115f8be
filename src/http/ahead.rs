//! Which keys the requests that have arrived ask for, before any of them is looked at. Pure.
//!
//! A guess: the bytes behind `/get?key=`, wherever that stands. A key that is written with escapes is guessed wrong, a
//! body may look like a request. Nothing but time depends on it (see [`super::Handler::prefetch`]), so it need not be
//! right, only cheap.

use memchr::memmem::Finder;

use super::PIPELINE_MAX;

/// Bytes that are looked at: as many as pipelined requests take as a rule.
const BYTES_MAX: usize = 16 << 10;

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
        let input = &input[..input.len().min(BYTES_MAX)];
        let places = self.0.find_iter(input).take(PIPELINE_MAX);
        places.map_while(|at| {
            let key = &input[at + self.0.needle().len()..];
            memchr::memchr2(b' ', b'&', key).map(|end| &key[..end])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_gets_show_their_keys() {
        let input = b"GET /get?key=a HTTP/1.1\r\nHost: h\r\n\r\n\
            POST /set?key=b&value=v HTTP/1.1\r\nHost: h\r\n\r\n\
            GET /get?key=c+d&other=v HTTP/1.1\r\nHost: h\r\n\r\n\
            POST /set?key=d HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody\
            GET /livez HTTP/1.1\r\nHost: h\r\n\r\n\
            HEAD http://host/get?key=e%20 HTTP/1.1\r\nHost: h\r\n\r\n\
            GET /get?key=incompl";
        let found = |input: &[u8]| {
            KeysAhead::default()
                .of(input)
                .map(|key| String::from_utf8_lossy(key).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(input), ["a", "c+d", "e%20"]);
        assert!(found(b"").is_empty() && found(b"/get?key=").is_empty());
        assert_eq!(found(&b"GET /get?key=k HTTP/1.1\r\n\r\n".repeat(1000)).len(), PIPELINE_MAX);
    }
}
