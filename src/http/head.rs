//! Request line and headers: where they end, and what they say about the body. Pure.
//!
//! `httparse` reads the fields. It accepts bare line feeds, which RFC 9112 does not allow; they are refused here. So is
//! everything that leaves the length of the body ambiguous: that is how requests are smuggled past a proxy.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{HEADERS_BYTES_MAX, HEADERS_MAX, Refusal, Status, TARGET_BYTES_MAX};

/// Bytes of a request line in addition to its target: the longest method, two spaces, the version.
const LINE_OVERHEAD_BYTES: usize = 64;

/// Methods that at least one path accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read, without the body.
    Head,
    /// Write.
    Post,
    /// Write.
    Put,
    /// Delete.
    Delete,
    /// Ask which methods there are.
    Options,
    /// Any other.
    Other,
}

/// How the body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// By `Content-Length`.
    Length(u64),
    /// By `Transfer-Encoding: chunked`.
    Chunked,
}

/// A valid head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Where the target is in the bytes of the request.
    pub target: Range<usize>,
    /// Whether the request is HTTP/1.0.
    pub old: bool,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the connection stays open afterwards.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// A browser says that it sends the request for a page of another site, or before its user has asked for it.
    pub foreign: bool,
    /// Bytes of the head.
    pub bytes: usize,
}

/// Finds the end of a head that arrives piece by piece, looking at each byte once.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadEnd {
    /// Bytes looked at.
    scanned: usize,
    /// Where the current line begins.
    line: usize,
    /// Where the request line ends; 0 until that is known.
    first_line_end: usize,
}

impl HeadEnd {
    /// The length of the head at the front of `bytes`, or `None` if its end has not arrived. Call it again with the same
    /// bytes, followed by what arrives next.
    ///
    /// # Errors
    /// 400 for a line that does not end in CR LF, 414 and 431 for what is too long.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(at) = memchr::memchr(b'\n', bytes.get(self.scanned..).unwrap_or_default()) {
            let at = self.scanned + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Refusal::bad("a line of the request head does not end in CR LF"));
            }
            self.scanned = at + 1;
            let empty = self.line + 1 == at;
            self.line = at + 1;
            if self.first_line_end == 0 {
                if empty {
                    continue; // empty lines before a request are ignored (RFC 9112, 2.2)
                }
                self.first_line_end = at + 1;
            } else if empty {
                self.check_length(at + 1)?;
                return Ok(Some(at + 1));
            }
        }
        self.scanned = bytes.len();
        self.check_length(bytes.len())?;
        Ok(None)
    }

    fn check_length(&self, bytes: usize) -> Result<(), Refusal> {
        if self.first_line_end == 0 {
            if TARGET_BYTES_MAX + LINE_OVERHEAD_BYTES < bytes {
                return Err(TARGET_TOO_LONG);
            }
        } else if HEADERS_BYTES_MAX < bytes - self.first_line_end {
            return Err(HEADERS_TOO_LONG);
        }
        Ok(())
    }
}

const TARGET_TOO_LONG: Refusal =
    Refusal::new(Status::UriTooLong, "the request target is longer than 131072 bytes");
const HEADERS_TOO_LONG: Refusal =
    Refusal::new(Status::HeadersTooLarge, "the request headers are longer than 16384 bytes or more than 64");

/// Reads a whole head, as [`HeadEnd`] found it.
///
/// # Errors
/// The status and sentence of the refusal.
pub fn parse(bytes: &[u8]) -> Result<Head, Refusal> {
    // Most requests have a few fields. The other elements are never read, so they stay uninitialised.
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Refusal::bad("the request head is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(HEADERS_TOO_LONG),
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(
                Status::VersionNotSupported,
                "the only supported versions are HTTP/1.1 and HTTP/1.0",
            ));
        }
        Err(_) => return Err(Refusal::bad("the request head is malformed")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("the request head is malformed"));
    };
    if TARGET_BYTES_MAX < target.len() {
        return Err(TARGET_TOO_LONG);
    }
    let old = version == 0;
    let fields = Fields::of(request.headers)?;
    if fields.hosts != 1 && !(old && fields.hosts == 0) {
        return Err(Refusal::bad("the request needs exactly one Host header"));
    }
    let framing = match (fields.transfer_encodings, fields.length) {
        (0, None) => Framing::Empty,
        (0, Some(length)) => Framing::Length(length),
        (1, None) if fields.chunked && !old => Framing::Chunked,
        (1, None) if !old => {
            return Err(Refusal::new(
                Status::NotImplemented,
                "the only supported transfer encoding is chunked",
            ));
        }
        _ => return Err(Refusal::bad("the length of the request body is ambiguous")),
    };
    // The target lies within the bytes. Its range remains when the borrow ends.
    let start = target.as_ptr().addr() - bytes.as_ptr().addr();
    Ok(Head {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        },
        target: start..start + target.len(),
        old,
        framing,
        keep_alive: if old { fields.keep_alive && !fields.close } else { !fields.close },
        expects_continue: fields.expects_continue && !old,
        foreign: fields.prefetched
            || fields
                .foreign
                .unwrap_or_else(|| fields.origin.is_some_and(|origin| !is_origin_of(origin, fields.host))),
        bytes: bytes.len(),
    })
}

/// The header fields that change how a request is read.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    host: &'a [u8],
    origin: Option<&'a [u8]>,
    /// What the browser says of the page.
    foreign: Option<bool>,
    prefetched: bool,
    length: Option<u64>,
    transfer_encodings: usize,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> Fields<'a> {
    fn of(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = header.value.trim_ascii();
            if is("host") {
                fields.hosts += 1;
                fields.host = value;
            } else if is("content-length") {
                if fields.length.is_some() {
                    return Err(Refusal::bad("the length of the request body is ambiguous"));
                }
                fields.length = Some(decimal(value)?);
            } else if is("transfer-encoding") {
                fields.transfer_encodings += 1;
                fields.chunked = value.eq_ignore_ascii_case(b"chunked");
            } else if is("connection") {
                for token in value.split(|byte| *byte == b',') {
                    let token = token.trim_ascii();
                    fields.close |= token.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(
                        Status::ExpectationFailed,
                        "the only supported expectation is 100-continue",
                    ));
                }
                fields.expects_continue = true;
            } else if is("origin") {
                fields.origin = Some(value);
            } else if is("sec-fetch-site") {
                // `none`: the user has typed the address.
                fields.foreign = Some(!matches!(value, b"same-origin" | b"none"));
            } else if is("sec-purpose") || is("purpose") || is("x-moz") {
                fields.prefetched |= value.starts_with(b"prefetch");
            }
        }
        Ok(fields)
    }
}

/// Whether `origin`, as browsers send it, is a page that this server has sent under the name `host`.
fn is_origin_of(origin: &[u8], host: &[u8]) -> bool {
    let schemes: [(&[u8], &[u8]); 2] = [(b"http://", b":80"), (b"https://", b":443")];
    schemes.iter().any(|(scheme, port)| {
        let without = |name: &'_ [u8]| name.strip_suffix(*port).unwrap_or(name).to_ascii_lowercase();
        origin.strip_prefix(*scheme).is_some_and(|name| without(name) == without(host))
    })
}

/// A number of digits only: `str::parse` would accept a sign.
fn decimal(digits: &[u8]) -> Result<u64, Refusal> {
    let wrong = Refusal::bad("the Content-Length is not a number");
    if digits.is_empty() {
        return Err(wrong);
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(wrong.clone())?;
        number.checked_mul(10).and_then(|number| number.checked_add(u64::from(digit))).ok_or(wrong.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Head, Refusal> {
        let mut end = HeadEnd::default();
        let whole = end.find(text.as_bytes())?.expect("the head is complete");
        parse(&text.as_bytes()[..whole])
    }

    fn status(text: &str) -> u16 {
        read(text).expect_err(text).status.code()
    }

    #[test]
    fn a_plain_request_is_understood() {
        let text = "\r\nPOST /set?key=k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nvalue";
        let head = read(text).unwrap();
        assert_eq!(&text[head.target.clone()], "/set?key=k");
        assert_eq!((head.method, head.framing), (Method::Post, Framing::Length(5)));
        assert!(head.keep_alive && head.expects_continue && !head.old);
        assert_eq!(&text[head.bytes..], "value");
        assert!(!read("GET / HTTP/1.1\r\nHost: x\r\nConnection: a, close\r\n\r\n").unwrap().keep_alive);
        let old = read("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(old.old && !old.keep_alive);
        assert!(read("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().keep_alive);
    }

    #[test]
    fn what_a_browser_sends_for_another_site_is_known() {
        for (fields, foreign) in [
            ("", false),
            ("Origin: http://x:1\r\n", false),
            ("Origin: https://X:1\r\n", false),
            // Behind a proxy the name may be another one; the browser knows better.
            ("Origin: http://public.example\r\nSec-Fetch-Site: same-origin\r\n", false),
            ("Sec-Fetch-Site: same-origin\r\n", false),
            ("Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", false),
            ("Sec-Fetch-Site: cross-site\r\n", true),
            ("sec-fetch-site: same-site\r\n", true),
            ("Origin: http://evil.example\r\n", true),
            ("Origin: http://x:2\r\n", true),
            ("Origin: null\r\n", true),
            ("Sec-Purpose: prefetch;prerender\r\n", true),
            ("Purpose: prefetch\r\n", true),
        ] {
            let head = read(&format!("GET / HTTP/1.1\r\nHost: x:1\r\n{fields}\r\n")).unwrap();
            assert_eq!(head.foreign, foreign, "{fields:?}");
        }
    }

    #[test]
    fn the_end_is_found_at_the_same_place_however_the_bytes_arrive() {
        let text = b"GET /get?key=k HTTP/1.1\r\nHost: x\r\n\r\nGET /";
        let mut end = HeadEnd::default();
        for length in 0..text.len() {
            let found = end.find(&text[..length]).unwrap();
            assert_eq!(found, (36 <= length).then_some(36), "{length}");
            if found.is_some() {
                break;
            }
        }
    }

    #[test]
    fn h1_what_can_be_read_in_two_ways_is_refused() {
        for head in [
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
        ] {
            assert_eq!(status(head), 400, "{head:?}");
        }
        for length in ["", "+5", "-1", "0x5", "5,5", "5 5", "18446744073709551616"] {
            assert_eq!(
                status(&format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")),
                400
            );
        }
        assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"), 501);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n"), 417);
        assert_eq!(status("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), 505);
    }

    #[test]
    fn p8_what_is_too_long_is_refused_before_it_has_arrived() {
        let find =
            |text: &str| HeadEnd::default().find(text.as_bytes()).map_err(|refusal| refusal.status.code());
        assert_eq!(find(&"G".repeat(TARGET_BYTES_MAX)), Ok(None));
        assert_eq!(find(&"G".repeat(TARGET_BYTES_MAX + 100)), Err(414));
        let head = "GET / HTTP/1.1\r\nHost: x\r\n";
        assert_eq!(find(&format!("{head}A: {}", "b".repeat(HEADERS_BYTES_MAX))), Err(431));
        assert_eq!(status(&format!("{head}{}\r\n", "A: b\r\n".repeat(64))), 431);
        assert!(read(&format!("{head}{}\r\n", "A: b\r\n".repeat(63))).is_ok());
        let target = "a".repeat(TARGET_BYTES_MAX);
        assert!(read(&format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", &target[1..])).is_ok());
        assert_eq!(status(&format!("GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n")), 414);
    }
}
